"""Image sets: lazy, indexable, torch-free. Training, calibration, validation and the device all read the same ones."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .errors import DataError
from .members import Member, Members
from .preprocess import Header, decode, read_header

UNLABELLED = -1

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

_ARRAYS, _INDEX = "images.npy", "images.json"


class Sample(NamedTuple):
    """One image, decoded and upright, its label as an index (UNLABELLED if it has none), and its stable id."""

    image: Image.Image
    label: int
    id: str


@dataclass(frozen=True)
class ImageSet:
    """Images with labels and ids; pixels are read only on access.

    Attributes:
        labels: the class names; a target is an index into them.
        ids: one stable id per image (a path relative to the set's root, or the index in the set's file).
        targets: int64 [n], UNLABELLED for an image without a label.
        pictures: n image files, in folders or in tar files, or uint8 [n, h, w] or [n, h, w, 3].
        left_out: files that were skipped because they are corrupt (with skip_corrupt only).
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...]
    targets: np.ndarray
    pictures: Sequence[Path | Member] | np.ndarray
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        picture = self.pictures[index]
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else decode(picture)
        return Sample(image, int(self.targets[index]), self.ids[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return len(self) > 0 and bool((self.targets != UNLABELLED).all())

    def encoded(self, index: int) -> tuple[bytes, str]:
        """The image's file content and suffix: those of the file itself, or a lossless PNG of an array."""
        picture = self.pictures[index]
        if not isinstance(picture, np.ndarray):
            return picture.read_bytes(), picture.suffix.lower()
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        return stream.getvalue(), ".png"

    def sha256(self) -> str:
        """Hex SHA-256 of all ids and pictures, to tell whether two sets are identical."""
        digest = hashlib.sha256()
        for name, picture in zip(self.ids, self.pictures, strict=True):
            content = (
                np.ascontiguousarray(picture).tobytes() if isinstance(picture, np.ndarray) else picture.read_bytes()
            )
            digest.update(hashlib.sha256(name.encode() + b"\0" + content).digest())
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        if isinstance(self.pictures, np.ndarray):
            pictures = self.pictures[chosen]
        elif isinstance(self.pictures, Members):
            pictures = self.pictures.take(chosen)
        else:
            pictures = [self.pictures[i] for i in chosen]
        return replace(
            self, ids=tuple(self.ids[i] for i in chosen), targets=self.targets[chosen], pictures=pictures, left_out=()
        )

    def select(self, ids: Sequence[str]) -> "ImageSet":
        """The images with these ids, in this order.

        Raises:
            DataError: an id is missing, so the ids were recorded from other images.
        """
        position = {name: index for index, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in position]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} recorded images are missing, starting with {missing[0]}",
                fix="pass --images with the folder that contains them",
            )
        return self.take([position[name] for name in ids])

    def stratified(self, count: int, seed: int) -> "ImageSet":
        """At most `count` images, drawn by class (see the function `stratified`) and reproducible by `seed`."""
        return self.take(stratified(self.targets, count, seed))

    def save(self, folder: Path, *, with_files: bool = False) -> None:
        """Write an index and the arrays into a folder, for `load`. Image files are copied, or only referenced."""
        index: dict[str, Any] = {"labels": self.labels, "ids": self.ids, "targets": self.targets.tolist()}
        if isinstance(self.pictures, np.ndarray):
            np.save(folder / _ARRAYS, self.pictures, allow_pickle=False)
        elif with_files:
            index["files"] = []
            for number in range(len(self)):
                content, suffix = self.encoded(number)
                index["files"].append(f"{number:06d}{suffix}")
                (folder / index["files"][number]).write_bytes(content)
        elif isinstance(self.pictures, Members):
            index["shards"] = [str(shard.resolve()) for shard in self.pictures.shards]
            index["names"], index["table"] = self.pictures.names, self.pictures.table.tolist()
        else:
            index["files"] = [str(Path(str(path)).resolve()) for path in self.pictures]
        (folder / _INDEX).write_text(json.dumps(index))

    @classmethod
    def load(cls, folder: Path) -> "ImageSet":
        """Read what `save` wrote."""
        index = json.loads((folder / _INDEX).read_text())
        if "files" in index:
            pictures = [folder / file for file in index["files"]]
        elif "shards" in index:
            table = np.asarray(index["table"], np.int64).reshape(-1, 3)
            pictures = Members(tuple(map(Path, index["shards"])), tuple(index["names"]), table)
        else:
            pictures = np.load(folder / _ARRAYS, mmap_mode="r")
        return cls(tuple(index["labels"]), tuple(index["ids"]), np.asarray(index["targets"], np.int64), pictures)


def stratified(targets: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of at most `count` of int64 [n] targets, drawn by class.

    Each class keeps its share (largest remainders), and at least one image if `count` allows it.
    """
    if count >= len(targets):
        return np.arange(len(targets))
    generator = np.random.default_rng(seed)
    classes, sizes = np.unique(targets, return_counts=True)
    chosen = [
        generator.choice(np.flatnonzero(targets == name), size, replace=False)
        for name, size in zip(classes, _quotas(sizes, count), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """Number of images to draw per class, `count` in all; int64 [k] class sizes, whose sum is larger than `count`.

    Classes whose share is below one get one image, and the others share the remaining ones. If `count` is smaller than
    the number of classes, every class gets its share only.
    """
    quota = np.zeros(len(sizes), np.int64)
    shared = np.ones(len(sizes), bool)
    while count >= len(sizes):
        below = shared & (sizes * (count - quota.sum()) < sizes[shared].sum())
        if not below.any():
            break
        quota[below] = 1
        shared &= ~below
    remaining = count - int(quota.sum())
    shares = sizes[shared] * remaining / sizes[shared].sum()
    quota[shared] = np.floor(shares)
    most_missing = np.argsort(quota[shared] - shares, kind="stable")
    quota[np.flatnonzero(shared)[most_missing[: count - int(quota.sum())]]] += 1
    return quota


def read_headers(images: ImageSet) -> list[Header]:
    """The header of every image file; empty for arrays in memory.

    Raises:
        DataError: `decode` would refuse some files; the message names the first and counts the others.
    """
    if isinstance(images.pictures, np.ndarray):
        return []
    headers: list[Header] = []
    errors: list[DataError] = []
    for path in images.pictures:
        try:
            headers.append(read_header(path))
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        raise DataError(f"{errors[0]}; and {len(errors) - 1} more images cannot be read", fix=errors[0].fix)
    if errors:
        raise errors[0]
    return headers


def without_corrupt(images: ImageSet) -> ImageSet:
    """The images that can be decoded; the others are listed in `left_out`. Every file is decoded once.

    Raises:
        DataError: no image can be decoded.
    """
    if isinstance(images.pictures, np.ndarray):
        return images
    good, bad = [], []
    for index in range(len(images)):
        try:
            images[index]
        except DataError:
            bad.append(images.ids[index])
        else:
            good.append(index)
    if not good:
        raise DataError(f"none of the {len(images)} images can be decoded", fix="check that they are image files")
    return replace(images.take(good), left_out=tuple(bad))
