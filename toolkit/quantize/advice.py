"""Advice about calibration images: enough of them, evenly drawn, as in training, and none of them twice.

It comes from the pass over the images that sets the ranges, their fingerprints, and the float model's answers to a few.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.fingerprints import fingerprint
from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess
from ...deploy.session import open_session
from ..datasets import BundleImages
from ..validation.overlap import closest
from .inputs import InputSums, Moments, explain_pictures
from .mistakes import Answers, explain_answers, explain_golden
from .observe import Batch
from .operators import Ranges

# Ranges are stable once this share of the activations has this share of its final width. The remaining ones take their
# width from single images: of MobileNetV3's 142 ranges, 14 had less with half of 512 CIFAR-10 images.
_STABLE_SHARE, _STABLE_WIDTH = 0.9, 0.95
# Ranges still grow if half of the images give the median activation less than this share of its width, and are uneven
# if the median activation's ranges on two halves differ by more than the second number. LeNet, MobileNetV3 and
# ResNet-18 on 64 and on 256 or 512 images: at least 0.92, and at most 0.19.
_GROWING_WIDTH, _UNEVEN = 0.85, 0.3
# Share of the answers that differ between models with the ranges of two halves, above which it is reported. Rounding
# alone changes a few per cent.
_UNEVEN_ANSWERS = 0.1
# Shares of the calibration images above which they are reported: identical ones waste time only; 1 % of Fashion-MNIST's
# images look like one of 20,000 others (see validation.overlap), and so many are no leak.
_MANY_IDENTICAL, _MANY_ALIKE = 0.01, 0.05
_MAX_LISTED = 20


class Watch:
    """Collects what the advice needs while `observe` runs; its memory does not grow with the images.

    Attributes:
        inputs: moments of the input tensors.
        widths: number of images -> float64 [t], the width of each activation's range after so many: at all images, and
            at each number that is smaller by the square root of two.
        halves: float64 [2, t, 2], the ranges on every other batch and on the remaining ones; t is 0 before a batch.
    """

    def __init__(self, preprocess: Preprocess, images: int) -> None:
        self.inputs = InputSums(preprocess)
        self.widths: dict[int, np.ndarray] = {}
        self.halves = np.empty((2, 0, 2))
        self._checkpoints = sorted({int(np.ceil(images / 2 ** (power / 2))) for power in range(40)})
        self._batches = self._images = 0

    def __call__(self, batch: Batch, values: np.ndarray) -> None:
        """Add a batch, and the (smallest, largest) value of each activation on it, float64 [t, 2]."""
        count = len(dict.fromkeys(batch.ids))  # a last batch is padded with its last image
        self.inputs.add(batch.tensor[:count])
        if not self._batches:
            self.halves = np.tile([np.inf, -np.inf], (2, len(values), 1))
        half = self.halves[self._batches % 2]
        half[:, 0], half[:, 1] = np.minimum(half[:, 0], values[:, 0]), np.maximum(half[:, 1], values[:, 1])
        self._batches, self._images = self._batches + 1, self._images + count
        while self._checkpoints and self._checkpoints[0] <= self._images:
            self._checkpoints.pop(0)
            self.widths[self._images] = self.halves[..., 1].max(axis=0) - self.halves[..., 0].min(axis=0)

    def half_ranges(self, names: Iterable[str]) -> list[Ranges]:
        """The ranges of the named activations on each half; empty if a half has no batch."""
        if not np.isfinite(self.halves).all():
            return []
        return [
            {name: (float(low), float(high)) for name, (low, high) in zip(names, half, strict=True)}
            for half in self.halves
        ]


@dataclass(frozen=True)
class Convergence:
    """How the ranges of activations grew with the images.

    Attributes:
        images: number of images.
        stable_after: of these images, after how many 90 % of the ranges had 95 % of their final width.
        half_width: the width of the median activation's range after half of the images, as a share of the final one.
    """

    images: int
    stable_after: int
    half_width: float

    @property
    def warning(self) -> str | None:
        """For the user, if more images would widen the ranges."""
        if self.half_width >= _GROWING_WIDTH:
            return None
        return (
            f"warning: the ranges still grow: half of the {self.images} calibration images give "
            f"{self.half_width:.0%} of the final width. Try --calibration-images {2 * self.images}"
        )


def convergence(widths: Mapping[int, np.ndarray]) -> Convergence:
    """How ranges grew, from the widths [t] of t activations by number of images (see Watch.widths)."""
    images = max(widths)
    final = widths[images]
    shares = {count: np.where(final > 0, width / np.where(final > 0, final, 1), 1) for count, width in widths.items()}
    stable = min(count for count, share in shares.items() if (share >= _STABLE_WIDTH).mean() >= _STABLE_SHARE)
    half = min(count for count in shares if count >= images / 2)
    return Convergence(images, stable, float(np.median(shares[half])))


@dataclass(frozen=True)
class Spread:
    """How far the ranges on two disjoint halves of the images differ, as a share of their common width.

    Attributes:
        median: of all activations.
        largest: of the activation whose ranges differ most.
        activation: its name.
    """

    median: float
    largest: float
    activation: str

    @property
    def warning(self) -> str | None:
        """For the user, if the ranges depend on which images are drawn."""
        if self.median <= _UNEVEN:
            return None
        return (
            f"warning: two halves of the calibration images give ranges that differ by {self.median:.0%} of their "
            f"width (median; {self.activation}: {self.largest:.0%}). Try more calibration images"
        )


def spread(halves: np.ndarray, names: Sequence[str]) -> Spread | None:
    """How far the ranges of two halves, float64 [2, t, 2], of t named activations differ; None if a half is empty."""
    if not np.isfinite(halves).all():
        return None
    widths = halves[..., 1].max(axis=0) - halves[..., 0].min(axis=0)
    differences = np.abs(halves[0] - halves[1]).sum(axis=1) / np.where(widths > 0, widths, 1)
    largest = int(differences.argmax())
    return Spread(float(np.median(differences)), float(differences[largest]), names[largest])


@dataclass(frozen=True)
class Halves:
    """How far the answers depend on which images set the ranges.

    Attributes:
        images: number of images that both int8 models answered, each with the ranges of one half of the images.
        changed: how many got different answers.
    """

    images: int
    changed: int

    @property
    def warning(self) -> str | None:
        """For the user, if the answers depend on which images are drawn."""
        if self.changed <= _UNEVEN_ANSWERS * self.images:
            return None
        return (
            f"warning: with the ranges of two halves of the calibration images, {self.changed} of {self.images} "
            "answers differ. Try more calibration images"
        )


class Fingerprinted(NamedTuple):
    """Images by id, and their fingerprints, uint64 [n, 3] (see deploy.fingerprints)."""

    ids: Sequence[str]
    rows: np.ndarray


@dataclass(frozen=True)
class Duplicates:
    """Calibration images that occur twice, and those that are among the evaluation images.

    Attributes:
        images: number of calibration images.
        identical, alike: how many are identical to, or look like, a calibration image before them.
        leaked, leaked_alike: how many are identical to, or look like, an evaluation image.
        examples, alike_examples: of the leaked images and of those that look like one: "ID is ID of the test images".
    """

    images: int
    identical: int
    alike: int
    leaked: int
    leaked_alike: int
    examples: tuple[str, ...]
    alike_examples: tuple[str, ...]

    @property
    def warnings(self) -> list[str]:
        """For the user."""
        warnings = []
        if self.leaked:
            warnings.append(
                f"warning: {self.leaked} of {self.images} calibration images are evaluation images: {self.examples[0]}"
                ". The measured accuracy is too high. Remove them from the training or the evaluation images"
            )
        if self.leaked_alike > _MANY_ALIKE * self.images:
            warnings.append(
                f"warning: {self.leaked_alike} of {self.images} calibration images look like evaluation images: "
                f"{self.alike_examples[0]}. Remove them if they are resized copies or frames of one film"
            )
        for count, limit, text in (
            (self.identical, _MANY_IDENTICAL, "are identical to others"), (self.alike, _MANY_ALIKE, "look like others")
        ):  # fmt: skip
            if count > limit * self.images:
                warnings.append(
                    f"warning: {count} of {self.images} calibration images {text}. Remove them, or try "
                    f"--calibration-images {self.images + count}"
                )
        return warnings


def duplicates(calibration: Fingerprinted, evaluation: Mapping[str, Fingerprinted]) -> Duplicates:
    """Calibration images that occur twice, or that are among the evaluation images of each named part."""
    low, high = np.ascontiguousarray(calibration.rows[:, 1]), np.ascontiguousarray(calibration.rows[:, 2])
    contents = calibration.rows[:, 0]
    repeated = np.ones(len(contents), bool)
    repeated[np.unique(contents, return_index=True)[1]] = False
    alike = [
        index for index in np.flatnonzero(~repeated)
        if closest(calibration.rows[index, 1:], low[:index], high[:index]) is not None
    ]  # fmt: skip
    leaked, similar = dict[int, str](), dict[int, str]()
    for part, (ids, rows) in evaluation.items():
        positions = {int(content): index for index, content in enumerate(rows[:, 0])}
        low, high = np.ascontiguousarray(rows[:, 1]), np.ascontiguousarray(rows[:, 2])
        for index, name in enumerate(calibration.ids):
            other = positions.get(int(contents[index]))
            if other is not None:
                leaked[index] = f"{name} is {ids[other]} of the {part} images"
            elif (other := closest(calibration.rows[index, 1:], low, high)) is not None:
                similar[index] = f"{name} is like {ids[other]} of the {part} images"
    only_alike = [text for index, text in similar.items() if index not in leaked]
    return Duplicates(
        len(contents), int(repeated.sum()), len(alike), len(leaked), len(only_alike),
        tuple(leaked.values())[:_MAX_LISTED], tuple(only_alike[:_MAX_LISTED]),
    )  # fmt: skip


def fingerprinted(
    images: ImageSet, bundle: Bundle, source: BundleImages
) -> tuple[Fingerprinted, dict[str, Fingerprinted]]:
    """The fingerprints of calibration images, and of the evaluation images: the selection's, and those of the bundle.

    Those that the bundle records are taken from it; a bundle of an earlier version has none.

    Raises:
        DataError: an image cannot be read.
    """
    ids = bundle.splits()
    recorded = bundle.fingerprints().items()
    known = {part: Fingerprinted(ids[part], rows) for part, rows in recorded if len(ids.get(part, ())) == len(rows)}
    evaluation = {part: known[part] for part in ("validation", "test") if part in known}
    # an undivided folder's test part contains its other parts too, so only its selection images are compared
    absent = {"validation": "validation", "test": "test"} if source.own else {"selection": "validation"}
    for name in absent.keys() - known.keys():
        found = source.part(absent[name])
        if found is not None:
            evaluation[name] = Fingerprinted(found.ids, fingerprint(found))
    train = known.get("train") if source.own else None
    rows = dict(zip(train.ids, train.rows, strict=True)) if train else {}
    calibration = np.stack([rows[name] for name in images.ids]) if rows else fingerprint(images)
    return Fingerprinted(images.ids, calibration), evaluation


@dataclass(frozen=True)
class Advice:
    """What is known of a calibration.

    Attributes:
        mistake: a sentence about the inputs, if they are not those that the model was trained on.
    """

    convergence: Convergence
    spread: Spread | None
    halves: Halves | None
    duplicates: Duplicates
    inputs: Moments
    answers: Answers | None
    mistake: str | None

    @property
    def warnings(self) -> list[str]:
        """For the user."""
        mistake = self.mistake and f"warning: {self.mistake}"
        found = [
            mistake, *self.duplicates.warnings, self.spread and self.spread.warning,
            self.halves and self.halves.warning, self.convergence.warning,
        ]  # fmt: skip
        return [text for text in found if text]

    def to_json(self) -> dict[str, Any]:
        """For the details of a manifest."""
        return {
            "convergence": asdict(self.convergence),
            "spread": self.spread and asdict(self.spread),
            "halves": self.halves and asdict(self.halves),
            "duplicates": asdict(self.duplicates),
            "inputs": self.inputs.to_json(),
            "answers": self.answers and self.answers._asdict(),
            "mistake": self.mistake,
        }


def advise(
    watch: Watch, halves: Halves | None, ranges: Ranges, images: ImageSet, bundle: Bundle, source: BundleImages
) -> Advice:  # fmt: skip
    """Advice about the calibration of a bundle's float model, after `observe` showed all images to `watch`.

    Raises:
        DataError: an image cannot be read.
    """
    preprocess, golden, inputs = bundle.manifest.preprocess, bundle.golden(), watch.inputs.moments()
    run, batch = open_session(bundle).run, bundle.manifest.input.batch
    answers = explain_answers(images, preprocess, run, inputs, batch) if images.labelled else None
    mistake = explain_golden(golden, preprocess)
    if not mistake and not (answers and answers.plausible):
        # pictures whose right answers the model gives are not at fault
        mistake = explain_pictures(inputs, golden.tensors, preprocess) or (answers and answers.sentence)
    return Advice(
        convergence(watch.widths),
        spread(watch.halves, list(ranges)),
        halves,
        duplicates(*fingerprinted(images, bundle, source)),
        inputs,
        answers,
        mistake,
    )
