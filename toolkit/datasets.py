"""Data sets: named ones and a user's own, divided into train, validation and test parts."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.bundle import Bundle
from ..deploy.errors import DataError, unknown
from ..deploy.files import cache_folder
from ..deploy.fingerprints import fingerprint
from ..deploy.image_sources import open_images, read_idx
from ..deploy.images import ImageSet, stratified, without_corrupt
from ..deploy.manifest import Manifest
from ..deploy.registry import resolve
from ..deploy.shards import shard_files
from .dataset_names import DATASETS
from .dataset_parts import joined, log_left_out, open_parts, prefixed

_log = logging.getLogger(__name__)

# (root or None, whether to download) -> {part: images}
_Reader = Callable[[Path | None, bool], dict[str, ImageSet]]

PARTS = ("train", "validation", "test")

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 1 / 6
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts, and the arguments that reproduce them.

    Attributes:
        data: a named set, or a path.
        root: the folder of a named set; None for the default folder.
        seed: of the random division, for a set that does not come divided.
    """

    data: str
    root: str | None
    seed: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def reference(self) -> dict[str, Any]:
        """The entry in a manifest; the ids are stored beside it."""
        counts = {part: len(getattr(self, part)) for part in PARTS}
        return {"data": self.data, "root": self.root, "seed": self.seed, "images": counts}

    def splits(self) -> dict[str, tuple[str, ...]]:
        """The ids of each part."""
        return {part: getattr(self, part).ids for part in PARTS}

    def fingerprints(self) -> dict[str, np.ndarray]:
        """The fingerprints of each part's images, uint64 [n, 3]."""
        return {part: fingerprint(getattr(self, part)) for part in PARTS}


def load_dataset(
    data: str,
    *,
    root: str | None = None,
    seed: int = 0,
    validation: float = _VALIDATION_SHARE,
    labels: Sequence[str] | None = None,
    skip_corrupt: bool = False,
    download: bool = False,
) -> Dataset:
    """Open a named data set or a folder, and divide it.

    Existing parts (train/, val/ and test/ folders, shards with such names, the test files of MNIST and CIFAR-10) are
    kept. Without a test part, a validation part becomes the test part, else a fifth of the images, drawn by class.
    Validation images are then drawn by class from the rest; `validation` is their share of it. Ids are relative to the
    set's root, so they name the part.

    Args:
        download: fetch a named set that is not on this machine.

    Raises:
        DataError: there is nothing at the path, or it is not an image set.
    """
    if data in DATASETS:
        root = str(Path(root).resolve()) if root else None
        parts = _reader(data)(Path(root) if root else None, download)
        if skip_corrupt:
            parts = {part: log_left_out(without_corrupt(images)) for part, images in parts.items()}
    elif not (shard_files(Path(data)) or Path(data).exists()):
        raise DataError(
            f"no folder or file at {data}; {unknown('data set', data, DATASETS)}",
            fix=f"pass a path, or one of: {', '.join(DATASETS)}",
        )
    elif download:
        raise DataError(f"--download is for named data sets, and {data} is a path", fix="leave out --download")
    else:
        data = place(data)
        parts = open_parts(Path(data), labels, skip_corrupt)
    return _divide(data, root, seed, validation, parts)


class BundleImages:
    """The images of a bundle's parts, from a source that is opened once, when the first part is requested.

    Args:
        images: another source: a path or a named set. The bundle's own data set does not count as another source.
        skip_corrupt: leave out images that cannot be decoded.

    Attributes:
        own: whether they come from the data set that the bundle records.
    """

    def __init__(self, bundle: Bundle, images: str | None = None, *, skip_corrupt: bool = False) -> None:
        self.own = own_images(bundle, images)
        self._bundle, self._images, self._skip_corrupt = bundle, images or "", skip_corrupt
        self._parts: dict[str, ImageSet | None] = {}

    def part(self, part: str) -> ImageSet | None:
        """The images of "train", "validation" or "test"; None if the bundle records no data set.

        Raises:
            DataError: the data set has moved, or is not the recorded one.
        """
        if part not in self._parts:
            self._parts[part] = self._own_part(part) if self.own else self._part_elsewhere(part)
        return self._parts[part]

    def _own_part(self, part: str) -> ImageSet | None:
        if not self._bundle.manifest.data:
            return None
        chosen = self._recorded.select(self._bundle.splits()[part])
        return log_left_out(without_corrupt(chosen)) if self._skip_corrupt else chosen

    @cached_property
    def _recorded(self) -> ImageSet:
        """All images of the data set that the manifest records."""
        recorded = self._bundle.manifest.data
        if recorded["data"] in DATASETS:
            return joined(_reader(recorded["data"])(Path(recorded["root"]) if recorded["root"] else None, False))
        path, labels = Path(recorded["data"]), self._bundle.manifest.labels
        if shard_files(path):
            return open_images(path, labels)
        if not path.exists():
            raise DataError(
                f"the data set of {self._bundle.path.name} was at {recorded['data']}, which is not on this machine",
                fix="pass --images with a folder of class folders",
            )
        return joined(open_parts(path, labels, skip_corrupt=False))

    def _part_elsewhere(self, part: str) -> ImageSet:
        """A part of another data set, divided as by `load_dataset`.

        An undivided folder is used completely as the test part, unless the model was calibrated on it. In that case it
        is divided as for the calibration, so that the test part has only images that the model has not seen.
        """
        manifest, images = self._bundle.manifest, self._images
        if images in DATASETS:
            dataset = self._named
            if dataset.test.labels != manifest.labels:
                raise DataError(
                    f"the labels of {images} differ from the model's: {', '.join(dataset.test.labels[:5])} …",
                    fix="pass --images with data that has the model's labels",
                )
            return getattr(dataset, part)
        folders = self._folders
        seen = calibration_of(manifest).get("images") == place(images)
        if part == "test" and not seen and ("all" in folders or "test" in folders):
            return folders.get("test") or folders["all"]
        return getattr(_divide(images, None, 0, _VALIDATION_SHARE, dict(folders)), part)

    @cached_property
    def _named(self) -> Dataset:
        """The named data set that replaces the bundle's own."""
        return load_dataset(self._images)

    @cached_property
    def _folders(self) -> dict[str, ImageSet]:
        """The parts of the folder that replaces the bundle's own data set."""
        return open_parts(Path(self._images), self._bundle.manifest.labels, self._skip_corrupt)


def part_of(bundle: Bundle, part: str, images: str | None = None, *, skip_corrupt: bool = False) -> ImageSet | None:
    """The images of one part for a bundle (see BundleImages)."""
    return BundleImages(bundle, images, skip_corrupt=skip_corrupt).part(part)


def place(images: str) -> str:
    """An image source as bundles record it: the name of a named set, or an absolute path."""
    return images if images in DATASETS else os.path.realpath(images)


def own_images(bundle: Bundle, images: str | None) -> bool:
    """Whether an image source (None if the user named none) is the data set that the bundle records."""
    return images is None or place(images) == bundle.manifest.data.get("data")


def calibration_of(manifest: Manifest) -> Mapping[str, Any]:
    """The calibration that quantize recorded; empty if it did not calibrate."""
    recorded = manifest.details.get("calibration")
    return recorded if isinstance(recorded, Mapping) else {}


def _divide(data: str, root: str | None, seed: int, share: float, parts: dict[str, ImageSet]) -> Dataset:
    if "all" in parts:
        remaining, test = _drawn(parts["all"], _TEST_SHARE, seed)
    elif "train" not in parts:
        raise DataError(f"{data} has no train/ folder", fix="add train/, or pass one folder of class folders")
    elif "test" in parts:
        remaining, test = parts["train"], parts["test"]
    elif "validation" in parts:
        _log.info(
            f"{data} has no test/ folder: its validation folder is the test part, validation images come from train/"
        )
        remaining, test = parts["train"], parts.pop("validation")
    else:
        remaining, test = _drawn(parts["train"], _TEST_SHARE, seed)
    train, validation = (
        (remaining, parts["validation"]) if "validation" in parts else _drawn(remaining, share, seed + 1)
    )
    return Dataset(data, root, seed, train, validation, test)


def _drawn(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """(remaining images, drawn images): each class gives its share, and neither side is empty.

    A class whose images were all drawn gets one back, because it has to be trained first.
    """
    if len(images) < 2:
        raise DataError("one image cannot be divided into parts", fix="pass more images")
    count = min(max(1, round(len(images) * share)), len(images) - 1)
    drawn = stratified(images.targets, count, seed)
    classes, first = np.unique(images.targets[drawn], return_index=True)
    emptied = ~np.isin(classes, np.delete(images.targets, drawn))
    if emptied.sum() < len(drawn):
        drawn = np.delete(drawn, first[emptied])
    left = np.delete(np.arange(len(images)), drawn)
    return images.take(left), images.take(drawn)


def read_digits(root: Path | None, download: bool) -> dict[str, ImageSet]:
    """UCI handwritten digits, which ship with the package."""
    del download  # the package has the only copy
    if root is not None:
        raise DataError("digits is a part of scikit-learn, not a folder", fix="leave out --root")
    return {"all": open_images(Path(__file__).parent / "data" / "digits.npz")}


def _reader(name: str) -> _Reader:
    return resolve(DATASETS[name], __package__ or "")


def _idx_set(name: str, folder_name: str, labels: Sequence[str], system: Path | None) -> _Reader:
    """A reader of MNIST's file format, in `system` (a Debian package) or in torchvision's folder `folder_name`."""

    def read(root: Path | None, download: bool) -> dict[str, ImageSet]:
        downloaded = (root or cache_folder()) / folder_name / "raw"
        places = [root, downloaded] if root else [system, downloaded]
        folder = next((place for place in places if place and _idx_file(place, "t10k-labels-idx1-ubyte")), None)
        if folder is None:
            _torchvision(name, folder_name, root or cache_folder(), download)
            folder = downloaded
        parts = {}
        for part, prefix in (("train", "train"), ("test", "t10k")):
            files = [_idx_file(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
            if None in files:
                raise DataError(f"{folder} has no {prefix} idx files", fix="download the data set again")
            parts[part] = prefixed(read_idx(files[0], files[1], labels), part)  # type: ignore[arg-type]
        return parts

    return read


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_cifar10(root: Path | None, download: bool) -> dict[str, ImageSet]:
    """CIFAR-10: torchvision's download, or a root with train/ and test/ folders of class folders."""
    if root is not None and (root / "train").is_dir():
        return open_parts(root, None, skip_corrupt=False)
    parts = {}
    for part, source in zip(
        ("train", "test"), _torchvision("cifar10", "CIFAR10", root or cache_folder(), download), strict=True
    ):
        ids = tuple(f"{part}/{index}" for index in range(len(source.data)))
        parts[part] = ImageSet(tuple(source.classes), ids, np.asarray(source.targets, np.int64), source.data)
    return parts


def _torchvision(name: str, class_name: str, folder: Path, download: bool) -> list[Any]:
    """Torchvision's training and test sets, stored in `folder`.

    Raises:
        DataError: they are not there, and `download` is off or the download failed.
    """
    if not download and not folder.is_dir():
        raise _not_stored(name, folder)
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} is not in {folder}, and reading or downloading it requires torchvision",
            fix="pass --images with a folder of its images, or pip install 'edgekit-vision[train]'",
        ) from error
    try:
        make = getattr(torchvision.datasets, class_name)
        return [make(str(folder), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        if not download:
            raise _not_stored(name, folder) from error
        raise DataError(
            f"{name} is not in {folder}, and downloading it failed: {error}",
            fix="pass --root with the folder that contains it (in torchvision's layout)",
        ) from error


def _not_stored(name: str, folder: Path) -> DataError:
    return DataError(
        f"the data set {name} is not in {folder}",
        fix=f"fetch it with edgekit train --data {name} --download, or pass a folder of images or --data digits",
    )


read_mnist = _idx_set("mnist", "MNIST", tuple("0123456789"), None)
read_fashion_mnist = _idx_set("fashion-mnist", "FashionMNIST", _FASHION_LABELS, _DEBIAN_FASHION_MNIST)
