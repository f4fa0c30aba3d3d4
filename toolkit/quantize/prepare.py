"""Prepare a float graph for quantization: fold BatchNorm into convolutions, fold constants, infer shapes."""

import onnx
import onnxruntime

from ...deploy.errors import BundleError
from ...deploy.files import scratch_folder

# Opset 13 added per-channel QuantizeLinear.
_MIN_OPSET = 13
_UPGRADED_OPSET = 17
QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger")


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic (hardware-independent) optimisations.

    Its shapes are inferred, and every node has a name.

    Raises:
        BundleError: the model is already quantized, or its opset is too low and cannot be raised.
    """
    if any(node.op_type in QUANTIZED_OPS for node in model.graph.node):
        raise BundleError("the model is already quantized", fix="pass the fp32 model that it was made from")
    if opset_of(model) < _MIN_OPSET:
        model = _upgraded(model, opset_of(model))
    with scratch_folder() as folder:
        path = folder / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(str(path))
    optimized.metadata_props.extend(
        entry for entry in model.metadata_props if entry.key not in {known.key for known in optimized.metadata_props}
    )
    used_domains = {node.domain for node in optimized.graph.node} | {"", "ai.onnx"}
    # ONNX Runtime lists all domains that it supports
    used_opsets = [entry for entry in optimized.opset_import if entry.domain in used_domains]
    del optimized.opset_import[:]
    optimized.opset_import.extend(used_opsets)
    for index, node in enumerate(optimized.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return onnx.shape_inference.infer_shapes(optimized)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, _UPGRADED_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own C++ errors
        raise BundleError(
            f"the model has opset {opset}; quantizing requires {_MIN_OPSET}, and converting it failed: {error}",
            fix=f"export it again with opset {_UPGRADED_OPSET}",
        ) from error
