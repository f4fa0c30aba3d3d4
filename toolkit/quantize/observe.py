"""Record the activation ranges of a float model on calibration images; memory does not grow with their number."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from ...deploy.errors import EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress
from .operators import OPS, Ranges

# A larger batch takes more memory and is no faster.
_BATCH = 4


def observe(model: onnx.ModelProto, manifest: Manifest, images: ImageSet, progress: Progress) -> Ranges:
    """(smallest, largest) value of every activation that a quantizable operator reads or writes.

    Raises:
        EdgeKitError: an activation is not finite for some image.
    """
    return ranges_of(model, batches(manifest, images, "calibration", progress))


def batches(manifest: Manifest, images: ImageSet, stage: str, progress: Progress) -> Iterator["Batch"]:
    """The images as input for a model, in batches of its size; the last one is filled up with the last image."""
    size = manifest.input.batch or _BATCH
    for start in range(0, len(images), size):
        indices = [min(start + offset, len(images) - 1) for offset in range(size)]
        tensor = manifest.preprocess.batch([images[index].image for index in indices])
        yield Batch(tensor, [images.ids[index] for index in indices])
        progress(stage, min(1.0, (start + size) / len(images)))


class Batch(NamedTuple):
    """Input for a model: a tensor [n, c, h, w] in Preprocess.dtype, and the id of each of its images."""

    tensor: np.ndarray
    ids: list[str]


def ranges_of(model: onnx.ModelProto, batches: Iterable[Batch]) -> Ranges:
    """What `observe` returns, from tensors.

    The graph itself reduces each activation to two numbers, so a run returns only those.

    Raises:
        EdgeKitError: an activation is not finite for some image.
    """
    tensors = _activations(model)
    session = onnxruntime.InferenceSession(
        _with_reductions(model, tensors).SerializeToString(), _options(), providers=["CPUExecutionProvider"]
    )
    outputs = [f"{name}{suffix}" for name in tensors for suffix in ("/min", "/max")]
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for batch in batches:
        answers = session.run(outputs, {session.get_inputs()[0].name: batch.tensor})
        values = np.asarray(answers, np.float64).reshape(-1, 2)
        _require_finite(values, tensors, batch.ids)
        low, high = np.minimum(low, values[:, 0]), np.maximum(high, values[:, 1])
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(tensors)}


def _activations(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    constants = {entry.name for entry in graph.initializer}
    floats = {
        entry.name
        for entry in (*graph.value_info, *graph.input, *graph.output)
        if entry.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    names = [name for node in graph.node if node.op_type in OPS for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(names) if name in floats and name not in constants]


def _with_reductions(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The model with the minimum and maximum of each tensor as additional scalar outputs.

    Each is computed right after the tensor, so that the tensor is freed as early as in the model itself.
    """
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    del augmented.graph.node[:]
    observed = set(tensors)

    def reduce(names: Iterable[str]) -> None:
        for name in observed.intersection(names):
            for operator, suffix in (("ReduceMin", "/min"), ("ReduceMax", "/max")):
                node = onnx.helper.make_node(operator, [name], [name + suffix], keepdims=0)
                augmented.graph.node.append(node)

    reduce(entry.name for entry in model.graph.input)
    for node in model.graph.node:
        augmented.graph.node.append(node)
        reduce(node.output)
    for name in (f"{name}{suffix}" for name in tensors for suffix in ("/min", "/max")):
        augmented.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    return augmented


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # the default order runs the reductions last, with every activation still in memory
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return options


def _require_finite(values: np.ndarray, tensors: list[str], ids: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise EdgeKitError(
            f"activation {tensors[broken[0]]} is not a finite number on one of the images {', '.join(ids)}",
            fix="the float model itself fails: check its weights and these images",
        )
