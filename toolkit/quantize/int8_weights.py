"""Store the weights in int8 and compute in float32: a quarter of the file, for downloads and app packages."""

from collections.abc import Sequence

import onnx

from ...export.onnx_file import to_bytes
from .emit import channel_axis
from .gate import unoptimised
from .grid import weight_grid
from .lowered import Lowered, Request
from .operators import COMPUTE
from .precise import remove_unread
from .rewrites.graph import add_constant, arrays
from .verify import verify_weights


def lower_int8_weights(model: onnx.ModelProto, request: Request) -> Lowered:
    """The model with int8 weights.

    Raises:
        EdgeKitError: most weights stayed float32.
    """
    written = emit_int8_weights(model)
    content = to_bytes(written)
    return Lowered(
        content,
        unoptimised(content, request.bundle.manifest.input.batch),
        details={"verified": verify_weights(written, "int8")},
        requires={},
        layers=[node.name for node in model.graph.node if node.op_type in COMPUTE],
        alone=lambda layer: emit_int8_weights(model, [layer]),
    )


def emit_int8_weights(model: onnx.ModelProto, only: Sequence[str] = ()) -> onnx.ModelProto:
    """The model whose layers read their weights through DequantizeLinear, with a scale per output channel.

    Args:
        only: names of the layers to convert; empty for all.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    values, readers = arrays(written.graph), list[onnx.NodeProto]()
    for node in written.graph.node:
        if node.op_type not in COMPUTE or (only and node.name not in only) or node.input[1] not in values:
            continue
        weight = values[node.input[1]]
        grid = weight_grid(weight, channel_axis(node, weight))
        parts = zip(("stored", "scale", "zero"), (grid.quantize(weight), grid.scale, grid.zero_point), strict=True)
        inputs = [add_constant(written.graph, f"{node.name}/{name}", part) for name, part in parts]
        name = f"{node.name}/weight"
        reader = onnx.helper.make_node("DequantizeLinear", inputs, [name], name)
        if grid.axis is not None:
            reader.attribute.append(onnx.helper.make_attribute("axis", grid.axis))
        readers.append(reader)
        node.input[1] = name
    nodes = [*readers, *written.graph.node]
    del written.graph.node[:]
    written.graph.node.extend(nodes)
    remove_unread(written.graph)
    return written
