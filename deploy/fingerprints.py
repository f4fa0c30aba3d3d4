"""Fingerprints of images: of their content, to find identical images, and of their looks, to find similar ones.

A fingerprint is three uint64. The first holds 8 bytes of the SHA-256 of the file's bytes (of an array: of its shape
and bytes). The other two hold 128 bits of the image's low frequencies: its looks. They are 0 if the image is plain, or
if its looks were not computed.
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
from .members import Member
from .preprocess import eight_bits, opened

WIDTH = 3

# The data set's parts, the images outside them that quantize used, and those of the bundles that training started from.
PARTS = ("train", "validation", "test", "calibration", "selection", "earlier")

# Maximum number of images of a part whose looks are computed, drawn by class: a quarter of a minute for JPEGs.
_MAX_LOOKS = 50_000
# Maximum number of rows that are read; ImageNet's training part has 1.3 million.
_MAX_ROWS = 4_000_000
_ROW_BYTES = WIDTH * 8
# The only header that write_fingerprints writes (numpy.lib.format, version 1.0); numpy's own parser may raise errors of
# many kinds.
_HEADER_BYTES = 128
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<u8', 'fortran_order': False, 'shape': \((\d{1,10}), 3\), \} *\n"
)

# Looks are a perceptual hash (pHash): the grey 32 x 32 thumbnail's DCT, with a bit per frequency above the median. The
# first word has the lowest 8 x 8 frequencies except the mean, the second the next ones: 8 to 11 of one axis with 0 to 7
# of the other.
_SIDE, _LOW, _HIGH = 32, 8, 12
_BATCH = 2048
# Standard deviation of grey levels below which an image is plain.
_PLAIN = 1.0


def fingerprint(images: ImageSet, *, looks: bool = True) -> np.ndarray:
    """Fingerprints, uint64 [n, 3], of n images.

    Raises:
        DataError: a file cannot be read.
    """
    rows = np.zeros((len(images), WIDTH), np.uint64)
    rows[:, 0] = [_content(picture) for picture in images.pictures]
    if looks:
        chosen = images.stratified(_MAX_LOOKS, seed=0)
        position = {name: index for index, name in enumerate(images.ids)}
        rows[[position[name] for name in chosen.ids], 1:] = appearance(chosen)
    return rows


def appearance(images: ImageSet) -> np.ndarray:
    """The looks, uint64 [n, 2], of n images."""
    hashes = [np.empty((0, 2), np.uint64)]
    for start in range(0, len(images), _BATCH):
        pictures = images.pictures[start : start + _BATCH]
        hashes.append(_hashes(np.stack([_thumbnail(picture) for picture in pictures])))
    return np.concatenate(hashes)


def write_fingerprints(path: Path, parts: Mapping[str, np.ndarray]) -> None:
    """Write the fingerprints of each part of a data set."""
    np.savez(path, **{part: np.asarray(rows, "<u8") for part, rows in parts.items()})  # type: ignore[arg-type]


def read_fingerprints(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_fingerprints` wrote, unpacking at most the maximum number of rows.

    Raises:
        ValueError, OSError, KeyError, zipfile.BadZipFile: the file has other content.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        return {part: _read_rows(archive, f"{part}.npy") for part in PARTS if f"{part}.npy" in names}


def _read_rows(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as stream:
        header = _HEADER.match(stream.read(_HEADER_BYTES))
        if header is None or (count := int(header[1])) > _MAX_ROWS:
            raise ValueError(f"{name} is not uint64 [n, {WIDTH}]")
        content = stream.read(count * _ROW_BYTES + 1)
    if len(content) != count * _ROW_BYTES:
        raise ValueError(f"{name} does not contain the {count} rows that its header declares")
    return np.frombuffer(content, "<u8").reshape(count, WIDTH)


def _content(picture: Path | Member | np.ndarray) -> int:
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


def _thumbnail(picture: Path | Member | np.ndarray) -> np.ndarray:
    """An image as uint8 [32, 32], upright; plain if it cannot be decoded.

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
    """Perceptual hashes, uint64 [n, 2], of uint8 [n, 32, 32] thumbnails."""
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
    hashes = np.stack([_packed(low), _packed(high)], axis=1)
    hashes[values.std(axis=(1, 2)) < _PLAIN] = 0
    return hashes


def _packed(values: np.ndarray) -> np.ndarray:
    """uint64 [n] of [n, k] values, k <= 64: one bit per value, set if it is above the median of its row."""
    above = values > np.median(values, axis=1, keepdims=True)
    bits = np.zeros((len(values), 64), np.uint8)
    bits[:, : values.shape[1]] = above
    return np.packbits(bits, axis=1).view("<u8")[:, 0]


def distances(words: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the number of differing bits, uint8 [m], between each of uint64 [n] words and uint64 [m] others."""
    for word in words:
        yield _bit_counts(others ^ word)


def _bit_counts(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return _BIT_COUNTS[words.view(np.uint16)].reshape(len(words), 4).sum(axis=1, dtype=np.uint8)


_BIT_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    axis=1, dtype=np.uint8
)
