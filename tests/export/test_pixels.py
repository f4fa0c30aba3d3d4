"""A model that takes pixels and normalizes them itself answers as the network did, or there is none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, ParityError
from edgekit.deploy.parity import compare, replay
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.session import load, open_session
from edgekit.export import pixels
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.export.pixels import pixels_of, take_pixels
from edgekit.toolkit.building.build import build
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

PIXELS = Options(uint8_input=True)

_values = st.tuples(*[st.floats(0, 1, width=32)] * 3)
_scales = st.tuples(*[st.floats(2**-7, 2, width=32)] * 3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_session_contract_holds_for_pixels(trained: Bundle, tmp_path: Path, runtime: str, dynamic: bool) -> None:
    """The golden tensors are the pixels; any number of images, on both runtimes of ONNX files."""
    pytest.importorskip(runtime)
    made = export_bundle(trained, "onnx", tmp_path / "made", Options(uint8_input=True, dynamic_batch=dynamic))
    own, golden = made.manifest.preprocess, made.golden()
    assert (own.dtype, set(own.mean), set(own.std)) == ("uint8", {0.0}, {1.0})
    assert golden.tensors.dtype == np.uint8
    assert (golden.logits == trained.golden().logits).all()
    session = load(made.path, runtime, threads=1)
    one, five = session.run(golden.tensors[:1]), session.run(golden.tensors[:5])
    np.testing.assert_allclose(one, five[:1], atol=1e-4)
    parity = replay(made, session.run)
    assert parity.exact
    assert parity.tensor_max_abs == 0
    session.close()


def test_pixels_are_normalized_bit_for_bit(trained: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's logits are those of the same export with a float input, which Preprocess normalizes for."""
    made = [
        export_bundle(trained, "onnx", tmp_path / str(options.uint8_input), options) for options in (PIXELS, Options())
    ]
    answers = [load(bundle.path, threads=1).run(bundle.golden().tensors) for bundle in made]
    np.testing.assert_array_equal(*answers)


def test_the_file_and_its_manifest_record_the_normalization(trained: Bundle, tmp_path: Path) -> None:
    """The file's metadata has the preprocessing that is left; the manifest has the mean and std that are inside."""
    made = export_bundle(trained, "onnx", tmp_path / "made", PIXELS)
    model = onnx.load(str(made.model_path))
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["edgekit.preprocess"]["dtype"] == "uint8"
    assert [node.op_type for node in model.graph.node][:4] == ["Cast", "Div", "Sub", "Div"]
    inside = made.manifest.details["export"]["normalization"]
    assert tuple(inside["mean"]) == trained.manifest.preprocess.mean
    assert tuple(inside["std"]) == trained.manifest.preprocess.std


@settings(max_examples=25, deadline=None)
@given(_values, _scales, st.booleans())
def test_every_value_of_a_pixel_is_normalized_as_preprocess_does(
    mean: tuple[float, ...], std: tuple[float, ...], grey: bool
) -> None:
    """Whatever mean and std: take_pixels itself compares all 256 values of each channel, and so does this test."""
    channels = 1 if grey else 3
    preprocess = Preprocess("L" if grey else "RGB", None, None, "bilinear", mean[:channels], std[:channels])
    shape = [1, channels, 16, 16]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    take_pixels(model, preprocess)
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(channels, axis=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scaled = (values.astype(np.float32) / np.float32(255) - _column(mean[:channels])) / _column(std[:channels])
    np.testing.assert_array_equal(session.run(None, {"image": values})[0], scaled)


def _column(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, None]


def _changed(step: str, factor: float) -> Callable:
    """The steps of the normalization, with one constant changed."""
    real = pixels._steps

    def steps(preprocess: Preprocess, name: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        nodes, constants = real(preprocess, name)
        for constant in [entry for entry in constants if f"/{step}/" in entry.name]:
            values = onnx.numpy_helper.to_array(constant) * np.float32(factor)
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
        return nodes, constants

    return steps


@pytest.mark.parametrize("step", ["scale", "mean", "std"])
def test_a_normalization_with_other_bits_is_refused(
    monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path, step: str
) -> None:
    """Before it is in any file; a change by one part in a million is enough."""
    monkeypatch.setattr(pixels, "_steps", _changed(step, 1 + 1e-6))
    with pytest.raises(ParityError, match="normalizes pixels otherwise") as caught:
        export_bundle(trained, "onnx", tmp_path / "made", PIXELS)
    assert caught.value.fix == "export without --uint8-input"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_normalization_does_not_pass_the_gate(
    monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path
) -> None:
    """The gate runs the file on the pixels of the golden images, and compares with the network's own logits."""
    monkeypatch.setattr(pixels, "_steps", _changed("mean", 1.1))
    monkeypatch.setattr(pixels, "_check_every_value", lambda preprocess: None)
    with pytest.raises(ParityError, match="not the same model at batch 1"):
        export_bundle(trained, "onnx", tmp_path / "made", PIXELS)
    assert list(tmp_path.iterdir()) == []


def test_another_decoder_is_refused(monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path) -> None:
    """The recorded logits belong to the pixels of the machine that trained."""
    real = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda source: real(source).point(lambda value: value ^ 1))
    with pytest.raises(ParityError, match="other pixels here"):
        export_bundle(trained, "onnx", tmp_path / "made", PIXELS)


def test_pixels_are_for_onnx(trained: Bundle, tmp_path: Path) -> None:
    """Other formats and engines take float32: they are refused, not changed."""
    with pytest.raises(BundleError, match="--uint8-input does not apply"):
        export_bundle(trained, "torchscript", tmp_path / "made", PIXELS)
    made = export_bundle(trained, "onnx", tmp_path / "made", PIXELS)
    with pytest.raises(BundleError, match="takes uint8 pixels; engines take float32"):
        build(made)
    other = replace(made, manifest=replace(made.manifest, preprocess=trained.manifest.preprocess))
    with pytest.raises(BundleError, match=r"takes tensor\(uint8\), but its manifest says float32"):
        open_session(other)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_quantize_keeps_the_normalization_out_of_eight_bits(trained: Bundle, tmp_path: Path, precision: str) -> None:
    """int8 answers bit for bit as from a float input; fp16 within its rounding."""
    answers = []
    for options in (PIXELS, Options()):
        source = export_bundle(trained, "onnx", tmp_path / str(options.uint8_input), options)
        made = quantize(
            source,
            QuantizeOptions(precision=precision, calibration_images=32),
            out=tmp_path / f"{source.path.name}-low",
        ).bundle
        assert made.manifest.preprocess == source.manifest.preprocess
        golden = made.golden()
        answers.append(open_session(made, threads=1).run(golden.tensors))
        assert compare(golden, answers[-1]).top1_agreement == 1.0
    if precision == "int8":
        np.testing.assert_array_equal(*answers)
    else:
        np.testing.assert_allclose(*answers, atol=0.005 * np.abs(answers[1]).max())


def test_pixels_of_keeps_the_geometry() -> None:
    """Only the values change: resizing and cropping stay before the model."""
    own = Preprocess("RGB", 36, (32, 32), "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pixels_of(own) == replace(own, mean=(0.0,) * 3, std=(1.0,) * 3, dtype="uint8")
