"""The end of an ONNX graph: EdgeKit compares logits, so a Softmax is removed and an ArgMax is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ...deploy.errors import BundleError
from ...deploy.postprocess import probabilities
from ...export.onnx_file import producers
from .edit import append, cut, inferred, publish, remove, type_name

# Operators that may follow the last operator that changes values.
_PASSING = (
    "Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze",
)  # fmt: skip
_CHOOSING = ("ArgMax", "ArgMin", "TopK", "NonMaxSuppression")

# TensorProto's types of real numbers.
_REAL: tuple[int, ...] = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.stack([probabilities(row) for row in logits]).astype(np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _identity(logits: np.ndarray) -> np.ndarray:
    return logits


# A LogSoftmax may stay: the softmax of its output is the softmax of its input.
_ACTIVATIONS = {
    "Softmax": _softmax, "QLinearSoftmax": _softmax, "Sigmoid": _sigmoid, "QLinearSigmoid": _sigmoid,
}  # fmt: skip
_WHY = {
    _softmax: "EdgeKit applies it to the logits itself",
    _sigmoid: "confidences are a softmax of its input, one class per image",
}


class Ending(NamedTuple):
    """The changes made to a graph's end.

    Attributes:
        changes: one sentence per change.
        activation: logits [n, k] -> the graph's original answer.
        ceiling: the largest value of that answer; a quantized Softmax reaches its calibrated maximum.
    """

    changes: Sequence[str] = ()
    activation: Callable[[np.ndarray], np.ndarray] = _identity
    ceiling: float = float("inf")


def end_in_logits(model: onnx.ModelProto, path: Path) -> Ending:
    """Make a graph's only output float32 logits [n, k], in place, as far as this is known before it runs.

    Raises:
        BundleError: it returns a class index, or other values than real numbers.
    """
    output = model.graph.output[0]
    tail = _tail(model)
    if tail and tail[-1].op_type in _CHOOSING:
        _refuse_choice(model, path, tail[-1])
    kind = output.type.tensor_type.elem_type
    if kind not in _REAL:
        name = type_name(kind)
        raise BundleError(
            f"{path} returns {name} numbers ({output.name}) instead of a score per class",
            fix="export it with the logits as output",
        )
    changes, activation, ceiling = [], _identity, float("inf")
    if tail and _is_activation(tail):
        activation = _ACTIVATIONS[tail[-1].op_type]
        ceiling = _remove_activation(model, tail)
        changes.append(f"it ends in {tail[-1].op_type}, which was removed: {_WHY[activation]}")
    if _trailing_ones(model):
        append(model, output.name, "Flatten", axis=1)
        if output.type.tensor_type.HasField("shape"):
            del output.type.tensor_type.shape.dim[2:]
        changes.append("its output is [n, classes, 1, 1]: a Flatten was added after it")
    if kind != TensorProto.FLOAT:
        append(model, output.name, "Cast", to=TensorProto.FLOAT)
        output.type.tensor_type.elem_type = TensorProto.FLOAT
        changes.append(f"its output is {type_name(kind)}: a Cast was added after it")
    return Ending(changes, activation, ceiling)


def _tail(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes from the output back to the last operator that changes values, including it."""
    makers = producers(model.graph)
    name, nodes = model.graph.output[0].name, []
    while (node := makers.get(name)) is not None:
        nodes.append(node)
        if node.op_type not in _PASSING or not node.input:
            break
        name = node.input[0]
    return nodes


def _is_activation(tail: Sequence[onnx.NodeProto]) -> bool:
    """Whether the tail's last node is a removable activation; a quantized one needs a DequantizeLinear after it."""
    last = tail[-1]
    if last.op_type.startswith("QLinear") and not (
        len(last.input) >= 5 and len(tail) > 1 and tail[-2].op_type == "DequantizeLinear"
    ):
        return False
    return last.op_type in _ACTIVATIONS and bool(last.input)


def _refuse_choice(model: onnx.ModelProto, path: Path, node: onnx.NodeProto) -> None:
    image, scores = model.graph.input[0].name, node.input[0]
    raise BundleError(
        f"{path} ends in {node.op_type}: it returns a class index, and EdgeKit needs the score of every class",
        fix=f"make {scores} its output: {cut(path, image, scores)}",
    )


def _remove_activation(model: onnx.ModelProto, tail: Sequence[onnx.NodeProto]) -> float:
    """Remove the activation at the tail's end and the quantization of its output; return the ceiling of the latter."""
    last, followers = tail[-1], list(reversed(tail[:-1]))
    constants = {entry.name: entry for entry in model.graph.initializer}
    if last.op_type.startswith("QLinear"):  # inputs: a tensor, its scale and zero point, those of the output
        ceiling = _ceiling(constants, last.input[3:5])
        del followers[0].input[:]
        followers[0].input.extend(last.input[:3])
        remove(model, [last])
        return ceiling
    rounding = [node for node in followers if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    name = last.input[0]
    for node in [node for node in followers if node not in rounding]:
        node.input[0] = name
        name = node.output[0]
    ceilings = [_ceiling(constants, node.input[1:3]) for node in rounding]
    remove(model, [last, *rounding])
    output = model.graph.output[0].name
    if name != output:
        publish(model, name, output)
    return min(ceilings, default=float("inf"))


def _ceiling(constants: dict[str, TensorProto], names: Sequence[str]) -> float:
    """The largest value that a scale and a zero point can express; infinite if they are unknown."""
    values = [constants[name] for name in names if name in constants]
    if len(values) < 2:
        return float("inf")
    try:
        scale, zero = map(numpy_helper.to_array, values)
        return float(scale.max()) * (np.iinfo(zero.dtype).max - int(zero.min()))
    except ValueError:  # not integers, or too few: the checker reports this
        return float("inf")


def _trailing_ones(model: onnx.ModelProto) -> bool:
    """Whether the output is [n, k, 1, …]."""
    sides = [side.dim_value for side in inferred(model).graph.output[0].type.tensor_type.shape.dim]
    return len(sides) > 2 and all(side == 1 for side in sides[2:])
