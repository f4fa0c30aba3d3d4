"""Arrays in files from outside: their headers are read first, and no more is unpacked than they declare."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

import numpy as np

# Pictures compress to a fifth, drawings to a thirtieth; deflate packs zeros a thousandfold.
_MAX_RATIO = 100
# What is taken whatever its ratio.
_SMALL_BYTES = 64 << 20
# A name, its type and shape; numpy writes 128 bytes for arrays like those of EdgeKit.
_MAX_HEADER = 10_000

_BLOCK_BYTES = 1 << 20

# Errors of damaged archives, beside ValueError.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, NotImplementedError,
                  RuntimeError)  # fmt: skip


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the named arrays that are in an .npz file.

    Raises:
        one of ARCHIVE_ERRORS: it is damaged, holds other things than plain arrays, or declares far more than its size.
    """
    found = {}
    room = _most(path)
    with zipfile.ZipFile(path) as archive:
        for name in names:
            if f"{name}.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as stream:
                    found[name] = read_npy(stream, room)
                room -= found[name].nbytes
    return found


def read_npy(stream: IO[bytes], most: int) -> np.ndarray:
    """An array of plain numbers or texts, of at most so many bytes.

    Raises:
        ValueError: it is another kind of array, declares more than `most` bytes, or holds another number of them.
    """
    kind, shape, fortran = npy_header(stream)
    if kind.hasobject or kind.kind not in "biufU" or kind.itemsize == 0:
        raise ValueError(f"an array of {str(kind)[:80]}")
    size = math.prod(shape) * kind.itemsize
    if size > most:
        raise ValueError(f"an array that declares {size} bytes, more than the file can hold")
    array = _read_exactly(stream, size).view(kind)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def npy_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """(type, shape, whether the first index varies fastest) of the array that a stream begins with.

    Raises:
        ValueError: it begins with none.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = readers[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy evaluates it as a Python literal: errors of the parser, of types, of recursion
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"an array whose header cannot be read: {reason}") from error
    if len(shape) > 8 or any(side < 0 for side in shape):
        raise ValueError(f"an array of the shape {str(shape)[:80]}")
    return kind, shape, fortran


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file (LeCun's MNIST format), gzipped or not.

    Raises:
        one of ARCHIVE_ERRORS: it is none, is cut short, or declares far more than its size.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if packed else file as stream:
            # two zero bytes, the type (8 = uint8), the number of dimensions, then each as a big-endian int32
            head = stream.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                raise ValueError("not an idx file of bytes")
            sides = stream.read(4 * head[3])
            shape = tuple(int(side) for side in np.frombuffer(sides[: len(sides) // 4 * 4], ">u4"))
            size = math.prod(shape)
            if len(shape) != head[3] or len(shape) > 8 or size > _most(path):
                raise ValueError("its header declares more than the file can hold")
            return _read_exactly(stream, size).reshape(shape)


def _read_exactly(stream: _Readable, size: int) -> np.ndarray:
    """uint8 [size], the rest of a stream."""
    content = np.empty(size, np.uint8)  # memory that is not written to is not taken
    at = 0
    while at < size:
        block = stream.read(min(_BLOCK_BYTES, size - at))
        if not block:
            raise ValueError(f"truncated: {at} of {size} bytes")
        content[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    if stream.read(1):
        raise ValueError(f"more than the {size} bytes that its header declares")
    return content


def _most(path: Path) -> int:
    """How many bytes a file of this size may unpack to."""
    return max(_SMALL_BYTES, _MAX_RATIO * path.stat().st_size)
