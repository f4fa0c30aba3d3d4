"""The float operators of ONNX in torch, for the graphs of image classifiers.

The semantics are those of ONNX's operator specification (https://onnx.ai/onnx/operators/); tests compare each operator
with ONNX Runtime.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation

from ...deploy.errors import EdgeKitError

# The attributes of a node, and its inputs (None for one that is left out).
Operator = Callable[..., Any]
Attributes = Mapping[str, Any]


def unsupported(what: str) -> EdgeKitError:
    """The error for a graph that cannot be trained."""
    return EdgeKitError(
        f"training through {what} is not supported",
        fix="quantize it after training, with layers that stay float: edgekit quantize --max-drop 0.5",
    )


def _padded(given: Attributes, x: torch.Tensor, fill: float) -> tuple[torch.Tensor, list[int]]:
    """The image, and the symmetric padding (rows, columns) that is left to the operator; others are made here."""
    automatic = given.get("auto_pad", b"NOTSET")
    if x.ndim != 4 or automatic not in (b"NOTSET", b"VALID"):
        raise unsupported(f"auto_pad {automatic.decode()} of {x.ndim - 2} axes")
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0)) if automatic == b"NOTSET" else (0, 0, 0, 0)
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom), value=fill), [0, 0]


def _conv(given: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    x, pads = _padded(given, x, 0.0)
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    return F.conv2d(x, weight, bias, strides, pads, dilations, given.get("group", 1))


def _gemm(given: Attributes, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    a, b = (value.T if given.get(key, 0) else value for key, value in (("transA", a), ("transB", b)))
    product = given.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + given.get("beta", 1.0) * c


def _max_pool(given: Attributes, x: torch.Tensor) -> torch.Tensor:
    x, pads = _padded(given, x, -torch.inf)
    kernel, dilations = given["kernel_shape"], given.get("dilations", (1, 1))
    return F.max_pool2d(x, kernel, given.get("strides", (1, 1)), pads, dilations, bool(given.get("ceil_mode", 0)))


def _average_pool(given: Attributes, x: torch.Tensor) -> torch.Tensor:
    counted = bool(given.get("count_include_pad", 0))
    padded, pads = _padded(given, x, 0.0)
    if (padded is not x and not counted) or given.get("dilations", [1, 1]) != [1, 1]:
        raise unsupported("an AveragePool with padding on one side only, or dilations")
    ceil = bool(given.get("ceil_mode", 0))
    return F.avg_pool2d(padded, given["kernel_shape"], given.get("strides", (1, 1)), pads, ceil, counted)


def _batch_normalization(given: Attributes, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    scale, shift, mean, variance = parameters
    return F.batch_norm(x, mean, variance, scale, shift, eps=given.get("epsilon", 1e-5))


def _layer_normalization(
    given: Attributes, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None = None
) -> torch.Tensor:
    axis = given.get("axis", -1) % x.ndim
    normalized = F.layer_norm(x, x.shape[axis:], eps=given.get("epsilon", 1e-5)) * scale
    return normalized if shift is None else normalized + shift


def _clip(
    given: Attributes, x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
) -> torch.Tensor:
    del given
    return x if low is None and high is None else x.clamp(low, high)


def _reshape(given: Attributes, x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(shape.tolist())]
    if given.get("allowzero", 0):
        raise unsupported("a Reshape with allowzero")
    return x.reshape(sizes)


def _flatten(given: Attributes, x: torch.Tensor) -> torch.Tensor:
    axis = given.get("axis", 1) % (x.ndim + 1)
    return x.reshape(*x.shape[:1], -1) if axis == 1 else x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _squeeze(given: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    return x.squeeze(tuple(_axes(given, axes) or [place for place, size in enumerate(x.shape) if size == 1]))


def _unsqueeze(given: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    chosen = _axes(given, axes)
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _reduce_mean(given: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    return x.mean(_axes(given, axes) or None, keepdim=bool(given.get("keepdims", 1)))


def _axes(given: Attributes, axes: torch.Tensor | None) -> list[int]:
    """Axes are an input since opset 13 or 18, and an attribute before."""
    return axes.tolist() if axes is not None else list(given.get("axes", ()))


def _pad(given: Attributes, x: torch.Tensor, pads: torch.Tensor, value: torch.Tensor | None = None, *rest: Any) -> Any:
    mode = given.get("mode", b"constant").decode()
    if mode != "constant" or any(entry is not None for entry in rest):
        raise unsupported(f"a Pad of mode {mode}, or with axes")
    sizes = pads.tolist()
    pairs = [(sizes[axis], sizes[axis + x.ndim]) for axis in reversed(range(x.ndim))]
    return F.pad(x, [size for pair in pairs for size in pair], value=0.0 if value is None else float(value))


def _slice(given: Attributes, x: torch.Tensor, *limits: torch.Tensor | None) -> torch.Tensor:
    del given
    starts, ends, axes, steps = (None if entry is None else entry.tolist() for entry in (*limits, None, None)[:4])
    assert starts is not None  # noqa: S101 # required by the specification
    assert ends is not None  # noqa: S101
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = steps[place] if steps else 1
        if step < 1:
            raise unsupported("a Slice that goes backwards")
        axis = (axes[place] if axes else place) % x.ndim
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def _split(given: Attributes, x: torch.Tensor, sizes: torch.Tensor | None = None) -> Sequence[torch.Tensor]:
    if sizes is None:
        raise unsupported("a Split without sizes")
    return x.split(sizes.tolist(), given.get("axis", 0))


def _softmax(function: Callable[..., torch.Tensor]) -> Operator:
    return lambda given, x: function(x, given.get("axis", -1))


def _each(function: Callable[..., torch.Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda _, *inputs: function(*inputs)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _each(torch.matmul),
    "Add": _each(torch.add), "Sub": _each(torch.sub), "Mul": _each(torch.mul), "Div": _each(torch.div),
    "Pow": _each(torch.pow), "Sqrt": _each(torch.sqrt), "Erf": _each(torch.erf), "Tanh": _each(torch.tanh),
    "Relu": _each(torch.relu), "Sigmoid": _each(torch.sigmoid), "HardSwish": _each(F.hardswish), "Clip": _clip,
    "LeakyRelu": lambda given, x: F.leaky_relu(x, given.get("alpha", 0.01)),
    "HardSigmoid": lambda given, x: (given.get("alpha", 0.2) * x + given.get("beta", 0.5)).clamp(0, 1),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _each(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)), "ReduceMean": _reduce_mean,
    "BatchNormalization": _batch_normalization, "LayerNormalization": _layer_normalization,
    "Concat": lambda given, *inputs: torch.cat(inputs, given["axis"]),
    "Identity": _each(lambda x: x), "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": lambda given, x: x.permute(*given.get("perm", reversed(range(x.ndim)))),
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Pad": _pad, "Slice": _slice, "Split": _split,
}  # fmt: skip
