"""The certificate: exact integers are what ONNX Runtime computes, and saturation shows where it happens."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import cpu_isa, has_vnni
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.integer_run import IntegerRun
from edgekit.toolkit.quantize.observe import Batch, ranges_of
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.portability import ARM, AVX2, VNNI, certify, remarks, sentence
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.saturation import overflowing_layers, saturated_sums
from edgekit.toolkit.quantize.targets import TARGETS, Form
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.toolkit.quantize.test_saturation import IMAGES, emitted, planted

# name -> channels of the output, attributes of the convolution; the input has 8 channels of 9 x 11
_CONVOLUTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (6, {}),
    "padded": (16, {"pads": [1, 0, 2, 1]}),
    "strided": (6, {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": (7, {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    "grouped": (12, {"group": 4}),
    "depthwise": (8, {"group": 8, "pads": [1, 1, 1, 1]}),
    "multiplied": (16, {"group": 8}),
    "same upper": (5, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": (5, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": (5, {"auto_pad": "VALID"}),
}


def _network(kind: str, seed: int, bias: bool, transposed: bool) -> onnx.ModelProto:
    """A convolution, a Relu, a Gemm and a MatMul with random weights."""
    generator = np.random.default_rng(seed)
    outputs, given = _CONVOLUTIONS[kind]
    groups = given.get("group", 1)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    constants = {
        "conv_w": normal(outputs, 8 // groups, 3, 3), "conv_b": normal(outputs),
        "gemm_w": normal(7, outputs) if transposed else normal(outputs, 7), "gemm_b": normal(7),
        "matmul_w": normal(7, 5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "conv_w", "conv_b"][: 2 + bias], ["conv"], "conv", **given),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "gemm_w", "gemm_b"], ["gemm"], "gemm", transB=int(transposed)),
        helper.make_node("MatMul", ["gemm", "matmul_w"], ["logits"], "matmul"),
    ]
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 9, 11])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _onnx_runtime(model: onnx.ModelProto, tensors: np.ndarray, *, optimised: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": tensors})[0])


@given(
    kind=st.sampled_from(sorted(_CONVOLUTIONS)), seed=st.integers(0, 10_000), bias=st.booleans(),
    transposed=st.booleans(), target=st.sampled_from(["x86", "arm"]),
)  # fmt: skip
@settings(max_examples=60)
def test_exact_integers_are_what_onnx_runtime_computes(
    kind: str, seed: int, bias: bool, transposed: bool, target: str
) -> None:
    """With 7-bit weights, on every CPU: the same logits, and without optimisations up to steps of rounding."""
    model = _network(kind, seed, bias, transposed)
    tensors = np.random.default_rng(seed).normal(size=(3, 8, 9, 11)).astype(np.float32)
    ranges = ranges_of(model, [Batch(tensors, ["normal"])])
    quantized = emit_int8(model, ranges, TARGETS[target], Form(seven_bits=frozenset({"conv", "gemm", "matmul"})))
    run = IntegerRun(quantized, signed=False)
    assert len(run.layers) == 3
    logits = run.run(tensors)
    scale = np.abs(logits).max()
    assert np.abs(logits - _onnx_runtime(quantized, tensors, optimised=True)).max() <= 1e-5 * scale
    assert np.abs(logits - _onnx_runtime(quantized, tensors, optimised=False)).max() <= 0.05 * scale
    assert (run.run(tensors, saturated_sums) == logits).all(), "7-bit weights do not saturate"


def test_a_graph_without_overflow_answers_the_same_everywhere() -> None:
    """With all its 8-bit weights."""
    certificate = certify(emitted(planted(None)), IMAGES)
    assert certificate["images"] == len(IMAGES)
    for found in certificate["cpus"].values():
        assert found == {
            "from_reference": {"images": 0, "answers": 0, "largest": 0.0},
            "from_host": found["from_host"], "holds": True,
        }  # fmt: skip
    assert list(certificate["cpus"]) == [VNNI, AVX2, ARM]
    assert remarks(certificate, "x86") == ()
    assert sentence(certificate) == (
        f"the accuracy drop holds on {VNNI}, {AVX2} and {ARM}: the logits of 4 images are the same"
    )


def test_the_overflowing_convolution_differs_with_eight_bits_and_not_with_seven() -> None:
    """On the emulated CPU without VNNI; only that layer has 7 bits."""
    model = planted("second")
    before = certify(emitted(model), IMAGES)
    assert before["cpus"][AVX2]["from_reference"]["images"] == len(IMAGES)
    assert before["cpus"][VNNI]["from_reference"]["images"] == 0
    after = certify(emitted(model, ("second",)), IMAGES)
    assert after["cpus"][AVX2]["from_reference"]["largest"] == 0.0
    assert all(found["holds"] for found in after["cpus"].values())


@pytest.mark.skipif(not has_vnni(cpu_isa()), reason="the host adds exactly only with VNNI")
def test_the_drop_does_not_hold_where_sums_overflow() -> None:
    """The remark names the CPUs where it holds, and the one where it does not."""
    certificate = certify(emitted(planted("second")), IMAGES)
    assert [found["holds"] for found in certificate["cpus"].values()] == [True, False, True]
    assert certificate["host"]["images"] == 0
    (remark,) = remarks(certificate, "x86")
    assert remark.startswith(f"the accuracy drop holds on {VNNI} and {ARM}: on {AVX2} 4 of 4 images have other logits")
    assert remark.endswith("--target any makes one file for all")
    assert not remarks(certificate, "any")[0].endswith("for all")


def test_no_cpu_but_this_one() -> None:
    """A host whose answers agree with none of the computed ones is reported as such."""
    certificate = certify(emitted(planted("second")), IMAGES)
    for found in certificate["cpus"].values():
        found["holds"] = False
    assert sentence(certificate).startswith("the accuracy drop holds only on CPUs like this: on x86 with VNNI ")


@pytest.mark.parametrize("target", ["x86", "x86-avx2", "any", "arm", "tensorrt"])
def test_the_manifest_has_the_certificate(fp32: Bundle, tmp_path: Path, target: str) -> None:
    """For the targets of ONNX Runtime; x86-avx2 and any hold on every x86 CPU and on ARM64."""
    result = quantize(fp32, QuantizeOptions(target=target), out=tmp_path / "made")
    certificate = result.bundle.manifest.details["portability"]
    if target == "tensorrt":
        assert certificate is None
        return
    assert certificate["images"] > 0
    assert set(certificate["cpus"]) == {VNNI, AVX2, ARM}
    shown = any("the accuracy drop holds" in remark for remark in result.remarks)
    assert shown != all(found["holds"] for found in certificate["cpus"].values())
    if target in ("x86-avx2", "any"):
        assert all(found["holds"] for found in certificate["cpus"].values())


def test_batches_of_a_fixed_size_are_filled_up() -> None:
    """A graph for two images at once runs on five."""
    model = planted(None)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model = prepare(onnx.ModelProto.FromString(model.SerializeToString()))
    quantized = emit_int8(model, ranges_of(model, [Batch(IMAGES[:2], ["uniform"])]), TARGETS["x86"])
    certificate = certify(quantized, np.concatenate([IMAGES, IMAGES[:1]]), batch=2)
    assert certificate["images"] == 5
    assert overflowing_layers(quantized, [IMAGES[:2]]).counts == {}
