"""A float model whose activations calibration observes: an interface, and an ONNX file."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import onnx

from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress
from .gate import run_float
from .histogram import Histogram, histograms
from .memory import plan
from .observe import Batch, Watch, activations, observe
from .operators import Ranges


class FloatModel(Protocol):
    """A float model whose activations can be observed; each has a name."""

    def groups(self, compared: int, limit: int | None) -> list[list[str]]:
        """The activations in groups, whose histograms are made in one pass over the images each.

        Args:
            compared: number of images that are held to compare methods.
            limit: resident memory in bytes that the process keeps to; None for no limit.

        Raises:
            EdgeKitError: the limit cannot be kept.
        """
        ...

    def ranges(self, manifest: Manifest, images: ImageSet, progress: Progress, watch: Watch | None) -> Ranges:
        """See observe.observe."""
        ...

    def histograms(self, ranges: Ranges, batches: Iterable[Batch]) -> dict[str, Histogram]:
        """See histogram.histograms."""
        ...

    def answers(self, tensors: np.ndarray) -> np.ndarray:
        """Logits [n, k] for tensors [n, c, h, w]."""
        ...


class OnnxFloat:
    """A prepared float ONNX graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model

    def groups(self, compared: int, limit: int | None) -> list[list[str]]:
        """See FloatModel."""
        return plan(self._model, activations(self._model), compared, limit)

    def ranges(self, manifest: Manifest, images: ImageSet, progress: Progress, watch: Watch | None) -> Ranges:
        """See FloatModel."""
        return observe(self._model, manifest, images, progress, watch)

    def histograms(self, ranges: Ranges, batches: Iterable[Batch]) -> dict[str, Histogram]:
        """See FloatModel."""
        return histograms(self._model, ranges, batches)

    def answers(self, tensors: np.ndarray) -> np.ndarray:
        """See FloatModel."""
        return run_float(self._model, tensors)
