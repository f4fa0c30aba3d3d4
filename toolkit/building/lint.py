"""What TensorRT would refuse, slow down or silently change in an ONNX graph; needs no TensorRT."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ...export.onnx_file import producers
from ..quantize.prepare import opset_of

# First release -> the highest opset that its parser is documented for (onnx-tensorrt's docs/operators.md and release
# notes). Newer opsets may work too.
_OPSETS = {(8, 5): 17, (9, 2): 19, (10, 0): 20, (10, 9): 22, (10, 13): 24, (11, 5): 25}

# TensorRT casts int64 down to int32 before this release.
_INT64_FROM = (10, 0)

_REQUANTIZE = "edgekit quantize --target tensorrt"

# Layers that compute in int8, and the operators that are fused into them.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish")


class Finding(NamedTuple):
    """A finding about a graph.

    Attributes:
        rule: its name.
        severity: "error" (refused, or changes the model) or "warning" (slower, or possibly unsupported).
        node: the node or tensor that it is about.
        message: what is wrong.
        fix: the next step for the user.
    """

    rule: str
    severity: str
    node: str
    message: str
    fix: str


def lint(
    model: onnx.ModelProto, version: tuple[int, ...] | None, batch: tuple[int, int, int] | None = None
) -> list[Finding]:
    """Check a graph.

    Args:
        version: TensorRT's version, e.g. (10, 3); None (also for TensorRT for RTX) skips the checks that depend on it.
        batch: smallest, usual and largest number of images per run, if the build sets them.
    """
    graph = _Graph(model)
    findings = [
        *_zero_points(graph), *_biases(graph), *_int64(graph, version), *_doubles(graph), *_free_axes(graph, batch),
        *_blocked_fusions(graph),
    ]  # fmt: skip
    if version is not None:
        findings += _opset(model, version)
    return findings


def documented_opset(version: tuple[int, ...]) -> int:
    """The highest opset that a release of TensorRT is documented for."""
    return max((opset for since, opset in _OPSETS.items() if since <= version), default=min(_OPSETS.values()))


class _Graph:
    """A graph with the producer and the number of readers of each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.nodes = list(model.graph.node)
        self.makers = producers(self.proto)
        self.readers = Counter(name for node in self.nodes for name in node.input)
        self._constants = {entry.name: entry for entry in model.graph.initializer}

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs that a caller feeds; old files list their constants too."""
        return [entry for entry in self.proto.input if entry.name not in self._constants]

    def constants(self) -> Iterator[tuple[str, onnx.TensorProto]]:
        """(name, value) of every constant."""
        yield from self._constants.items()
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        yield node.output[0], attribute.t

    def constant(self, name: str) -> onnx.TensorProto | None:
        """The value of a constant."""
        if name in self._constants:
            return self._constants[name]
        return next((value for constant, value in self.constants() if constant == name), None)

    def elem_type(self, name: str) -> int | None:
        """The type of a constant, or of the output of a QuantizeLinear node."""
        constant = self.constant(name)
        if constant is not None:
            return constant.data_type
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "QuantizeLinear" and len(maker.input) > 2:
            return self.elem_type(maker.input[2])
        return None


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} -> {node.output[0]}"


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    """TensorRT supports only symmetric quantization to int8."""
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        values = numpy_helper.to_array(zero) if zero is not None else np.zeros(1, _quantized_type(node))
        if node.op_type == "DequantizeLinear" and zero is None:
            continue  # it has the type of its input, which is checked at its producer
        if values.dtype == np.uint8:
            consequence = "" if values.any() else "; TensorRT reads it as int8, which changes every value over 127"
            message = f"quantizes to uint8, TensorRT only to int8{consequence}"
            yield Finding("uint8", "error", _name(node), message, _REQUANTIZE)
        elif values.any():
            yield Finding(
                "asymmetric", "error", _name(node),
                f"its zero point is {int(values.ravel()[values.ravel() != 0][0])}; TensorRT requires 0", _REQUANTIZE,
            )  # fmt: skip


def _quantized_type(node: onnx.NodeProto) -> np.dtype:
    """The type that a QuantizeLinear without a zero point rounds to: uint8, unless it has output_dtype (opset 21)."""
    dtype = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
    return onnx.helper.tensor_dtype_to_np_dtype(dtype) if dtype else np.dtype(np.uint8)


def _biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and graph.elem_type(node.input[0]) == TensorProto.INT32:
            yield Finding(
                "int32-bias", "error", _name(node), "a bias quantized to int32, which the parser rejects", _REQUANTIZE
            )


def _int64(graph: _Graph, version: tuple[int, ...] | None) -> Iterator[Finding]:
    for entry in (*graph.inputs(), *graph.proto.output):
        kind = entry.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            name = TensorProto.DataType.Name(kind).lower()
            yield Finding(
                "io-type", "error", entry.name, f"is {name}; inputs and outputs must be float32",
                "export the network with float32 input and output",
            )  # fmt: skip
    if version is None or version >= _INT64_FROM:
        return
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    for name, value in graph.constants():
        if value.data_type != TensorProto.INT64:
            continue
        numbers = numpy_helper.to_array(value)
        # Slice reads the largest int64 as "to the end", and reads its int32 truncation the same way
        numbers = numbers[np.abs(numbers.astype(np.float64)) < 2.0**62]
        if numbers.size and (numbers.min() < low or numbers.max() > high):
            yield Finding(
                "int64", "error", name, "has int64 values that do not fit into int32, and TensorRT 8 truncates them",
                "use TensorRT 10 or newer, or remove the values from the graph",
            )  # fmt: skip


def _doubles(graph: _Graph) -> Iterator[Finding]:
    for name, value in graph.constants():
        if value.data_type == TensorProto.DOUBLE:
            yield Finding(
                "double", "warning", name, "is float64; TensorRT computes in float32", "export the network in float32"
            )


def _free_axes(graph: _Graph, batch: tuple[int, int, int] | None) -> Iterator[Finding]:
    for entry in graph.inputs():
        shape = entry.type.tensor_type.shape
        free = [axis for axis, size in enumerate(shape.dim) if size.dim_value < 1]
        if free and free != [0]:
            yield Finding(
                "free-axis", "error", entry.name, f"leaves axes {free} free; a bundle's images have one size",
                "export the network with a fixed image size",
            )  # fmt: skip
        elif free and batch is None:
            yield Finding(
                "free-axis", "error", entry.name, "accepts any batch size, and no profile limits it",
                "pass smallest, usual and largest: edgekit build --batch 1,8,32",
            )  # fmt: skip
        elif not free and batch is not None and batch != (shape.dim[0].dim_value,) * 3:
            yield Finding(
                "fixed-batch", "error", entry.name,
                f"has a fixed batch size of {shape.dim[0].dim_value}, so --batch does not apply",
                "leave out --batch, or: edgekit export --format onnx --dynamic-batch",
            )  # fmt: skip


def _blocked_fusions(graph: _Graph) -> Iterator[Finding]:
    """Q/DQ nodes between a layer and the operator to fuse with it (TensorRT's guide to Q/DQ placement)."""
    for node in graph.nodes:
        layers = [layer for name in node.input if (layer := _quantized_layer(graph, name)) is not None]
        if node.op_type == "Add" and layers and all(_is_quantized(graph, name) for name in node.input):
            yield Finding(
                "residual", "warning", _name(node),
                f"a sum of two quantized values: quantizing after {_name(layers[-1])} prevents fusing the two into "
                "one kernel", _REQUANTIZE,
            )  # fmt: skip
        elif node.op_type in _ACTIVATIONS and layers:
            yield Finding(
                "activation", "warning", _name(node),
                f"quantizing after {_name(layers[0])} prevents fusing the two into one kernel", _REQUANTIZE,
            )  # fmt: skip


def _is_quantized(graph: _Graph, name: str) -> bool:
    maker = graph.makers.get(name)
    return maker is not None and maker.op_type == "DequantizeLinear"


def _quantized_layer(graph: _Graph, name: str) -> onnx.NodeProto | None:
    """The layer whose quantized result has this name; None if the value is not quantized."""
    dequantize = graph.makers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or graph.readers[name] != 1:
        return None
    quantize = graph.makers.get(dequantize.input[0])
    layer = graph.makers.get(quantize.input[0]) if quantize is not None else None
    if layer is None or layer.op_type not in _LAYERS or graph.readers[layer.output[0]] != 1:
        return None
    return layer


def _opset(model: onnx.ModelProto, version: tuple[int, ...]) -> Iterator[Finding]:
    highest, opset = documented_opset(version), opset_of(model)
    if opset > highest:
        release = ".".join(map(str, version[:2]))
        yield Finding(
            "opset", "warning", "the model", f"has opset {opset}; TensorRT {release} is documented for {highest}",
            f"edgekit export --format onnx --opset {highest}",
        )  # fmt: skip
