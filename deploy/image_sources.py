"""Opening image sets: folders of class folders, a CSV beside images, .npz and IDX arrays, single images."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import arrays
from .errors import DataError, unknown
from .images import UNLABELLED, ImageSet, without_corrupt

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

# Labels without names are numbers below this.
_MAX_NUMBERED = 100_000

_COLUMNS = ("Image", "Category")
# What may separate columns, and what it is called.
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


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
            f"{path} has {', '.join(found) or 'neither'} of images and labels",
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
            fix="one integer label per image",
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
        raise DataError(f"{table} lists the image {repeated[0]} more than once", fix="leave one row per image")
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
