"""The int8 layers of a graph as ONNX Runtime fuses them, in exact integers and in the order of its kernels.

QLinearConv, QGemm, QLinearMatMul and MatMulIntegerToFloat are products of two matrices: a row of `columns` for each
output position, and `weights`. MLAS lays out the reduction axis of a convolution as [kernel position][channel of the
group], whatever the graph's layout (ReorderFilter and the NHWC Im2col in
onnxruntime/core/providers/cpu/quantization/qlinearconv.cc, MlasConvSymPackW in onnxruntime/core/mlas/lib/convsym.cpp).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

from .rewrites.graph import attributes

# Position of each input of the operators: the activation, its scale and zero point, the same of the weight and of the
# result, and the bias.
_INPUTS = {
    "QLinearConv": ("x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "bias"),
    "QGemm": ("x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "bias", "y_scale", "y_zero"),
    "QLinearMatMul": ("x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"),
    "MatMulIntegerToFloat": ("x", "w", "x_scale", "w_scale", "x_zero", "w_zero", "bias"),
}
# float32 is exact for integers up to this, and twice as fast as float64.
_EXACT_FLOAT32 = 1 << 24
_LARGEST_PRODUCT = 255 * 128


class IntegerLayer(NamedTuple):
    """A layer with int8 weights.

    Attributes:
        name: of its node, which is that of the Conv, Gemm or MatMul in the graph with DequantizeLinear nodes.
        source, result: names of the tensors that it reads and writes.
        weights: int8 [groups, k, outputs of the group], with k in the order of the kernels.
        x_zero: zero point of the activation.
        bias: int32 [outputs] added to the sums, float32 added to the result of MatMulIntegerToFloat, or 0.
        scale: float32 [outputs] or [1]: what a sum is multiplied with.
        y_zero: zero point of the result in the result's type; None if the result is float32.
        window: the geometry of a convolution; None for a product of matrices.
    """

    name: str
    source: str
    result: str
    weights: np.ndarray
    x_zero: int
    bias: np.ndarray
    scale: np.ndarray
    y_zero: np.ndarray | None
    window: "Window | None"

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input and one output channel: such convolutions have kernels of their own."""
        return self.window is not None and self.weights.shape[1:] == (int(np.prod(self.window.kernel)), 1)

    def columns(self, values: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """Rows to multiply by the weights, and the shape of the result.

        Args:
            values: the activation in its own type, [n, c, ...] for a convolution, else [..., k].

        Returns:
            [n, groups, positions, k] in that type (padding is the zero point), and [n, outputs, ...] or [..., outputs].
        """
        if self.window is not None:
            return self.window.columns(values, len(self.weights), self.x_zero)
        return values.reshape(1, 1, -1, values.shape[-1]), (*values.shape[:-1], self.weights.shape[-1])

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Exact sums of products of the stored numbers, before zero points and bias: float [n, groups, positions, o].

        All sums are integers below 2**53, and below 2**24 where float32 is used.
        """
        small = self.weights.shape[1] * _LARGEST_PRODUCT < _EXACT_FLOAT32
        kind = np.float32 if small else np.float64
        return columns.astype(kind) @ self.weights.astype(kind)

    def finish(self, sums: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The result from sums like those of `sums`, rounded as MLAS rounds it on every CPU.

        The sum becomes a float32, which is multiplied by a float32, limited, and rounded to the nearest even integer
        (MlasRequantizeOutput in onnxruntime/core/mlas/lib/quantize.cpp, ComputeOutputScale in qlinearconv.cc).
        """
        groups, _, outputs = self.weights.shape
        corrected = sums.astype(np.float64)
        corrected -= self.x_zero * self.weights.sum(axis=1, dtype=np.int64)[None, :, None, :]
        exact_bias = self.bias.dtype == np.int32
        if exact_bias:
            corrected += np.broadcast_to(self.bias, groups * outputs).reshape(groups, 1, outputs)
        scale = np.broadcast_to(self.scale, groups * outputs).reshape(groups, 1, outputs)
        scaled = corrected.astype(np.float32) * scale
        if not exact_bias:
            scaled += self.bias
        if self.y_zero is not None:
            limits = np.iinfo(self.y_zero.dtype)
            scaled = np.clip(
                scaled, np.float32(limits.min - int(self.y_zero)), np.float32(limits.max - int(self.y_zero))
            )
            scaled = (np.rint(scaled) + np.float32(self.y_zero)).astype(self.y_zero.dtype)
        if self.window is not None:
            scaled = np.moveaxis(scaled, 2, 3)  # outputs before positions
        return np.ascontiguousarray(scaled).reshape(shape)


class Window(NamedTuple):
    """The geometry of a convolution, one number for each axis of the image.

    Attributes:
        pads: (before, after) of each axis, or SAME_UPPER or SAME_LOWER.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | str

    def columns(self, values: np.ndarray, groups: int, fill: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """See IntegerLayer.columns, of which the shape lacks the number of outputs: [n, -1, ...]."""
        axes = len(self.kernel)
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        pads = self.pads if not isinstance(self.pads, str) else self._same(values.shape[2:], spans)
        padded = np.pad(values, ((0, 0), (0, 0), *pads), constant_values=fill)
        views = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
        steps = (*self.strides, *self.dilations)
        views = views[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
        count, channels, *rest = views.shape
        image = tuple(rest[:axes])
        grouped = views.reshape(count, groups, channels // groups, *rest)
        columns = np.moveaxis(grouped, 2, -1)
        return columns.reshape(count, groups, int(np.prod(image)), -1), (count, -1, *image)

    def _same(self, image: Sequence[int], spans: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The pads of auto_pad SAME_UPPER and SAME_LOWER (Conv in ONNX's operator specification)."""
        totals = [
            max(0, (-(-size // step) - 1) * step + span - size)
            for size, step, span in zip(image, self.strides, spans, strict=True)
        ]
        less = [(total // 2, total - total // 2) for total in totals]
        return tuple(less if self.pads == "SAME_UPPER" else [(after, before) for before, after in less])


def integer_layer(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> IntegerLayer | None:
    """The layer that a fused node computes.

    None for other operators, weights that are computed or not int8, and forms that `emit_int8` does not write.
    """
    names = dict(zip(_INPUTS.get(node.op_type, ()), node.input, strict=False))
    values = {key: constants[name] for key, name in names.items() if name in constants}
    given: dict[str, Any] = attributes(node)
    parameters = {key for key, name in names.items() if name and key not in ("x", "bias")}
    if not parameters or parameters - values.keys() or values["w"].dtype != np.int8:
        return None
    if values.get("w_zero", np.zeros(1)).any() or given.get("transA", 0) or given.get("alpha", 1.0) != 1.0:
        return None
    weight, window = values["w"], None
    if node.op_type == "QLinearConv":
        window, weight = _window(given, weight), _grouped(weight, given.get("group", 1))
    elif weight.ndim != 2:
        return None
    else:
        weight = (weight.T if given.get("transB", 0) else weight)[None]
    scale = (values["x_scale"] * values["w_scale"]).astype(np.float32)
    if "y_scale" in values:
        scale = (scale / values["y_scale"]).astype(np.float32)
    return IntegerLayer(
        name=node.name, source=names["x"], result=node.output[0], weights=weight,
        x_zero=int(values["x_zero"].item()) if "x_zero" in values else 0,
        bias=values.get("bias", np.zeros(1, np.int32)), scale=np.atleast_1d(scale),
        y_zero=values["y_zero"].reshape(()) if "y_zero" in values else None, window=window,
    )  # fmt: skip


def _window(given: Mapping[str, Any], weight: np.ndarray) -> Window:
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    automatic = given.get("auto_pad", b"NOTSET").decode()
    pads: tuple[tuple[int, int], ...] | str = automatic
    if automatic in ("NOTSET", "VALID"):
        zeros = (0, 0) * len(kernel)
        flat = given.get("pads", zeros) if automatic == "NOTSET" else zeros
        pads = tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    return Window(kernel, tuple(given.get("strides", ones)), tuple(given.get("dilations", ones)), pads)


def _grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """[o, channels of a group, kernel ...] -> [groups, kernel positions * channels, outputs of a group]."""
    outputs, channels = weight.shape[:2]
    positions = weight.reshape(groups, outputs // groups, channels, -1)
    return np.ascontiguousarray(positions.transpose(0, 3, 2, 1).reshape(groups, -1, outputs // groups))
