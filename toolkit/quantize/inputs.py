"""Statistics of a network's inputs during calibration, compared with those of its golden samples."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...deploy.preprocess import Preprocess

# Distances of two sets of pictures, in standard deviations of their pixels (see Moments.distance). One class of
# CIFAR-10 is up to 1.4 from 16 images of another, all its classes together less than 0.2. A mistake is named if the
# distance is at least the first number, and the mistake divides it by the second.
_OTHER_PICTURES, _EXPLAINED = 1.0, 4.0
# Channels are reversed if the difference of the first and the last channel changes its sign, is this many standard
# errors from 0 on both sides, and the reversed channels are this close. No two classes of CIFAR-10 meet all three. Nor
# do most mixed sets with reversed channels: 16 golden samples show only a strong tint.
_CONTRAST_ERRORS, _CLOSE = 4.0, 0.2
# The smallest standard deviation that counts: one grey level. Plain pictures have none.
_GREY_LEVEL = 1 / 255


class Moments(NamedTuple):
    """Statistics of n images as the network's input, on the scale of pixels from 0 to 1, before mean and std.

    Attributes:
        images: n.
        mean, std: float64 [c], over all pixels of a channel.
        contrast: the mean of the first channel minus that of the last, in the order RGB red minus blue.
        contrast_error: its standard error over the images.
    """

    images: int
    mean: np.ndarray
    std: np.ndarray
    contrast: float
    contrast_error: float

    def distance(self, other: "Moments") -> float:
        """The largest difference of a channel: of means, in standard deviations, or the logarithm of their ratio."""
        own, others = np.maximum(self.std, _GREY_LEVEL), np.maximum(other.std, _GREY_LEVEL)
        shifts = np.abs(self.mean - other.mean) / np.sqrt(own * others)
        return float(max(shifts.max(), np.abs(np.log(own / others)).max()))

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        return {"mean": self.mean.round(4).tolist(), "std": self.std.round(4).tolist()}


class InputSums:
    """Adds up the moments of a network's input tensors; its memory does not grow with their number."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self._images = 0
        self._sums = np.zeros(2 * len(preprocess.mean) + 2)

    def add(self, tensors: np.ndarray) -> None:
        """Add tensors [n, c, h, w] in Preprocess.dtype."""
        pixels = to_pixels(tensors, self._preprocess)
        means = pixels.mean(axis=(2, 3))
        contrasts = (means[:, 0] - means[:, -1])[:, None]
        rows = [means, np.square(pixels).mean(axis=(2, 3)), contrasts, contrasts**2]
        self._sums += np.concatenate(rows, axis=1).sum(axis=0)
        self._images += len(tensors)

    def moments(self) -> Moments:
        """The moments of all tensors that were added, of which there is at least one."""
        averages = self._sums / self._images
        mean, squares = np.split(averages[:-2], 2)
        contrast, contrast_squares = averages[-2:]
        error = np.sqrt(max(contrast_squares - contrast**2, 0.0) / self._images)
        std = np.sqrt(np.maximum(squares - mean**2, 0.0))
        return Moments(self._images, mean, std, float(contrast), float(error))


def moments_of(tensors: np.ndarray, preprocess: Preprocess) -> Moments:
    """The moments of tensors [n, c, h, w] in Preprocess.dtype, n >= 1."""
    sums = InputSums(preprocess)
    sums.add(tensors)
    return sums.moments()


def to_pixels(tensors: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Tensors [n, c, h, w] in Preprocess.dtype as float64 on the scale of pixels from 0 to 1."""
    if preprocess.dtype == "uint8":
        return tensors.astype(np.float64) / 255
    mean, std = (np.asarray(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return tensors.astype(np.float64) * std + mean


def explain_pictures(calibration: Moments, golden: np.ndarray, preprocess: Preprocess) -> str | None:
    """The mistake that explains how the calibration inputs differ from the golden samples; None if none explains it.

    Other pictures are no mistake: see the tolerances above.

    Args:
        golden: the golden samples' tensors [n, c, h, w] in Preprocess.dtype, as the model takes them.
    """
    pixels = to_pixels(golden, preprocess)
    trained = moments_of(golden, preprocess)
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "pixels from 0 to 255 (a division by 255 is missing)": lambda pixels: pixels * 255,
        "pixels from 0 to 255 and no mean and std (the division by 255 is missing)": lambda pixels: to_pixels(
            pixels * 255, preprocess
        ),
        "no mean and std": lambda pixels: to_pixels(pixels, preprocess),
        "pixels that are divided by 255 twice": lambda pixels: pixels / 255,
    }
    if preprocess.dtype == "uint8":
        changes = {name: change for name, change in changes.items() if "no mean" not in name}
    if preprocess.mode == "L":
        changes["inverted grey levels (1 - x)"] = lambda pixels: 1 - pixels
    distance = calibration.distance(trained)
    if distance >= _OTHER_PICTURES:
        distances = {name: calibration.distance(_of_pixels(change(pixels))) for name, change in changes.items()}
        name = min(distances, key=lambda name: distances[name])
        if distances[name] <= distance / _EXPLAINED:
            return _sentence(name, calibration, trained)
    if _reversed(calibration, trained):
        return _sentence("channels in the order BGR", calibration, trained)
    return None


def _of_pixels(pixels: np.ndarray) -> Moments:
    channels = pixels.shape[1]
    plain = Preprocess("RGB" if channels == 3 else "L", None, None, "bilinear", (0.0,) * channels, (1.0,) * channels)
    return moments_of(pixels, plain)


def _reversed(calibration: Moments, golden: Moments) -> bool:
    mirrored = golden._replace(mean=golden.mean[::-1], std=golden.std[::-1])
    return (
        calibration.contrast * golden.contrast < 0
        and all(abs(each.contrast) >= _CONTRAST_ERRORS * each.contrast_error for each in (calibration, golden))
        and calibration.distance(mirrored) <= _CLOSE
    )


def _sentence(mistake: str, calibration: Moments, trained: Moments) -> str:
    def numbers(values: np.ndarray) -> str:
        return ", ".join(f"{value:.3g}" for value in values)

    return (
        f"the calibration inputs look like the golden samples with {mistake}: "
        f"mean {numbers(calibration.mean)} instead of {numbers(trained.mean)}, "
        f"std {numbers(calibration.std)} instead of {numbers(trained.std)}. "
        "Check how these images were written, or pass --images with others"
    )
