"""Checks before the first epoch: all image headers, the classes, and whether loader processes pay off."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...deploy.errors import TrainingError
from ...deploy.images import read_headers
from ...deploy.preprocess import SIXTEEN_BITS, Header
from ..datasets import PARTS, Dataset

_log = logging.getLogger(__name__)

# Decoding and preprocessing a JPEG on one core, measured on an EPYC at 0.001 to 12 megapixels.
_MS_PER_IMAGE, _MS_PER_MEGAPIXEL = 2.0, 14.0
# A loader process takes 3 to 9 s to import torch, and two of them halve the loading time. If loading an epoch takes
# less than this, ten epochs do not make up for starting them three times (training, validation, test).
_MIN_LOADING_S = 5.0
_MAX_PROCESSES = 4


def screen(dataset: Dataset) -> dict[str, list[Header]]:
    """The image headers of every part, after a check that the set can train a classifier.

    Raises:
        TrainingError: the images have no labels, or are all of one class.
        DataError: an image file cannot be read.
    """
    if not dataset.train.labelled:
        raise TrainingError(f"{dataset.data} has images without labels", fix="put them into class folders")
    classes = np.unique(dataset.train.targets)
    if len(classes) < 2:
        raise _one_class(dataset, dataset.train.labels[classes[0]])
    headers = {part: read_headers(getattr(dataset, part)) for part in PARTS}
    sixteen_bit = sum(header.mode in SIXTEEN_BITS for part_headers in headers.values() for header in part_headers)
    if sixteen_bit:
        _log.info(f"{sixteen_bit} grey images have 16 bits: only the upper 8 bits are used, here and on the device")
    return headers


def processes(setting: int, headers: Sequence[Header]) -> int:
    """The number of loader processes for a part: the setting, or for -1 a number that pays off (none for arrays)."""
    if setting >= 0:
        return setting
    ms = sum(_MS_PER_IMAGE + _MS_PER_MEGAPIXEL * header.size[0] * header.size[1] / 1e6 for header in headers)
    return min(_MAX_PROCESSES, os.cpu_count() or 1) if ms / 1000 > _MIN_LOADING_S else 0


def _one_class(dataset: Dataset, name: str) -> TrainingError:
    """The error; its fix names the folder that contains the class folders, if there is one."""
    folder = Path(dataset.data) / name
    while folder.is_dir() and len(subfolders := _folders(folder)) == 1:
        folder = subfolders[0]
    if folder.is_dir() and (subfolders := _folders(folder)):
        names = ", ".join(entry.name for entry in subfolders[:5])
        return TrainingError(
            f"{dataset.data} has one class, {name}; that folder contains class folders: {names}", fix=f"--data {folder}"
        )
    return TrainingError(
        f"all training images of {dataset.data} are of one class, {name}", fix="a classifier needs at least two classes"
    )


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
