"""Mistakes in preprocessing that the golden samples or the model's answers prove, named."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ...deploy.bundle import Golden
from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess, decode
from .inputs import Moments, to_pixels

# (mean, std) per channel, for pixels from 0 to 1.
_Scale = tuple[tuple[float, ...], tuple[float, ...]]
_Change = Callable[[np.ndarray], np.ndarray]

# What networks are commonly trained with: Caffe's models (0 to 255), timm's and TensorFlow's (0.5), torchvision's
# (ImageNet), github.com/kuangliu/pytorch-cifar (CIFAR-10), PyTorch's examples (MNIST).
_COMMON: Mapping[str, _Scale] = {
    "pixels from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    "pixels from 0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
_COMMON_GREY: Mapping[str, _Scale] = {
    **{name: (mean[:1], std[:1]) for name, (mean, std) in list(_COMMON.items())[:3]},
    "MNIST's mean and std": ((0.1307,), (0.3081,)),
}
# Two scales are the same if no pixel's values differ by more than this share of their range.
_SAME_SCALE = 0.01
# Golden tensors that differ from the recorded ones by less than this share of their deviation are the same: decoders of
# JPEG differ by a grey level or two.
_SAME_TENSORS = 0.02
# Standard deviations whose ratio is beyond this differ by a division by 255; no two data sets' do.
_DIVIDED = 40

# Labelled calibration images that the float model answers; half of them choose a correction. It is named if it puts so
# many more answers right than wrong that chance does so in one of 4,000 cases (in standard errors, the sign test's).
# Reversed channels cost MobileNetV3 a sixth of its answers on CIFAR-10, which 64 images do not prove.
_ANSWERED_IMAGES, _SIGNIFICANT = 128, 3.5
# With fewer wrong answers nothing can be significant.
_FEWEST_WRONG = int(np.ceil(_SIGNIFICANT**2))


def explain_golden(golden: Golden, preprocess: Preprocess) -> str | None:
    """How the recorded tensors of the golden samples differ from those that `preprocess` makes; None if they do not.

    The pictures are the same, so the mean, the std and the order of the channels are computed, not guessed.

    Raises:
        DataError: a golden image cannot be decoded.
    """
    made = preprocess.batch([decode(image) for image in golden.images])
    recorded = golden.tensors.astype(np.float64)
    if _relative(recorded - made, recorded) <= _SAME_TENSORS:
        return None
    pixels = to_pixels(made, preprocess)
    for order, planes in ((None, pixels), ("channels in the order BGR", pixels[:, ::-1])):
        slopes, offsets = _fit(planes, recorded)
        if not slopes.all() or _relative(slopes * planes + offsets - recorded, recorded) > _SAME_TENSORS:
            continue
        mean, std = (-offsets / slopes).ravel(), (1 / slopes).ravel()
        inverted = None
        if (std < 0).all():
            mean, std, inverted = 1 - mean, -std, "inverted grey levels"
        scale, own = (tuple(mean.tolist()), tuple(std.tolist())), (preprocess.mean, preprocess.std)
        rescaled = None if _same(scale, own) else _named(scale) + _division(scale, preprocess)
        differences = " and ".join(text for text in (rescaled, order, inverted) if text)
        return (
            f"the golden samples were recorded with {differences}, unlike the calibration inputs "
            f"({_numbers(own)}). {_fix(scale) if rescaled else 'Import the model again'}"
        )
    return "the golden samples were recorded with other preprocessing than calibration uses. Import the model again"


class Answers(NamedTuple):
    """How many of n labelled calibration images the float model answers correctly.

    Attributes:
        correct: as they are.
        corrected: with the best correction; None if none was tried.
        sentence: about that correction, if it is significantly better.
    """

    images: int
    correct: int
    corrected: int | None = None
    sentence: str | None = None

    @property
    def plausible(self) -> bool:
        """Whether the inputs are as in training: too few answers are wrong for a mistake."""
        return self.images - self.correct < _FEWEST_WRONG


def explain_answers(
    images: ImageSet, preprocess: Preprocess, run: _Change, inputs: Moments, batch: int | None = None
) -> Answers:
    """The float model's answers to labelled images, as they are and with common mistakes corrected.

    This finds mistakes that the golden samples share, such as a wrong --mean when the model was imported. A correction
    is tried only if enough answers are wrong, and the best one on half of the images is then tried on the other half.

    Args:
        images: at least one, all with labels.
        run: the float model: [n, c, h, w] in Preprocess.dtype -> logits [n, k].
        inputs: moments of the images, for networks that were trained with the mean and std of their data.
        batch: the model's fixed batch size; None for any.

    Raises:
        DataError: an image cannot be decoded.
    """
    chosen = images.stratified(_ANSWERED_IMAGES, seed=0)
    halves = [chosen.take(range(start, len(chosen), 2)) for start in range(min(2, len(chosen)))]
    size = batch or 8

    def right(part: ImageSet, change: _Change) -> np.ndarray:
        answers = []
        for start in range(0, len(part), size):
            pictures = [part[index].image for index in range(start, min(start + size, len(part)))]
            answers.append(run(change(preprocess.batch(pictures))).argmax(axis=1))
        return np.concatenate(answers) == part.targets

    before = np.concatenate([right(part, lambda tensors: tensors) for part in halves])
    answers = Answers(len(chosen), int(before.sum()))
    if answers.plausible:
        return answers
    corrections = _corrections(preprocess, inputs)
    first = {name: right(halves[0], change) for name, (_, change) in corrections.items()}
    name = max(first, key=lambda name: first[name].sum())
    fix, change = corrections[name]
    after = np.concatenate([first[name], *[right(part, change) for part in halves[1:]]])
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    sentence = (
        f"the float model answers {after.sum()} of {len(chosen)} calibration images correctly with {name}, and "
        f"{answers.correct} with the recorded preprocessing. {fix}"
    )
    significant = gained - lost >= _SIGNIFICANT * np.sqrt(gained + lost) and gained > lost
    return answers._replace(corrected=int(after.sum()), sentence=sentence if significant else None)


def _corrections(preprocess: Preprocess, inputs: Moments) -> dict[str, tuple[str, _Change]]:
    """{what the model may have been trained with: (what to try, tensors of `preprocess` -> such tensors)}."""
    own = preprocess.mean, preprocess.std
    corrections: dict[str, tuple[str, _Change]] = {}
    if preprocess.dtype == "float32":
        data = tuple(inputs.mean.tolist()), tuple(np.maximum(inputs.std, 1e-3).tolist())
        common = _COMMON if preprocess.mode == "RGB" else _COMMON_GREY
        for name, scale in {**common, "the mean and std of these images": data}.items():
            if not _same(scale, own):
                corrections[name + _division(scale, preprocess)] = _fix(scale), _rescaling(preprocess, scale)
    if preprocess.mode == "RGB":
        fix = "Check which order the images and the model have, and swap the channels of one"
        corrections["channels in the order BGR"] = fix, _changing(preprocess, lambda pixels: pixels[:, ::-1])
    fix = "Invert the images, or compute 1 - x in the model and import it again"
    corrections["inverted pixels (1 - x)"] = fix, _changing(preprocess, lambda pixels: 1 - pixels)
    return corrections


def _rescaling(preprocess: Preprocess, scale: _Scale) -> _Change:
    return lambda tensors: _normalized(to_pixels(tensors, preprocess), scale)


def _changing(preprocess: Preprocess, change: _Change) -> _Change:
    def changed(tensors: np.ndarray) -> np.ndarray:
        pixels = change(to_pixels(tensors, preprocess))
        if preprocess.dtype == "uint8":
            return np.rint(pixels * 255).astype(np.uint8)
        return _normalized(pixels, (preprocess.mean, preprocess.std))

    return changed


def _normalized(pixels: np.ndarray, scale: _Scale) -> np.ndarray:
    mean, std = (np.asarray(values)[:, None, None] for values in scale)
    return ((pixels - mean) / std).astype(np.float32)


def _relative(difference: np.ndarray, values: np.ndarray) -> float:
    """The root mean square of a difference, as a share of the values' standard deviation."""
    return float(np.sqrt(np.square(difference).mean()) / max(values.std(), 1e-12))


def _fit(planes: np.ndarray, recorded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares per channel of float64 [n, c, h, w]: slopes and offsets [1, c, 1, 1] from planes to recorded."""
    axes = (0, 2, 3)
    centre, recorded_centre = planes.mean(axes, keepdims=True), recorded.mean(axes, keepdims=True)
    variance = np.square(planes - centre).mean(axes, keepdims=True)
    slopes = ((planes - centre) * (recorded - recorded_centre)).mean(axes, keepdims=True) / np.maximum(variance, 1e-12)
    return slopes, recorded_centre - slopes * centre


def _same(scale: _Scale, other: _Scale) -> bool:
    """Whether two scales give every pixel nearly the same value."""
    (mean, std), (other_mean, other_std) = (tuple(map(np.asarray, pair)) for pair in (scale, other))
    return all(
        np.abs((pixel - mean) / std - (pixel - other_mean) / other_std).max() <= _SAME_SCALE / std.max()
        for pixel in (0.0, 1.0)
    )


def _named(scale: _Scale) -> str:
    common = _COMMON if len(scale[0]) == 3 else _COMMON_GREY
    return next((name for name, pair in common.items() if _same(scale, pair)), _numbers(scale))


def _numbers(scale: _Scale) -> str:
    mean, std = (", ".join(f"{round(value, 6):.4g}" for value in values) for values in scale)
    return f"mean {mean} and std {std}"


def _division(scale: _Scale, preprocess: Preprocess) -> str:
    """A remark if the model was trained with values that are about 255 times as small or as large."""
    ratio = float(np.mean(scale[1]) / np.mean(preprocess.std))
    if preprocess.dtype == "uint8" or 1 / _DIVIDED < ratio < _DIVIDED:
        return ""
    return " (a division by 255 is missing in calibration)" if ratio > 1 else " (calibration divides by 255)"


def _fix(scale: _Scale) -> str:
    mean, std = (",".join(f"{round(value, 6):.4g}" for value in values) for values in scale)
    return f"Import the model again with --mean {mean} --std {std}"
