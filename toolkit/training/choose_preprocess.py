"""Choose preprocessing from the training images for settings that the recipe leaves at "auto"."""

from typing import Any

import numpy as np

from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess
from .recipe import PreprocessSettings

# Photographs get ImageNet's usual input size, and its usual share of the shorter side (224 of 256).
_PHOTO_SIZE, _CROP_SHARE = 224, 0.875
_SMALL_SIZE = 64
_BILINEAR = "bilinear"
_STATISTICS_IMAGES = 1024


def choose_preprocess(settings: PreprocessSettings, images: ImageSet, known: Preprocess | None = None) -> Preprocess:
    """Fill in the settings that are left at "auto", from `known` if that is given, else by the images.

    mode: L for grey images, else RGB. size: that of the images if they are small and equally large, else 224. resize:
    the size itself if it is small, else with a margin of 12.5 % for the crop. mean and std: computed from up to 1,024
    training images, drawn by class, after resizing and cropping. interpolation: bilinear.

    Args:
        known: what the weights that training starts from were trained with.
    """
    if known is not None:
        return _changed(known, settings)
    sample = images.stratified(_STATISTICS_IMAGES, seed=0)
    first_images = [sample[index].image for index in range(min(64, len(sample)))]
    mode = settings.mode
    if mode == "auto":
        mode = "L" if all(image.mode in ("L", "1") for image in first_images) else "RGB"
    sizes = {image.size for image in first_images}
    native = first_images[0].size if len(sizes) == 1 and max(first_images[0].size) <= _SMALL_SIZE else None
    size = (native[1], native[0]) if native else (_PHOTO_SIZE, _PHOTO_SIZE)
    if settings.size:
        size = (settings.size, settings.size)
    resize = settings.resize or (min(size) if max(size) <= _SMALL_SIZE else round(min(size) / _CROP_SHARE))
    channels = 3 if mode == "RGB" else 1
    interpolation = _BILINEAR if settings.interpolation == "auto" else settings.interpolation
    plain = Preprocess(mode, resize, size, interpolation, (0.0,) * channels, (1.0,) * channels)
    mean, std = settings.mean, settings.std
    if not (mean and std):
        measured = _statistics(plain, sample)
        mean, std = mean or measured[0], std or measured[1]
    return Preprocess(mode, resize, size, interpolation, mean, std)


def _changed(known: Preprocess, settings: PreprocessSettings) -> Preprocess:
    """The known preprocessing with what the settings name; a resize stays in proportion to the size."""
    size = (settings.size, settings.size) if settings.size else known.crop
    resize: Any = settings.resize or known.resize
    if settings.size and not settings.resize and isinstance(known.resize, int) and known.crop:
        resize = round(known.resize * settings.size / min(known.crop))
    elif settings.size and not settings.resize:
        resize = settings.size
    return Preprocess(
        known.mode if settings.mode == "auto" else settings.mode, resize, size,
        known.interpolation if settings.interpolation == "auto" else settings.interpolation,
        settings.mean or known.mean, settings.std or known.std,
    )  # fmt: skip


def _statistics(plain: Preprocess, images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel over all pixels, rounded to 4 digits."""
    total = squares = np.zeros(len(plain.mean))
    for sample in images:
        tensor = plain(sample.image).astype(np.float64)
        total = total + tensor.mean(axis=(1, 2))
        squares = squares + (tensor**2).mean(axis=(1, 2))
    mean = total / len(images)
    std = np.sqrt(np.maximum(squares / len(images) - mean**2, 1e-6))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).clip(1e-3).tolist())
