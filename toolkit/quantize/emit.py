"""Write a lower precision into the graph: QDQ for int8, casts for fp16."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ...deploy.errors import BundleError
from ...export.onnx_file import constants, producers
from .factors import factors, fold_factors
from .operators import COMPUTE, FUSED_OPS, OPS, Ranges
from .precise import MOVES, leave_float, read_float
from .targets import Form, Target


def emit_int8(
    model: onnx.ModelProto, ranges: Ranges, target: Target, form: Form | None = None, only: Sequence[str] = ()
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
    data: dict[str, TensorData | tuple] = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    model, form = _copy(model), form or target.forms[0]
    float_nodes = _float_nodes(model, form)
    scaling = [name for name in factors(model.graph) if name not in float_nodes]
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=target.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if target.activations in ("int8", "symmetric") else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(only),
        nodes_to_exclude=[*float_nodes, *scaling, *(_not_residual(model) if form.fused else ())],
        op_types_to_quantize=list(FUSED_OPS if form.fused else OPS),
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": target.activations == "symmetric",
            "TensorQuantOverrides": _symmetric_if_negative(ranges) if target.activations == "by sign" else {},
            "QuantizeBias": target.quantize_bias,
            "OpTypesToExcludeOutputQuantization": list(FUSED_OPS) if form.fused else [],
        },
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    if form.fused:
        _fuse_residuals(quantized)
    _float_logits(quantized)
    read_float(quantized)
    fold_factors(quantized.graph, scaling)
    return quantized


def _symmetric_if_negative(ranges: Ranges) -> dict[str, list[dict[str, Any]]]:
    """ONNX Runtime's overrides for the tensors with negative values."""
    return {name: [{"quant_type": QuantType.QInt8, "symmetric": True}] for name, (low, _) in ranges.items() if low < 0}


def _float_nodes(model: onnx.ModelProto, form: Form) -> list[str]:
    """Names of the nodes that stay float."""
    return [*leave_float(model), *(node.name for node in float_start(model.graph, form.float_convolutions))]


def float_start(graph: onnx.GraphProto, convolutions: int) -> list[onnx.NodeProto]:
    """The nodes up to and including so many convolutions, in the order of the graph."""
    places = [place for place, node in enumerate(graph.node) if node.op_type == "Conv"][:convolutions]
    return list(graph.node[: places[-1] + 1]) if places else []


def int8_layers(model: onnx.ModelProto, form: Form) -> list[str]:
    """Names of the nodes that `emit_int8` quantizes, except those that only move values."""
    ops = set(FUSED_OPS if form.fused else OPS) - set(MOVES)
    float_names = set(_float_nodes(model, form))
    return [node.name for node in model.graph.node if node.op_type in ops and node.name not in float_names]


def fp16_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that `emit_fp16` converts, except those that only move values."""
    return [node.name for node in model.graph.node if node.op_type not in (*MOVES, "Constant", "Shape")]


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
                candidates.append((positions[layer.output[0]], slot, layer, quantize, dequantize))
        if candidates:
            _, slot, layer, quantize, dequantize = max(candidates, key=lambda entry: entry[0])
            node.input[slot] = layer.output[0]
            _remove(graph, quantize, dequantize)


def _remove(graph: onnx.GraphProto, quantize: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
    """Remove a QuantizeLinear/DequantizeLinear pair, and the constants that only it used."""
    graph.node.remove(quantize)
    graph.node.remove(dequantize)
    used = {name for node in graph.node for name in node.input}
    for constant in [
        initializer
        for initializer in graph.initializer
        if initializer.name in quantize.input and initializer.name not in used
    ]:
        graph.initializer.remove(constant)


def _float_logits(model: onnx.ModelProto) -> None:
    """Remove the QuantizeLinear/DequantizeLinear pair before the graph's output.

    Eight-bit logits save nothing, since no integer operator follows, and they can change the order of the top classes.
    """
    makers = producers(model.graph)
    for output in model.graph.output:
        dequantize = makers.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = makers[dequantize.input[0]]
        source = makers[quantize.input[0]]
        source.output[list(source.output).index(quantize.input[0])] = output.name
        _remove(model.graph, quantize, dequantize)


def emit_fp16(model: onnx.ModelProto, only: Sequence[str] = ()) -> onnx.ModelProto:
    """The model with float16 weights and arithmetic; input and output stay float32.

    Args:
        only: names of the nodes to convert; empty for all.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    unconverted = [node.name for node in model.graph.node if only and node.name not in only]
    halved = convert_float_to_float16(_copy(model), keep_io_types=True, node_block_list=unconverted)
    cast_names = set()
    for node in list(halved.graph.node):  # the converter casts a tensor once per reader, each time under the same name
        if node.op_type == "Cast" and node.output[0] in cast_names:
            halved.graph.node.remove(node)
        cast_names.update(node.output)
    return halved


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, because both converters work in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
