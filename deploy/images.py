"""Image sets: lazy, indexable, torch-free; training, calibration, validation and the device all read the same one."""

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import arrays
from .errors import DataError, unknown
from .preprocess import Header, decode, read_header

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
UNLABELLED = -1

# Labels without names are numbers below this.
_MAX_NUMBERED = 100_000

_ARRAYS, _INDEX = "images.npy", "images.json"
_COLUMNS = ("Image", "Category")
# What may separate columns, and what it is called.
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


class Sample(NamedTuple):
    """One image: upright and decoded; its label as an index (UNLABELLED when there is none); its stable id."""

    image: Image.Image
    label: int
    id: str


@dataclass(frozen=True)
class ImageSet:
    """Images with labels and ids, read only when they are asked for.

    Attributes:
        labels: the class names; a target is an index into them.
        ids: one stable id an image (a path relative to the set's root, or the index in the set's file).
        targets: int64 [n], UNLABELLED where there is no label.
        pictures: n image files, or uint8 [n, h, w] or [n, h, w, 3].
        left_out: files that were skipped because they are corrupt (with skip_corrupt only).
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...]
    targets: np.ndarray
    pictures: Sequence[Path] | np.ndarray
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        picture = self.pictures[index]
        image = decode(picture) if isinstance(picture, Path) else Image.fromarray(picture)
        return Sample(image, int(self.targets[index]), self.ids[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return len(self) > 0 and bool((self.targets != UNLABELLED).all())

    def encoded(self, index: int) -> tuple[bytes, str]:
        """The image as a file's bytes with its suffix: the file itself, or a lossless PNG of an array."""
        picture = self.pictures[index]
        if isinstance(picture, Path):
            return picture.read_bytes(), picture.suffix.lower()
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        return stream.getvalue(), ".png"

    def sha256(self) -> str:
        """Hex SHA-256 of all ids and pictures: whether these are the very same images."""
        digest = hashlib.sha256()
        for name, picture in zip(self.ids, self.pictures, strict=True):
            content = picture.read_bytes() if isinstance(picture, Path) else np.ascontiguousarray(picture).tobytes()
            digest.update(hashlib.sha256(name.encode() + b"\0" + content).digest())
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        pictures = (
            self.pictures[chosen] if isinstance(self.pictures, np.ndarray) else [self.pictures[i] for i in chosen]
        )
        return replace(
            self, ids=tuple(self.ids[i] for i in chosen), targets=self.targets[chosen], pictures=pictures, left_out=()
        )

    def select(self, ids: Sequence[str]) -> "ImageSet":
        """The images with these ids, in this order.

        Raises:
            DataError: an id is not there, so these are not the images that it was recorded from.
        """
        where = {name: index for index, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in where]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} recorded images are not there any more, the first is {missing[0]}",
                fix="pass --images with the folder that holds them",
            )
        return self.take([where[name] for name in ids])

    def stratified(self, count: int, seed: int) -> "ImageSet":
        """At most `count` images, drawn by class (see the function `stratified`); the same ones for the same seed."""
        return self.take(stratified(self.targets, count, seed))

    def save(self, folder: Path, *, with_files: bool = False) -> None:
        """Write what `load` needs into a folder: an index, and the arrays; image files too, or only where they are."""
        index: dict[str, Any] = {"labels": self.labels, "ids": self.ids, "targets": self.targets.tolist()}
        if isinstance(self.pictures, np.ndarray):
            np.save(folder / _ARRAYS, self.pictures, allow_pickle=False)
        else:
            index["files"] = [str(path.resolve()) for path in self.pictures]
            if with_files:
                index["files"] = [f"{number:06d}{path.suffix.lower()}" for number, path in enumerate(self.pictures)]
                for name, path in zip(index["files"], self.pictures, strict=True):
                    shutil.copyfile(path, folder / name)
        (folder / _INDEX).write_text(json.dumps(index))

    @classmethod
    def load(cls, folder: Path) -> "ImageSet":
        """Read what `save` wrote."""
        index = json.loads((folder / _INDEX).read_text())
        files = index.get("files")
        pictures = np.load(folder / _ARRAYS, mmap_mode="r") if files is None else [folder / file for file in files]
        return cls(tuple(index["labels"]), tuple(index["ids"]), np.asarray(index["targets"], np.int64), pictures)


def stratified(targets: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of at most `count` of int64 [n] targets, drawn by class.

    Each class keeps its share (largest remainders), and has at least one image where `count` allows it.
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
    """How many of `count` images each class gives; int64 [k] class sizes, whose sum is larger than `count`.

    Classes whose share is below one give one image, and the others share what is left. With fewer images than classes,
    every class gives its share only.
    """
    quota = np.zeros(len(sizes), np.int64)
    shared = np.ones(len(sizes), bool)
    while count >= len(sizes):
        below = shared & (sizes * (count - quota.sum()) < sizes[shared].sum())
        if not below.any():
            break
        quota[below] = 1
        shared &= ~below
    left = count - int(quota.sum())
    shares = sizes[shared] * left / sizes[shared].sum()
    quota[shared] = np.floor(shares)
    most_missing = np.argsort(quota[shared] - shares, kind="stable")
    quota[np.flatnonzero(shared)[most_missing[: count - int(quota.sum())]]] += 1
    return quota


def open_images(path: Path, labels: Sequence[str] | None = None, *, skip_corrupt: bool = False) -> ImageSet:
    """Open a folder of class folders, a folder with a CSV `Image,Category`, a folder of plain images, or a .npz.

    Args:
        path: the folder or file.
        labels: class names that the set's own must be among; a target is then an index into this list.
        skip_corrupt: leave out the files that cannot be decoded (they are listed in `left_out`). Every file is
            decoded once for it.

    Raises:
        DataError: nothing is there, a label is not in the list, a class folder is empty.
    """
    if path.suffix == ".npz" and path.is_file():
        images = _read_npz(path, labels)
    elif not path.is_dir():
        raise DataError(f"no folder or .npz file at {path}", fix="check the path")
    elif tables := sorted(path.glob("*.csv")):
        images = _read_csv(path, tables, labels)
    elif any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        images = _read_class_folders(path, labels)
    else:
        images = _read_plain(path, labels)
    return without_corrupt(images) if skip_corrupt else images


def read_idx(images: Path, targets: Path, labels: Sequence[str] | None = None) -> ImageSet:
    """Read a pair of idx files (LeCun's MNIST format), gzipped or not.

    Raises:
        DataError: a file is missing, truncated or of another kind.
    """
    pictures, indices = _read_idx_array(images), _read_idx_array(targets)
    if pictures.ndim != 3 or indices.ndim != 1 or len(pictures) != len(indices):
        raise DataError(
            f"{images.name} holds {pictures.shape} and {targets.name} {indices.shape}: not images with their labels",
            fix="pass the images file and the labels file of the same part",
        )
    return _from_arrays(pictures, indices, labels, images.name)


def _read_idx_array(path: Path) -> np.ndarray:
    try:
        return arrays.read_idx(path)
    except arrays.ARCHIVE_ERRORS as error:
        raise DataError(f"cannot read {path}: {error}", fix="download the file again") from error


def _read_npz(path: Path, labels: Sequence[str] | None) -> ImageSet:
    try:
        found = arrays.read_npz(path, ("images", "labels", "names"))
    except arrays.ARCHIVE_ERRORS as error:
        raise DataError(f"cannot read {path}: {error}", fix="write it with numpy.savez, or savez_compressed") from error
    if "images" not in found or "labels" not in found:
        raise DataError(
            f"{path} holds {', '.join(found) or 'neither'} of images and labels",
            fix="numpy.savez_compressed(path, images=uint8[n,h,w] or [n,h,w,3], labels=int[n], names=str[k])",
        )
    names = [str(name) for name in found["names"].ravel()] if "names" in found else None
    images = _from_arrays(found["images"], found["labels"], names or labels, path.name)
    if labels is None or names is None:
        return images
    where = {index: _index_of(names[index], labels, path) for index in set(images.targets.tolist())}
    targets = np.asarray([where[index] for index in images.targets.tolist()], np.int64)
    return replace(images, labels=tuple(labels), targets=targets)


def _from_arrays(pictures: np.ndarray, indices: np.ndarray, labels: Sequence[str] | None, name: str) -> ImageSet:
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3):
        raise DataError(
            f"{name} holds images as {pictures.dtype} {list(pictures.shape)}",
            fix="EdgeKit takes uint8 [n, h, w] or [n, h, w, 3]",
        )
    if len(pictures) == 0 or indices.shape != (len(pictures),) or indices.dtype.kind not in "iu":
        raise DataError(
            f"{name} holds {len(pictures)} images and labels of shape {list(indices.shape)} and type {indices.dtype}",
            fix="one whole-number label an image",
        )
    targets = indices.astype(np.int64)
    if not labels and int(targets.max()) >= _MAX_NUMBERED:
        raise DataError(f"{name} has the label {targets.max()} and no names", fix="add names=str[k] to the file")
    names = tuple(labels) if labels else tuple(str(index) for index in range(int(targets.max()) + 1))
    outside = np.flatnonzero((targets < 0) | (targets >= len(names)))
    if len(outside):
        raise DataError(
            f"{name}: image {outside[0]} has label {targets[outside[0]]}, the label list has {len(names)} entries",
            fix="pass the full --labels list, or correct the label",
        )
    return ImageSet(names, tuple(str(index) for index in range(len(pictures))), targets, pictures)


def _read_class_folders(path: Path, labels: Sequence[str] | None) -> ImageSet:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = tuple(labels) if labels else tuple(folder.name for folder in folders)
    files: list[Path] = []
    targets: list[int] = []
    for folder in folders:
        target = _index_of(folder.name, names, folder)
        found = _image_files(folder)
        if not found:
            raise DataError(f"the class folder {folder} has no image in it", fix="add images, or remove the folder")
        files += found
        targets += [target] * len(found)
    ids = tuple(file.relative_to(path).as_posix() for file in files)
    return ImageSet(names, ids, np.asarray(targets, np.int64), files)


def _read_csv(path: Path, tables: list[Path], labels: Sequence[str] | None) -> ImageSet:
    if len(tables) > 1:
        raise DataError(f"{path} holds {len(tables)} CSV files", fix="leave one, with the columns Image,Category")
    table = tables[0]
    rows = _read_rows(table)
    names = tuple(labels) if labels else tuple(sorted({row["Category"] for row in rows}, key=_natural))
    files = [_numbered_image(path, row["Image"], table) for row in rows]
    repeated = [name for name, times in Counter(row["Image"] for row in rows).items() if times > 1]
    if repeated:
        raise DataError(f"{table} lists the image {repeated[0]} more than once", fix="leave one row an image")
    targets = [_index_of(row["Category"], names, f"{table}, image {row['Image']}") for row in rows]
    return ImageSet(names, tuple(row["Image"] for row in rows), np.asarray(targets, np.int64), files)


def _read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with the columns Image and Category.

    Raises:
        DataError: it is not text, or has other columns, another separator, no rows, or a row that lacks one of the two.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"cannot read {table}: {error}", fix="save it as CSV in UTF-8") from error
    if not set(_COLUMNS) <= set(columns):
        line = ",".join(columns)
        separator = max(_SEPARATORS, key=line.count)
        names = ", ".join(part.strip() for part in line.split(separator))[:200]
        split = f", separated by {_SEPARATORS[separator]}" if separator in line else ""
        raise DataError(
            f"{table} has the columns {names or '(none)'}{split}; needed are Image,Category separated by a comma",
            fix="let its first line be Image,Category (file name, class) and separate all lines by commas",
        )
    if not rows:
        raise DataError(f"{table} has no rows under the columns Image,Category", fix="add a row per image")
    for number, row in enumerate(rows, 2):
        if not row["Image"] or not row["Category"]:
            raise DataError(f"{table}, row {number} has no Image or no Category", fix="fill in or remove the row")
    return rows


def _numbered_image(folder: Path, name: str, table: Path) -> Path:
    """The file that a row `Image` means: a file name, or a number or name without its suffix; here or in images/."""
    for base in (folder, folder / "images"):
        for candidate in (base / name, *(base / f"{name}{suffix}" for suffix in sorted(SUFFIXES))):
            if candidate.is_file():
                return candidate
    raise DataError(f"{table} lists the image {name}, which is not in {folder}", fix="add the file or remove the row")


def _read_plain(path: Path, labels: Sequence[str] | None) -> ImageSet:
    files = _image_files(path)
    if not files:
        raise DataError(f"no image in {path}", fix=f"EdgeKit reads {', '.join(sorted(SUFFIXES))}")
    ids = tuple(file.relative_to(path).as_posix() for file in files)
    return ImageSet(tuple(labels or ()), ids, np.full(len(files), UNLABELLED, np.int64), files)


def _image_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    # a broken link is an image that cannot be read, not one that is not there
    return sorted(
        (file for file in files if file.is_file() or _dangling(file)), key=lambda file: _natural(file.as_posix())
    )


def _dangling(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _natural(name: str) -> tuple[int, int, str]:
    """Sort numbers as numbers, before names."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return (0, int(stem), name) if stem.isdecimal() else (1, 0, name)


def _index_of(name: str, labels: Sequence[str], where: object) -> int:
    try:
        return list(labels).index(name)
    except ValueError:
        raise DataError(
            f"{where}: {unknown('label', name, labels)}", fix="rename it, or pass --labels with the full list"
        ) from None


def read_headers(images: ImageSet) -> list[Header]:
    """The header of every image file, none of arrays in memory.

    Raises:
        DataError: files that `decode` would refuse; the message names the first and counts them.
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
    """The images that can be decoded (each file is, once); the others are listed in `left_out`.

    Raises:
        DataError: none can.
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
