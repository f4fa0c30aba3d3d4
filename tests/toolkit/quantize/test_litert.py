"""int8 for LiteRT: what is rounded, what stays float, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.manifest import TensorSpec
from edgekit.deploy.session import open_session
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.quantize.observe import Batch
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize

from tests.needs import need_converter

pytest.importorskip("ai_edge_litert")

from edgekit.deploy.runtimes.litert import Interpreter
from edgekit.toolkit.quantize import litert

from tests.tflite import IMAGE, linear

DRAWN = np.random.default_rng(0).normal(size=(6, *IMAGE)).astype(np.float32)


@pytest.fixture
def bundle(fp32: Bundle, tmp_path: Path) -> Bundle:
    """A float32 LiteRT model without its converter: RESHAPE and FULLY_CONNECTED."""
    (tmp_path / "source").mkdir()
    content, _ = linear()
    (tmp_path / "source/model.tflite").write_bytes(content)
    manifest = dataclasses.replace(
        fp32.manifest, format="litert", model="model.tflite", input=TensorSpec(*IMAGE, batch=1)
    )
    return Bundle(tmp_path / "source", manifest, "x")


def _batches() -> list[Batch]:
    return [Batch(image[None].copy(), [f"image {index}"]) for index, image in enumerate(DRAWN)]


def test_ranges_and_histograms_are_those_of_all_values(bundle: Bundle) -> None:
    """Of each activation, over all images; the weights are none."""
    model = litert._LiteRtFloat(bundle)
    seen: list[np.ndarray] = []
    ranges = model.ranges_of(_batches(), lambda batch, values: seen.append(values))
    logits = open_session(bundle).run(DRAWN)
    found = sorted(ranges.values())
    image = (float(DRAWN.min()), float(DRAWN.max()))
    expected = sorted([image, image, (float(logits.min()), float(logits.max()))])  # before and after RESHAPE
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(np.min(seen, axis=0)[:, 0], [low for low, _ in ranges.values()])
    histograms = model.histograms(ranges, _batches())
    assert sorted(int(each.counts.sum()) for each in histograms.values()) == sorted([DRAWN.size] * 2 + [logits.size])


def test_an_activation_that_is_not_finite_is_named(bundle: Bundle) -> None:
    """With the image."""
    batches = _batches()
    batches[3].tensor[:] = np.inf
    with pytest.raises(EdgeKitError, match="not a finite number on one of the images image 3"):
        litert._LiteRtFloat(bundle).ranges_of(batches)


def test_two_tensors_of_one_name_are_refused(bundle: Bundle) -> None:
    """Ranges are given by name; the names of a file are another's."""
    content = bundle.model_path.read_bytes()
    assert content.count(b"t2\0") == 1
    bundle.model_path.write_bytes(content.replace(b"t2\0", b"t0\0"))
    with pytest.raises(EdgeKitError, match="two tensors with the name 't0'"):
        litert._LiteRtFloat(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target": "arm"}, "for arm, quantize takes fp32 ONNX"),
     ({"precision": "fp16"}, "--precision fp16 is for ONNX bundles"),
     ({"precision": "int8-weights"}, "--precision int8-weights is for ONNX bundles"),
     ({"sensitivity": True}, "int8 layers of ONNX"), ({"budget_s": 5.0}, "int8 layers of ONNX")],
)  # fmt: skip
def test_what_is_for_onnx_is_refused(bundle: Bundle, tmp_path: Path, options: dict, message: str) -> None:
    """Before any work; no files remain."""
    with pytest.raises((BundleError, EdgeKitError), match=message):
        quantize(bundle, QuantizeOptions(**options), out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [("raise ValueError('no such operator')", "ValueError: no such operator"), ("sys.exit(9)", "it ended with 9")],
)
def test_a_quantizer_that_fails_gives_its_reason(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    """In one line, with what to do instead."""
    package = tmp_path / "packages/ai_edge_quantizer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"import sys\n{program}\n")
    monkeypatch.setattr(litert, "converter_packages", lambda: tmp_path / "packages")
    with pytest.raises(EdgeKitError, match=f"cannot quantize this network: {reason}") as caught:
        litert._Writer(bundle).write({}, [])
    assert "edgekit export --format onnx" in str(caught.value.fix)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory, trained: Bundle) -> Bundle:
    """The digits network as a LiteRT bundle."""
    need_converter("litert")
    return export_bundle(trained, "litert", tmp_path_factory.mktemp("litert") / "fp32")


@pytest.mark.slow
def test_int8_for_litert(lenet: Bundle, tmp_path: Path) -> None:
    """Weights and activations are int8, the logits are not rounded, and the answers stay."""
    result = quantize(lenet, QuantizeOptions(calibration_images=64), out=tmp_path / "made")
    manifest = result.bundle.manifest
    assert (manifest.format, manifest.precision, manifest.details["target"]) == ("litert", "int8", "litert")
    assert manifest.details["verified"]["int8_share"] == 1.0
    assert manifest.details["verified"]["placement"].keys() == {"XNNPACK"}
    assert manifest.details["calibration"]["method"] in manifest.details["calibration"]["expected_changes"]
    assert result.bundle.model_path.stat().st_size < 0.4 * lenet.model_path.stat().st_size
    interpreter = Interpreter(result.bundle)
    last = next(operator for operator in interpreter.operators if interpreter.output in operator["outputs"])
    assert last["op_name"] == "FULLY_CONNECTED"  # not DEQUANTIZE
    assert result.changed is not None
    assert result.changed.images <= 0.05 * result.changed.count
    assert result.judgement.outcome != "fail"
    again = quantize(lenet, QuantizeOptions(calibration_images=64), out=tmp_path / "again")
    assert again.bundle.model_path.read_bytes() == result.bundle.model_path.read_bytes()


@pytest.mark.slow
def test_operators_without_int8_kernels_stay_float(bundle: Bundle) -> None:
    """XNNPACK runs HARD_SWISH in float, but not in int8; then it runs everything."""
    need_converter("litert")
    from edgekit.export.export_bundle import Options
    from edgekit.export.litert import export
    from torch import nn

    channels, height, width = IMAGE
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * height * width, 10),
    ).eval()  # fmt: skip
    export(network, DRAWN, bundle.model_path, Options(), bundle.manifest)
    writer, ranges = litert._Writer(bundle), litert._LiteRtFloat(bundle).ranges_of(_batches())
    assert litert._float_operators(writer, ranges, bundle) == ["HARD_SWISH"]
    rounded, mixed = (writer.open(writer.write(ranges, left)) for left in ([], ["HARD_SWISH"]))
    assert set(litert.verify(rounded)["placement"]) == {"XNNPACK", "built-in kernels"}
    assert set(litert.verify(mixed)["placement"]) == {"XNNPACK"}
    expected = open_session(bundle).run(DRAWN)
    assert np.abs(mixed.run(DRAWN) - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(
        mixed.run(DRAWN), writer.open(writer.write(ranges, ["HARD_SWISH"]), xnnpack=False).run(DRAWN),
        atol=0.02 * float(np.abs(expected).max()),
    )  # fmt: skip
