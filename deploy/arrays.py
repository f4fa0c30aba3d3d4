"""Reading of untrusted array files: headers are checked first, and no more is unpacked than they declare."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

import numpy as np

# Photos compress to a fifth, drawings to a thirtieth; deflate compresses zeros a thousandfold.
_MAX_RATIO = 100
# Accepted at any compression ratio.
_SMALL_BYTES = 64 << 20
# Bytes of a header with type and shape; numpy writes 128 for EdgeKit's arrays.
_MAX_HEADER = 10_000

_BLOCK_BYTES = 1 << 20

# What reading a damaged archive may raise.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, NotImplementedError,
                  RuntimeError)  # fmt: skip


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read those of the named arrays that an .npz file contains.

    Raises:
        one of ARCHIVE_ERRORS: it is damaged, contains anything but plain arrays, or declares far more than its size.
    """
    loaded = {}
    budget = _max_unpacked(path)
    with zipfile.ZipFile(path) as archive:
        for name in names:
            if f"{name}.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as stream:
                    loaded[name] = read_npy(stream, budget)
                budget -= loaded[name].nbytes
    return loaded


def read_npy(stream: IO[bytes], max_bytes: int) -> np.ndarray:
    """Read an array of numbers or texts of at most `max_bytes`.

    Raises:
        ValueError: it is another kind of array, declares more than `max_bytes`, or its data has another size.
    """
    kind, shape, fortran = npy_header(stream)
    if kind.hasobject or kind.kind not in "biufU" or kind.itemsize == 0:
        raise ValueError(f"unsupported array type {str(kind)[:80]}")
    size = math.prod(shape) * kind.itemsize
    if size > max_bytes:
        raise ValueError(f"the array declares {size} bytes, more than the file can hold")
    array = _read_exactly(stream, size).view(kind)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def npy_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """(type, shape, whether the first index varies fastest) of the array at the start of a stream.

    Raises:
        ValueError: the stream does not start with a valid array header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = readers[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy evaluates the header as Python: syntax, type or recursion errors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"the array's header cannot be read: {reason}") from error
    if len(shape) > 8 or any(side < 0 for side in shape):
        raise ValueError(f"unsupported array shape {str(shape)[:80]}")
    return kind, shape, fortran


def read_idx(path: Path) -> np.ndarray:
    """Read the uint8 array of an idx file (LeCun's MNIST format), gzipped or not.

    Raises:
        one of ARCHIVE_ERRORS: it is not an idx file, is truncated, or declares far more than its size.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if gzipped else file as stream:
            # two zero bytes, the type (8 = uint8), the number of dimensions, then each as a big-endian int32
            head = stream.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                raise ValueError("not an idx file of uint8 values")
            sides = stream.read(4 * head[3])
            shape = tuple(int(side) for side in np.frombuffer(sides[: len(sides) // 4 * 4], ">u4"))
            size = math.prod(shape)
            if len(shape) != head[3] or len(shape) > 8 or size > _max_unpacked(path):
                raise ValueError("its header declares more than the file can hold")
            return _read_exactly(stream, size).reshape(shape)


def _read_exactly(stream: _Readable, size: int) -> np.ndarray:
    """Read the rest of a stream, which must be `size` bytes long, as uint8 [size]."""
    content = np.empty(size, np.uint8)  # memory is allocated only as it is written
    at = 0
    while at < size:
        block = stream.read(min(_BLOCK_BYTES, size - at))
        if not block:
            raise ValueError(f"truncated: {at} of {size} bytes")
        content[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    if stream.read(1):
        raise ValueError(f"the data exceeds the {size} bytes that its header declares")
    return content


def _max_unpacked(path: Path) -> int:
    """Maximum number of bytes that a file of this size may unpack to."""
    return max(_SMALL_BYTES, _MAX_RATIO * path.stat().st_size)
