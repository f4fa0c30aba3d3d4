"""Where the noise of an int8 model comes from, and the layers that stay float to fulfil a contract."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle, create
from edgekit.deploy.errors import BundleError, EdgeKitError, RecipeError
from edgekit.deploy.parity import powers
from edgekit.deploy.session import load
from edgekit.toolkit.analysis.statistics import Interval
from edgekit.toolkit.datasets import BundleImages
from edgekit.toolkit.inspect import inspect_bundle
from edgekit.toolkit.quantize import compare, mixed_precision, tune
from edgekit.toolkit.quantize.gate import run_float, run_optimised
from edgekit.toolkit.quantize.int8 import Int8
from edgekit.toolkit.quantize.lowered import Request
from edgekit.toolkit.quantize.mixed_precision import costs, float_order
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.sensitivity import NoiseSource, noise_sources
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper


def _changed(source: Bundle, path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Bundle:
    """The bundle with other constants, and golden logits of its own."""
    model, golden = onnx.load(str(source.model_path)), source.golden()
    values = {entry.name: numpy_helper.to_array(entry).copy() for entry in model.graph.initializer}
    change(values)
    for entry in model.graph.initializer:
        entry.CopyFrom(numpy_helper.from_array(values[entry.name], entry.name))
    with create(path) as draft:
        onnx.save(model, str(draft.folder / source.manifest.model))
        draft.add_golden(golden._replace(logits=run_float(model, golden.tensors)))
        draft.add_splits(source.splits())
        draft.finish(source.manifest)
    return Bundle.open(path)


def _layers(bundle: Bundle) -> list[onnx.NodeProto]:
    graph = prepare(onnx.load(str(bundle.model_path))).graph
    return [node for node in graph.node if node.op_type in ("Conv", "Gemm")]


@pytest.fixture
def fragile(fp32: Bundle, tmp_path: Path) -> tuple[Bundle, str]:
    """A layer whose weights need more than eight bits, and its name.

    Two hidden units that always cancel have weights a thousand times as large as the others of their layer's outputs.
    """
    layer = _layers(fp32)[-1]
    hidden = _layers(fp32)[-2]

    def change(values: dict[str, np.ndarray]) -> None:
        last, before = values[layer.input[1]], values[hidden.input[1]]
        assert last.shape[1] == before.shape[0]
        before[1], values[hidden.input[2]][1] = before[0], values[hidden.input[2]][0]
        large = 1000 * np.abs(last).max()
        last[:, 0] = last[:, 0] + last[:, 1] + large
        last[:, 1] = -large

    return _changed(fp32, tmp_path / "fragile", change), layer.name


def _sources(bundle: Bundle) -> tuple[Int8, list[NoiseSource], np.ndarray]:
    request = Request(bundle, QuantizeOptions(target="x86"), None, BundleImages(bundle), lambda *arguments: None)
    prepared = Int8(prepare(onnx.load(str(bundle.model_path))), request)
    tensors = bundle.golden().tensors[:8]
    found = noise_sources(prepared.source, prepared.graph(), prepared.form, tensors, lambda *arguments: None)
    return prepared, found, tensors


def _noise(prepared: Int8, tensors: np.ndarray, layers: frozenset[str]) -> float:
    signal, noise = powers(run_float(prepared.source, tensors), run_optimised(prepared.graph(layers), tensors))
    return float(noise / signal)


def test_the_sources_add_up_to_the_noise(fp32: Bundle) -> None:
    """Also for what is left when some layers stay float; with all layers float there is none."""
    prepared, sources, tensors = _sources(fp32)
    order = [frozenset[str](), *float_order(sources, costs(prepared.source))]
    for layers in order:
        expected = sum(entry.noise for entry in sources if not entry.layers <= layers)
        assert expected / 4 - 1e-9 <= _noise(prepared, tensors, layers) <= 4 * expected + 1e-9
    assert _noise(prepared, tensors, order[-1]) < 1e-9 < _noise(prepared, tensors, order[0])


def test_the_fragile_layer_is_the_worst_source(fragile: tuple[Bundle, str]) -> None:
    """It alone causes most of the noise, and float weights in it avoid that."""
    bundle, name = fragile
    prepared, sources, tensors = _sources(bundle)
    assert (sources[0].name, sources[0].kind, sources[0].layers) == (name, "weights", {name})
    assert sources[0].noise > 0.9 * sum(entry.noise for entry in sources)
    assert _noise(prepared, tensors, frozenset([name])) < 0.1 * _noise(prepared, tensors, frozenset())


@pytest.mark.parametrize("target", ["x86", "x86-avx2", "arm", "tensorrt"])
def test_exactly_the_fragile_layer_stays_float(
    fragile: tuple[Bundle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """The contract holds with it, and not without; all other layers are int8."""
    import openvino

    bundle, name = fragile
    monkeypatch.setattr(mixed_precision, "speedup", lambda *arguments: 1.5)
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: Interval(1.6, 1.5, 1.7))
    options = QuantizeOptions(target=target, calibration_images=64)
    refused = quantize(
        bundle, QuantizeOptions(target=target, calibration_images=64, float_layers=False), out=tmp_path / "refused"
    )
    assert refused.judgement.outcome == "fail"
    made = quantize(bundle, options, out=tmp_path / "made")
    details = made.bundle.manifest.details
    assert details["float_layers"] == [name]
    assert made.judgement.exit_code == 0
    assert [len(point["layers"]) for point in details["mixed_precision"]["points"]] == [0, 1]
    assert details["mixed_precision"]["chosen"] == 1
    assert details["sensitivity"][0]["name"] == name
    assert any(f"float to fulfil the contract: {name}" in sentence for sentence in made.sentences)
    facts = inspect_bundle(made.bundle)
    points = facts["mixed_precision"]["points"]
    assert [line.partition(":")[0] for line in points] == ["0 layers float", "1 layer float"]
    assert facts["mixed_precision"]["reason"].startswith("1 layer float: the fewest of those tried")
    assert facts["sensitivity"][0].endswith(f"% {name} weights")
    onnx.checker.check_model(str(made.bundle.model_path), full_check=True)
    tensors = made.bundle.golden().tensors[:1]
    expected = load(made.bundle.path, "onnxruntime").run(tensors)
    compiled = openvino.Core().compile_model(made.bundle.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(tensors)[0] - expected).max() <= 0.05 * np.abs(expected).max()
    nodes = {node.name: node for node in onnx.load(str(made.bundle.model_path)).graph.node}
    makers = {output: node for node in nodes.values() for output in node.output}
    read = {layer.name: makers.get(nodes[layer.name].input[1]) for layer in _layers(bundle)}
    start = [layer.name for layer in _layers(bundle)][: details["float_convolutions"]]
    assert {layer for layer, maker in read.items() if maker is None} == {name, *start}


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("mixed_precision", "x"), ("mixed_precision", []), ("mixed_precision", {"points": "x"}),
        ("mixed_precision", {"points": [], "chosen": 0, "reason": ""}),
        ("sensitivity", [{"name": "a", "kind": "b", "noise": 1.0}]),
        ("sensitivity", [{"name": "a", "kind": "input", "noise": float("nan")}]),
        ("sensitivity", [{"name": "a", "kind": "input", "noise": -1.0}]),
    ],
)  # fmt: skip
def test_a_record_that_is_not_valid_is_refused(fp32: Bundle, name: str, entry: object) -> None:
    """A bundle's manifest comes from outside: one line, not a traceback."""
    bundle = Bundle(fp32.path, replace(fp32.manifest, details={name: entry}), id="")
    with pytest.raises(BundleError, match=f"details.{name}"):
        inspect_bundle(bundle)


def test_costs_count_multiplications_and_weights() -> None:
    """Of convolutions with groups, and of a Gemm in either orientation; what is converted counts too."""
    generator = np.random.default_rng(0)
    shapes = {"c": (8, 1, 3, 3), "g": (8, 5), "t": (4, 5)}
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["y"], "conv", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g"], ["h"], "gemm"),
        helper.make_node("Gemm", ["h", "t"], ["o"], "transposed", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "costs", [value("x", 1, [1, 8, 6, 6])], [value("o", 1, [1, 4])], weights
    )  # fmt: skip
    found = costs(onnx.shape_inference.infer_shapes(helper.make_model(graph)))
    assert found["conv"] - found["mean"] == 8 * 72 + 288 * 9 + 16 * (288 - 8)
    assert found["gemm"] - found["flatten"] == 8 * 40 + 40 + 16 * (13 - 16)
    assert found["transposed"] - found["flatten"] == 8 * 20 + 20 + 16 * (9 - 16)


def test_a_fulfilled_contract_needs_no_search(fp32: Bundle, tmp_path: Path) -> None:
    """No layer stays float, and the manifest has no search."""
    made = quantize(fp32, max_drop=50.0, out=tmp_path / "made")
    details = made.bundle.manifest.details
    assert (made.judgement.outcome, details["float_layers"], details["mixed_precision"]) == ("pass", [], None)


def test_a_contract_that_no_model_can_prove_needs_no_search(
    edgekit: Callable[..., subprocess.CompletedProcess[str]], fp32: Bundle
) -> None:
    """Neither a limit of 0 nor too few images; the reason is given, and the exit code is 4."""
    done = edgekit("quantize", fp32.path, "--max-drop", 0, "--out", "made", code=4)
    assert "--max-drop 0.5" in done.stderr
    assert (
        json.loads((Path(done.stdout.strip().splitlines()[-1]) / "manifest.json").read_text())["details"][
            "mixed_precision"
        ]
        is None
    )


def test_no_choice_fulfils_the_contract(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is right and too slow, and float layers make it slower: keep fp32, and the model is rejected."""
    monkeypatch.setattr(tune, "this_machine", lambda: "x86")
    monkeypatch.setattr(mixed_precision, "speedup", lambda *arguments: 0.9)
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: Interval(0.9, 0.85, 0.95))
    made = quantize(fp32, QuantizeOptions(target="x86"), max_drop=50.0, min_speedup=1.2, out=tmp_path / "made")
    assert (made.judgement.rule, made.judgement.exit_code) == ("min_speedup", 3)
    assert made.bundle.path.name == "made.rejected"
    assert "0.90x [0.85, 0.95]" in made.sentences[0]
    assert "keep fp32: no choice of float layers fulfils the contract and is faster than fp32 here" in made.sentences
    points = made.bundle.manifest.details["mixed_precision"]["points"]
    assert [(point["layers"], point["speedup"]) for point in points] == [([], 0.9)]


def test_the_same_model_is_not_judged_twice(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed-up is not proved, and no layer needs to be float: measuring again would be a second try."""
    monkeypatch.setattr(tune, "this_machine", lambda: "x86")
    monkeypatch.setattr(mixed_precision, "speedup", lambda *arguments: 1.3)
    measured = iter((Interval(1.3, 1.1, 1.5),))
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: next(measured))
    made = quantize(fp32, QuantizeOptions(target="x86"), max_drop=50.0, min_speedup=1.2, out=tmp_path / "made")
    assert (made.judgement.rule, made.judgement.exit_code) == ("min_speedup", 4)
    assert not any("float to fulfil" in sentence or "keep fp32" in sentence for sentence in made.sentences)


def test_a_speedup_needs_a_trial_on_the_target(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's target is refused before anything is made; validate measures there."""
    monkeypatch.setattr(tune, "this_machine", lambda: "x86")
    with pytest.raises(EdgeKitError, match="not the target") as caught:
        quantize(fp32, QuantizeOptions(target="arm"), min_speedup=1.2, out=tmp_path / "made")
    assert "edgekit validate --min-speedup" in caught.value.fix
    with pytest.raises(RecipeError, match="--min-speedup"):
        quantize(fp32, QuantizeOptions(target="x86"), min_speedup=-1.0, out=tmp_path / "made")
    assert not list(tmp_path.iterdir())


@given(
    st.lists(
        st.tuples(st.frozensets(st.sampled_from("abcdefg"), min_size=1, max_size=3), st.floats(0, 1)),
        min_size=1, max_size=12,
    ),
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(1, 100)),
)  # fmt: skip
def test_the_order_of_float_layers(entries: list[tuple[frozenset[str], float]], prices: dict[str, float]) -> None:
    """Each step adds layers and avoids noise, and the last avoids all."""
    sources = [NoiseSource("", "", layers, noise) for layers, noise in entries]
    steps = [frozenset[str](), *float_order(sources, prices)]
    left = [sum(entry.noise for entry in sources if not entry.layers <= step) for step in steps]
    assert all(before < after for before, after in pairwise(steps))
    assert all(before > after for before, after in pairwise(left))
    assert left[-1] == 0


def test_of_similar_choices_the_cheaper_comes_first() -> None:
    """A choice that avoids far less noise does not, however cheap."""
    sources = [
        NoiseSource("a", "weights", frozenset("a"), 1.0),
        NoiseSource("b", "weights", frozenset("b"), 0.8),
        NoiseSource("c", "weights", frozenset("c"), 0.1),
    ]
    order = float_order(sources, {"a": 100.0, "b": 10.0, "c": 1.0})
    assert order == [frozenset("b"), frozenset("ab"), frozenset("abc")]


def test_float_layers_that_make_it_slower_than_fp32_are_no_choice(
    fragile: tuple[Bundle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fragile layer would fulfil the contract; the first lines say what is wrong and what to keep."""
    monkeypatch.setattr(tune, "this_machine", lambda: "x86")
    monkeypatch.setattr(tune, "speedup", lambda *arguments: 1.0)
    speeds = iter((0.8,))
    monkeypatch.setattr(mixed_precision, "speedup", lambda *arguments: next(speeds))
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: Interval(1.2, 1.1, 1.3))
    made = quantize(fragile[0], QuantizeOptions(target="x86", calibration_images=64), out=tmp_path / "made")
    assert made.judgement.exit_code == 3
    assert made.bundle.manifest.details["float_layers"] == []
    assert len(made.bundle.manifest.details["mixed_precision"]["points"]) == 2
    assert made.sentences[1].startswith("keep fp32: ")


@given(st.integers(1, 70), st.integers(0, 80))
def test_the_smallest_number_is_found_with_few_trials(count: int, first: int) -> None:
    """For any number from which all hold."""
    tried: list[int] = []

    def holds(number: int) -> bool:
        tried.append(number)
        return number >= first

    found = mixed_precision._smallest(count, holds, lambda number: True, lambda: False)
    assert found == (first if first < count else None)
    assert len(tried) == len(set(tried))
    assert len(tried) <= 2 + 2 * max(1, count).bit_length()


@given(st.integers(1, 70), st.integers(0, 80), st.integers(0, 10))
def test_a_search_that_is_cut_off_finds_what_it_tried(count: int, first: int, trials: int) -> None:
    """The smallest of the numbers that were tried and hold; and whether it was cut off."""
    tried: list[int] = []

    def holds(number: int) -> bool:
        tried.append(number)
        return number >= first

    ended = [False]

    def no_time() -> bool:
        ended[0] = len(tried) >= trials
        return ended[0]

    found = mixed_precision._smallest(count, holds, lambda number: True, no_time)
    assert found == min((number for number in tried if number >= first), default=None)
    assert len(tried) <= max(1, trials)
    if not ended[0]:
        assert found == (first if first < count else None)


def test_a_budget_that_ends_before_a_model_is_right(
    fragile: tuple[Bundle, str], tmp_path: Path, edgekit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The model without float layers is judged, and rejected as without a search; the message says what to type."""
    command = ("quantize", fragile[0].path, "--target", "tensorrt", "--calibration-images", 64, "--budget", "0.001s")
    done = edgekit(*command, "--out", "made", code=3)
    assert "cut off by --budget 0.001s before a model fulfilled the contract" in " ".join(done.stderr.split())
    assert "--budget 0.004s, or leave it out" in " ".join(done.stderr.split())
    details = Bundle.open(tmp_path / "made.rejected").manifest.details
    assert (details["float_layers"], details["mixed_precision"]["chosen"]) == ([], None)
    assert [point["layers"] for point in details["mixed_precision"]["points"]] == [[]]


def test_a_budget_that_ends_after_a_model_is_right(
    fragile: tuple[Bundle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is chosen although fewer float layers might do, and the user is told so."""
    bundle, name = fragile
    others = [layer.name for layer in _layers(bundle) if layer.name != name]
    order = [frozenset(others[:count]) for count in (1, 2, 3)]
    monkeypatch.setattr(mixed_precision, "float_order", lambda *arguments: [*order, order[-1] | {name}])
    seconds = iter(range(100))
    monkeypatch.setattr(mixed_precision, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    options = QuantizeOptions(target="tensorrt", calibration_images=64, budget_s=3.5)
    made = quantize(bundle, options, out=tmp_path / "made")
    assert made.judgement.exit_code == 0
    assert len(made.bundle.manifest.details["float_layers"]) == 4
    search = made.bundle.manifest.details["mixed_precision"]
    assert [len(point["layers"]) for point in search["points"]] == [0, 1, 2, 4], "3 were not tried"
    assert any("cut off by --budget 3.5s: fewer may be enough" in sentence for sentence in made.sentences)


def test_two_searches_choose_the_same(fragile: tuple[Bundle, str], tmp_path: Path) -> None:
    """Where no timing decides: the same order, models, figures and bytes."""
    options = QuantizeOptions(target="tensorrt", calibration_images=64)
    first, second = (quantize(fragile[0], options, out=tmp_path / name).bundle for name in ("first", "second"))
    for name in ("float_layers", "mixed_precision", "sensitivity", "judgement", "selection", "remarks"):
        assert first.manifest.details[name] == second.manifest.details[name]
    assert first.manifest.details["float_layers"] == [fragile[1]]
    assert first.model_path.read_bytes() == second.model_path.read_bytes()


def test_options_about_int8_layers_are_refused_for_fp16(fp32: Bundle, tmp_path: Path) -> None:
    """As is a budget that is not positive; nothing is made."""
    for options in (
        QuantizeOptions(precision="fp16", sensitivity=True),
        QuantizeOptions(precision="fp16", budget_s=10.0),
    ):
        with pytest.raises(EdgeKitError, match="about int8 layers"):
            quantize(fp32, options, out=tmp_path / "made")
    with pytest.raises(RecipeError, match="--budget 0 is not positive"):
        QuantizeOptions(budget_s=0.0)
    assert not list(tmp_path.iterdir())
