"""A mean over height and width as GlobalAveragePool, which runtimes have in int8; they compute ReduceMean in float."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx.helper import make_node

from .graph import arrays, attributes, replace_nodes, shapes


def global_pooling(graph: onnx.GraphProto) -> bool:
    """Replace each ReduceMean over the last two axes of [n, c, h, w]."""
    values, known = arrays(graph), shapes(graph)
    replaced: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(known.get(node.input[0], ())) != 4:
            continue
        options = attributes(node)
        # the axes are an attribute up to opset 17, then an input
        axes = values.get(node.input[1]) if len(node.input) > 1 else options.get("axes")
        if axes is None or {int(axis) % 4 for axis in np.ravel(axes)} != {2, 3}:  # type: ignore[call-overload]
            continue
        source, result = node.input[0], node.output[0]
        if options.get("keepdims", 1):
            replaced[result] = [make_node("GlobalAveragePool", [source], [result], f"{node.name}/pool")]
        else:
            pooled = f"{result}/pooled"
            replaced[result] = [
                make_node("GlobalAveragePool", [source], [pooled], f"{node.name}/pool"),
                make_node("Flatten", [pooled], [result], f"{node.name}/flatten"),
            ]
    replace_nodes(graph, replaced)
    return bool(replaced)
