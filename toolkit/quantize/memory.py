"""How many images and activations calibration holds at once, so that the process keeps to a limit of memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import onnx

from ...deploy.errors import EdgeKitError
from .rewrites.graph import shapes

# A larger batch takes more memory and is no faster.
BATCH = 4
# Measured with networks of 9 to 45 MB at 224 pixels: the interpreter and the libraries; the copies of a model in files
# and sessions; and how much memory a run takes, as multiples of the values that are needed, and of those it returns.
_PROCESS, _COPIES, _LIVE, _RETURNED = 110e6, 6, 2, 2
_FLOAT_BYTES = 4


class Plan(NamedTuple):
    """What calibration holds at once.

    Attributes:
        batch: number of images, unless the model has a fixed batch.
        groups: names of the activations whose histograms are made in the same pass over the images.
    """

    batch: int
    groups: list[list[str]]


def plan(model: onnx.ModelProto, names: Sequence[str], compared: int, limit: int | None) -> Plan:
    """The fewest passes and the largest batch for which the process keeps to the limit.

    Args:
        model: with inferred shapes; a dimension without a number is the batch.
        names: activations that get a histogram.
        compared: number of images that are held to compare methods.
        limit: resident memory in bytes; None for no limit.

    Raises:
        EdgeKitError: a single image and a single activation do not fit.
    """
    if limit is None:
        return Plan(BATCH, [list(names)])
    needed = 0.0
    for batch in range(BATCH, 0, -1):
        sizes = _sizes(model, batch)
        image = sizes[model.graph.input[0].name] / _batch_of(model, batch)
        fixed = _PROCESS + _COPIES * model.ByteSize() + _LIVE * _largest_sum(model.graph, sizes)
        room = (limit - fixed) / _RETURNED
        largest = max((sizes.get(name, 0) for name in names), default=0)
        needed = fixed + max(_RETURNED * largest, compared * image)
        if needed <= limit:
            return Plan(batch, _groups(names, sizes, room))
    least = math.ceil(needed / 1e6)
    raise EdgeKitError(
        f"calibration takes about {least} MB, more than the limit of {limit / 1e6:.0f} MB",
        fix=f"--memory-limit {least}MB",
    )


def _batch_of(model: onnx.ModelProto, batch: int) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or batch


def _sizes(model: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Name -> bytes of each tensor with an inferred shape, as float32 or smaller."""
    found = shapes(model.graph).items()
    return {name: _FLOAT_BYTES * math.prod(batch if dim is None else dim for dim in shape) for name, shape in found}


def _largest_sum(graph: onnx.GraphProto, sizes: dict[str, int]) -> int:
    """Bytes of the tensors that are needed at the same time, at most, if the nodes run in their order."""
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    live = {entry.name for entry in graph.input}
    largest = 0
    for place, node in enumerate(graph.node):
        live.update(node.output)
        largest = max(largest, sum(sizes.get(name, 0) for name in live))
        live -= {name for name in live if last.get(name, place) <= place}
    return largest


def _groups(names: Sequence[str], sizes: dict[str, int], room: float) -> list[list[str]]:
    """The names in their order, in groups whose sizes add up to at most `room`."""
    groups, left = list[list[str]](), 0.0
    for name in names:
        size = sizes.get(name, 0)
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= size
    return groups
