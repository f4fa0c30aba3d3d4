"""Writing ONNX files for other tools: sorted topologically, and accepted by ONNX's own checker. Needs no torch."""

import heapq
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from ..deploy.errors import EdgeKitError

# protobuf's own limit for one message; larger weights would need a separate file.
_MAX_BYTES = (1 << 31) - 1


def save(model: onnx.ModelProto, path: Path) -> None:
    """Sort, check and write a model.

    Raises:
        EdgeKitError: see `to_bytes`.
    """
    path.write_bytes(to_bytes(model))


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Sort the nodes in place, run ONNX's full check (with shape inference), and return the file's content.

    Raises:
        EdgeKitError: the graph has a cycle, the checker rejects it, or it exceeds the size limit of protobuf.
    """
    sort_nodes(model.graph)
    if model.ByteSize() > _MAX_BYTES:
        raise EdgeKitError(
            f"the model is {model.ByteSize() / 1e9:.1f} GB; an ONNX file holds at most 2 GB", fix="use a smaller model"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise EdgeKitError(
            f"the graph is not valid ONNX: {lines[0] if lines else error!r}", fix="report the network"
        ) from error
    return model.SerializeToString()


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Name of each computed tensor -> the node that computes it."""
    return {name: node for node in graph.node for name in node.output}


def constants(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that do not depend on the input: initializers, and the outputs of Constant nodes."""
    computed = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return {entry.name for entry in graph.initializer} | computed


def multiplications(node: onnx.NodeProto, output: Sequence[int], weight: Sequence[int]) -> int:
    """Multiply-accumulates of a convolution, Gemm or MatMul (quantized or not) for one image.

    Args:
        output, weight: shapes of the first output, [n, ...], and of the weight.
    """
    values = math.prod(output[1:])
    if "Conv" in node.op_type:  # each output value sums over one filter: input channels per group times the kernel
        return values * math.prod(weight[1:])
    return values * math.prod(weight) // output[-1]  # each output value sums over one column of the weights


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort nodes in place so that each follows the nodes that compute its inputs; sorted nodes keep their order.

    Kahn's algorithm, taking the ready node with the lowest current position first. Subgraphs (of If, Loop,
    Scan) are sorted too; a node depends on what its subgraphs read from outside.

    Raises:
        EdgeKitError: the graph has a cycle.
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            sort_nodes(subgraph)
    producer_of = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer_of[name] for name in reads(node) if name in producer_of} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for place, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(place)
    waiting = [len(sources) for sources in needs]
    ready = [place for place, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for reader in readers.get(place, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.node):
        stuck = next(node for place, node in enumerate(graph.node) if waiting[place])
        raise EdgeKitError(f"the graph has a cycle at {stuck.op_type} {stuck.name!r}", fix="export the model again")
    if order != list(range(len(order))):
        nodes = [graph.node[place] for place in order]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node and its subgraphs read from outside."""
    yield from node.input
    for subgraph in subgraphs(node):
        inner_names = {name for inner in subgraph.node for name in inner.output}
        inner_names |= {entry.name for entry in (*subgraph.input, *subgraph.initializer)}
        for inner in subgraph.node:
            yield from (name for name in reads(inner) if name not in inner_names)
        yield from (output.name for output in subgraph.output if output.name not in inner_names)
