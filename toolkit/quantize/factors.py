"""Multiplications by a constant in an int8 graph: they change no byte, only the scale that the bytes are read with."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper

from ...export.onnx_file import producers
from .precise import remove_unread
from .rewrites.graph import add_constant, arrays, readers, replace_nodes


def factors(graph: onnx.GraphProto) -> dict[str, tuple[str, float]]:
    """Name of each node that multiplies an activation by one positive number -> the activation and the number."""
    values, found = arrays(graph), dict[str, tuple[str, float]]()
    for node in graph.node:
        if node.op_type not in ("Mul", "Div"):
            continue
        for activation, constant in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
            value = values.get(node.input[constant])
            if value is not None and value.size == 1 and value.item() > 0 and node.input[activation] not in values:
                number = float(value.item())
                found[node.name] = (node.input[activation], number if node.op_type == "Mul" else 1 / number)
    return found


def fold_factors(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Replace each of these `factors` after a DequantizeLinear by one with the product of both scales, in place.

    A QuantizeLinear/DequantizeLinear pair after it would round once more, and is removed.
    """
    makers, values = producers(graph), arrays(graph)
    nodes = {node.name: node for node in graph.node}
    folded: dict[str, list[onnx.NodeProto]] = {}
    for name, (activation, number) in factors(graph).items():
        before, result = makers.get(activation), nodes[name].output[0]
        if name not in names or before is None or before.op_type != "DequantizeLinear" or before.input[1] not in values:
            continue
        scale = add_constant(graph, f"{result}/scale", np.float32(values[before.input[1]] * np.float32(number)))
        inputs = [before.input[0], scale, *before.input[2:]]
        folded[result] = [helper.make_node("DequantizeLinear", inputs, [result], f"{name}/read")]
    replace_nodes(graph, folded)
    reading = readers(graph)
    for result in folded:
        for quantize in [node for node in reading.get(result, ()) if node.op_type == "QuantizeLinear"]:
            for dequantize in reading.get(quantize.output[0], ()):
                for node in reading.get(dequantize.output[0], ()):
                    node.input[:] = [result if name == dequantize.output[0] else name for name in node.input]
    remove_unread(graph)
