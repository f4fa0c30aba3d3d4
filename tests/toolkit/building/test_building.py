"""Nodes that TensorRT refuses, slows down or silently changes are reported before building."""

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.build import Options
from edgekit.deploy.errors import BundleError, EdgeKitError, EngineError, RecipeError
from edgekit.export.export_bundle import Options as ExportOptions
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.building.build import build, plan_build
from edgekit.toolkit.building.lint import documented_opset, lint
from edgekit.toolkit.building.trtexec import command_lines
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.targets import TARGETS, Form
from onnx import TensorProto, helper, numpy_helper

Run = Callable[..., subprocess.CompletedProcess[str]]
IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])


def _graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], image: onnx.ValueInfoProto = IMAGE, opset: int = 17,
    out: str = "out",
) -> onnx.ModelProto:  # fmt: skip
    """A model of these nodes, from `image` to `out`."""
    logits = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _pair(source: str, target: str, zero: str = "zero") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "scale", zero], [f"{target}_q"], f"{target}_Q"),
        helper.make_node("DequantizeLinear", [f"{target}_q", "scale", zero], [target], f"{target}_D"),
    ]


def _conv(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "weight"], [target], target)


CONSTANTS = {
    "scale": np.float32(0.1), "zero": np.int8(0), "five": np.int8(5), "byte": np.uint8(0), "middle": np.uint8(128),
    "weight": np.ones((3, 3, 1, 1), np.float32),
}  # fmt: skip


def _rules(model: onnx.ModelProto, version: tuple[int, int] = (10, 3), **settings: tuple) -> set[tuple[str, str]]:
    return {(finding.rule, finding.severity) for finding in lint(model, version, **settings)}


@pytest.mark.parametrize(
    ("zero", "expected", "message"),
    [("zero", set(), ""), ("five", {("asymmetric", "error")}, "zero point is 5"),
     ("middle", {("uint8", "error")}, "quantizes to uint8"),
     ("byte", {("uint8", "error")}, "reads it as int8, which changes every value over 127")],
)  # fmt: skip
def test_zero_points(zero: str, expected: set, message: str) -> None:
    """Only symmetric int8 is accepted; TensorRT would parse uint8 with a zero point of 0, but change values."""
    model = _graph([*_pair("image", "x", zero), _conv("x", "out")], CONSTANTS)
    assert _rules(model) == expected
    findings = lint(model, (10, 3))
    assert {finding.node for finding in findings} == ({"x_Q", "x_D"} if expected else set())
    assert all(message in finding.message and "--target tensorrt" in finding.fix for finding in findings)


def test_the_parser_accepts_uint8_with_zero_point_0() -> None:
    """That is why the lint has to refuse it: TensorRT only warns, and builds another model."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    from edgekit.deploy.engine.library import Message, recording_logger

    messages: list[Message] = []
    logger = recording_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, logger)
    model = _graph([*_pair("image", "x", "byte"), _conv("x", "out")], CONSTANTS)
    assert parser.parse(model.SerializeToString())
    assert any("INT8 instead" in message.text for message in messages)


def test_quantize_without_a_zero_point_rounds_to_uint8() -> None:
    """Unless, from opset 21 on, `output_dtype` sets another type."""

    def model(**attributes: int) -> onnx.ModelProto:
        rounding = helper.make_node("QuantizeLinear", ["image", "scale"], ["q"], "Q", **attributes)
        back = helper.make_node("DequantizeLinear", ["q", "scale"], ["x"], "D")
        return _graph([rounding, back, _conv("x", "out")], CONSTANTS, opset=21)

    assert ("uint8", "error") in _rules(model(), (11, 0))
    assert _rules(model(output_dtype=TensorProto.INT8), (11, 0)) == set()


def test_int32_bias() -> None:
    """The parser would refuse it."""
    bias = helper.make_node("DequantizeLinear", ["bias_q", "scale"], ["bias"], "bias_D")
    conv = helper.make_node("Conv", ["image", "weight", "bias"], ["out"], "conv")
    model = _graph([bias, conv], {**CONSTANTS, "bias_q": np.zeros(3, np.int32)})
    assert _rules(model) == {("int32-bias", "error")}
    assert lint(model, None)[0].node == "bias_D"


@pytest.mark.parametrize(
    ("kind", "shape", "batch", "expected"),
    [
        (TensorProto.FLOAT, ["n", 3, 8, 8], None, {("free-axis", "error")}),
        (TensorProto.FLOAT, ["n", 3, 8, 8], (1, 8, 32), set()),
        (TensorProto.FLOAT, ["n", 3, "h", "w"], (1, 8, 32), {("free-axis", "error")}),
        (TensorProto.FLOAT, [1, 3, 8, 8], (1, 8, 32), {("fixed-batch", "error")}),
        (TensorProto.FLOAT, [8, 3, 8, 8], (8, 8, 8), set()),
        (TensorProto.INT64, [1, 3, 8, 8], None, {("io-type", "error")}),
        (TensorProto.UINT8, [1, 3, 8, 8], None, {("io-type", "error")}),
    ],
)
def test_inputs(kind: int, shape: list, batch: tuple | None, expected: set) -> None:
    """Inputs must be float32, with a known size or a profile."""
    image = helper.make_tensor_value_info("image", kind, shape)
    cast = helper.make_node("Cast", ["image"], ["x"], "cast", to=TensorProto.FLOAT)
    model = _graph([cast, _conv("x", "out")], CONSTANTS, image)
    assert _rules(model, batch=batch) == expected


def test_findings_that_depend_on_the_release() -> None:
    """The opset, and int64 values that TensorRT 8 truncates; a slice "to the end" is allowed."""
    ends = np.array([2**62], np.int64)
    slices = helper.make_node("Slice", ["image", "starts", "ends"], ["x"], "slice")
    model = _graph([slices, _conv("x", "out")], {**CONSTANTS, "starts": np.zeros(1, np.int64), "ends": ends}, opset=18)
    assert _rules(model, (8, 6)) == {("opset", "warning")}
    assert _rules(model, (10, 3)) == set()
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array([2**40], np.int64), "ends"))
    assert _rules(model, (8, 6)) == {("opset", "warning"), ("int64", "error")}
    assert [documented_opset(version) for version in ((8, 6), (10, 3), (10, 9), (10, 16), (11, 4), (12, 0))] == [
        17, 20, 22, 24, 24, 25
    ]  # fmt: skip


def test_double() -> None:
    """TensorRT computes it in float32."""
    model = _graph([_conv("image", "out")], {**CONSTANTS, "factor": np.float64(2)})
    assert _rules(model) == {("double", "warning")}


def test_roundings_that_block_fusion() -> None:
    """Before a sum of two rounded values, and between a layer and its activation, unless others also read it."""
    both = [
        _conv("image", "a"),
        *_pair("a", "ad"),
        *_pair("image", "id"),
        helper.make_node("Add", ["ad", "id"], ["out"], "add"),
    ]
    assert _rules(_graph(both, CONSTANTS)) == {("residual", "warning")}
    single = [_conv("image", "a"), *_pair("image", "id"), helper.make_node("Add", ["a", "id"], ["out"], "add")]
    assert _rules(_graph(single, CONSTANTS)) == set()
    shared = [*both[:-1], helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Sum", ["ad", "id", "r"], ["out"])]
    assert _rules(_graph(shared, CONSTANTS)) == set()
    activation = [_conv("image", "a"), *_pair("a", "ad"), helper.make_node("Relu", ["ad"], ["out"], "relu")]
    assert _rules(_graph(activation, CONSTANTS)) == {("activation", "warning")}


@pytest.mark.parametrize(
    "target", sorted(name for name in TARGETS if name != "tensorrt" and TARGETS[name].format == "onnx")
)
def test_models_quantized_for_other_hardware_are_refused(fp32: Bundle, tmp_path: Path, target: str) -> None:
    """The error names the node and the command that makes the right graph; no files remain."""
    made = quantize(fp32, QuantizeOptions(target=target, calibration_images=16), out=tmp_path / target).bundle
    with pytest.raises(EngineError, match=r"_(De)?[qQ]uantizeLinear: .*and \d+ more") as caught:
        build(made, options=Options(compute_capabilities=("8.6",)), out=tmp_path / "engine")
    assert caught.value.fix == "edgekit quantize --target tensorrt"
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
def test_residual_sums_read_one_layer_unrounded(untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """The quantizer's graph for TensorRT has no findings; one with roundings everywhere has."""
    exported = export_bundle(untrained("resnet18", tmp_path / "source"), "onnx", tmp_path / "onnx")
    model = prepare(onnx.load(str(exported.model_path)))
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    ranges = dict.fromkeys(names, (-1.0, 1.0))
    assert _rules(emit_int8(model, ranges, TARGETS["tensorrt"])) == set()
    everywhere = emit_int8(model, ranges, TARGETS["tensorrt"], Form(fused=False))
    findings = [finding for finding in lint(everywhere, None) if finding.rule == "residual"]
    assert len(findings) == 8, "one per block"


def test_command_lines(fp32: Bundle) -> None:
    """Each generation of trtexec has its own option for keeping the graph's types."""
    int8 = dataclasses.replace(fp32, manifest=dataclasses.replace(fp32.manifest, precision="int8"))
    options = Options((1, 8, 32), 512, 5, version_compatible=True, hardware_compatible=True)
    lines = {release: shlex.split(line) for release, line in command_lines(int8, options, "image").items()}
    common = {
        "trtexec", f"--onnx={fp32.model_path}", "--saveEngine=model.engine", "--noTF32", "--minShapes=image:1x1x32x32",
        "--optShapes=image:8x1x32x32", "--maxShapes=image:32x1x32x32", "--memPoolSize=workspace:512",
        "--builderOptimizationLevel=5", "--versionCompatible", "--hardwareCompatibilityLevel=ampere+",
        "--timingCacheFile=timing.cache",
    }  # fmt: skip
    assert set(lines["8.6"]) == common | {"--int8"}
    assert set(lines["10.x"]) == common | {"--stronglyTyped"}
    assert set(lines["11.x"]) == common
    stripped = command_lines(fp32, Options(strip_weights=True), "image")
    assert "cannot build engines without weights" in stripped["8.6"]
    assert "--stripWeights" in stripped["10.x"]


def test_plan_is_printed(edgekit: Run, fp32: Bundle, int8: Bundle) -> None:
    """As text and as JSON; exit 1 if the model cannot be built."""
    assert "nothing that TensorRT refuses" in edgekit("build", fp32.path, "--plan").stdout
    done = edgekit("build", int8.path, "--plan", "--json", code=1)
    plan = json.loads(done.stdout)
    assert {finding["rule"] for finding in plan["findings"]} == {"uint8", "int32-bias"}
    assert plan["commands"].keys() == {"8.6", "10.x", "11.x"}
    assert "uint8" in edgekit("build", int8.path, "--plan", code=1).stdout


def test_a_free_batch_needs_its_sizes(trained: Bundle, tmp_path: Path) -> None:
    """With its sizes it is compiled with a profile."""
    pytest.importorskip("tensorrt_rtx_bindings")
    free = export_bundle(trained, "onnx", tmp_path / "free", ExportOptions(dynamic_batch=True))
    options = Options(compute_capabilities=("8.6",))
    with pytest.raises(EngineError, match="accepts any batch size") as caught:
        build(free, options=options, out=tmp_path / "engine")
    assert "--batch 1,8,32" in caught.value.fix
    (engine,) = build(free, options=dataclasses.replace(options, batch=(1, 4, 8)), out=tmp_path / "engine")
    assert engine.manifest.details["build"]["batch"] == [1, 4, 8]


@pytest.mark.parametrize(
    ("option", "message"), [("strip_weights", "without weights"), ("refit", "refittable engines without a GPU")]
)
def test_options_that_tensorrt_for_rtx_cannot_build_are_refused(
    fp32: Bundle, tmp_path: Path, option: str, message: str
) -> None:
    """Its compiler would end in an internal error."""
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(EdgeKitError, match=message) as caught:
        build(fp32, options=Options(compute_capabilities=("8.6",), **{option: True}), out=tmp_path / "engine")
    assert f"leave out --{option.replace('_', '-')}" in caught.value.fix
    assert not (tmp_path / "engine").exists()


def test_auto_quantizes_only_once(fp32: Bundle, tmp_path: Path) -> None:
    """The second time, the bundles of lower precision are reused from runs/."""
    pytest.importorskip("tensorrt_rtx_bindings")
    options = Options(compute_capabilities=("8.9",))
    for _ in range(2):
        engines = build(fp32, precision="auto", options=options, runs=tmp_path / "runs")
        assert [engine.manifest.precision for engine in engines] == ["fp32", "fp16", "int8"]
    formats = [Bundle.open(path).manifest.format for path in sorted((tmp_path / "runs").glob("[0-9]*"))]
    assert sorted(formats) == ["onnx"] * 2 + ["tensorrt"] * 6
    assert engines[2].manifest.lineage[-1]["precision"] == "int8"


def test_wrong_requests_are_refused(fp32: Bundle, int8: Bundle, trained: Bundle, tmp_path: Path) -> None:
    """Another format, another or unknown precision, one folder for several engines, a device that cannot build."""
    for bundle, settings, error, message in (
        (trained, {}, BundleError, "engines are built from ONNX"),
        (int8, {"precision": "fp16"}, BundleError, "is int8 already"),
        (fp32, {"precision": "int4"}, RecipeError, "int4"),
        (fp32, {"precision": "auto", "out": tmp_path / "x"}, EdgeKitError, "several engines"),
        (fp32, {"device": "browser"}, EdgeKitError, "browser"),
    ):
        with pytest.raises(error, match=message):
            build(bundle, runs=tmp_path / "runs", **settings)
    with pytest.raises(BundleError, match="engines are built from ONNX"):
        plan_build(trained)
