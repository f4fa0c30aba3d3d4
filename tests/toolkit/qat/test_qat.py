"""Quantization-aware training from a bundle to a judged int8 bundle."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle, create
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.session import open_session
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.toolkit.datasets import BundleImages, part_of
from edgekit.toolkit.qat.qat import train_quantized
from edgekit.toolkit.quantize import calibrate, emit
from edgekit.toolkit.quantize.grid import Grid, activation_grid
from edgekit.toolkit.quantize.int8 import Int8
from edgekit.toolkit.quantize.lowered import Request
from edgekit.toolkit.quantize.methods import METHODS
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.rewrites.graph import arrays
from edgekit.toolkit.quantize.targets import ActivationType
from onnx import numpy_helper


def _logits(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """The logits, float32 [n, k], and the classes of the validation images."""
    images, session = part_of(bundle, "validation"), open_session(bundle)
    assert images is not None
    found = [session.run(bundle.manifest.preprocess(sample.image)[None]) for sample in images]
    return np.concatenate(found), images.targets


def _coarse_grid(low: float, high: float, kind: ActivationType) -> Grid:
    """A grid with about four steps."""
    fine = activation_grid(low, high, kind)
    zero_point = np.round(fine.zero_point / 64).astype(fine.zero_point.dtype)
    return Grid(np.float32(64) * fine.scale, zero_point)


@pytest.fixture
def exported(trained: Bundle) -> Bundle:
    """The network in ONNX."""
    return export_bundle(trained, "onnx", Path("runs/002-exported"))


def test_training_undoes_what_rounding_does(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With coarse activations and the float network as the only teacher, the int8 logits come closer to the float ones.

    Without fake quantization there would be nothing to learn.
    """
    monkeypatch.setattr(emit, "activation_grid", _coarse_grid)
    # the ranges of all values, since auto would choose others for each grid
    monkeypatch.setattr(calibrate, "METHODS", {"minmax": METHODS["minmax"]})
    rounded = quantize(exported, QuantizeOptions(target="arm", float_layers=False), out=Path("rounded")).bundle
    settings = ["train.epochs=3", "train.lr=0.001", "train.teacher_weight=1.0"]
    tuned = train_quantized(exported, settings, target="arm", out=Path("tuned")).bundle
    before, after = (bundle.manifest.details["signal_to_noise_db"]["selection"] for bundle in (rounded, tuned))
    assert after > before + 2


def test_the_bundle_is_like_that_of_quantize(exported: Bundle, edgekit: Callable[..., object]) -> None:
    """The same lineage, types and records; its accuracy is what training measured; its images are known."""
    made = train_quantized(exported, ["train.epochs=1"], target="arm", out=Path("runs/004-made")).bundle
    plain = quantize(exported, QuantizeOptions(target="arm"), out=Path("runs/005-plain")).bundle
    assert (made.manifest.lineage, made.manifest.precision) == (plain.manifest.lineage, "int8")
    assert made.manifest.details.keys() - plain.manifest.details.keys() == {"training"}
    for key in ("train", "validation"):
        np.testing.assert_array_equal(made.fingerprints()[key], plain.fingerprints()[key])
    new, old = (
        {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(str(bundle.model_path)).graph.initializer}
        for bundle in (made, plain)
    )
    assert {name: value.dtype for name, value in new.items()} == {name: value.dtype for name, value in old.items()}
    weights = [name for name in new if new[name].dtype == np.int8 and new[name].ndim > 1]
    assert all((new[name] != old[name]).any() for name in weights)
    logits, targets = _logits(made)
    training, accuracy = made.manifest.details["training"], float((logits.argmax(axis=1) == targets).mean())
    best = max(training["before"]["accuracy"], training["history"][0]["validation_accuracy"])
    assert abs(accuracy - best) <= 2 / len(targets)
    assert "trained for 1 epoch" in "\n".join(made.manifest.details["remarks"])
    edgekit("inspect", made.path)


def test_a_trained_bundle_is_exported_once(
    trained: Bundle, edgekit: Callable[..., subprocess.CompletedProcess]
) -> None:
    """The command line takes what edgekit train wrote, or the int8 bundle, whose target it keeps."""
    first = edgekit("train", "--qat", trained.path, "--epochs", 1, "--target", "arm")
    made = Bundle.open(first.stdout.strip())
    assert "answers changed" in first.stderr
    assert [entry["format"] for entry in made.manifest.lineage] == ["torch", "onnx"]
    again = edgekit("train", "--qat", made.path, "--epochs", 1, "--set", "train.lr=1e-5")
    second = Bundle.open(again.stdout.strip())
    assert second.manifest.lineage == made.manifest.lineage
    assert second.manifest.details["target"] == "arm"
    recipe = second.manifest.details["training"]["recipe"]["train"]
    assert (recipe["epochs"], recipe["lr"]) == (1, 1e-5)
    assert sorted(path.name[:3] for path in Path("runs").iterdir() if path.is_dir()) == ["001", "002", "003"]


def test_training_that_does_harm_is_not_kept(exported: Bundle) -> None:
    """The weights of the beginning are kept if no epoch has a better validation accuracy."""
    made = train_quantized(exported, ["train.epochs=1", "train.lr=10", "train.clip=0"], target="arm", out=Path("made"))
    plain = quantize(exported, QuantizeOptions(target="arm"), out=Path("plain"))
    assert made.drop == plain.drop
    np.testing.assert_array_equal(_logits(made.bundle)[0], _logits(plain.bundle)[0])


def test_layers_that_overflow_only_after_training_get_seven_bits(fp32: Bundle) -> None:
    """For CPUs without VNNI; those that had 7 bits keep them."""
    request = Request(fp32, QuantizeOptions(target="x86-avx2"), None, BundleImages(fp32), lambda *_: None)
    int8 = Int8(prepare(onnx.load(str(fp32.model_path))), request)
    layers = {node.name: node for node in int8.source.graph.node if node.op_type in ("Conv", "Gemm")}
    rest = [node for name, node in layers.items() if name not in int8.form.seven_bits]
    values = arrays(int8.source.graph)
    # equal weights of one sign: every sum of two products is as large as possible
    changed = {node.input[1]: np.full_like(values[node.input[1]], 0.1) for node in rest}
    changed |= {node.input[2]: np.full_like(values[node.input[2]], 1.0) for node in layers.values()}
    assert rest
    retrained = int8.retrained(changed, request, {}, "trained")
    assert retrained.form.seven_bits > int8.form.seven_bits
    lowered = retrained.lowered()
    assert lowered.details["seven_bits"].keys() == retrained.form.seven_bits
    assert "trained" in lowered.remarks


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "digits"], "takes its network"),
    (["--resume"], "takes its network"),
    (["--set", "data.data=digits"], "not from --set data.data"),
    (["--set", "train.teacher=runs/001"], "not from --set train.teacher"),
    (["--target", "z80"], "unknown target"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(
    exported: Bundle, edgekit: Callable[..., subprocess.CompletedProcess], arguments: list[str], message: str
) -> None:
    """A request is fulfilled or refused."""
    assert message in edgekit("train", "--qat", exported.path, *arguments, code=1).stderr


def test_other_bundles_are_refused(
    trained: Bundle, int8: Bundle, monkeypatch: pytest.MonkeyPatch, edgekit: Callable[..., subprocess.CompletedProcess]
) -> None:
    """An int8 bundle without its source, other formats, pixels as input, several processes, and options alone."""
    pixels = export_bundle(trained, "onnx", Path("pixels"), Options(uint8_input=True))
    with pytest.raises(EdgeKitError, match="takes pixels"):
        train_quantized(pixels)
    with create(Path("other")) as draft:
        (draft.folder / int8.manifest.model).write_bytes(int8.model_path.read_bytes())
        draft.add_golden(int8.golden())
        draft.finish(replace(int8.manifest, precision="fp16"))
    with pytest.raises(EdgeKitError, match="onnx fp16, which cannot be trained"):
        train_quantized(Bundle.open("other"))
    with create(Path("alone/int8")) as draft:
        (draft.folder / int8.manifest.model).write_bytes(int8.model_path.read_bytes())
        draft.add_golden(int8.golden())
        draft.finish(int8.manifest)
    with pytest.raises(EdgeKitError, match="is not in alone"):
        train_quantized(Bundle.open("alone/int8"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EdgeKitError, match="one process"):
        train_quantized(trained)
    monkeypatch.delenv("WORLD_SIZE")
    assert "pass them with --qat" in edgekit("train", "--max-drop", 0.5, code=1).stderr


def test_quantize_names_it_where_the_contract_is_not_fulfilled(
    exported: Bundle, edgekit: Callable[..., subprocess.CompletedProcess]
) -> None:
    """With the bundle to pass, also a rejected one."""
    done = edgekit("quantize", exported.path, "--target", "arm", "--max-drop", 0, code=4)
    assert f"edgekit train --qat {done.stdout.strip()}" in done.stderr
