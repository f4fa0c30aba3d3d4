"""Quantized graphs fit their target, really are int8, and meet the contract."""

import dataclasses
import json
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, DataError, EdgeKitError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.session import load
from edgekit.toolkit.analysis.contract import Judgement
from edgekit.toolkit.datasets import load_dataset, part_of
from edgekit.toolkit.quantize import compare, gate
from edgekit.toolkit.quantize.observe import observe
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.targets import TARGETS
from edgekit.toolkit.quantize.verify import verify_int8
from onnx import TensorProto, numpy_helper

# Target.activations -> the types of the zero points
_ZERO_POINTS = {"uint8": ["uint8"], "int8": ["int8"], "symmetric": ["int8"], "by sign": ["uint8", "int8"]}


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


ONNX_TARGETS = sorted(name for name, target in TARGETS.items() if target.format == "onnx")


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_graph_fits_its_target(fp32: Bundle, tmp_path: Path, target: str) -> None:
    """Activation type and zero points, weights per channel, biases int32 or float; but for the float start."""
    made = quantize(fp32, QuantizeOptions(target=target), out=tmp_path / "made").bundle
    model, float_layers = onnx.load(str(made.model_path)), 0
    spec, constants = TARGETS[target], _constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    activations = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert activations
    for node in activations:
        zero = constants[node.input[2]]
        assert zero.dtype in _ZERO_POINTS[spec.activations]
        if zero.dtype == np.int8 and spec.activations != "int8":
            assert (zero == 0).all()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        if node.input[1] in constants:
            float_layers += 1
            continue
        dequantize = makers[node.input[1]]
        weight, scale = constants[dequantize.input[0]], constants[dequantize.input[1]]
        assert weight.dtype == np.int8
        assert scale.size == weight.shape[0], "one scale per channel"
        largest = 64 if node.name in made.manifest.details["seven_bits"] else 127
        assert abs(weight.astype(int)).max() <= largest
        if spec.quantize_bias:
            assert constants[makers[node.input[2]].input[0]].dtype == np.int32
        else:
            assert constants[node.input[2]].dtype == np.float32
    assert float_layers == made.manifest.details["float_convolutions"]


def test_openvino_gets_unsigned_values_after_relu(fp32: Bundle, tmp_path: Path) -> None:
    """With zero point 0; tensors with negative values are symmetric. OpenVINO judges the result."""
    result = quantize(fp32, QuantizeOptions(target="openvino"), out=tmp_path / "made")
    model = onnx.load(str(result.bundle.model_path))
    constants = _constants(model)
    zeros = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype.name for zero in zeros} == {"uint8", "int8"}
    assert all((zero == 0).all() for zero in zeros)
    assert not any("judged on ONNX Runtime" in remark for remark in result.remarks)
    assert result.bundle.manifest.details["fused"] in (True, False)
    assert result.judgement.outcome != "fail"


def test_without_openvino_its_target_is_judged_on_onnx_runtime(
    fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And this is reported, with the command that installs OpenVINO."""
    monkeypatch.setattr(
        "edgekit.deploy.runtimes.runtime.Runtime.installed", property(lambda runtime: runtime.name != "openvino")
    )
    result = quantize(fp32, QuantizeOptions(target="openvino"), out=tmp_path / "made")
    assert any("judged on ONNX Runtime" in remark and "[openvino]" in remark for remark in result.remarks)


@pytest.mark.parametrize("kind", [*ONNX_TARGETS, "fp16", "int8-weights", "fp32"])
def test_written_files_can_be_read_by_others(fp32: Bundle, tmp_path: Path, kind: str) -> None:
    """ONNX's full check passes, and OpenVINO gives nearly the same logits as ONNX Runtime."""
    import openvino

    if kind == "fp32":
        made = fp32
    elif kind in ("fp16", "int8-weights"):
        made = quantize(fp32, QuantizeOptions(precision=kind), out=tmp_path / "made").bundle
    else:
        made = quantize(fp32, QuantizeOptions(target=kind), out=tmp_path / "made").bundle
    onnx.checker.check_model(str(made.model_path), full_check=True)
    tensors = made.golden().tensors[:1]
    expected = load(made.path).run(tensors)
    reader = openvino.Core()
    compiled = reader.compile_model(reader.read_model(made.model_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(tensors)[0] - expected).max() <= 0.05 * np.abs(expected).max()


def test_default_target_is_this_machine(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target depends on the machine, and on x86 also on VNNI."""
    from edgekit.toolkit.quantize import targets

    for machine, vnni, expected in (("aarch64", False, "arm"), ("x86_64", True, "x86"), ("x86_64", False, "x86-avx2")):
        monkeypatch.setattr(targets.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr("edgekit.deploy.environment.has_vnni", lambda isa, vnni=vnni: vnni)
        assert targets.this_machine() == expected


def test_ranges_are_those_of_all_images_at_once(fp32: Bundle) -> None:
    """The running minimum and maximum over batches equal numpy's over all images."""
    train = part_of(fp32, "train")
    assert train is not None
    images = train.take(range(37))
    model = prepare(onnx.load(str(fp32.model_path)))
    ranges = observe(model, fp32.manifest, images, lambda stage, share: None)
    tensors = fp32.manifest.preprocess.batch([sample.image for sample in images])
    assert ranges["image"] == (float(tensors.min()), float(tensors.max()))
    logits = load(fp32.path).run(tensors)
    assert ranges["logits"] == pytest.approx((float(logits.min()), float(logits.max())), rel=1e-5)


def test_memory_does_not_grow_with_the_images(fp32: Bundle) -> None:
    """500 calibration images take no more memory than 50."""
    train = part_of(fp32, "train")
    assert train is not None
    model = prepare(onnx.load(str(fp32.model_path)))

    def peak(images: ImageSet) -> int:
        tracemalloc.start()
        observe(model, fp32.manifest, images, lambda stage, share: None)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(train.take(range(5)))
    assert peak(train.take(range(500))) < peak(train.take(range(50))) + 500_000


def test_calibration_comes_from_the_training_part(fp32: Bundle, tmp_path: Path) -> None:
    """Drawn by class; ids and hash are in the manifest; no validation or test images are among them."""
    made = quantize(fp32, QuantizeOptions(calibration_images=100), out=tmp_path / "made").bundle
    ids = made.manifest.details["calibration"]["ids"]
    train = part_of(fp32, "train")
    assert train is not None
    assert made.manifest.details["calibration"]["sha256"] == train.select(ids).sha256()
    assert train.select(ids[::-1]).sha256() != train.select(ids).sha256()
    parts = fp32.splits()
    assert len(set(ids)) == 100
    assert set(ids) <= set(parts["train"])
    assert made.splits() == parts


def test_the_result_is_int8(fp32: Bundle, tmp_path: Path) -> None:
    """All weights are int8; the optimised graph has no float layer and one QuantizeLinear, at its input."""
    made = quantize(fp32, QuantizeOptions(target="x86-avx2"), out=tmp_path / "made").bundle
    verified = made.manifest.details["verified"]
    assert verified["int8_share"] == 1.0
    assert verified["float_left"] == 0
    assert verified["qdq_left"] == 1
    assert made.size_bytes < 0.4 * fp32.size_bytes


def test_a_graph_that_stayed_float_is_refused(fp32: Bundle) -> None:
    """A quantizer that quantizes nothing has failed."""
    with pytest.raises(EdgeKitError, match="only 0% of the weights became int8"):
        verify_int8(onnx.load(str(fp32.model_path)))


def test_fp16(fp32: Bundle, tmp_path: Path) -> None:
    """About half the size, float32 input, at most two changed answers."""
    result = quantize(fp32, QuantizeOptions(precision="fp16"), out=tmp_path / "made")
    model = onnx.load(str(result.bundle.model_path))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert result.bundle.manifest.details["verified"]["fp16_share"] == 1.0
    assert result.bundle.size_bytes < 0.55 * fp32.size_bytes
    assert result.drop is not None
    assert result.drop.flips <= 2


def test_int8_weights(fp32: Bundle, tmp_path: Path) -> None:
    """About a quarter of the size, and the answers of float32 arithmetic on the rounded weights.

    EdgeKit's session converts the weights once, so the operators that run are those of the float32 file.
    """
    result = quantize(fp32, QuantizeOptions(precision="int8-weights"), out=tmp_path / "made")
    model, before = onnx.load(str(result.bundle.model_path)), onnx.load(str(fp32.model_path))
    assert result.bundle.manifest.details["verified"]["int8_share"] == 1.0
    assert result.bundle.model_path.stat().st_size < 0.3 * fp32.model_path.stat().st_size
    rounded, exact = _constants(model), _constants(before)
    readers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    layers = [node for node in before.graph.node if node.op_type in ("Conv", "Gemm")]
    for node, old in zip(readers, layers, strict=True):
        stored, scale, axis = rounded[node.input[0]], rounded[node.input[1]], node.attribute[0].i
        shape = [1] * stored.ndim
        shape[axis] = -1
        error = np.abs(stored * scale.reshape(shape) - exact[old.input[1]])
        assert (error <= 0.5001 * scale.reshape(shape)).all()
    assert result.changed is not None
    assert result.changed.images <= 2
    tensors = fp32.golden().tensors
    expected = gate.run_float(model, tensors)
    np.testing.assert_allclose(load(result.bundle.path).run(tensors), expected, atol=1e-4)


def test_a_clear_miss_is_kept_only_as_rejected(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model broken by quantization does not get the requested name."""
    real = compare.compare_accuracy

    def broken(targets: np.ndarray, baseline: np.ndarray, candidate: np.ndarray):
        return real(targets, baseline, (candidate + (np.arange(len(candidate)) % 5 == 0)) % 10)

    monkeypatch.setattr(compare, "compare_accuracy", broken)
    result = quantize(fp32, out=tmp_path / "made")
    assert result.judgement.outcome == "fail"
    assert result.judgement.exit_code == 3
    assert result.bundle.path.name == "made.rejected"
    assert not (tmp_path / "made").exists()


def test_without_labels_nothing_is_proved(fp32: Bundle, tmp_path: Path) -> None:
    """With --max-drop, the exit code is then 4."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for index, sample in enumerate(load_dataset("digits").train.take(range(24))):
        sample.image.save(folder / f"{index}.png")
    for max_drop, code in ((None, 0), (1.0, 4)):
        result = quantize(fp32, images=str(folder), max_drop=max_drop, out=tmp_path / f"made{code}")
        assert result.drop is None
        assert (result.judgement.outcome, result.judgement.exit_code) == ("inconclusive", code)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"target": "x68"}, EdgeKitError, "did you mean x86"), ({"precision": "int4"}, EdgeKitError, "int4"),
     ({"precision": "fp16", "target": "arm"}, EdgeKitError, "the same for every target"),
     ({"precision": "int8-weights", "target": "arm"}, EdgeKitError, "the same for every target"),
     ({"calibration_images": 0}, DataError, "not enough"), ({"images": "nowhere"}, DataError, "nowhere")],
)  # fmt: skip
def test_wrong_requests_are_refused(
    fp32: Bundle, tmp_path: Path, changes: dict, error: type[Exception], message: str
) -> None:
    """The error suggests the nearest name if there is one; no files remain."""
    with pytest.raises(error, match=message):
        options = QuantizeOptions(**{name: value for name, value in changes.items() if name != "images"})
        quantize(fp32, options, images=changes.get("images"), out=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_only_fp32_onnx_is_quantized(int8: Bundle, trained: Bundle, fp32: Bundle) -> None:
    """A quantized model is refused, whatever its manifest says, and so is a torch bundle."""
    for bundle in (int8, trained):
        with pytest.raises(BundleError, match="quantize takes fp32 ONNX"):
            quantize(bundle)
    with pytest.raises(BundleError, match=r"for litert, quantize takes fp32 LiteRT\n?"):
        quantize(fp32, QuantizeOptions(target="litert"))
    with pytest.raises(BundleError, match="already quantized"):
        quantize(dataclasses.replace(int8, manifest=dataclasses.replace(int8.manifest, precision="fp32")))


def test_an_activation_that_is_not_finite_is_refused(fp32: Bundle) -> None:
    """Infinite weights make the first activations infinite."""
    train = part_of(fp32, "train")
    assert train is not None
    model = prepare(onnx.load(str(fp32.model_path)))
    for entry in model.graph.initializer:
        if len(entry.dims) == 4:
            entry.CopyFrom(numpy_helper.from_array(np.full(entry.dims, np.inf, np.float32), entry.name))
    with pytest.raises(EdgeKitError, match="not a finite number"):
        observe(model, fp32.manifest, train.take(range(3)), lambda stage, share: None)


def test_judgement_is_in_the_manifest(int8: Bundle) -> None:
    """The receiver of a bundle can see how it was judged."""
    recorded = json.loads((int8.path / "manifest.json").read_text())["details"]["judgement"]
    assert Judgement(**recorded).sentence.startswith("top-1 drop")


def test_several_targets_give_a_bundle_each(
    edgekit: Callable[..., subprocess.CompletedProcess[str]], fp32: Bundle
) -> None:
    """In the order given; an unknown one is refused before any is made, and --out names only one."""
    options = ("quantize", fp32.path, "--calibration-images", 100, "--target", "arm", "--target")
    made = edgekit(*options, "any")
    targets = [Bundle.open(Path(line)).manifest.details["target"] for line in made.stdout.split()]
    assert targets == ["arm", "any"]
    assert "unknown target 'arm64'" in edgekit(*options, "arm64", code=1).stderr
    assert "--out" in edgekit(*options, "any", "--out", "made", code=1).stderr
