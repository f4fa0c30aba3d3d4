"""A graph of toolkit/quantize as a torch network, whose weights are rounded as the int8 file rounds them."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import nn

from ...export.onnx_file import producers
from ..quantize.grid import LARGEST_BIAS, TINY, Grid
from ..quantize.operators import COMPUTE
from ..quantize.rewrites.graph import arrays, attributes
from .operators import OPERATORS, Operator, unsupported


class Stored(NamedTuple):
    """How a layer's weight is stored.

    Attributes:
        axis: of the channels; None for one scale.
        largest: the largest stored number.
        activation: scale of the activation, with which an int32 bias is stored; None for a float bias.
    """

    axis: int | None
    largest: int
    activation: float | None


class Step(NamedTuple):
    """What a node computes.

    Attributes:
        parameters: numbers of a layer's trained weight and bias, which follow the inputs.
        stored: how that weight is stored; None for a float layer.
        finished: the inputs that no later step reads.
    """

    compute: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[int, ...] = ()
    stored: Stored | None = None
    finished: frozenset[str] = frozenset()


class GraphNetwork(nn.Module):
    """A float graph, or the int8 graph that was made from it, whose layers' weights and biases are parameters.

    In an int8 graph, activations and weights are rounded where the file rounds them, to its own scales ("fake
    quantization": Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3). A gradient passes the rounding unchanged, and is zero beyond the
    limits of an activation. The scales of weights follow the weights, those of activations are fixed, and so are all
    other constants.

    Attributes:
        steps: of the graph, in order. The output of a QuantizeLinear is what its stored numbers mean.

    Args:
        source: the float graph.
        int8: what emit_int8 wrote for it; None to compute in float.
        seven_bits: names of the layers with 7-bit weights.

    Raises:
        EdgeKitError: an operator is not supported.
    """

    def __init__(
        self, source: onnx.ModelProto, int8: onnx.ModelProto | None = None, seven_bits: Collection[str] = ()
    ) -> None:
        super().__init__()
        graph = (int8 or source).graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        reader = _Reader(graph, source.graph, seven_bits)
        steps = [step for node in graph.node if (step := reader.read(node)) is not None]
        last = {name: index for index, step in enumerate(steps) for name in step.inputs}
        self.steps = [
            step._replace(finished=frozenset(name for name in step.inputs if name and last[name] == index))
            for index, step in enumerate(steps)
        ]
        self._names = list(reader.trained)
        self.weights = nn.ParameterList(nn.Parameter(torch.from_numpy(value)) for value in reader.trained.values())
        self._constants = dict[str, str]()
        for name in sorted(last.keys() & reader.arrays.keys()):
            self._constants[name] = f"constant_{len(self._constants)}"
            value = torch.from_numpy(np.array(reader.arrays[name]))
            # integers, such as shapes, stay on the host, which reads them
            if value.is_floating_point():
                self.register_buffer(self._constants[name], value, persistent=False)
            else:
                setattr(self, self._constants[name], value)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, k] of float32 [n, c, h, w]."""
        values: dict[str, Any] = {self._input: images}
        values |= {name: getattr(self, constant) for name, constant in self._constants.items()}
        for step in self.steps:
            values |= self.run_step(step, values)
            for name in step.finished:
                values.pop(name)
        return values[self._output]

    def run_step(self, step: Step, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The outputs of a step, from the values of its inputs."""
        inputs = [values[name] if name else None for name in step.inputs]
        found = step.compute(*inputs, *self._parameters_of(step))
        return dict(zip(step.outputs, found if isinstance(found, (tuple, list)) else (found,), strict=True))

    def trained(self) -> dict[str, np.ndarray]:
        """Name of each weight and bias in the float graph -> its value now, float32."""
        found = zip(self._names, self.weights, strict=True)
        return {name: weight.detach().cpu().contiguous().numpy().copy() for name, weight in found}

    def _parameters_of(self, step: Step) -> list[torch.Tensor]:
        """A layer's weight, rounded as it is stored, and its bias.

        The bias is not rounded: the steps of its 32 bits are far finer than those of activations.
        """
        parameters = [self.weights[index] for index in step.parameters]
        if step.stored is not None:
            weight, *bias = (parameter.detach() for parameter in parameters)
            scale = weight_scale(weight, bias[0] if bias else None, step.stored)
            parameters[0] = _rounded(parameters[0], scale, step.stored.axis)
        return parameters


def weight_scale(weight: torch.Tensor, bias: torch.Tensor | None, stored: Stored) -> torch.Tensor:
    """The scale of a weight, float32 [] or [k]: the rule of quantize.grid.weight_grid and for_bias, on any device."""
    others = [axis for axis in range(weight.ndim) if axis != stored.axis]
    peaks = weight.abs().amax(others) if stored.axis is not None else weight.abs().amax()
    scale = peaks / stored.largest
    coarsest = torch.where(scale.max() < TINY, 1.0, scale.max())
    scale = torch.where(scale < TINY, coarsest, scale)
    if bias is not None and stored.activation is not None:
        least = bias.abs() if stored.axis is not None else bias.abs().amax()
        scale = torch.maximum(scale, least / (LARGEST_BIAS * stored.activation))
    return scale


def _rounded(weight: torch.Tensor, scale: torch.Tensor, axis: int | None) -> torch.Tensor:
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(weight, scale, zeros, -128, 127)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -128, 127)


class _Reader:
    """Reads the nodes of a graph.

    Attributes:
        arrays: name -> value of the constants.
        trained: name -> value of the weights and biases in the float graph.
    """

    def __init__(self, graph: onnx.GraphProto, source: onnx.GraphProto, seven_bits: Collection[str]) -> None:
        self.arrays, self.trained = arrays(graph), dict[str, np.ndarray]()
        self._makers, self._seven_bits = producers(graph), seven_bits
        self._source_arrays = arrays(source)
        self._layers = {node.name: node for node in source.node if node.op_type in COMPUTE}
        self._batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value

    def read(self, node: onnx.NodeProto) -> Step | None:
        """What a node computes; None if it makes a constant."""
        inputs, outputs = tuple(node.input), tuple(node.output)
        if node.op_type == "Constant":
            return None
        if node.op_type == "QuantizeLinear":
            return Step(_rounding(self._grid(node)), inputs[:1], outputs)
        if node.op_type == "DequantizeLinear":
            if (stored := self.arrays.get(inputs[0])) is not None:
                self.arrays[outputs[0]] = self._grid(node).dequantize(stored)
                return None
            # numbers are passed on as what they mean on the grid that they were stored with
            factor = float(self._grid(node).scale / self._grid(self._makers[inputs[0]]).scale)
            return Step(lambda x: x if factor == 1 else factor * x, inputs[:1], outputs)
        if node.op_type not in OPERATORS:
            raise unsupported(node.op_type)
        compute = partial(OPERATORS[node.op_type], attributes(node))
        layer = self._layers.get(node.name)
        if layer is not None and layer.input[1] in self._source_arrays:
            return self._layer(node, layer, compute)
        if node.op_type == "Reshape" and self._batch and inputs[1] in self.arrays:
            compute = _any_batch(compute, self._batch)
        return Step(compute, inputs, outputs)

    def _layer(self, node: onnx.NodeProto, layer: onnx.NodeProto, compute: Operator) -> Step:
        """A layer with weights; `layer` is its node in the float graph."""
        names = [name for name in layer.input[1:3] if name in self._source_arrays]
        for name in names:
            self.trained.setdefault(name, np.array(self._source_arrays[name]))
        places = list(self.trained)
        step = Step(compute, (node.input[0],), tuple(node.output), tuple(map(places.index, names)))
        weight = self._makers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear":
            return step
        if {attributes(layer).get(factor, 1.0) for factor in ("alpha", "beta")} != {1.0}:
            raise unsupported("a Gemm with factors")
        grid = self._grid(weight)
        bias = self._makers.get(node.input[2]) if len(names) > 1 else None
        # the scale of a bias is the product of the weight's and the activation's
        activation = None if bias is None else float(self._grid(bias).scale.flat[0] / grid.scale.flat[0])
        return step._replace(stored=Stored(grid.axis, 64 if node.name in self._seven_bits else 127, activation))

    def _grid(self, node: onnx.NodeProto) -> Grid:
        """The grid of a QuantizeLinear or DequantizeLinear node."""
        scale, zero_point = (self.arrays[name] for name in node.input[1:3])
        axis: Any = attributes(node).get("axis") if scale.ndim else None
        return Grid(scale, zero_point, axis)


def _rounding(grid: Grid) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounds an activation to its grid."""
    limits = np.iinfo(grid.zero_point.dtype)
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, int(limits.min), int(limits.max))


def _any_batch(reshape: Operator, batch: int) -> Operator:
    """A Reshape for any number of images, from one whose shape is for a fixed number."""

    def reshaped(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        first, *others = shape.tolist()
        if -1 not in others and first > 0:
            first = -1
        elif first == batch:
            first = x.shape[0]
        return reshape(x, torch.tensor([first, *others]))

    return reshaped
