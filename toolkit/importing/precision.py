"""The precision that a graph computes in, judged by the weights of its convolutions and matrix products."""

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto

from ...deploy.errors import BundleError
from ...export.onnx_file import producers
from .edit import type_name

# operator -> index of its weights among its inputs: ONNX's own, and ONNX Runtime's (com.microsoft)
WEIGHTS = {
    "Conv": 1, "Gemm": 1, "MatMul": 1, "FusedConv": 1, "FusedGemm": 1, "FusedMatMul": 1,
    "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1,
    "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1,
}  # fmt: skip
# quantized operator -> indices of weights and bias; its other constants are scales and zero points
_VALUES = {
    "QuantizeLinear": (0,), "DequantizeLinear": (0,), "QLinearConv": (3, 8), "QLinearMatMul": (3,), "QGemm": (3, 6),
    "ConvInteger": (1,), "MatMulInteger": (1,), "DynamicQuantizeMatMul": (1, 4), "MatMulIntegerToFloat": (1, 6),
}  # fmt: skip
# Operators that may come between a constant and the layer that reads it.
_BETWEEN = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def precision_of(model: onnx.ModelProto) -> str:
    """fp32, fp16 or int8: the precision of most weights of Conv, Gemm and MatMul; fp32 if there are none.

    Weights that the graph rounds (QuantizeLinear of a float constant) or casts to float16 count as the new type.

    Raises:
        BundleError: most weights are of another type (float64, bfloat16, int4, …).
    """
    types = weight_types(model)
    if not types:
        return "fp32"
    counts = Counter[str]()
    for kind, count in types.items():
        counts[_NAMES.get(kind) or type_name(kind)] += count
    name = counts.most_common(1)[0][0]
    if name not in _NAMES.values():
        raise BundleError(
            f"its weights are {name}; EdgeKit accepts fp32, fp16 and int8", fix="export or quantize it to one of these"
        )
    return name


def parameters_of(model: onnx.ModelProto) -> int:
    """Number of values in real-valued constants, quantized or not, without scales and zero points."""
    weights, scales = set(), set()
    for node in model.graph.node:
        if node.op_type in _VALUES or node.op_type.startswith("QLinear"):
            values = [node.input[index] for index in _VALUES.get(node.op_type, ()) if index < len(node.input)]
            weights.update(values)
            scales.update(set(node.input) - set(values))
    return sum(
        int(np.prod(entry.dims, dtype=np.int64))
        for entry in model.graph.initializer
        if (entry.data_type in _NAMES or entry.name in weights) and entry.name not in scales
    )


def weight_types(model: onnx.ModelProto) -> Counter[int]:
    """TensorProto data type -> number of weights of Conv, Gemm and MatMul that are computed in it."""
    constants = {entry.name: entry for entry in model.graph.initializer}
    makers = producers(model.graph)
    types: Counter[int] = Counter()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":  # its weights are packed into bytes
            attributes = {entry.name: entry.i for entry in node.attribute}
            packed = TensorProto.UINT4 if attributes.get("bits", 4) <= 4 else TensorProto.UINT8
            types[packed] += attributes.get("K", 1) * attributes.get("N", 1)
        elif node.op_type in WEIGHTS and len(node.input) > WEIGHTS[node.op_type]:
            weights = _constant(node.input[WEIGHTS[node.op_type]], constants, makers)
            if weights is not None:
                types[weights[0]] += weights[1]
    return types


def _constant(
    name: str, constants: dict[str, TensorProto], makers: dict[str, onnx.NodeProto]
) -> tuple[int, int] | None:
    """The type that a constant is computed in, and its number of values; None for an activation."""
    kind = None
    for _ in range(len(makers) + 1):
        if name in constants:
            tensor = constants[name]
            return kind or tensor.data_type, int(np.prod(tensor.dims, dtype=np.int64))
        node = makers.get(name)
        if node is None or (not node.input and node.op_type != "Constant"):
            return None
        attributes = {entry.name: entry for entry in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            tensor = attributes["value"].t
            return kind or tensor.data_type, int(np.prod(tensor.dims, dtype=np.int64))
        if node.op_type == "QuantizeLinear":
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            output_dtype = attributes["output_dtype"].i if "output_dtype" in attributes else 0
            kind = kind or (zero.data_type if zero is not None else output_dtype or TensorProto.UINT8)
        elif node.op_type == "Cast" and attributes["to"].i == TensorProto.FLOAT16:
            kind = kind or TensorProto.FLOAT16
        elif node.op_type not in _BETWEEN:
            return None
        name = node.input[0]
    return None
