"""ONNX files from other tools: quantized, in half precision, with uint8 input, with a Softmax, or not a classifier."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError, RecipeError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.postprocess import probabilities
from edgekit.deploy.preprocess import Preprocess, decode
from edgekit.deploy.session import load, open_session
from edgekit.toolkit.commands.parsing import preprocess_of, shape_of
from edgekit.toolkit.importing.graph import copy_onnx
from edgekit.toolkit.importing.import_model import ImportOptions, check_scale, import_model, input_dtype
from edgekit.toolkit.inspect import inspect_bundle
from edgekit.toolkit.predict import predict
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.validation.validate import validate
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.conftest import DATA

Change = Callable[[onnx.ModelProto], onnx.ModelProto]


@pytest.fixture
def model(fp32: Bundle) -> onnx.ModelProto:
    """The committed LeNet: [1, 1, 32, 32] -> 10 logits."""
    return onnx.load(str(fp32.model_path))


@pytest.fixture
def bring(fp32: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """Import a file or a model, with the LeNet's preprocessing."""

    def run(model: onnx.ModelProto | Path, **changes: Any) -> Bundle:
        path = model
        if isinstance(model, onnx.ModelProto):
            path = tmp_path / "theirs.onnx"
            path.write_bytes(model.SerializeToString())
        preprocess = fp32.manifest.preprocess
        if input_dtype(str(path)) == "uint8":
            preprocess = dataclasses.replace(preprocess, mean=(0.0,), std=(1.0,), dtype="uint8")
        settings = {"name": "theirs", "preprocess": preprocess, "images": "digits", "out": tmp_path / "imported"}
        return import_model(str(path), ImportOptions(fp32.manifest.labels), **{**settings, **changes})

    return run


def _answers(bundle: Bundle, source: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a bundle and of its source on the bundle's golden images."""
    golden = bundle.golden()
    images = [decode(image) for image in golden.images]
    return golden.logits, load(source.path).run(source.manifest.preprocess.batch(images))


def _end(model: onnx.ModelProto, operator: str, kind: int = TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:
    """The model with an operator appended to its logits."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    output = changed.graph.output[0]
    changed.graph.node[-1].output[0] = "scores"
    changed.graph.node.append(helper.make_node(operator, ["scores"], [output.name], "last", **attributes))
    if kind != TensorProto.FLOAT:
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, [None]))
    return changed


class _Calibration(CalibrationDataReader):
    def __init__(self, bundle: Bundle) -> None:
        name = onnx.load(str(bundle.model_path)).graph.input[0].name
        self._feeds = iter([{name: tensor[None]} for tensor in bundle.golden().tensors])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def _static(form: QuantFormat, **settings: Any) -> Callable[[onnx.ModelProto, Bundle, Path], onnx.ModelProto]:
    def run(model: onnx.ModelProto, bundle: Bundle, folder: Path) -> onnx.ModelProto:
        onnx.save(model, str(folder / "float.onnx"))
        made = folder / "quantized.onnx"
        quantize_static(folder / "float.onnx", made, _Calibration(bundle), quant_format=form, **settings)
        return onnx.load(str(made))

    return run


def _dynamic(model: onnx.ModelProto, bundle: Bundle, folder: Path) -> onnx.ModelProto:
    onnx.save(model, str(folder / "float.onnx"))
    quantize_dynamic(folder / "float.onnx", folder / "quantized.onnx")
    return onnx.load(str(folder / "quantized.onnx"))


def _half(keep: bool) -> Callable[[onnx.ModelProto, Bundle, Path], onnx.ModelProto]:
    return lambda model, *_: convert_float_to_float16(model, keep_io_types=keep)


def _with_fake_quantization(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
    """Pass float weights through QuantizeLinear and DequantizeLinear, as exported by fake quantization."""
    graph = model.graph
    constants = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    nodes = list(graph.node)
    for node in [node for node in nodes if node.op_type in ("Conv", "Gemm")]:
        name = node.input[1]
        scale = np.float32(np.abs(constants[name]).max() / 127)
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{name}_zero"))
        rounding = [f"{name}_scale", f"{name}_zero"]
        nodes.insert(0, helper.make_node("DequantizeLinear", [f"{name}_q", *rounding], [f"{name}_dq"]))
        nodes.insert(0, helper.make_node("QuantizeLinear", [name, *rounding], [f"{name}_q"]))
        node.input[1] = f"{name}_dq"
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model


def _from_nncf(*_: object) -> onnx.ModelProto:
    """The LeNet quantized by NNCF 3.4 (nncf.quantize with 16 images)."""
    return onnx.load(str(DATA / "foreign" / "lenet-nncf.onnx"))


def _shuffled(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    random.Random(0).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator


@pytest.mark.parametrize(
    ("make", "precision", "share"),
    [(_static(QDQ, per_channel=True), "int8", 0.05), (_static(QDQ), "int8", 0.05),
     (_static(QOPERATOR, per_channel=True), "int8", 0.05), (_dynamic, "int8", 0.05), (_from_nncf, "int8", 0.3),
     (_with_fake_quantization, "int8", 0.05), (_half(True), "fp16", 0.001), (_half(False), "fp16", 0.001),
     (_shuffled, "fp32", 1e-6)],
    ids=["qdq per channel", "qdq", "qoperator", "dynamic", "nncf", "fake quantization", "float16 inside", "float16",
         "unsorted"],
)  # fmt: skip
def test_lower_precision_from_other_tools(
    model: onnx.ModelProto, fp32: Bundle, bring: Callable[..., Bundle], tmp_path: Path, make: Callable[..., Any],
    precision: str, share: float,
) -> None:  # fmt: skip
    """Precision is derived from the weights; classes are the same; the checker and a second reader accept the file."""
    bundle = bring(make(model, fp32, tmp_path))
    assert bundle.manifest.precision == precision
    assert abs(bundle.manifest.parameters - 61_706) <= 5, "without scales and zero points"
    assert inspect_bundle(bundle)["macs"] in (416_520, None)
    logits, expected = _answers(bundle, fp32)
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(logits - expected).max() <= share * np.abs(expected).max()
    onnx.checker.check_model(str(bundle.model_path), full_check=True)
    graph = onnx.load(str(bundle.model_path)).graph
    types = {value.type.tensor_type.elem_type for value in (graph.input[0], graph.output[0])}
    assert types == {TensorProto.FLOAT}
    if make is not _dynamic and "QLinearConv" not in {node.op_type for node in graph.node}:  # OpenVINO has neither
        openvino.Core().read_model(str(bundle.model_path))


def test_weights_of_another_type_are_named(model: onnx.ModelProto, bring: Callable[..., Bundle]) -> None:
    """They are neither fp32, fp16 nor int8."""
    for entry in model.graph.initializer:
        if len(entry.dims) > 1:
            values = numpy_helper.to_array(entry).astype(np.float64)
            entry.CopyFrom(numpy_helper.from_array(values, entry.name))
    with pytest.raises(BundleError, match="its weights are double; EdgeKit accepts fp32, fp16 and int8"):
        bring(model)


def _ends(operator: str, quantizer: Any = None, **attributes: Any) -> Callable[..., onnx.ModelProto]:
    def run(model: onnx.ModelProto, bundle: Bundle, folder: Path) -> onnx.ModelProto:
        ended = _end(model, operator, **attributes)
        return quantizer(ended, bundle, folder) if quantizer else ended

    return run


@pytest.mark.parametrize(
    "make",
    [_ends("Softmax", axis=1), _ends("LogSoftmax", axis=1), _ends("Softmax", _half(True), axis=-1),
     _ends("Softmax", _half(False), axis=-1), _ends("Softmax", _static(QDQ), axis=-1),
     _ends("Softmax", _static(QOPERATOR), axis=-1)],
    ids=["fp32", "logarithmic", "float16 inside", "float16", "qdq", "qoperator"],
)  # fmt: skip
def test_a_softmax_is_not_applied_twice(
    model: onnx.ModelProto, fp32: Bundle, bring: Callable[..., Bundle], tmp_path: Path, make: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Confidences are those of the logits before it; the change is reported and recorded."""
    bundle = bring(make(model, fp32, tmp_path))
    logits, expected = _answers(bundle, fp32)
    shares = [np.stack([probabilities(row) for row in rows]) for rows in (logits, expected)]
    np.testing.assert_allclose(*shares, atol=0.05)
    image = decode(bundle.golden().images[0])
    pictures = ImageSet(bundle.manifest.labels, ("a",), np.asarray([0]), np.asarray(image)[None])
    (prediction,) = predict(bundle, pictures, top=1)
    assert prediction.confidences[0] == pytest.approx(shares[1][0].max(), abs=0.05)
    operators = {node.op_type for node in onnx.load(str(bundle.model_path)).graph.node}
    assert not operators & {"Softmax", "QLinearSoftmax"}
    removed = "LogSoftmax" not in operators
    assert ("which was removed" in caplog.text) == removed
    assert any("Softmax" in change for change in bundle.manifest.details["changes"]) == removed
    onnx.checker.check_model(str(bundle.model_path), full_check=True)


def test_a_sigmoid_is_removed(
    model: onnx.ModelProto, fp32: Bundle, bring: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    """It saturates, so that classes tie; the changed meaning of confidences is reported."""
    logits, expected = _answers(bring(_end(model, "Sigmoid")), fp32)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert "confidences are a softmax" in caplog.text


def test_probabilities_in_another_form_are_refused(
    model: onnx.ModelProto, bring: Callable[..., Bundle], tmp_path: Path
) -> None:
    """A Softmax made of single operators, and one in a torch.export program, which cannot be cut."""

    class Normalized(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = torch.exp(x[:, 0, :10, 0] / 4)
            return scores / scores.sum(1, keepdim=True)

    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.extend(
        [helper.make_node("Exp", ["scores"], ["powers"]),
         helper.make_node("ReduceSum", ["powers", "axis"], ["sum"], keepdims=1),
         helper.make_node("Div", ["powers", "sum"], [output])]
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "axis"))
    onnx.save(model, str(tmp_path / "own.onnx"))
    torch.export.save(torch.export.export(Normalized().eval(), (torch.zeros(1, 1, 32, 32),)), str(tmp_path / "own.pt2"))
    for name in ("own.onnx", "own.pt2"):
        with pytest.raises(BundleError, match="second softmax") as caught:
            bring(tmp_path / name)
        assert "return the logits" in caught.value.fix


def test_an_argmax_is_refused_with_the_line_that_removes_it(
    model: onnx.ModelProto, bring: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line in the fix makes a file that can be imported."""
    ended = _end(_end(model, "Softmax"), "ArgMax", TensorProto.INT64, axis=1, keepdims=0)
    ended.graph.node[-2].output[0], ended.graph.node[-1].input[0] = "shares", "shares"
    ended.graph.node[-2].input[0] = ended.graph.node[-3].output[0] = "logits_before"
    with pytest.raises(BundleError, match="ends in ArgMax") as caught:
        bring(ended)
    assert "make shares its output" in caught.value.fix
    code = caught.value.fix.partition('python -c "')[2].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(code)  # noqa: S102 # the line that the user is shown
    assert bring(tmp_path / "cut.onnx").manifest.precision == "fp32"


def _uint8(model: onnx.ModelProto, last: bool = False) -> onnx.ModelProto:
    """The model with scaling and normalization in the graph: uint8 pixels, channels first or last."""
    entry = model.graph.input[0]
    constants = {"levels": 255.0, "mean": 0.305, "std": 0.323}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(v), k) for k, v in constants.items())
    for node in model.graph.node:
        node.input[:] = ["normal" if name == entry.name else name for name in node.input]
    nodes = [helper.make_node("Cast", [entry.name], ["real"], to=TensorProto.FLOAT)]
    if last:
        nodes.append(helper.make_node("Transpose", ["real"], ["first"], perm=[0, 3, 1, 2]))
    nodes += [
        helper.make_node("Div", ["first" if last else "real", "levels"], ["share"]),
        helper.make_node("Sub", ["share", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    shape = [1, 32, 32, 1] if last else [1, 1, 32, 32]
    entry.CopyFrom(helper.make_tensor_value_info(entry.name, TensorProto.UINT8, shape))
    return model


@pytest.mark.parametrize("last", [False, True])
def test_uint8_pixels_with_the_preprocessing_in_the_graph(
    model: onnx.ModelProto, fp32: Bundle, bring: Callable[..., Bundle], last: bool
) -> None:
    """The manifest declares a uint8 tensor of raw pixels; the logits equal the source's."""
    bundle = bring(_uint8(model, last))
    assert (bundle.manifest.preprocess.dtype, bundle.golden().tensors.dtype) == ("uint8", np.uint8)
    assert any("channels last" in change for change in bundle.manifest.details["changes"]) == last
    logits, expected = _answers(bundle, fp32)
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.slow
def test_uint8_is_quantized_and_validated(model: onnx.ModelProto, bring: Callable[..., Bundle], tmp_path: Path) -> None:
    """It is quantized and measured on this machine by the agent; preprocessing agrees exactly."""
    bundle = bring(_uint8(model))
    int8 = quantize(bundle, QuantizeOptions(target="x86-avx2", calibration_images=16), out=tmp_path / "int8").bundle
    plan = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5)
    report = validate([int8], baseline=bundle, images="digits", limit=16, plan=plan).report
    assert [entry["precision"] for entry in report["models"]] == ["fp32", "int8"]
    assert [entry["parity"]["tensor_max_abs"] for entry in report["models"]] == [0.0, 0.0]
    assert report["models"][0]["parity"]["logits_max_abs"] < 1e-3
    assert report["models"][1]["top1"] > 0.8


def test_uint8_that_disagrees_with_the_manifest_is_refused(
    model: onnx.ModelProto, fp32: Bundle, bring: Callable[..., Bundle]
) -> None:
    """The graph contains mean and std; a manifest and a graph that disagree do not run."""
    bundle = bring(_uint8(model))
    with pytest.raises(RecipeError, match="normalizes them itself"):
        preprocess_of((1, 32, 32), None, None, "0.5", "0.5", "bilinear", "uint8")
    assert preprocess_of((1, 32, 32), None, None, None, None, "bilinear", "uint8").std == (1.0,)
    with pytest.raises(BundleError, match="takes uint8, but preprocessing produces float32"):
        bring(bundle.model_path, preprocess=fp32.manifest.preprocess, out=bundle.path.with_name("other"))
    other = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, preprocess=fp32.manifest.preprocess)
    )
    with pytest.raises(BundleError, match=r"takes tensor\(uint8\), but its manifest says float32"):
        open_session(other)
    with pytest.raises(RecipeError, match="tensor type 'int8'"):
        Preprocess("L", 32, (32, 32), "bilinear", (0.0,), (1.0,), "int8")  # type: ignore[arg-type]


def _change(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    change(model)
    return model


def _conv_head(shape: list, last: bool = False) -> onnx.ModelProto:
    """[n, 1, 32, 32] -> [n, 10, 1, 1], as in networks without a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Softmax", ["p"], ["y"], axis=1),
    ]
    weights = np.random.default_rng(0).normal(size=(10, 1, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _one_at_a_time(model: onnx.ModelProto) -> None:
    """Declare a free batch, but reshape to one row."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    reshape = helper.make_node("Reshape", [flatten.input[0], "row"], [flatten.output[0]])
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1, -1], np.int64), "row"))
    place = list(model.graph.node).index(flatten)
    model.graph.node.remove(flatten)
    model.graph.node.insert(place, reshape)


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [(lambda m: _conv_head([1, 1, 32, 32]), 1, "a Flatten was added after it"),
     (lambda m: _conv_head(["n", 1, "h", "w"]), None, "a Flatten was added after it"),
     (lambda m: _change(m, _one_at_a_time), 1, "one image at a time"),
     (lambda m: _change(m, lambda m: setattr(m, "ir_version", onnx.IR_VERSION)), 1, "IR version")],
    ids=["[n, k, 1, 1]", "free axes", "one at a time", "newest IR version"],
)  # fmt: skip
def test_unusual_graphs_are_adapted(
    model: onnx.ModelProto, bring: Callable[..., Bundle], make: Change, batch: int | None, message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The adaptation is reported."""
    bundle = bring(make(model))
    assert message in caplog.text
    assert bundle.manifest.input.batch == batch
    tensors = bundle.golden().tensors[:3]
    np.testing.assert_allclose(load(bundle.path).run(tensors), bundle.golden().logits[:3], atol=1e-4)
    assert onnx.load(str(bundle.model_path)).ir_version <= 10


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("/1/Relu_output_0", TensorProto.FLOAT, None))
    model.graph.output[1].name = model.graph.node[-2].output[0]


def _foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "org.openvinotoolkit", "FakeQuantize"
    model.opset_import.append(helper.make_opsetid("org.openvinotoolkit", 1))


def _one_output(model: onnx.ModelProto) -> None:
    head = [entry for entry in model.graph.initializer if entry.dims[:1] == [10]]
    for entry in head:
        entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry)[:1], entry.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    del model.graph.value_info[:]


@pytest.mark.parametrize(
    ("make", "message", "fix"),
    [
        (_two_outputs, r"1 inputs and 2 outputs \(.*float \[1, 10\]", "onnx.utils.extract_model"),
        (_foreign_operator, "org.openvinotoolkit:FakeQuantize", "QuantizeLinear and DequantizeLinear"),
        (lambda m: setattr(m, "ir_version", 99), "IR version 99; onnx .* supports up to", "--upgrade onnx"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "theirs.onnx: .*Opset 99", "lower --opset"),
        (_one_output, "1 output: it is a regression or a binary model", "at least 2 outputs"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Nonsense"), "No Op registered for Nonsense", "export it again"),
        (lambda m: m.graph.ClearField("node"), "not valid ONNX", "export it again"),
    ],
    ids=["two outputs", "foreign operator", "IR version", "opset", "one output", "no such operator", "no nodes"],
)
def test_refused_graphs_are_one_line(
    model: onnx.ModelProto, bring: Callable[..., Bundle], make: Callable[[onnx.ModelProto], object], message: str,
    fix: str, tmp_path: Path,
) -> None:  # fmt: skip
    """The error gives the user's file name and what to do."""
    make(model)
    with pytest.raises(BundleError, match=message) as caught:
        bring(model)
    assert fix in caught.value.fix
    assert "\n" not in f"{caught.value}{caught.value.fix}"
    assert ".partial" not in str(caught.value)
    assert not (tmp_path / "imported").exists()


def test_other_output_shapes_are_named(bring: Callable[..., Bundle]) -> None:
    """For a map the fix does not suggest labels."""
    model = _conv_head([1, 1, 32, 32])
    model.graph.node[1].op_type = "Relu"
    with pytest.raises(BundleError, match=r"shape of \[1, 10, 30, 30\], not \[1, classes\]: a map") as caught:
        bring(model)
    assert "labels" not in caught.value.fix


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message", "fix"),
    [
        ("net.onnx", _POINTER, "Git LFS pointer", "git lfs pull"),
        ("net.pt", _POINTER, "Git LFS pointer", "git lfs pull"),
        ("net.onnx", b"", "is empty", "download or copy the file again"),
        ("net.onnx", b"\n<!DOCTYPE html>\n<html>", "a web page", "raw file"),
        ("net.tflite", b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite", "tf2onnx.convert --tflite"),
        ("net.bin", b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite", "tf2onnx.convert --tflite"),
        ("net.pb", b"\n\x10\n\x01x", "TensorFlow graph", "tf2onnx.convert --graphdef"),
        ("net.h5", b"\x89HDF\r\n\x1a\n", "HDF5", "tf2onnx.convert --keras"),
        ("net.engine", b"ftrt", "TensorRT engine", "edgekit build"),
        ("net.safetensors", b"\x08\0\0\0\0\0\0\0{}", "contains weights", "--weights"),
        ("net.pth", b"\x80\x02]q\x00.", "not an ONNX", "package.module:factory --weights"),
        ("net.onnx", b"\x08\x08\x12\xff\xff\xff", "not a valid ONNX", "export it again"),
    ],
)
def test_files_of_another_kind(
    bring: Callable[..., Bundle], tmp_path: Path, name: str, content: bytes, message: str, fix: str
) -> None:
    """The error names the format, and the fix says how to get a supported file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgeKitError, match=message) as caught:
        bring(tmp_path / name)
    assert fix in caught.value.fix


def test_folders(bring: Callable[..., Bundle], fp32: Bundle, tmp_path: Path) -> None:
    """A bundle, a TensorFlow SavedModel, a folder with a model, a folder without one."""
    for name in ("saved/saved_model.pb", "one/net.onnx", "none/notes.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    for folder, fix in ((fp32.path, "edgekit validate"), (tmp_path / "saved", "--saved-model"),
                        (tmp_path / "one", "net.onnx"), (tmp_path / "none", "pass a model file")):  # fmt: skip
        with pytest.raises(BundleError, match="is a folder") as caught:
            bring(folder)
        assert fix in caught.value.fix


def test_missing_or_unsafe_external_weights(
    model: onnx.ModelProto, bring: Callable[..., Bundle], tmp_path: Path
) -> None:
    """The file is missing, a pointer, too short, or outside the folder."""
    path, data = tmp_path / "net.onnx", tmp_path / "net.data"
    onnx.save(model, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    content = data.read_bytes()
    data.unlink()
    with pytest.raises(BundleError, match="weights in net.data, which is missing") as caught:
        bring(path)
    assert caught.value.fix == f"put it at {data}"
    data.write_bytes(_POINTER)
    with pytest.raises(BundleError, match="net.data is a Git LFS pointer"):
        bring(path)
    data.write_bytes(content[:100])
    with pytest.raises(BundleError, match="its weights cannot be read"):
        bring(path)
    (tmp_path / "below").mkdir()
    data.write_bytes(content)
    raw = path.read_bytes().replace(b"net.data", b"../n.dat")
    (tmp_path / "n.dat").write_bytes(content)
    (tmp_path / "below" / "net.onnx").write_bytes(raw)
    with pytest.raises(BundleError, match="outside its folder"):
        bring(tmp_path / "below" / "net.onnx")


@pytest.mark.parametrize(
    ("mean", "std", "fix"),
    [("123.675,116.28,103.53", "58.395,57.12,57.375", "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
     ("127.5", "127.5", "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"),
     ("123.68,116.78,103.94", "1", "--mean 0.48502,0.457961,0.407608 --std 0.00392157,0.00392157,0.00392157"),
     ("123.675,116.28,103.53", "0.229,0.224,0.225", "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
     ("0", "255", "--mean 0,0,0 --std 1,1,1")],
)  # fmt: skip
def test_mean_and_std_of_pixels_up_to_255(bring: Callable[..., Bundle], mean: str, std: str, fix: str) -> None:
    """They are refused with the correct options."""
    preprocess = preprocess_of((3, 32, 32), None, None, mean, std, "bilinear")
    with pytest.raises(RecipeError, match="pixels from 0 to 255") as caught:
        bring(DATA / "lenet-fp32" / "model.onnx", preprocess=preprocess)
    assert caught.value.fix == fix


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0, -1.0])
@pytest.mark.parametrize("std", [0.00392157, 0.5, 1.0])
def test_mean_and_std_of_the_right_scale_are_taken(mean: float, std: float) -> None:
    """Including the scale of a network whose input is pixels from 0 to 255."""
    check_scale(Preprocess("L", 32, (32, 32), "bilinear", (mean,), (std,)))


def test_channels() -> None:
    """Four are refused with the reason; if they come last, the fix has the right order."""
    with pytest.raises(RecipeError, match=r"4 channels; EdgeKit takes images of 1 channel \(grey\) or 3 \(RGB\)"):
        shape_of("4x64x64")
    with pytest.raises(RecipeError, match="224 channels") as caught:
        shape_of("224x224x3")
    assert "--input 3x224x224" in caught.value.fix


def test_on_the_command_line(model: onnx.ModelProto, edgekit: Callable[..., Any], tmp_path: Path) -> None:
    """mean and std are in the graph, so passing them is refused; predict accepts the bundle."""
    onnx.save(_end(_uint8(model), "Softmax"), str(tmp_path / "theirs.onnx"))
    settings = ("import", "theirs.onnx", "--name", "theirs", "--input", "1x32x32", "--images", "digits")
    refused = edgekit(*settings, "--mean", "0.3", "--std", "0.3", code=1)
    assert "fix: leave out --mean and --std" in refused.stderr
    done = edgekit(*settings)
    assert "theirs.onnx: it ends in Softmax, which was removed" in done.stderr
    assert "0" in edgekit("predict", done.stdout.strip(), "digits").stdout
    facts = json.loads(edgekit("inspect", done.stdout.strip(), "--json").stdout)
    assert facts["preprocess"]["dtype"] == "uint8"
    assert facts["details"]["changes"]


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_one_line(model: onnx.ModelProto, fp32: Bundle, tmp_path: Path, seed: int) -> None:
    """Bytes are changed at random at both ends, which contain the graph rather than the weights."""
    generator = random.Random(seed)
    content = _end(_uint8(model, last=True), "Softmax", axis=-1).SerializeToString()
    graph = [at for at in range(len(content)) if at < 2500 or at > len(content) - 2500]
    path = tmp_path / "damaged.onnx"
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.choice(graph)] = generator.randrange(256)
        path.write_bytes(damaged)
        assert input_dtype(str(path)) in ("float32", "uint8")
        try:
            copy_onnx(path, tmp_path / "written.onnx", fp32.manifest.input)
        except EdgeKitError as error:
            assert "\n" not in f"{error}{error.fix}"


@pytest.mark.parametrize(
    "change",
    [lambda m: m.graph.node[0].ClearField("input"), lambda m: m.graph.node[-1].ClearField("input"),
     lambda m: m.graph.node[3].ClearField("output"), lambda m: m.graph.ClearField("output"),
     lambda m: m.opset_import.pop(), lambda m: m.graph.initializer[0].ClearField("data_type")],
    ids=["no input", "no last input", "no output", "no outputs", "no opset", "no type"],
)  # fmt: skip
def test_an_incomplete_graph_is_one_line(
    model: onnx.ModelProto, bring: Callable[..., Bundle], change: Callable[[onnx.ModelProto], object]
) -> None:
    """Each once caused a traceback in onnx's shape inference or an IndexError."""
    ended = _end(model, "Softmax", axis=-1)
    change(ended)
    with pytest.raises(BundleError, match="not valid ONNX|0 outputs"):
        bring(ended)
