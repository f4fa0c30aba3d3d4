"""Training images as tensors: decoded, randomly changed (torchvision.transforms.v2), normalised by the one
preprocessing."""

from typing import NamedTuple

import torch
from torchvision.transforms import InterpolationMode, v2

from ..deploy.images import ImageSet
from ..deploy.preprocess import Preprocess
from .recipe import AugmentSettings

_INTERPOLATION = {mode.value: mode for mode in InterpolationMode}


class Example(NamedTuple):
    """float32 [c, h, w] and the label's index."""

    tensor: torch.Tensor
    target: int


class Examples(torch.utils.data.Dataset):
    """An image set for a DataLoader; without augmentation its tensors are those of `Preprocess`, bit for bit."""

    def __init__(self, images: ImageSet, preprocess: Preprocess, augment: AugmentSettings | None = None) -> None:
        self._images, self._preprocess = images, preprocess
        self._height, self._width = preprocess.crop or (0, 0)
        self._whole = _resized_crop(augment, preprocess) if augment and augment.resized_crop else None
        self._change = _changes(augment, (self._height, self._width)) if augment else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        image, target, _ = self._images[index]
        if self._whole is not None:
            image = self._whole(image.convert(self._preprocess.mode))
        else:
            image = self._preprocess.pixels(image)
        if self._change is not None:
            image = self._change(image)
        return Example(torch.from_numpy(self._preprocess.normalize(image)), target)


def _resized_crop(augment: AugmentSettings, preprocess: Preprocess) -> v2.Transform:
    interpolation = _INTERPOLATION[preprocess.interpolation]
    size = preprocess.crop or (preprocess.resize, preprocess.resize)
    return v2.RandomResizedCrop(size, scale=(augment.resized_crop, 1.0), interpolation=interpolation)  # type: ignore[arg-type]


def _changes(augment: AugmentSettings, size: tuple[int, int]) -> v2.Transform | None:
    steps: list[v2.Transform] = []
    if augment.pad_crop:
        steps.append(v2.RandomCrop(size, padding=augment.pad_crop))
    if augment.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augment.horizontal_flip))
    if augment.colour:
        steps.append(v2.ColorJitter(augment.colour, augment.colour, augment.colour))
    return v2.Compose(steps) if steps else None
