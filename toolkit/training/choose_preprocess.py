"""Choose preprocessing from the training images for settings that the recipe leaves at "auto"."""

import numpy as np

from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess
from .recipe import PreprocessSettings

# Photographs get ImageNet's usual input size, and its usual share of the shorter side (224 of 256).
_PHOTO_SIZE, _CROP_SHARE = 224, 0.875
_SMALL_SIZE = 64
_STATISTICS_IMAGES = 1024


def choose_preprocess(settings: PreprocessSettings, images: ImageSet) -> Preprocess:
    """Fill in the settings that are left at "auto".

    mode: L for grey images, else RGB. size: that of the images if they are small and equally large, else 224. resize:
    the size itself if it is small, else with a margin of 12.5 % for the crop. mean and std: computed from up to 1,024
    training images, drawn by class, after resizing and cropping.
    """
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
    plain = Preprocess(mode, resize, size, settings.interpolation, (0.0,) * channels, (1.0,) * channels)
    mean, std = settings.mean, settings.std
    if not (mean and std):
        measured = _statistics(plain, sample)
        mean, std = mean or measured[0], std or measured[1]
    return Preprocess(mode, resize, size, settings.interpolation, mean, std)


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
