"""What stays float in an int8 graph: Softmax, normalization and GELU, whose values eight bits do not hold."""

from collections.abc import Callable, Iterator

import onnx

from ...export.onnx_file import constants, producers

# Operators that are computed in float, and lose most of their precision if their neighbours are rounded. Measured on
# ViT-Tiny (random weights): the logits have 10 dB if its residual sums are rounded before LayerNormalization, else 29.
_PRECISE = (
    "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Erf", "Tanh", "Gelu",
    "Sqrt", "Pow", "ReduceL2",
)  # fmt: skip
_SOFTMAX = ("Softmax", "LogSoftmax")
MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Identity")
# Operators that round. Concat gives all its inputs one range: in CoaT a class token shares that of the image's tokens.
_ROUNDED = ("Add", "Mul", "Sub", "Div", "Clip", "Concat")
_WAY = (*MOVES, *_ROUNDED)
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def leave_float(model: onnx.ModelProto) -> list[str]:
    """Names of the elementwise nodes next to a precise operator.

    The search goes up and down from each precise operator. It passes operators that move values or combine them
    with a constant (an affine, a bias, a scale). It ends with the first node that combines two activations, which is
    included: a residual sum before a LayerNormalization, the product in a GELU.
    """
    graph = model.graph
    fixed = constants(graph)
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
            for beside in (above, below):
                float_nodes |= {neighbour.output[0]: neighbour for neighbour in _way(node, beside, fixed)}
    return [node.name for node in float_nodes.values()]


def _way(
    start: onnx.NodeProto, beside: Callable[[onnx.NodeProto], Iterator[onnx.NodeProto]], fixed: set[str]
) -> Iterator[onnx.NodeProto]:
    """The elementwise nodes on the way from `start` in one direction."""
    waiting, seen = [(start, False)], set()
    while waiting:
        node, combined = waiting.pop()
        for neighbour in beside(node):
            combines = neighbour.op_type in ("Add", "Mul") and sum(name not in fixed for name in neighbour.input) > 1
            if neighbour.output[0] in seen or neighbour.op_type not in _WAY or (combines and combined):
                continue
            seen.add(neighbour.output[0])
            waiting.append((neighbour, combined or combines))
            if neighbour.op_type in _ROUNDED:
                yield neighbour


def read_float(model: onnx.ModelProto) -> None:
    """Let each Softmax of a quantized graph read float values: the pairs before it are removed in place.

    Between two pairs ONNX Runtime runs a Softmax as QLinearSoftmax, whose float32 sums overflow where the scale of its
    output is fine for its length (1/425 for two values), and results become 0. The scale 1/256 is safe, but too coarse
    for the attention of hundreds of tokens (ViT-Tiny: 14 dB, in float 29).
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
    """Remove unread rounding nodes and the constants that only they used, in place."""
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        unread = [node for node in graph.node if node.op_type in _ROUNDING and not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
            for constant in [initializer for initializer in graph.initializer if initializer.name in node.input]:
                if sum(constant.name in reader.input for reader in graph.node) == 0:
                    graph.initializer.remove(constant)
