"""Random changes of training images in batches, on the device that trains, different for each image and epoch."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation

from ...deploy.preprocess import Preprocess
from .recipe import AugmentSettings

# The share of the area that is erased, and its ratio of height to width: Random Erasing (Zhong et al., 2017), 4.2.
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
# Shares of red, green and blue in grey: ITU-R BT.601-7, 2.5.1.
_LUMA = (0.299, 0.587, 0.114)


class Draw(NamedTuple):
    """Random numbers for n images, on the device that trains.

    Attributes:
        shift: int64 [n, 2], rows and columns from the padded image's corner to the crop's.
        flip: bool [n].
        colour: float32 [n, 3], the factors of brightness, contrast and saturation.
        erased: int64 [n, 4], top, bottom, left and right of an erased rectangle, all 0 for none.
    """

    shift: torch.Tensor
    flip: torch.Tensor
    colour: torch.Tensor
    erased: torch.Tensor

    def of(self, indices: torch.Tensor) -> "Draw":
        """The numbers for some of the images, int64 [m] on the same device."""
        return Draw(*(values[indices] for values in self))


class Augmentation:
    """Random changes of batches of images of one size."""

    def __init__(self, settings: AugmentSettings, preprocess: Preprocess) -> None:
        self._settings, self._preprocess = settings, preprocess
        self._height, self._width = preprocess.crop or (0, 0)

    def draw(self, images: int, seed: int, device: torch.device) -> Draw:
        """Numbers for all images of an epoch: they depend on the image, not on its batch or on the number of processes.

        Args:
            images: number of images.
        """
        generator, settings = np.random.default_rng(seed), self._settings
        shift = generator.integers(0, 2 * settings.pad_crop, (images, 2), endpoint=True)
        flip = generator.random(images) < settings.horizontal_flip
        low, high = max(0.0, 1 - settings.colour), 1 + settings.colour
        colour = generator.uniform(low, high, (images, 3)).astype(np.float32)
        drawn = (shift, flip, colour, self._rectangles(generator, images))
        return Draw(*(torch.from_numpy(values).to(device) for values in drawn))

    def __call__(self, pixels: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The input for a network, float32 [n, c, h, w], from uint8 [n, c, h, w]."""
        settings = self._settings
        if settings.pad_crop or settings.horizontal_flip:
            pixels = self._cropped(pixels, draw)
        if settings.colour:
            pixels = _coloured(pixels.float(), draw.colour)
        tensor = normalized(pixels, self._preprocess)
        return self._erase(tensor, draw.erased) if settings.erase else tensor

    def _cropped(self, pixels: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Pad with zeros, crop, and flip, by one lookup of pixels."""
        count, channels, height, width = pixels.shape
        padded = F.pad(pixels, (self._settings.pad_crop,) * 4)
        rows = draw.shift[:, :1] + torch.arange(height, device=pixels.device)
        columns = draw.shift[:, 1:] + torch.arange(width, device=pixels.device)
        columns = torch.where(draw.flip[:, None], columns.flip(1), columns)
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).reshape(count, 1, -1)
        return padded.flatten(2).gather(2, places.expand(-1, channels, -1)).reshape(pixels.shape)

    def _rectangles(self, generator: np.random.Generator, images: int) -> np.ndarray:
        """Rectangles of random size and place; larger than the image in one direction, they are cut off there."""
        if not self._settings.erase:
            return np.zeros((images, 4), np.int64)
        area = generator.uniform(*_ERASED_AREA, images) * self._height * self._width
        ratio = np.exp(generator.uniform(math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1]), images))
        heights = np.minimum(np.sqrt(area * ratio).round(), self._height)
        widths = np.minimum(np.sqrt(area / ratio).round(), self._width)
        tops = (generator.random(images) * (self._height - heights + 1)).astype(np.int64)
        lefts = (generator.random(images) * (self._width - widths + 1)).astype(np.int64)
        chosen = generator.random(images) < self._settings.erase
        found = np.stack([tops, tops + heights, lefts, lefts + widths], axis=1).astype(np.int64)
        return found * chosen[:, None]

    def _erase(self, tensor: torch.Tensor, erased: torch.Tensor) -> torch.Tensor:
        """Set rectangles to 0, the mean of the training images."""
        rows = torch.arange(self._height, device=tensor.device)
        columns = torch.arange(self._width, device=tensor.device)
        top, bottom, left, right = (edge[:, None] for edge in erased.unbind(1))
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
        return tensor.masked_fill(inside[:, None], 0.0)


def normalized(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Convert [n, c, h, w] on the scale 0 to 255 to float32, bit for bit as `Preprocess.normalize` does."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
        for values in (preprocess.mean, preprocess.std)
    )
    return (pixels.float() / 255 - mean) / std


def _coloured(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation by factors, float32 [n, 3]; the result is float32 from 0 to 255."""
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors.unbind(1))
    bright = (pixels * brightness).clamp(0, 255)
    mean = _grey(bright).mean((1, 2, 3), keepdim=True)
    contrasted = torch.lerp(mean, bright, contrast).clamp(0, 255)
    return torch.lerp(_grey(contrasted), contrasted, saturation).clamp(0, 255)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """The luma of float32 [n, 3, h, w], [n, 1, h, w]; grey images as they are."""
    if pixels.shape[1] == 1:
        return pixels
    return (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
