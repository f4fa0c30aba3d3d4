"""How many activations calibration holds at once, so that the process keeps to a limit of memory."""

import math
from collections.abc import Sequence

import onnx

from ...deploy.errors import EdgeKitError
from .rewrites.graph import shapes

# Measured with networks of 9 to 45 MB at 224 pixels: the interpreter and the libraries; the copies of a model in files
# and sessions; and how much memory a run takes, as multiples of the values that are needed, and of those it returns.
_PROCESS, _COPIES, _LIVE, _RETURNED = 110e6, 6, 2, 2
_FLOAT_BYTES = 4


def plan(model: onnx.ModelProto, names: Sequence[str], compared: int, limit: int | None) -> list[list[str]]:
    """The activations in as few groups as possible, whose histograms are made in one pass over the images each.

    Args:
        model: with inferred shapes; a dimension without a number is the batch, which is one image.
        names: activations that get a histogram.
        compared: number of images that are held to compare methods.
        limit: resident memory in bytes that the process keeps to; None for no limit.

    Raises:
        EdgeKitError: a single activation does not fit.
    """
    if limit is None:
        return [list(names)]
    sizes = _sizes(model)
    entry = model.graph.input[0]
    image = sizes[entry.name] / (entry.type.tensor_type.shape.dim[0].dim_value or 1)
    # ONNX Runtime reads the limits of an optimised graph's activations last, so all of them are in memory then
    activations = max(_LIVE * _largest_sum(model.graph, sizes), sum(sizes.get(name, 0) for name in names))
    fixed = _PROCESS + _COPIES * model.ByteSize() + activations
    largest = max((sizes.get(name, 0) for name in names), default=0)
    needed = fixed + max(_RETURNED * largest, compared * image)
    if needed > limit:
        least = math.ceil(needed / 1e6)
        raise EdgeKitError(
            f"calibration takes about {least} MB, more than the limit of {limit / 1e6:.0f} MB",
            fix=f"--memory-limit {least}MB",
        )
    return _groups(names, sizes, room=(limit - fixed) / _RETURNED)


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Name -> bytes of each tensor with an inferred shape, as float32 or smaller."""
    found = shapes(model.graph).items()
    return {name: _FLOAT_BYTES * math.prod(1 if dim is None else dim for dim in shape) for name, shape in found}


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
