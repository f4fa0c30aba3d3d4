"""Small changes to an ONNX graph, in place."""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ...export.onnx_file import reads, subgraphs


def type_name(kind: int) -> str:
    """TensorProto's name of a data type in lower case, or the number of an unknown type."""
    return next((name for name, value in TensorProto.DataType.items() if value == kind), str(kind)).lower()


def cut(path: Path, image: str, scores: str) -> str:
    """The shell command that cuts an ONNX file down to one input and one output."""
    return f"python -c \"import onnx.utils; onnx.utils.extract_model('{path}', 'cut.onnx', ['{image}'], ['{scores}'])\""


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred shapes; unchanged if its nodes contradict each other."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def prepend(model: onnx.ModelProto, name: str, operator: str, **attributes: Any) -> None:
    """Insert an operator between a graph's input and its readers."""
    inner = _new_name(model, f"{name}_{operator.lower()}")
    _rename_reads(model.graph, name, inner)
    model.graph.node.insert(0, helper.make_node(operator, [name], [inner], inner, **attributes))


def append(model: onnx.ModelProto, name: str, operator: str, **attributes: Any) -> None:
    """Insert an operator between a graph's output and its producer."""
    inner = _new_name(model, f"{name}_{operator.lower()}")
    _rename_output(model.graph, name, inner)
    _rename_reads(model.graph, name, inner)
    model.graph.node.append(helper.make_node(operator, [inner], [name], inner, **attributes))


def publish(model: onnx.ModelProto, source: str, name: str) -> None:
    """Make the tensor `source` the graph's output `name`, which no longer has a producer."""
    produced = any(source in node.output for node in model.graph.node)
    if produced and not any(source in reads(node) for node in model.graph.node):
        _rename_output(model.graph, source, name)
    else:
        model.graph.node.append(helper.make_node("Identity", [source], [name], _new_name(model, f"{name}_identity")))


def remove(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Remove nodes, the constants that only they read, and the recorded shapes of the removed tensors."""
    graph = model.graph
    candidates = {name for node in nodes for name in node.input}
    for node in nodes:
        graph.node.remove(node)
    used = {name for node in graph.node for name in reads(node)} | {entry.name for entry in graph.output}
    for constant in [entry for entry in graph.initializer if entry.name in candidates - used]:
        graph.initializer.remove(constant)
    for entry in [entry for entry in graph.input if entry.name in candidates - used]:
        graph.input.remove(entry)  # exporters before IR version 4 list constants here too
    outputs = {name for node in graph.node for name in node.output}
    for entry in [entry for entry in graph.value_info if entry.name not in outputs]:
        graph.value_info.remove(entry)


def _rename_output(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor in all inputs, also in subgraphs, except where a subgraph has its own tensor of that name."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for subgraph in subgraphs(node):
            own_names = {name for inner in subgraph.node for name in inner.output}
            if old not in own_names | {entry.name for entry in (*subgraph.input, *subgraph.initializer)}:
                _rename_reads(subgraph, old, new)


def _new_name(model: onnx.ModelProto, name_hint: str) -> str:
    """A name that no tensor or node of the graph uses."""
    graph = model.graph
    used_names = {name for node in graph.node for name in (*node.output, *reads(node), node.name)}
    used_names |= {entry.name for entry in (*graph.input, *graph.output, *graph.initializer)}
    while name_hint in used_names:
        name_hint += "_"
    return name_hint
