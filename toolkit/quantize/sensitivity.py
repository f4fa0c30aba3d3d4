"""Where the noise of an int8 graph comes from: each rounded activation and each layer's weights, one at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from ...deploy.parity import decibels, powers
from ...deploy.progress import Progress
from ...export.onnx_file import producers
from .emit import int8_layers
from .factors import factors
from .gate import run_float
from .grid import Grid
from .operators import COMPUTE, FUSED_OPS, SAME_GRID
from .rewrites.graph import add_constant, arrays, readers
from .targets import Form

# Number of sources that are named for the user.
_LISTED = 5

# Changes a copy of the float graph in place.
_Change = Callable[[onnx.GraphProto], None]


class NoiseSource(NamedTuple):
    """A rounded activation, or the rounded weights of a layer.

    Attributes:
        name: of the layer that makes the activation or has the weights; or of the graph's input.
        kind: "result", "weights" or "input".
        layers: all layers that must stay float so that it is not rounded.
        noise: the power of the noise that it alone causes in the logits, as a share of the signal's.
    """

    name: str
    kind: str
    layers: frozenset[str]
    noise: float


def noise_sentence(sources: Sequence[NoiseSource]) -> str:
    """The noisiest places, for the user."""
    total = sum(entry.noise for entry in sources) or 1.0
    worst = ", ".join(f"{entry.name} {entry.kind} {entry.noise / total:.0%}" for entry in sources[:_LISTED])
    return f"most noise comes from: {worst}"


def noise_to_json(sources: Sequence[NoiseSource]) -> list[dict[str, object]]:
    """For the details of a manifest."""
    return [{"name": entry.name, "kind": entry.kind, "noise": entry.noise} for entry in sources]


def noise_sources(
    source: onnx.ModelProto, quantized: onnx.ModelProto, form: Form, tensors: np.ndarray, progress: Progress
) -> list[NoiseSource]:
    """The sources of noise, worst first.

    Small independent errors add up: the noise of a graph is about the sum of those of its sources.

    Args:
        source: the float graph.
        quantized: the int8 graph that emit_int8 made of it in this form.
        tensors: a few inputs, float32 [n, c, h, w].
    """
    expected = run_float(source, tensors)
    rounded = [*_rounded_activations(source, quantized, form), *_rounded_weights(source, quantized)]
    found = []
    for index, (entry, change) in enumerate(rounded):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        change(model.graph)
        found_powers = powers(expected, run_float(model, tensors))
        found.append(entry._replace(noise=10 ** (-decibels(found_powers) / 10) if found_powers[1] else 0.0))
        progress("sensitivity", (index + 1) / len(rounded))
    return sorted(found, key=lambda entry: -entry.noise)


def _rounded_weights(source: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[tuple[NoiseSource, _Change]]:
    values, makers = arrays(quantized.graph), producers(quantized.graph)
    alphas = {
        node.name: np.float32(entry.f)
        for node in source.graph.node
        for entry in node.attribute
        if entry.name == "alpha"
    }
    for node in quantized.graph.node:
        read = makers.get(node.input[1]) if node.op_type in COMPUTE else None
        if read is None or read.op_type != "DequantizeLinear" or read.input[0] not in values:
            continue
        stored, scale, zero_point = (values[name] for name in read.input)
        axis = next((entry.i for entry in read.attribute if entry.name == "axis"), None)
        # emit_int8 moves a Gemm's alpha into its weight
        weight = Grid(scale, zero_point, axis).dequantize(stored) / alphas.get(node.name, np.float32(1))

        def change(graph: onnx.GraphProto, name: str = node.name, weight: np.ndarray = weight) -> None:
            layer = next(node for node in graph.node if node.name == name)
            layer.input[1] = add_constant(graph, f"{name}/rounded", weight)

        yield NoiseSource(node.name, "weights", frozenset([node.name]), 0.0), change


def _rounded_activations(
    source: onnx.ModelProto, quantized: onnx.ModelProto, form: Form
) -> Iterator[tuple[NoiseSource, _Change]]:
    values, makers = arrays(quantized.graph), producers(source.graph)
    starts, touching = _groups(source, form)
    grids: defaultdict[str, dict[str, list[np.ndarray]]] = defaultdict(dict)
    for node in quantized.graph.node:
        name = node.input[0]
        if node.op_type == "QuantizeLinear" and name not in values:
            grids[starts.get(name, name)][name] = [values[entry] for entry in node.input[1:]]
    for start, group in grids.items():
        label = (makers[start].name, "result") if start in makers else (start, "input")

        def change(graph: onnx.GraphProto, group: dict[str, list[np.ndarray]] = group) -> None:
            for name, grid in group.items():
                _round(graph, name, grid)

        yield NoiseSource(*label, frozenset(touching[start]), 0.0), change


def _groups(source: onnx.ModelProto, form: Form) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Tensors that are rounded together, because only operators that keep the grid are between them.

    Returns:
        tensor -> the first one of its group, and that -> the layers that round it.
    """
    graph, layers = source.graph, set(int8_layers(source, form))
    keeping = set(SAME_GRID) - (set(FUSED_OPS) if form.fused else set()) | {"Relu", "Clip"}
    scaling = factors(graph)
    starts: dict[str, str] = {}
    touching: defaultdict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        if node.op_type in keeping or node.name in scaling:
            before = scaling[node.name][0] if node.name in scaling else node.input[0]
            starts |= dict.fromkeys(node.output, starts.get(before, before))
        elif node.name in layers:
            # the form that is fused rounds only what a layer reads
            for name in (*node.input, *(() if form.fused else node.output)):
                touching[starts.get(name, name)].add(node.name)
    return starts, touching


def _round(graph: onnx.GraphProto, name: str, grid: list[np.ndarray]) -> None:
    """Store a tensor on a grid (scale and zero point) and read it, before all its readers."""
    constants = [add_constant(graph, f"{name}/grid{index}", value) for index, value in enumerate(grid)]
    quantize = helper.make_node("QuantizeLinear", [name, *constants], [f"{name}/stored"], f"{name}/store")
    dequantize = helper.make_node(
        "DequantizeLinear", [f"{name}/stored", *constants], [f"{name}/rounded"], f"{name}/read"
    )
    for node in readers(graph)[name]:
        node.input[:] = [f"{name}/rounded" if entry == name else entry for entry in node.input]
    place = next((index + 1 for index, node in enumerate(graph.node) if name in node.output), 0)
    nodes = [*graph.node[:place], quantize, dequantize, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)
