"""The parts of a data set at a path: train/, val/ and test/ folders, or shards with such names."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..deploy.errors import DataError
from ..deploy.image_sources import open_images
from ..deploy.images import ImageSet, without_corrupt
from ..deploy.shards import read_shards, shard_files

_log = logging.getLogger(__name__)

_ALL = "all"
# Common folder names for the parts of a data set.
_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def open_parts(path: Path, labels: Sequence[str] | None, skip_corrupt: bool) -> dict[str, ImageSet]:
    """{part: images} of a divided folder or of divided shards, {"all": images} of undivided ones.

    A folder called train among others is a class (the vehicle), unless it contains class folders itself.

    Raises:
        DataError: the images cannot be opened.
    """
    if shards := shard_files(path):
        return _shard_parts(shards, labels, skip_corrupt)
    folders = {part: path / name for part, names in _FOLDERS.items() for name in names if (path / name).is_dir()}
    if not folders or (_other_folders(path, folders) and not all(map(_has_folders, folders.values()))):
        return {_ALL: log_left_out(open_images(path, labels, skip_corrupt=skip_corrupt))}
    if labels is None:
        labels = open_images(folders.get("train") or next(iter(folders.values()))).labels
    parts = {}
    for part, folder in folders.items():
        images = log_left_out(open_images(folder, labels, skip_corrupt=skip_corrupt))
        parts[part] = prefixed(images, folder.name)
    return parts


def _other_folders(path: Path, known: dict[str, Path]) -> bool:
    return any(entry not in known.values() and entry.is_dir() and entry.name[0] != "." for entry in path.iterdir())


def _has_folders(path: Path) -> bool:
    return any(entry.is_dir() for entry in path.iterdir())


def _shard_parts(shards: Sequence[Path], labels: Sequence[str] | None, skip_corrupt: bool) -> dict[str, ImageSet]:
    """Shards by the part in their names, e.g. imagenet-train-000000.tar; all of one part are undivided."""
    files: dict[str, list[Path]] = {}
    for shard in shards:
        words = set(re.split("[^a-z]+", shard.name.lower()))
        part = next((part for part, names in _FOLDERS.items() if words & set(names)), _ALL)
        files.setdefault(part, []).append(shard)
    if len(files) > 1 and _ALL in files:
        raise DataError(
            f"{files[_ALL][0]} names no part, but other shards do",
            fix="call all of them train-…, val-… or test-…, or pass a pattern of one kind",
        )
    parts = {}
    # the training part first, whose classes count
    for part in sorted(files, key=[*_FOLDERS, _ALL].index):
        images = read_shards(files[part], labels)
        labels = images.labels
        parts[part] = log_left_out(without_corrupt(images) if skip_corrupt else images)
    return parts if len(parts) > 1 else {_ALL: next(iter(parts.values()))}


def log_left_out(images: ImageSet) -> ImageSet:
    """Log which images were left out, and return them all."""
    if images.left_out:
        _log.info(f"left out {len(images.left_out)} corrupt images: {', '.join(images.left_out)}")
    return images


def prefixed(images: ImageSet, prefix: str) -> ImageSet:
    """The same images, whose ids begin with a folder's name."""
    return ImageSet(
        images.labels,
        tuple(f"{prefix}/{name}" for name in images.ids),
        images.targets,
        images.pictures,
        images.left_out,
    )


def joined(parts: dict[str, ImageSet]) -> ImageSet:
    """All parts as one set."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    sets = list(parts.values())
    arrays = [images.pictures for images in sets if isinstance(images.pictures, np.ndarray)]
    return ImageSet(
        sets[0].labels,
        tuple(name for images in sets for name in images.ids),
        np.concatenate([images.targets for images in sets]),
        np.concatenate(arrays) if arrays else [picture for images in sets for picture in images.pictures],
    )
