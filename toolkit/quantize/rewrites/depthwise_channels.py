"""Depthwise convolutions with a multiple of 16 channels, by channels that are always multiplied by zero.

The int8 kernels of ONNX Runtime compute 16 channels at a time, and the rest one by one: a 5 x 5 convolution of 120
channels took 2.5 times as long as one of 128 (Xeon with VNNI, 28 x 28).
"""

from collections.abc import Sequence

import numpy as np
import onnx

from ....export.onnx_file import producers
from .graph import add_constant, arrays, attributes, readers, shapes

_MULTIPLE = 16
# Operators that compute each channel of their output from the same channel of their inputs.
_CHANNELWISE = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Add", "Sub", "Mul", "Div",
    "Identity",
    "GlobalAveragePool", "AveragePool", "MaxPool",
)  # fmt: skip
# Of these, and Conv, only the first input is an activation.
_ONE_ACTIVATION = ("Conv", "Clip")


def full_vectors(graph: onnx.GraphProto) -> bool:
    """Add channels to each depthwise convolution whose neighbours can take them."""
    changed = False
    for node in list(graph.node):
        channels = _depthwise_channels(node, arrays(graph))
        if channels % _MULTIPLE and (around := _Neighbourhood(graph, node, channels)).closed:
            around.widen(-channels % _MULTIPLE)
            changed = True
    return changed


def _depthwise_channels(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> int:
    """The number of channels of a depthwise convolution with constant weights; 0 for other nodes."""
    if node.op_type != "Conv" or node.input[1] not in values:
        return 0
    outputs, inputs = values[node.input[1]].shape[:2]
    return outputs if attributes(node).get("group", 1) == outputs and inputs == 1 and outputs > 1 else 0


class _Neighbourhood:
    """The activations that share the channels of a depthwise convolution, and the convolutions that make and read them.

    Full convolutions end it: the added channels of their weights are zero.

    Attributes:
        closed: whether all of them can get more channels.
    """

    def __init__(self, graph: onnx.GraphProto, start: onnx.NodeProto, channels: int) -> None:
        self._graph, self._channels = graph, channels
        self._values, self._shapes = arrays(graph), shapes(graph)
        self._makers, self._readers = producers(graph), readers(graph)
        self._edges = {entry.name for entry in (*graph.input, *graph.output)}
        self._activations: set[str] = set()
        self._nodes: dict[str, onnx.NodeProto] = {}
        self.closed = self._explore([start.input[0], start.output[0]])

    def _explore(self, waiting: list[str]) -> bool:
        while waiting:
            name = waiting.pop()
            if name in self._activations:
                continue
            if name in self._edges or name not in self._makers or self._channels_of(name) != self._channels:
                return False
            self._activations.add(name)
            for node in (self._makers[name], *self._readers.get(name, ())):
                self._nodes[node.output[0]] = node
                neighbours = self._neighbours(node)
                if neighbours is None:
                    return False
                waiting.extend(neighbours)
        return True

    def _channels_of(self, name: str) -> int | None:
        shape = self._shapes.get(name, [])
        return shape[1] if len(shape) == 4 else None

    def _neighbours(self, node: onnx.NodeProto) -> Sequence[str] | None:
        """The activations that get more channels if one of this node does; None if it cannot have more."""
        if node.op_type == "Conv":
            names = [name for name in node.input[1:] if name]
            if not all(name in self._values and len(self._readers[name]) == 1 for name in names):
                return None
            if not _depthwise_channels(node, self._values):
                return () if attributes(node).get("group", 1) == 1 else None
        elif node.op_type not in _CHANNELWISE or len(node.output) > 1:
            return None
        inputs = node.input[:1] if node.op_type in _ONE_ACTIVATION else node.input
        constants = [self._values[name] for name in inputs if name in self._values]
        if any(constant.size > 1 for constant in constants):
            return None
        return [name for name in (*inputs, *node.output) if name not in self._values]

    def widen(self, count: int) -> None:
        """Add `count` channels to all of them."""
        for node in [node for node in self._nodes.values() if node.op_type == "Conv"]:
            if _depthwise_channels(node, self._values):
                next(entry for entry in node.attribute if entry.name == "group").i += count
            elif node.input[0] in self._activations:
                self._pad(node.input[1], 1, count)
            if node.output[0] in self._activations:
                for name in node.input[1:]:
                    self._pad(name, 0, count)
        for entry in self._graph.value_info:
            if entry.name in self._activations:
                entry.type.tensor_type.shape.dim[1].dim_value += count

    def _pad(self, name: str, axis: int, count: int) -> None:
        """Add zeros to a constant; "" is one that is left out."""
        if name:
            value = self._values[name]
            added = np.pad(value, [(0, count if index == axis else 0) for index in range(value.ndim)])
            self._values[name] = added
            add_constant(self._graph, name, added)
