"""Record the activation ranges of a float model on calibration images; memory does not grow with their number."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from ...deploy.errors import EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress
from .operators import OPS, Ranges

# Operators whose result never falls if the input rises: its limits are their values at the limits of the input.
_RISING = ("Clip", "Relu", "Sigmoid")
# Operators that keep all values, and only move them.
_MOVING = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Batch(NamedTuple):
    """Input for a model: a tensor [n, c, h, w] in Preprocess.dtype, and the id of each of its images."""

    tensor: np.ndarray
    ids: list[str]


# Takes each batch, and the (smallest, largest) value of each activation on it: float64 [n, 2], in the order of Ranges.
Watch = Callable[[Batch, np.ndarray], None]


def observe(
    model: onnx.ModelProto, manifest: Manifest, images: ImageSet, progress: Progress, watch: Watch | None = None
) -> Ranges:
    """(smallest, largest) value of every activation that a quantizable operator reads or writes.

    Raises:
        EdgeKitError: an activation is not finite for some image.
    """
    return ranges_of(model, batches(manifest, shuffled(images), "calibration", progress), watch)


def shuffled(images: ImageSet) -> ImageSet:
    """The images in a random order that is always the same.

    A folder's images are sorted by class, and a `Watch` would see the ranges grow with every class.
    """
    return images.take(np.random.default_rng(0).permutation(len(images)))


def batches(manifest: Manifest, images: ImageSet, stage: str, progress: Progress) -> Iterator[Batch]:
    """The images as input of a model, one by one; if its batch is fixed, the last one is padded with its last image.

    Several images at once take more memory and are no faster.
    """
    size = manifest.input.batch or 1
    for start in range(0, len(images), size):
        last = start + size if manifest.input.batch else min(start + size, len(images))
        indices = [min(index, len(images) - 1) for index in range(start, last)]
        tensor = manifest.preprocess.batch([images[index].image for index in indices])
        yield Batch(tensor, [images.ids[index] for index in indices])
        progress(stage, min(1.0, (start + size) / len(images)))


def ranges_of(model: onnx.ModelProto, batches: Iterable[Batch], watch: Watch | None = None) -> Ranges:
    """What `observe` returns, from tensors.

    The graph itself reduces each activation to two numbers, so a run returns only those. ONNX Runtime optimises the
    graph with these reductions in it: each of the activations is then still computed.

    Raises:
        EdgeKitError: an activation is not finite for some image.
    """
    tensors = activations(model)
    session = onnxruntime.InferenceSession(
        _with_reductions(model, tensors).SerializeToString(), _options(), providers=["CPUExecutionProvider"]
    )
    outputs = [f"{name}{suffix}" for name in tensors for suffix in ("/min", "/max")]
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for batch in batches:
        answers = session.run(outputs, {session.get_inputs()[0].name: batch.tensor})
        values = np.asarray(answers, np.float64).reshape(-1, 2)
        require_finite(values, tensors, batch.ids)
        low, high = np.minimum(low, values[:, 0]), np.maximum(high, values[:, 1])
        if watch is not None:
            watch(batch, values)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(tensors)}


def activations(model: onnx.ModelProto) -> list[str]:
    """Names of the activations that a quantizable operator reads or writes."""
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
        if node.op_type in (*_RISING, *_MOVING) and observed.issuperset((node.input[0], node.output[0])):
            augmented.graph.node.extend(_of_limits(node, suffix) for suffix in ("/min", "/max"))
        else:
            reduce(node.output)
    for name in (f"{name}{suffix}" for name in tensors for suffix in ("/min", "/max")):
        augmented.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    return augmented


def _of_limits(node: onnx.NodeProto, suffix: str) -> onnx.NodeProto:
    """A node that computes a limit of the result of a rising or moving node from that of its input.

    This is faster than to read all values again, and leaves ONNX Runtime free to fuse the node.
    """
    limit = node.output[0] + suffix
    if node.op_type in _MOVING:
        return onnx.helper.make_node("Identity", [node.input[0] + suffix], [limit])
    inputs = [node.input[0] + suffix, *node.input[1:]]
    return onnx.helper.make_node(node.op_type, inputs, [limit])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # the default order runs the reductions last, with every activation still in memory
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return options


def require_finite(values: np.ndarray, tensors: list[str], ids: list[str]) -> None:
    """Check the limits [t, 2] of t named activations on the images with these ids.

    Raises:
        EdgeKitError: one is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise EdgeKitError(
            f"activation {tensors[broken[0]]} is not a finite number on one of the images {', '.join(ids)}",
            fix="the float model itself fails: check its weights and these images",
        )
