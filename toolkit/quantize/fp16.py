"""Write float16 into the graph, with casts at the input and the output."""

from collections.abc import Sequence

import onnx

from ...export.onnx_file import to_bytes
from .gate import unoptimised
from .lowered import Lowered, Request
from .precise import MOVES
from .verify import verify_weights


def lower_fp16(model: onnx.ModelProto, request: Request) -> Lowered:
    """The fp16 model.

    Raises:
        EdgeKitError: most weights stayed float32.
    """
    halved = emit_fp16(model)
    content = to_bytes(halved)
    return Lowered(
        content,
        unoptimised(content, request.bundle.manifest.input.batch),
        details={"verified": verify_weights(halved, "fp16")},
        requires={},
        layers=fp16_layers(model),
        alone=lambda layer: emit_fp16(model, [layer]),
    )


def emit_fp16(model: onnx.ModelProto, only: Sequence[str] = ()) -> onnx.ModelProto:
    """The model with float16 weights and arithmetic; input and output stay float32.

    Args:
        only: names of the nodes to convert; empty for all.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()  # the converter works in place
    copy.CopyFrom(model)
    unconverted = [node.name for node in model.graph.node if only and node.name not in only]
    halved = convert_float_to_float16(copy, keep_io_types=True, node_block_list=unconverted)
    cast_names = set()
    for node in list(halved.graph.node):  # the converter casts a tensor once per reader, each time under the same name
        if node.op_type == "Cast" and node.output[0] in cast_names:
            halved.graph.node.remove(node)
        cast_names.update(node.output)
    return halved


def fp16_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that `emit_fp16` converts, except those that only move values."""
    return [node.name for node in model.graph.node if node.op_type not in (*MOVES, "Constant", "Shape")]
