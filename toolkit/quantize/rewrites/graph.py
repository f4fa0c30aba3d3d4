"""What the rewrites share: constants by value, shapes, and replacing a node."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Name -> value of a node's attributes."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def arrays(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Name -> value of the initializers and the outputs of Constant nodes."""
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and isinstance(value := attributes(node).get("value"), onnx.TensorProto):
            values[node.output[0]] = numpy_helper.to_array(value)
    return values


def shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """Name -> inferred shape of each tensor that has one; None for a dimension without a number."""
    found: dict[str, list[int | None]] = {}
    for entry in (*graph.value_info, *graph.input, *graph.output):
        tensor = entry.type.tensor_type
        if tensor.HasField("shape"):
            found[entry.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return found


def readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Name of a tensor -> the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def add_constant(graph: onnx.GraphProto, name: str, value: np.ndarray | np.float32) -> str:
    """Add an initializer, or replace the one of this name; returns the name."""
    for entry in graph.initializer:
        if entry.name == name:
            entry.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
            return name
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def replace_nodes(graph: onnx.GraphProto, replaced: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Put nodes in the place of others, which are named by their first output."""
    nodes = [new for node in graph.node for new in replaced.get(node.output[0], (node,))]
    del graph.node[:]
    graph.node.extend(nodes)


def with_constants(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model in which some initializers have other values."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for entry in changed.graph.initializer:
        if entry.name in values:
            entry.CopyFrom(numpy_helper.from_array(values[entry.name], entry.name))
    return changed
