"""The grids of eight-bit numbers on which activations, weights and biases are rounded."""

from typing import NamedTuple

import numpy as np

from .targets import ActivationType

# The largest bias that is stored in 32 bits; sums of products need the room above it.
LARGEST_BIAS = float(1 << 30)
# A scale below the smallest normal float32 is not computed with exactly.
TINY = float(np.finfo(np.float32).tiny)


class Grid(NamedTuple):
    """x is stored as round(x / scale) + zero_point, limited to the range of the type (QuantizeLinear of ONNX).

    Attributes:
        scale: float32 [], or [k] with one number per channel.
        zero_point: uint8, int8 or int32, of the same shape.
        axis: of the channels; None for one scale.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """The stored numbers, in the type of the zero point."""
        scale, zero_point = self._along(values)
        limits = np.iinfo(self.zero_point.dtype)
        stored = np.round(values.astype(np.float64) / scale) + zero_point
        return np.clip(stored, limits.min, limits.max).astype(self.zero_point.dtype)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """The values in float32 that stored numbers mean."""
        scale, zero_point = self._along(stored)
        return ((stored.astype(np.float64) - zero_point) * scale).astype(np.float32)

    def _along(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point in float64, of a shape that broadcasts with the values."""
        shape = [1] * values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        scale, zero_point = self.scale.astype(np.float64), self.zero_point.astype(np.float64)
        return (scale, zero_point) if self.axis is None else (scale.reshape(shape), zero_point.reshape(shape))


def activation_grid(low: float, high: float, kind: ActivationType) -> Grid:
    """The grid of an activation whose values are between `low` and `high`, and which includes zero.

    Zero has a number of its own, since convolutions pad with it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if kind == "by sign":
        kind = "symmetric" if low < 0 else "uint8"
    if kind == "symmetric":
        scale = _usable(max(-low, high) / 127)
        return Grid(np.array(scale, np.float32), np.zeros((), np.int8))
    limits = np.iinfo(np.uint8 if kind == "uint8" else np.int8)
    scale = (high - low) / 255
    if scale < TINY:
        return Grid(np.array(1, np.float32), np.zeros((), limits.dtype))
    return Grid(np.array(scale, np.float32), np.array(np.round(limits.min - low / scale), limits.dtype))


def weight_grid(values: np.ndarray, axis: int | None, largest: int = 127) -> Grid:
    """The symmetric grid of weights, with a scale per channel of `axis`.

    Args:
        largest: the largest stored number: 127, or 64 for 7-bit weights.
    """
    others = tuple(index for index in range(values.ndim) if index != axis)
    peaks = np.abs(values.astype(np.float64)).max(axis=others if axis is not None else None, initial=0)
    # channels of zeros get the coarsest scale, which leaves the most room for their bias
    coarsest = _usable(float(peaks.max()) / largest)
    scale = np.where(peaks / largest < TINY, coarsest, peaks / largest).astype(np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int8), axis)


def for_bias(weights: Grid, bias: np.ndarray, activation: Grid) -> Grid:
    """The weights' grid, made coarser where a channel's bias would not fit into 32 bits.

    Args:
        bias: float32 [k].
    """
    peaks = np.abs(bias.astype(np.float64))
    least = (peaks if weights.axis is not None else peaks.max(initial=0)) / (LARGEST_BIAS * float(activation.scale))
    return weights._replace(scale=np.maximum(weights.scale, np.asarray(least, np.float32)))


def bias_grid(weights: Grid, activation: Grid) -> Grid:
    """The grid of a bias, in the units of the sums of products: int32 with the product of both scales."""
    scale = (weights.scale * activation.scale).astype(np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int32), None if weights.axis is None else 0)


def _usable(scale: float) -> float:
    return scale if scale >= TINY else 1.0
