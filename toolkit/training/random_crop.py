"""Random resized crops of training images; a JPEG is decoded no larger than its crop needs."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from ...deploy.images import ImageSet
from ...deploy.preprocess import INTERPOLATIONS, Preprocess, eight_bits, opened

# EXIF tag 0x0112: these orientations exchange width and height (Exif 3.0, 4.6.5.1).
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


class RandomCrop:
    """Random resized crops (Szegedy et al., 2014), drawn as torchvision draws them.

    Args:
        share: the smallest share of the area that a crop retains.
        preprocess: gives the crop's size, mode and interpolation.
    """

    def __init__(self, share: float, preprocess: Preprocess) -> None:
        size: Any = preprocess.crop or (preprocess.resize, preprocess.resize)
        self._height, self._width = size
        self._mode, self._interpolation = preprocess.mode, INTERPOLATIONS[preprocess.interpolation]
        self._draw = v2.RandomResizedCrop(size, scale=(share, 1.0))  # type: ignore[arg-type]

    def __call__(self, images: ImageSet, index: int, seed: int) -> Image.Image:
        """A crop of an image that depends on `seed` alone.

        Raises:
            DataError: the image cannot be decoded.
        """
        picture = images.pictures[index]
        if isinstance(picture, np.ndarray):
            image = Image.fromarray(picture)
            return self._cut(image, self._box(*image.size, seed))
        with opened(picture) as file:
            turned = file.getexif().get(_ORIENTATION) in _TURNED
            width, height = file.size[::-1] if turned else file.size
            left, top, right, bottom = self._box(width, height, seed)
            # libjpeg leaves out frequencies, for a half, a quarter or an eighth of each side, but no less than this
            least = math.ceil(width * self._width / (right - left)), math.ceil(height * self._height / (bottom - top))
            file.draft(file.mode, least[::-1] if turned else least)
            image = eight_bits(ImageOps.exif_transpose(file))
        across, down = image.width / width, image.height / height
        return self._cut(image, (left * across, top * down, right * across, bottom * down))

    def _box(self, width: int, height: int, seed: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a crop of an image of this size."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            drawn = self._draw.make_params([torch.empty((1, height, width), device="meta")])
        left, top = drawn["left"], drawn["top"]
        return left, top, left + drawn["width"], top + drawn["height"]

    def _cut(self, image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        return image.convert(self._mode).resize((self._width, self._height), self._interpolation, box)
