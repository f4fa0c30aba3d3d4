"""The methods that set the range of an activation, from what was seen of it on calibration images."""

from functools import partial
from typing import NamedTuple

import numpy as np

from .grid import activation_grid
from .histogram import Histogram
from .observe import Batch, Watch
from .operators import Ranges
from .targets import ActivationType

# The least error is searched for among these shares of a limit.
_SHARES = np.linspace(0.1, 1, 19)
# Of all values, so many are within the range of the percentile method: the usual choice, as in ONNX Runtime's.
_PERCENTILE = 0.99999
# The extremes of so many batches are enough for their quantiles.
_MOST_BATCHES = 1024


class Seen(NamedTuple):
    """What was seen of an activation.

    Attributes:
        histogram: of its values on some images.
        extremes: float64 [n, 2], the smallest and the largest value on each of n batches, which are single images
            unless the model has a fixed batch.
    """

    histogram: Histogram
    extremes: np.ndarray


class Extremes:
    """A Watch that remembers the extremes of each batch, and passes them on."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._values: list[np.ndarray] = []

    def __call__(self, batch: Batch, values: np.ndarray) -> None:
        """See Watch."""
        if len(self._values) < _MOST_BATCHES:  # the images come in a random order
            self._values.append(values)
        if self._watch is not None:
            self._watch(batch, values)

    def of(self, ranges: Ranges) -> dict[str, np.ndarray]:
        """The extremes, float64 [n, 2], of each observed activation."""
        return dict(zip(ranges, np.stack(self._values, axis=1), strict=True))


def minmax(seen: Seen, kind: ActivationType) -> tuple[float, float]:
    """The range of all values."""
    del kind
    return seen.histogram.low, seen.histogram.high


def percentile(seen: Seen, kind: ActivationType) -> tuple[float, float]:
    """The range without the rarest values, as many of the small as of the large ones."""
    del kind
    histogram = seen.histogram
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    centres = histogram.centres
    low = centres[np.searchsorted(shares, (1 - _PERCENTILE) / 2)]
    high = centres[np.searchsorted(shares, 1 - (1 - _PERCENTILE) / 2)]
    return min(float(low), 0.0), max(float(high), 0.0)


def least_error(seen: Seen, kind: ActivationType) -> tuple[float, float]:
    """The range whose grid changes the values least, by the mean of the squared changes."""
    histogram = seen.histogram
    limits = [histogram.low, histogram.high]
    for _ in range(2):
        for side in (0, 1):
            tried = [[*limits[:side], limits[side] * share, *limits[side + 1 :]] for share in _SHARES]
            limits = min(tried, key=lambda pair: _error(histogram, pair, kind))
    return float(limits[0]), float(limits[1])


def _error(histogram: Histogram, limits: list[float], kind: ActivationType) -> float:
    grid = activation_grid(limits[0], limits[1], kind)
    changes = grid.dequantize(grid.quantize(histogram.centres)) - histogram.centres
    return float((histogram.counts * changes**2).sum())


def _of_most_images(share: float, seen: Seen, kind: ActivationType) -> tuple[float, float]:
    """The range of all values of this share of the images, at either end: single images have far larger values."""
    del kind
    return float(np.quantile(seen.extremes[:, 0], 1 - share)), float(np.quantile(seen.extremes[:, 1], share))


images_99, images_95, images_90, images_80 = (partial(_of_most_images, share) for share in (0.99, 0.95, 0.9, 0.8))
