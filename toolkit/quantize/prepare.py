"""Make a float graph ready to quantize: BatchNorm folded into convolutions, constants folded, shapes known."""

import onnx
import onnxruntime

from ...deploy.errors import BundleError
from ...deploy.files import scratch_folder

# Per-channel QuantizeLinear came with opset 13.
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
        raise BundleError("the model is already quantized", fix="pass the fp32 model it was made from")
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
    used = {node.domain for node in optimized.graph.node} | {"", "ai.onnx"}
    kept = [
        entry for entry in optimized.opset_import if entry.domain in used
    ]  # ONNX Runtime lists all domains it supports
    del optimized.opset_import[:]
    optimized.opset_import.extend(kept)
    for index, node in enumerate(optimized.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return onnx.shape_inference.infer_shapes(optimized)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set in a model."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, _UPGRADED_OPSET)
    except Exception as error:  # the converter raises RuntimeError and C++ errors of its own
        raise BundleError(
            f"the model has opset {opset}, which cannot be raised to the {_MIN_OPSET} that quantizing needs: {error}",
            fix=f"export it again with opset {_UPGRADED_OPSET}",
        ) from error
