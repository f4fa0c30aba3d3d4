"""Write QuantizeLinear/DequantizeLinear pairs and int8 weights into a float graph."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...deploy.errors import BundleError
from ...export.onnx_file import constants, producers
from .factors import factors, fold_factors
from .grid import Grid, activation_grid, bias_grid, for_bias, weight_grid
from .operators import COMBINE, COMPUTE, FUSED_OPS, OPS, SAME_GRID, Ranges
from .precise import MOVES, leave_float, read_float
from .rewrites.graph import arrays, attributes, readers
from .targets import Form, Target


def emit_int8(
    model: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    form: Form | None = None,
    only: Sequence[str] = (),
) -> onnx.ModelProto:
    """The model with QuantizeLinear/DequantizeLinear pairs and int8 weights per channel, as the target requires.

    Args:
        form: None for the target's default.
        only: names of the nodes to quantize; empty for all that the target runs in int8.

    Raises:
        BundleError: the model has nothing to quantize.
    """
    if not any(node.op_type in COMPUTE for node in model.graph.node):
        raise BundleError(
            f"the model has no {', '.join(COMPUTE)} to quantize", fix="quantize a convolutional classifier"
        )
    quantized, form = onnx.ModelProto(), form or target.forms[0]
    quantized.CopyFrom(model)
    float_names = set(_float_nodes(model, form))
    scaling = [name for name in factors(model.graph) if name not in float_names]
    if form.fused:
        float_names |= set(_not_residual(model))
    ops = FUSED_OPS if form.fused else OPS
    names = [
        node.name for node in model.graph.node
        if node.op_type in ops and node.name not in {*float_names, *scaling} and node.name in (only or (node.name,))
    ]  # fmt: skip
    _Writer(quantized.graph, ranges, target, form, set(names)).write()
    if form.fused:
        _fuse_residuals(quantized)
    read_float(quantized)
    fold_factors(quantized.graph, scaling)
    return quantized


class _Writer:
    """Quantizes nodes of a graph in place."""

    def __init__(
        self, graph: onnx.GraphProto, ranges: Ranges, target: Target, form: Form, names: Collection[str]
    ) -> None:
        self._graph, self._target, self._form = graph, target, form
        self._nodes = [node for node in graph.node if node.name in names]
        self._arrays, self._makers, self._readers = arrays(graph), producers(graph), readers(graph)
        # the logits stay float: no integer operator follows, and rounding could change the order of the top classes
        logits = {entry.name for entry in graph.output}
        self._ranges = {name: bounds for name, bounds in ranges.items() if name not in logits}
        self._grids: dict[str, Grid] = {}
        self._scales: dict[int, tuple[Grid, tuple[str, str]]] = {}
        self._used: set[str] = set()

    def write(self) -> None:
        """Choose a grid for each activation and constant that the nodes read and write, and write them."""
        for node in self._nodes:
            if self._stays_float(node) or self._saturated(node):
                continue
            if self._moves(node):
                if (grid := self._grids.get(node.input[0])) is not None and not self._form.fused:
                    self._grids |= {name: grid for name in node.output if name in self._ranges}
                continue
            for name in self._activations(node):
                self._choose(name)
            for name in () if self._form.fused else node.output:
                self._choose(name)
        before = {node.name: self._parameters(node) for node in self._nodes if node.op_type in COMPUTE}
        after = {name: self._pair(name, grid) for name, grid in self._grids.items()}
        self._insert(before, after)

    def _activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that are quantized as activations: not a layer's weight, nor a Clip's limits."""
        if node.op_type in COMPUTE:
            return [node.input[0], *(name for name in node.input[1:2] if name in self._ranges)]
        return list(node.input if node.op_type in COMBINE else node.input[:1])

    def _choose(self, name: str) -> None:
        """Choose the grid of an activation, or of a constant that is not a layer's weight."""
        bounds = self._ranges.get(name)
        if bounds is None and (value := self._arrays.get(name)) is not None and value.dtype == np.float32:
            bounds = (float(value.min(initial=0)), float(value.max(initial=0)))
        if bounds is not None and name not in self._grids:
            self._grids[name] = activation_grid(*bounds, self._target.activations)

    def _moves(self, node: onnx.NodeProto) -> bool:
        """Whether a node's results are among its first input's values, and so have its grid."""
        if node.op_type == "Pad" and attributes(node).get("mode", b"constant") == b"constant":
            padding = self._arrays.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
            return padding is not None and not padding.any()
        return node.op_type in SAME_GRID and not (self._form.fused and node.op_type in FUSED_OPS)

    def _stays_float(self, node: onnx.NodeProto) -> bool:
        """Whether a node belongs to the layer before it, which computes in float."""
        return node.op_type in ("Relu", "Clip") and node.input[0] not in self._grids

    def _saturated(self, node: onnx.NodeProto) -> bool:
        """Remove a Relu or Clip if the limits of its result's grid do the same; returns whether it did."""
        if node.op_type not in ("Relu", "Clip"):
            return False
        name, result, maker = node.input[0], node.output[0], self._makers.get(node.input[0])
        if maker is None or self._moves(maker) or result not in self._ranges or len(self._readers[name]) > 1:
            return False
        grid = activation_grid(*self._ranges[result], self._target.activations)
        if not _within(grid, *self._limits(node)):
            return False
        del self._grids[name]
        self._grids[result] = grid
        maker.output[list(maker.output).index(name)] = result
        self._makers[result] = maker
        self._graph.node.remove(node)
        return True

    def _limits(self, node: onnx.NodeProto) -> tuple[float, float]:
        """The smallest and largest result of a Relu or Clip; NaN if not constant."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        limits = [-np.inf, np.inf]
        for place, name in enumerate(node.input[1:3]):
            if name:
                limits[place] = float(self._arrays[name]) if name in self._arrays else np.nan
        return limits[0], limits[1]

    def _parameters(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Quantize the weight and bias of a layer; returns the nodes that read them."""
        weight = self._arrays.get(node.input[1])
        if weight is None:
            return []
        bias = self._arrays.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == "Gemm":
            weight, bias = _unscaled(node, weight, bias)
        grid = weight_grid(weight, channel_axis(node, weight), 64 if node.name in self._form.seven_bits else 127)
        activation = self._grids.get(node.input[0])
        read = []
        if bias is not None and activation is not None and self._target.quantize_bias:
            grid = for_bias(grid, bias, activation)
            read.append(self._constant(node, 2, bias, bias_grid(grid, activation)))
        elif bias is not None:
            node.input[2] = self._add(f"{self._free(node.input[2], node)}_float", bias)
        read.append(self._constant(node, 1, weight, grid))
        return read

    def _constant(self, node: onnx.NodeProto, slot: int, value: np.ndarray, grid: Grid) -> onnx.NodeProto:
        """Store a constant that a node reads on a grid; returns the node that reads it."""
        name = self._free(node.input[slot], node)
        read = self._dequantize(self._add(f"{name}_quantized", grid.quantize(value)), name, grid)
        node.input[slot] = read.output[0]
        return read

    def _pair(self, name: str, grid: Grid) -> list[onnx.NodeProto]:
        """The nodes that store an activation or a constant on its grid and read it; all its readers read from there."""
        if (value := self._arrays.get(name)) is not None:
            nodes = [self._dequantize(self._add(f"{name}_quantized", grid.quantize(value)), name, grid)]
        else:
            stored = f"{name}_QuantizeLinear_Output"
            quantize = helper.make_node(
                "QuantizeLinear", [name, *self._scale(name, grid)], [stored], f"{name}_QuantizeLinear"
            )
            nodes = [quantize, self._dequantize(stored, name, grid)]
        for node in self._readers.get(name, ()):
            node.input[:] = [nodes[-1].output[0] if entry == name else entry for entry in node.input]
        return nodes

    def _dequantize(self, stored: str, name: str, grid: Grid) -> onnx.NodeProto:
        result = f"{name}_DequantizeLinear_Output"
        node = helper.make_node(
            "DequantizeLinear", [stored, *self._scale(name, grid)], [result], f"{name}_DequantizeLinear"
        )
        if grid.axis is not None:
            node.attribute.append(helper.make_attribute("axis", grid.axis))
        return node

    def _scale(self, name: str, grid: Grid) -> tuple[str, str]:
        """The names of a grid's scale and zero point, which tensors of the same grid share."""
        if id(grid) not in self._scales:
            scale = self._add(f"{name}_scale", grid.scale)
            self._scales[id(grid)] = (grid, (scale, self._add(f"{name}_zero_point", grid.zero_point)))
        return self._scales[id(grid)][1]

    def _free(self, name: str, node: onnx.NodeProto) -> str:
        """A name for a node's version of a constant, which several nodes may read."""
        free = f"{name}/{node.name}" if name in self._used else name
        self._used.add(free)
        return free

    def _add(self, name: str, value: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _insert(self, before: Mapping[str, list[onnx.NodeProto]], after: Mapping[str, list[onnx.NodeProto]]) -> None:
        """Put nodes before a node and after the node that makes a tensor."""
        nodes = [node for entry in self._graph.input for node in after.get(entry.name, ())]
        nodes += [node for name in self._arrays for node in after.get(name, ())]
        for node in self._graph.node:
            nodes += [*before.get(node.name, ()), node, *(pair for name in node.output for pair in after.get(name, ()))]
        del self._graph.node[:]
        self._graph.node.extend(nodes)


def _within(grid: Grid, low: float, high: float) -> bool:
    """Whether the values of an activation's grid exceed these limits by less than half a step; False for NaN."""
    limits = np.iinfo(grid.zero_point.dtype)
    first, last = (int(limit) - int(grid.zero_point) for limit in (limits.min, limits.max))
    half = float(grid.scale) / 2
    return first * float(grid.scale) > low - half and last * float(grid.scale) < high + half


def channel_axis(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """The axis of the output channels in a layer's weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return 1 if weight.ndim == 2 else None  # MatMul


def _unscaled(
    gemm: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias after moving a Gemm's factors into them."""
    given = {entry.name: entry.f for entry in gemm.attribute if entry.name in ("alpha", "beta")}
    alpha, beta = (np.float32(given.get(name, 1)) for name in ("alpha", "beta"))
    kept = [entry for entry in gemm.attribute if entry.name not in given]
    del gemm.attribute[:]
    gemm.attribute.extend(kept)
    return weight * alpha, None if bias is None else bias * beta


def _float_nodes(model: onnx.ModelProto, form: Form) -> list[str]:
    """Names of the nodes that stay float."""
    start = (node.name for node in float_start(model.graph, form.float_convolutions))
    return [*leave_float(model), *start, *form.float_layers]


def float_start(graph: onnx.GraphProto, convolutions: int) -> list[onnx.NodeProto]:
    """The nodes up to and including so many convolutions, in the order of the graph."""
    places = [place for place, node in enumerate(graph.node) if node.op_type == "Conv"][:convolutions]
    return list(graph.node[: places[-1] + 1]) if places else []


def int8_layers(model: onnx.ModelProto, form: Form) -> list[str]:
    """Names of the nodes that `emit_int8` quantizes, except those that only move values."""
    ops = set(FUSED_OPS if form.fused else OPS) - set(MOVES)
    float_names = set(_float_nodes(model, form))
    return [node.name for node in model.graph.node if node.op_type in ops and node.name not in float_names]


def _not_residual(model: onnx.ModelProto) -> list[str]:
    """Names of the Add nodes that add a constant to an activation."""
    constant_names = constants(model.graph)
    return [node.name for node in model.graph.node if node.op_type == "Add" and constant_names & set(node.input)]


def _fuse_residuals(model: onnx.ModelProto) -> None:
    """Pass one layer's result to each residual sum unquantized, so that layer and sum run as one kernel.

    If two layers are summed, the later one is fused with the sum.
    """
    graph = model.graph
    makers = producers(graph)
    readers = Counter(name for node in graph.node for name in node.input)
    positions = {node.output[0]: position for position, node in enumerate(graph.node)}
    for node in [node for node in graph.node if node.op_type == "Add"]:
        candidates = []
        for slot, name in enumerate(node.input):
            dequantize = makers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or readers[name] != 1:
                continue
            quantize = makers.get(dequantize.input[0])
            layer = makers.get(quantize.input[0]) if quantize is not None else None
            # another reader of the result would prevent the fusion
            if (
                quantize is not None
                and layer is not None
                and layer.op_type in COMPUTE
                and readers[layer.output[0]] == 1
            ):
                candidates.append((positions[layer.output[0]], slot, layer))
        if candidates:
            _, slot, layer = max(candidates, key=lambda entry: entry[0])
            node.input[slot] = layer.output[0]
