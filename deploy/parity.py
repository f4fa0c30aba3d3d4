"""Parity: does a converted model still give the same answers as its source?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle, Golden
from .preprocess import decode

# Another order of float32 additions changes logits by about 1e-6 of the largest one (4e-7 was seen on seven torchvision
# networks); a wrong bias or a wrongly folded layer changes them by 1e-3 and more.
FLOAT_TOLERANCE = 1e-4
TENSOR_TOLERANCE = 1e-6

# The limit for models that agree to the last bit, or not at all; float32 itself resolves 144 dB.
_MOST_DB = 150.0


@dataclass(frozen=True)
class Parity:
    """How far a model's answers on the golden samples are from its source's.

    Attributes:
        checksums_agreement: share of samples that decode to the same pixels.
        tensor_max_abs: largest difference of the preprocessed tensors, in units of the normalised input.
        logits_max_abs: largest difference of the logits; nan if a logit is not finite.
        top1_agreement: share of samples with the same top-1 class.
        scale: largest absolute logit of the source; the tolerance is relative to it.
    """

    checksums_agreement: float
    tensor_max_abs: float
    logits_max_abs: float
    top1_agreement: float
    scale: float

    @property
    def exact(self) -> bool:
        """Whether this is the same model, up to float32 rounding; never with nan."""
        return self.logits_max_abs <= FLOAT_TOLERANCE * max(self.scale, 1e-3) and self.top1_agreement == 1.0

    @property
    def same_input(self) -> bool:
        """Whether preprocessing on this machine gives the same tensors as at the source."""
        return self.tensor_max_abs <= TENSOR_TOLERANCE

    @property
    def first_difference(self) -> str:
        """The first of decoder, preprocessing and logits that differs from the source; "none" if all agree."""
        if self.checksums_agreement < 1.0:
            return "decoder"
        if not self.same_input:
            return "preprocessing"
        return "none" if self.exact else "logits"


def replay(bundle: Bundle, run: Callable[[np.ndarray], np.ndarray]) -> Parity:
    """Decode and preprocess the golden images here, then compare tensors and logits with the recorded ones."""
    golden = bundle.golden()
    images = [decode(image) for image in golden.images]
    preprocess = bundle.manifest.preprocess
    same = float(np.mean([preprocess.checksum(image) for image in images] == golden.checksums))
    # the tensors may be uint8, whose difference would wrap around
    difference = float(np.abs(preprocess.batch(images).astype(np.float32) - golden.tensors.astype(np.float32)).max())
    return compare(golden, run(golden.tensors), checksums_agreement=same, tensor_max_abs=difference)


def compare(
    golden: Golden, logits: np.ndarray, checksums_agreement: float = 1.0, tensor_max_abs: float = 0.0
) -> Parity:
    """Compare float32 [n, k] logits with the golden ones.

    If the two best golden logits of a sample are closer than the tolerance, either class counts as its top-1.
    """
    scale = float(np.abs(golden.logits).max())
    if logits.shape != golden.logits.shape or not np.isfinite(logits).all():
        return Parity(checksums_agreement, tensor_max_abs, float("nan"), 0.0, scale)
    rows = np.arange(len(logits))
    chosen = golden.logits[rows, logits.argmax(axis=1)]
    same = golden.logits.max(axis=1) - chosen <= FLOAT_TOLERANCE * scale
    largest = float(np.abs(logits - golden.logits).max())
    return Parity(checksums_agreement, tensor_max_abs, largest, float(same.mean()), scale)


def powers(reference: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(signal, noise) of float32 [n, k] logits: sums of squares, which can be added over batches.

    The mean of each image's logits is subtracted: an offset that all classes share changes neither answer nor
    probability.
    """
    signal, noise = (logits - logits.mean(axis=1, keepdims=True) for logits in (reference, answers - reference))
    return np.asarray([(signal**2).sum(dtype=np.float64), (noise**2).sum(dtype=np.float64)])


def decibels(powers: np.ndarray) -> float:
    """The signal-to-noise ratio of (signal, noise) in dB, within ±150; -150 if an answer is not a number."""
    signal, noise = powers
    if not np.isfinite(noise) or (signal == 0 and noise > 0):
        return -_MOST_DB
    return (
        float(np.clip(10 * np.log10(max(signal, 1e-300) / max(noise, 1e-300)), -_MOST_DB, _MOST_DB))
        if noise
        else _MOST_DB
    )
