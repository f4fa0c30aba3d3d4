"""Quantization-aware training from a bundle to a judged int8 bundle."""

import itertools
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
from edgekit.toolkit.quantize.int8 import Int8
from edgekit.toolkit.quantize.lowered import Request
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.rewrites.graph import add_constant, arrays
from onnx import numpy_helper


def _answers(bundle: Bundle) -> np.ndarray:
    """The classes of the validation images."""
    images, session = part_of(bundle, "validation"), open_session(bundle)
    assert images is not None
    found = [session.run(bundle.manifest.preprocess(sample.image)[None])[0].argmax() for sample in images]
    return np.asarray(found)


def _hard(source: Bundle, path: Path) -> Bundle:
    """The same function in a form that is hard to quantize: one channel's values are 400 times as large.

    ReLU passes a positive factor, so the next convolution divides by it. But all channels of an activation share one
    scale, so the other channels are rounded to few numbers.
    """
    model = onnx.load(str(source.model_path))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for first, second in itertools.pairwise(convolutions):
        values, names = arrays(model.graph), (*first.input[1:3], second.input[1])
        weight, bias, following = (np.array(values[name]) for name in names)
        weight[0], bias[0], following[:, 0] = weight[0] * 400, bias[0] * 400, following[:, 0] / 400
        for name, value in zip(names, (weight, bias, following), strict=True):
            add_constant(model.graph, name, value)
    with create(path) as draft:
        onnx.save(model, str(draft.folder / source.manifest.model))
        draft.add_golden(source.golden())
        draft.add_splits(source.splits())
        draft.add_fingerprints(source.fingerprints())
        draft.finish(source.manifest)
    return Bundle.open(path)


@pytest.fixture
def exported(trained: Bundle) -> Bundle:
    """The network in ONNX."""
    return export_bundle(trained, "onnx", Path("runs/002-exported"))


def test_training_recovers_what_rounding_lost(exported: Bundle) -> None:
    """Where quantization after training loses many answers, the trained int8 network has them again."""
    hard = _hard(exported, Path("runs/003-hard"))
    options = QuantizeOptions(target="arm", calibration="minmax", float_layers=False)
    rounded = quantize(hard, options, out=Path("rounded"))
    assert rounded.judgement.outcome == "fail"
    tuned = train_quantized(rounded.bundle, ["train.epochs=3", "train.lr=0.001"], out=Path("tuned"))
    assert rounded.drop is not None
    assert tuned.drop is not None
    print("DROPS", rounded.drop, tuned.drop)
    assert tuned.drop.points.value < rounded.drop.points.value - 5


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
    validation, training = part_of(made, "validation"), made.manifest.details["training"]
    assert validation is not None
    accuracy = float((_answers(made) == validation.targets).mean())
    best = max(training["before"]["accuracy"], training["history"][0]["validation_accuracy"])
    assert abs(accuracy - best) <= 2 / len(validation)
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
    np.testing.assert_array_equal(_answers(made.bundle), _answers(plain.bundle))


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
