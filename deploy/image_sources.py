"""Opening image sets: folders of class folders, a CSV beside images, tar shards, .npz and IDX arrays."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import arrays
from .errors import DataError
from .images import SUFFIXES, UNLABELLED, ImageSet, without_corrupt
from .labels import index_of
from .shards import read_shards, shard_files

# Labels without names must be numbers below this.
_MAX_NUMBERED = 100_000

_COLUMNS = ("Image", "Category")
# Column separators, and their names in messages.
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def open_images(path: Path, labels: Sequence[str] | None = None, *, skip_corrupt: bool = False) -> ImageSet:
    """Open a folder of class folders, a folder with a CSV `Image,Category`, a folder of plain images, tar shards, or a
    .npz.

    Args:
        path: the folder or file, or a pattern of tar files (see shards.shard_files).
        labels: class names, which must include the set's own; targets are then indices into this list.
        skip_corrupt: leave out files that cannot be decoded, and list them in `left_out`. This decodes every file
            once.

    Raises:
        DataError: the path does not exist, a label is not in the list, or a class folder is empty.
    """
    if path.suffix == ".npz" and path.is_file():
        images = _read_npz(path, labels)
    elif shards := shard_files(path):
        images = read_shards(shards, labels)
    elif not path.is_dir():
        raise DataError(f"no folder, .npz or .tar file at {path}", fix="check the path")
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
            f"{images.name} has shape {pictures.shape}, {targets.name} {indices.shape}: not images with their labels",
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
        loaded = arrays.read_npz(path, ("images", "labels", "names"))
    except arrays.ARCHIVE_ERRORS as error:
        raise DataError(f"cannot read {path}: {error}", fix="write it with numpy.savez, or savez_compressed") from error
    if missing := [name for name in ("images", "labels") if name not in loaded]:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}",
            fix="numpy.savez_compressed(path, images=uint8[n,h,w] or [n,h,w,3], labels=int[n], names=str[k])",
        )
    names = [str(name) for name in loaded["names"].ravel()] if "names" in loaded else None
    images = _from_arrays(loaded["images"], loaded["labels"], names or labels, path.name)
    if labels is None or names is None:
        return images
    target_of = {index: index_of(names[index], labels, path) for index in set(images.targets.tolist())}
    targets = np.asarray([target_of[index] for index in images.targets.tolist()], np.int64)
    return replace(images, labels=tuple(labels), targets=targets)


def _from_arrays(pictures: np.ndarray, indices: np.ndarray, labels: Sequence[str] | None, name: str) -> ImageSet:
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3):
        raise DataError(
            f"{name} contains images of type {pictures.dtype} and shape {list(pictures.shape)}",
            fix="save them as uint8 [n, h, w] or [n, h, w, 3]",
        )
    if len(pictures) == 0 or indices.shape != (len(pictures),) or indices.dtype.kind not in "iu":
        raise DataError(
            f"{name} contains {len(pictures)} images, and {indices.dtype} labels of shape {list(indices.shape)}",
            fix="provide one integer label per image",
        )
    targets = indices.astype(np.int64)
    if not labels and int(targets.max()) >= _MAX_NUMBERED:
        raise DataError(f"{name} has the label {targets.max()} but no names", fix="add names=str[k] to the file")
    names = tuple(labels) if labels else tuple(str(index) for index in range(int(targets.max()) + 1))
    outside = np.flatnonzero((targets < 0) | (targets >= len(names)))
    if len(outside):
        raise DataError(
            f"{name}: image {outside[0]} has label {targets[outside[0]]}, but the label list has {len(names)} entries",
            fix="pass the full --labels list, or correct the label",
        )
    return ImageSet(names, tuple(str(index) for index in range(len(pictures))), targets, pictures)


def _read_class_folders(path: Path, labels: Sequence[str] | None) -> ImageSet:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = tuple(labels) if labels else tuple(folder.name for folder in folders)
    files: list[Path] = []
    targets: list[int] = []
    for folder in folders:
        target = index_of(folder.name, names, folder)
        images = _image_files(folder)
        if not images:
            raise DataError(f"the class folder {folder} contains no images", fix="add images, or remove the folder")
        files += images
        targets += [target] * len(images)
    ids = tuple(file.relative_to(path).as_posix() for file in files)
    return ImageSet(names, ids, np.asarray(targets, np.int64), files)


def _read_csv(path: Path, tables: list[Path], labels: Sequence[str] | None) -> ImageSet:
    if len(tables) > 1:
        raise DataError(f"{path} contains {len(tables)} CSV files", fix="keep one, with the columns Image,Category")
    table = tables[0]
    rows = _read_rows(table)
    names = tuple(labels) if labels else tuple(sorted({row["Category"] for row in rows}, key=_natural))
    files = [_numbered_image(path, row["Image"], table) for row in rows]
    repeated = [name for name, count in Counter(row["Image"] for row in rows).items() if count > 1]
    if repeated:
        raise DataError(f"{table} lists the image {repeated[0]} more than once", fix="keep one row per image")
    targets = [index_of(row["Category"], names, f"{table}, image {row['Image']}") for row in rows]
    return ImageSet(names, tuple(row["Image"] for row in rows), np.asarray(targets, np.int64), files)


def _read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with the columns Image and Category.

    Raises:
        DataError: it is not text, or has other columns, another separator, no rows, or a row with an empty column.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except OSError as error:
        raise DataError(f"cannot read {table}: {error.strerror}", fix="check its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}", fix="save it as CSV in UTF-8") from error
    if not set(_COLUMNS) <= set(columns):
        line = ",".join(columns)
        separator = max(_SEPARATORS, key=line.count)
        names = ", ".join(part.strip() for part in line.split(separator))[:200]
        split = f", separated by {_SEPARATORS[separator]}" if separator in line else ""
        raise DataError(
            f"{table} has the columns {names or '(none)'}{split}; required are Image,Category separated by a comma",
            fix="make its first line Image,Category (file name, class) and separate columns by commas",
        )
    if not rows:
        raise DataError(f"{table} has no rows under the columns Image,Category", fix="add one row per image")
    for number, row in enumerate(rows, 2):
        if not row["Image"] or not row["Category"]:
            raise DataError(f"{table}, row {number} has no Image or no Category", fix="fill in or remove the row")
    return rows


def _numbered_image(folder: Path, name: str, table: Path) -> Path:
    """The file that a row refers to by its name, with or without suffix, in the folder or its subfolder images/."""
    for base in (folder, folder / "images"):
        for candidate in (base / name, *(base / f"{name}{suffix}" for suffix in sorted(SUFFIXES))):
            if candidate.is_file():
                return candidate
    raise DataError(f"{table} lists the image {name}, which is not in {folder}", fix="add the file or remove the row")


def _read_plain(path: Path, labels: Sequence[str] | None) -> ImageSet:
    files = _image_files(path)
    if not files:
        raise DataError(f"no images in {path}", fix=f"EdgeKit reads {', '.join(sorted(SUFFIXES))}")
    ids = tuple(file.relative_to(path).as_posix() for file in files)
    return ImageSet(tuple(labels or ()), ids, np.full(len(files), UNLABELLED, np.int64), files)


def _image_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    # a broken link counts as an unreadable image, not as a missing one
    return sorted(
        (file for file in files if file.is_file() or _dangling(file)), key=lambda file: _natural(file.as_posix())
    )


def _dangling(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key that puts numbers first, by value."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return (0, int(stem), name) if stem.isdecimal() else (1, 0, name)
