"""Fingerprints of images: of their content, to find the very same image, and of their looks, to find one like it.

A fingerprint is three uint64: the first 8 bytes of SHA-256 of the file's bytes (of an array: of its shape and bytes),
and 128 bits of its low frequencies, both 0 where the image has no looks (it is plain, or was not looked at).
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import DataError
from .images import ImageSet
from .preprocess import eight_bits, opened

WIDTH = 3

# The data set's parts, and what quantize used that is in none of them.
PARTS = ("train", "validation", "test", "calibration", "selection")

# Looks are taken of this many images of a part at most, drawn by class: a quarter of a minute of JPEGs.
_MOST_LOOKS = 50_000
# Rows that are read at most; ImageNet's training part has 1.3 million.
_MOST_ROWS = 4_000_000
_ROW_BYTES = WIDTH * 8
# The one form in which write_fingerprints writes (numpy.lib.format, version 1.0); numpy's own parser lets many kinds of
# error through.
_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<u8', 'fortran_order': False, 'shape': \((\d{1,10}), 3\), \} *\n"
)

# Looks are those of a perceptual hash (pHash): grey, 32 x 32, its DCT, bits for what is above the median. The first
# word has the lowest 8 x 8 frequencies but the mean, the second the next ones, 8 to 11 of one axis with 0 to 7 of the
# other.
_SIDE, _LOW, _HIGH = 32, 8, 12
_BATCH = 2048
# Standard deviation of grey levels below which an image has no looks.
_PLAIN = 1.0


def fingerprint(images: ImageSet, *, looks: bool = True) -> np.ndarray:
    """uint64 [n, 3] of n images.

    Raises:
        DataError: a file cannot be read.
    """
    rows = np.zeros((len(images), WIDTH), np.uint64)
    rows[:, 0] = [_content(picture) for picture in images.pictures]
    if looks:
        chosen = images.stratified(_MOST_LOOKS, seed=0)
        place = {name: index for index, name in enumerate(images.ids)}
        rows[[place[name] for name in chosen.ids], 1:] = appearance(chosen)
    return rows


def appearance(images: ImageSet) -> np.ndarray:
    """uint64 [n, 2]: the looks of n images."""
    found = [np.empty((0, 2), np.uint64)]
    for start in range(0, len(images), _BATCH):
        pictures = images.pictures[start : start + _BATCH]
        found.append(_hashes(np.stack([_thumbnail(picture) for picture in pictures])))
    return np.concatenate(found)


def write_fingerprints(path: Path, parts: Mapping[str, np.ndarray]) -> None:
    """Write the fingerprints of each part of a data set."""
    np.savez(path, **{part: np.asarray(rows, "<u8") for part, rows in parts.items()})  # type: ignore[arg-type]


def read_fingerprints(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_fingerprints` wrote; no more is unpacked than the bound.

    Raises:
        ValueError, OSError, KeyError, zipfile.BadZipFile: it is not that.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        return {part: _read_rows(archive, f"{part}.npy") for part in PARTS if f"{part}.npy" in names}


def _read_rows(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as stream:
        header = _HEADER.match(stream.read(_HEADER_BYTES))
        if header is None or (count := int(header[1])) > _MOST_ROWS:
            raise ValueError(f"{name} is not uint64 [n, {WIDTH}]")
        content = stream.read(count * _ROW_BYTES + 1)
    if len(content) != count * _ROW_BYTES:
        raise ValueError(f"{name} does not hold the {count} rows that it promises")
    return np.frombuffer(content, "<u8").reshape(count, WIDTH)


def _content(picture: Path | np.ndarray) -> int:
    if isinstance(picture, np.ndarray):
        digest = hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    else:
        digest = hashlib.sha256()
        try:
            with picture.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"cannot read {picture}: {error.strerror}", fix="check the file") from error
    return int.from_bytes(digest.digest()[:8], "little")


def _thumbnail(picture: Path | np.ndarray) -> np.ndarray:
    """uint8 [32, 32] of an image, upright; plain where it cannot be decoded.

    A JPEG is decoded at a reduced size, which is close enough here.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
    else:
        try:
            with opened(picture) as file:
                file.draft("L", (4 * _SIDE, 4 * _SIDE))
                image = eight_bits(ImageOps.exif_transpose(file))
        except DataError:
            return np.zeros((_SIDE, _SIDE), np.uint8)
    return np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint64 [n, 2] of uint8 [n, 32, 32]."""
    angles = np.pi * (2 * np.arange(_SIDE) + 1)[None] * np.arange(_HIGH)[:, None] / (2 * _SIDE)
    cosines = np.cos(angles).astype(np.float32)
    values = thumbnails.astype(np.float32)
    frequencies = np.einsum("ki,nij,lj->nkl", cosines, values, cosines, optimize=True)
    low = frequencies[:, :_LOW, :_LOW].reshape(len(values), -1)[:, 1:]
    high = np.concatenate(
        [
            frequencies[:, _LOW:, :_LOW].reshape(len(values), -1),
            frequencies[:, :_LOW, _LOW:].reshape(len(values), -1),
        ],
        axis=1,
    )
    words = np.stack([_packed(low), _packed(high)], axis=1)
    words[values.std(axis=(1, 2)) < _PLAIN] = 0
    return words


def _packed(values: np.ndarray) -> np.ndarray:
    """uint64 [n] of at most 64 values each: a bit for what is above the median."""
    above = values > np.median(values, axis=1, keepdims=True)
    bits = np.zeros((len(values), 64), np.uint8)
    bits[:, : values.shape[1]] = above
    return np.packbits(bits, axis=1).view("<u8")[:, 0]


def distances(words: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Differing bits, uint8 [m], of each of uint64 [n] words to uint64 [m] others."""
    for word in words:
        yield _ones(others ^ word)


def _ones(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return _ONES[words.view(np.uint16)].reshape(len(words), 4).sum(axis=1, dtype=np.uint8)


_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    axis=1, dtype=np.uint8
)
