"""The operators that stay float in an int8 graph: Softmax, normalization and GELU, which need more than eight bits."""

from collections.abc import Callable, Iterator

import onnx

from ...export.onnx_file import constants, producers, reads

# Operators that are computed in float, and lose most of their precision if their neighbours are quantized. Measured on
# ViT-Tiny (random weights): the logits have 10 dB if residual sums are quantized before LayerNormalization, else 29.
_PRECISE = (
    "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Erf", "Tanh", "Gelu",
    "Sqrt", "Pow", "ReduceL2",
)  # fmt: skip
_SOFTMAX = ("Softmax", "LogSoftmax")
MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Identity")
# Operators whose outputs are quantized. Concat gives all its inputs one range: in CoaT, the class token shares that of
# the image tokens.
_QUANTIZED = ("Add", "Mul", "Sub", "Div", "Clip", "Concat")
_PASSED = (*MOVES, *_QUANTIZED)
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def leave_float(model: onnx.ModelProto) -> list[str]:
    """Names of the elementwise nodes next to a precise operator.

    The search goes up and down from each precise operator. It passes operators that move values or combine them
    with a constant (an affine transform, a bias, a scale). It includes the first node that combines two activations (a
    residual sum before a LayerNormalization, the product in a GELU), and stops before the second.
    """
    graph = model.graph
    constant_names = constants(graph)
    makers = producers(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def above(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        yield from (makers[name] for name in node.input if name in makers)

    def below(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        yield from (reader for name in node.output for reader in readers.get(name, ()))

    float_nodes: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type in _PRECISE:
            for neighbours in (above, below):
                float_nodes |= {near.output[0]: near for near in _elementwise_near(node, neighbours, constant_names)}
    return [node.name for node in float_nodes.values()]


def _elementwise_near(
    start: onnx.NodeProto, neighbours: Callable[[onnx.NodeProto], Iterator[onnx.NodeProto]], constant_names: set[str]
) -> Iterator[onnx.NodeProto]:
    """The elementwise nodes near `start` in one direction; `neighbours` returns the next nodes in it."""
    waiting, seen = [(start, False)], set()
    while waiting:
        node, combined = waiting.pop()
        for neighbour in neighbours(node):
            activations = sum(name not in constant_names for name in neighbour.input)
            combines = neighbour.op_type in ("Add", "Mul") and activations > 1
            if neighbour.output[0] in seen or neighbour.op_type not in _PASSED or (combines and combined):
                continue
            seen.add(neighbour.output[0])
            waiting.append((neighbour, combined or combines))
            if neighbour.op_type in _QUANTIZED:
                yield neighbour


def read_float(model: onnx.ModelProto) -> None:
    """Remove the QuantizeLinear/DequantizeLinear pairs before each Softmax in place, so that it reads float values.

    Between two pairs, ONNX Runtime runs a Softmax as QLinearSoftmax. Its float32 sums overflow if the scale of its
    output is too fine for its length (1/425 for two values), and results become 0. The scale 1/256 is safe, but too
    coarse for attention over hundreds of tokens (ViT-Tiny: 14 dB, and 29 in float).
    """
    graph = model.graph
    makers = producers(graph)
    waiting = [node for node in graph.node if node.op_type in _SOFTMAX]
    seen = set()
    while waiting:
        node = waiting.pop()
        for slot, name in enumerate(node.input):
            dequantize = makers.get(name)
            quantize = (
                makers.get(dequantize.input[0]) if dequantize and dequantize.op_type == "DequantizeLinear" else None
            )
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                node.input[slot] = quantize.input[0]
            above = makers.get(node.input[slot])
            if above is not None and above.op_type in MOVES and above.output[0] not in seen:
                seen.add(above.output[0])
                waiting.append(above)
    remove_unread(graph)


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove unread QuantizeLinear and DequantizeLinear nodes and unread constants, in place."""
    while True:
        read = {name for node in graph.node for name in reads(node)} | {output.name for output in graph.output}
        unread = [node for node in graph.node if node.op_type in _QDQ and not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
