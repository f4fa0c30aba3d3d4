"""Which int8 layers saturate on x86 CPUs without VNNI, and by how much.

The uint8 x int8 kernels of MLAS for AVX2 and for AVX-512 without VNNI multiply with vpmaddubsw. It adds the products of
two neighbours along the reduction axis in int16, with saturation; these sums are then added in int32
(onnxruntime/core/mlas/lib/amd64/QgemmU8X8KernelAvx2.asm and QgemvU8S8KernelAvx2.asm for GEMM and im2col,
ConvSymKernelAvx2.asm for convolutions with an indirection buffer). The pairs are (0, 1), (2, 3), ... of the order in
integer_layer.py; an odd last number is paired with zero. Zero points are corrected later, so the stored numbers count.

Depthwise convolutions do not saturate: their kernels widen both numbers first (vpmaddwd in
MlasConvSymDepthwiseKernelAvx2, 16-bit products with 32-bit sums in intrinsics/avx2/qdwconv_avx2.cpp). Nor does int8 x
int8, for which these CPUs have no such kernel.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx

from .integer_layer import IntegerLayer
from .integer_run import IntegerRun

# A layer gets 7-bit weights if a sum of a pair on calibration images exceeds this share of the limits of int16. Other
# images may have larger sums.
MARGIN = 0.9
_LIMITS = np.iinfo(np.int16)
_LARGEST_INPUT = 255


class _Risky(NamedTuple):
    """The sums of one pair for those rows and outputs where they can be large.

    Attributes:
        group: of the convolution.
        rows, outputs: int64 [r] and [o], indices.
        sums: int32 [r, o].
    """

    group: int
    rows: np.ndarray
    outputs: np.ndarray
    sums: np.ndarray


class Overflowing(NamedTuple):
    """Layers whose sums overflow on CPUs without VNNI.

    Attributes:
        counts: name of each -> the number of its sums beyond the margin.
        layers: number of all int8 layers.
    """

    counts: dict[str, int]
    layers: int

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line for the user if there are any."""
        if not self.counts:
            return ()
        share = f"{len(self.counts)} of {self.layers} layers"
        return (f"7-bit weights in {share}: their sums could overflow on CPUs without VNNI",)


def can_saturate(layer: IntegerLayer) -> bool:
    """Whether some input would make a pair's sum exceed int16: a bound from the weights alone."""
    return not layer.depthwise and bool(_possible(_paired(layer.weights), 1.0).any())


def saturated_sums(layer: IntegerLayer, columns: np.ndarray) -> np.ndarray:
    """Sums of products as a CPU without VNNI computes them; see IntegerLayer.sums for arguments and result."""
    sums = layer.sums(columns)
    for index, image in enumerate(columns):
        for risky in _risky(layer, image, 1.0):
            excess = risky.sums - np.clip(risky.sums, _LIMITS.min, _LIMITS.max)
            sums[index, risky.group][np.ix_(risky.rows, risky.outputs)] -= excess
    return sums


def overflowing_layers(model: onnx.ModelProto, batches: Iterable[np.ndarray]) -> Overflowing:
    """The layers with sums of a pair beyond MARGIN of int16's limits on some images.

    Args:
        model: an int8 graph of emit_int8 with uint8 activations.
        batches: tensors [n, c, h, w] of calibration images.
    """
    run = IntegerRun(model, signed=False)
    counts = {layer.name: 0 for layer in run.layers if can_saturate(layer)}

    def count(layer: IntegerLayer, columns: np.ndarray) -> np.ndarray:
        if layer.name in counts:
            risky = (part for image in columns for part in _risky(layer, image, MARGIN))
            counts[layer.name] += sum(int(_outside(part.sums, MARGIN).sum()) for part in risky)
        return layer.sums(columns)

    for tensors in batches if counts else ():
        run.run(tensors, count)
    return Overflowing({name: number for name, number in counts.items() if number}, len(run.layers))


def _risky(layer: IntegerLayer, columns: np.ndarray, share: float) -> Iterator[_Risky]:
    """The pairs that can exceed a share of int16's limits; columns are those of one image, [groups, positions, k]."""
    if layer.depthwise or columns.dtype != np.uint8:
        return
    weights = _paired(layer.weights)
    inputs = np.pad(columns, ((0, 0), (0, 0), (0, columns.shape[2] % 2)))
    possible = _possible(weights, share)
    for group, pair in np.argwhere(possible.any(axis=2)):
        outputs = np.flatnonzero(possible[group, pair])
        pair_weights = weights[group, pair][:, outputs]
        values = inputs[group, :, 2 * pair : 2 * pair + 2].astype(np.int32)
        # most rows have no input large enough for any of the outputs
        rows = np.flatnonzero(_outside(values @ np.abs(pair_weights).max(axis=1), share))
        if len(rows):
            yield _Risky(int(group), rows, outputs, values[rows] @ pair_weights)


def _paired(weights: np.ndarray) -> np.ndarray:
    """int8 [groups, k, o] -> int32 [groups, pairs, 2, o]."""
    groups, length, outputs = weights.shape
    padded = np.pad(weights, ((0, 0), (0, length % 2), (0, 0)))
    return padded.reshape(groups, -1, 2, outputs).astype(np.int32)


def _possible(weights: np.ndarray, share: float) -> np.ndarray:
    """Whether some uint8 inputs make a pair's sum exceed a share of int16's limits, bool [groups, pairs, o].

    The largest sum takes 255 for positive weights and 0 for others, the smallest the reverse.
    """
    largest = np.maximum(weights, 0).sum(axis=2) * _LARGEST_INPUT
    smallest = np.minimum(weights, 0).sum(axis=2) * _LARGEST_INPUT
    return _outside(largest, share) | _outside(smallest, share)


def _outside(sums: np.ndarray, share: float) -> np.ndarray:
    return (sums > _LIMITS.max * share) | (sums < _LIMITS.min * share)
