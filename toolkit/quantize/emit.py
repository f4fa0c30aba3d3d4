"""Write the lower precision into the graph: QDQ for int8, casts for fp16."""

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ...deploy.errors import BundleError
from ..targets import Target

if TYPE_CHECKING:
    from .observe import Ranges

# Operators that ONNX Runtime, TensorRT and the like run on 8-bit integers, or that only move them.
COMPUTE = ("Conv", "Gemm", "MatMul")
OPS = (
    *COMPUTE, "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "Split",
)  # fmt: skip


def emit_int8(model: onnx.ModelProto, ranges: "Ranges", target: Target) -> onnx.ModelProto:
    """The model with QuantizeLinear/DequantizeLinear pairs, int8 weights per channel, as the target wants them.

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
    quantizer = QDQQuantizer(
        _copy(model),
        per_channel=True,
        reduce_range=target.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if target.signed else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPS),
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": target.symmetric,
            "QuantizeBias": target.quantize_bias,
        },
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    _float_logits(quantized)
    return quantized


def _float_logits(model: onnx.ModelProto) -> None:
    """Take out the QuantizeLinear/DequantizeLinear pair before the graph's output.

    Eight bits for the logits buy nothing, since nothing integer follows, and can change the order of the best classes.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        dequantize = makers.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = makers[dequantize.input[0]]
        source = makers[quantize.input[0]]
        source.output[list(source.output).index(quantize.input[0])] = output.name
        model.graph.node.remove(quantize)
        model.graph.node.remove(dequantize)
        used = {name for node in model.graph.node for name in node.input}
        for constant in [one for one in model.graph.initializer if one.name in quantize.input and one.name not in used]:
            model.graph.initializer.remove(constant)


def emit_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 weights and arithmetic; input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(_copy(model), keep_io_types=True)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, since both converters work in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
