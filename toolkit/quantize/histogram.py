"""Histograms of a float model's activations, in one pass over some images."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from .observe import Batch
from .operators import Ranges

_BINS = 2048
# So many values are counted at once: their places fit the processor's cache, and take no memory to speak of.
_COUNTED = 1 << 16


class Histogram(NamedTuple):
    """How often values occur between `low` and `high`.

    Attributes:
        counts: int64 [bins], of equal width.
    """

    low: float
    high: float
    counts: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """float64 [bins]"""
        width = (self.high - self.low) / len(self.counts)
        return self.low + (np.arange(len(self.counts)) + 0.5) * width


def with_width(ranges: Ranges) -> Ranges:
    """The ranges, extended to 0, of the activations that have different values."""
    extended = {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in ranges.items()}
    return {name: (low, high) for name, (low, high) in extended.items() if np.float32(high - low) / _BINS > 0}


def empty_histograms(ranges: Ranges) -> dict[str, Histogram]:
    """A histogram without values for each range."""
    return {name: Histogram(low, high, np.zeros(_BINS, np.int64)) for name, (low, high) in ranges.items()}


def histograms(model: onnx.ModelProto, ranges: Ranges, batches: Iterable[Batch]) -> dict[str, Histogram]:
    """A histogram of each activation over its range, which has a width (see with_width).

    These activations of one batch are in memory at the same time.
    """
    found = empty_histograms(ranges)
    entry = model.graph.input[0].name
    outputs = [name for name in found if name != entry]
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    answers = {entry.name for entry in model.graph.output}
    augmented.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in outputs if name not in answers
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(augmented.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in batches:
        values: dict[str, Any] = {entry: batch.tensor}
        if outputs:  # without names, ONNX Runtime returns all
            values.update(zip(outputs, session.run(outputs, {entry: batch.tensor}), strict=True))
        for name, histogram in found.items():
            count(histogram, np.asarray(values[name]))
    return found


def count(histogram: Histogram, values: np.ndarray) -> None:
    """Count values in place."""
    bins, flat = len(histogram.counts), values.ravel()
    low, per_bin = np.float32(histogram.low), np.float32(bins / (histogram.high - histogram.low))
    for start in range(0, len(flat), _COUNTED):
        places = flat[start : start + _COUNTED] - low
        places *= per_bin
        np.clip(places, 0, bins - 1, out=places)
        histogram.counts[:] += np.bincount(places.astype(np.intp), minlength=bins)  # bincount would copy other types
