"""Verify that a file is quantized: its weights by type, and its operators after ONNX Runtime's optimisations."""

from collections import Counter
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from ...deploy.errors import EdgeKitError
from ...deploy.files import scratch_folder
from ...export.onnx_file import producers
from .operators import COMPUTE

_MIN_SHARE = 0.9


def verify_int8(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> dict[str, Any]:
    """Weight bytes by type, the share of int8 weights, and the operators that ONNX Runtime runs.

    Args:
        float_layers: names of the nodes that were left float on purpose, which do not count.

    Raises:
        EdgeKitError: less than 90 % of the weights of Conv, Gemm and MatMul are int8.
    """
    share = _share(model, onnx.TensorProto.INT8, float_layers)
    if share < _MIN_SHARE:
        raise EdgeKitError(
            f"only {share:.0%} of the weights became int8", fix="the network has operators that EdgeKit cannot quantize"
        )
    operators = _operators_as_run(model)
    return {
        "int8_share": share,
        "weight_bytes": weight_bytes(model),
        "qdq_left": operators["QuantizeLinear"] + operators["DequantizeLinear"],
        "float_left": sum(operators[name] for name in (*COMPUTE, "FusedConv", "FusedGemm", "FusedMatMul")),
        "operators_as_run": dict(operators.most_common()),
    }


def verify_weights(model: onnx.ModelProto, precision: Literal["fp16", "int8"]) -> dict[str, Any]:
    """Weight bytes by type, and the share of the weights that are stored in a precision.

    Raises:
        EdgeKitError: less than 90 % of the weights of Conv, Gemm and MatMul are.
    """
    share = _share(model, onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8)
    if share < _MIN_SHARE:
        raise EdgeKitError(f"only {share:.0%} of the weights became {precision}", fix="report this network")
    return {f"{precision}_share": share, "weight_bytes": weight_bytes(model)}


def weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """The size of all constants in bytes, by data type."""
    sizes: Counter[str] = Counter()
    for entry in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.data_type)
        sizes[str(dtype)] += int(np.prod(entry.dims, dtype=np.int64)) * dtype.itemsize
    return dict(sizes)


def _share(model: onnx.ModelProto, data_type: int, left_out: Collection[str] = ()) -> float:
    """The share of the weights of Conv, Gemm and MatMul, except these nodes, that have this data type."""
    constants = {entry.name: entry for entry in model.graph.initializer}
    makers = producers(model.graph)
    matching = total = 0
    for node in model.graph.node:
        if node.op_type not in COMPUTE or node.name in left_out:
            continue
        name = node.input[1]
        while name not in constants and name in makers:  # through DequantizeLinear, Transpose or Cast
            name = makers[name].input[0]
        if name in constants:
            count = int(np.prod(constants[name].dims, dtype=np.int64))
            total += count
            matching += count * (constants[name].data_type == data_type)
    return matching / total if total else 0.0


def _operators_as_run(model: onnx.ModelProto) -> Counter[str]:
    """Operator -> its number of nodes after all of ONNX Runtime's optimisations on this machine."""
    with scratch_folder() as folder:
        path = folder / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # no warning that an optimised file is for this machine only: this is intended
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(str(path)).graph.node)
