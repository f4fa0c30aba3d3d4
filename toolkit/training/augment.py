"""Training images as tensors: decoded, augmented by torchvision.transforms.v2, and normalised as on the device."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode, v2

from ...deploy.errors import DataError, EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess
from .recipe import AugmentSettings

_INTERPOLATION = {mode.value: mode for mode in InterpolationMode}


class Example(NamedTuple):
    """A float32 image [c, h, w], and the index of its label."""

    tensor: torch.Tensor
    target: int


class Examples(torch.utils.data.Dataset):
    """An image set for a DataLoader; without augmentation its tensors are those of `Preprocess`, bit for bit."""

    def __init__(self, images: ImageSet, preprocess: Preprocess, augment: AugmentSettings | None = None) -> None:
        self._images, self._preprocess = images, preprocess
        self._height, self._width = preprocess.crop or (0, 0)
        self._random_crop = _resized_crop(augment, preprocess) if augment and augment.resized_crop else None
        self._augment = _transforms(augment, (self._height, self._width)) if augment else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int]) -> "list[Example] | EdgeKitError":
        """A batch for a DataLoader.

        An error is returned instead of raised: from a loader process, it would arrive as the text of its traceback.
        """
        try:
            return [self[index] for index in indices]
        except EdgeKitError as error:
            return error

    def __getitem__(self, index: int) -> Example:
        image, target, name = self._images[index]
        try:
            return self._example(image, target)
        except DataError as error:
            raise DataError(f"{name}: {error}", fix=error.fix) from error

    def _example(self, image: Image.Image, target: int) -> Example:
        if self._random_crop is not None:
            image = self._random_crop(image.convert(self._preprocess.mode))
        else:
            image = self._preprocess.pixels(image)
        if self._augment is not None:
            image = self._augment(image)
        return Example(torch.from_numpy(self._preprocess.normalize(image)), target)


def collate(examples: "list[Example] | EdgeKitError") -> Any:
    """A batch of tensors, or the error from loading it."""
    return examples if isinstance(examples, EdgeKitError) else default_collate(examples)


def batches(loader: Iterable[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over the loader's batches.

    Raises:
        EdgeKitError: a batch could not be loaded, in this process or in a loader process.
    """
    for batch in loader:
        if isinstance(batch, EdgeKitError):
            raise batch
        yield batch


def _resized_crop(augment: AugmentSettings, preprocess: Preprocess) -> v2.Transform:
    interpolation = _INTERPOLATION[preprocess.interpolation]
    size = preprocess.crop or (preprocess.resize, preprocess.resize)
    return v2.RandomResizedCrop(size, scale=(augment.resized_crop, 1.0), interpolation=interpolation)  # type: ignore[arg-type]


def _transforms(augment: AugmentSettings, size: tuple[int, int]) -> v2.Transform | None:
    steps: list[v2.Transform] = []
    if augment.pad_crop:
        steps.append(v2.RandomCrop(size, padding=augment.pad_crop))
    if augment.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augment.horizontal_flip))
    if augment.colour:
        steps.append(v2.ColorJitter(augment.colour, augment.colour, augment.colour))
    return v2.Compose(steps) if steps else None
