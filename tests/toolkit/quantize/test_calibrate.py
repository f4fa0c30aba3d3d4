"""Histograms, the ranges that methods make of them, and the choice of a method."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.quantize import gate
from edgekit.toolkit.quantize.calibrate import expected_changes
from edgekit.toolkit.quantize.grid import activation_grid
from edgekit.toolkit.quantize.histogram import Histogram, count, histograms, with_width
from edgekit.toolkit.quantize.methods import AUTO, METHODS
from edgekit.toolkit.quantize.observe import Batch, batches, ranges_of
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.ranges import Extremes, Seen, images_90, least_error, percentile
from hypothesis import given, settings
from hypothesis import strategies as st


def _histogram(values: np.ndarray) -> Histogram:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    counts, _ = np.histogram(values, 2048, (low, high))
    return Histogram(low, high, counts)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 3), st.floats(0.02, 0.3))
def test_expected_changes_are_those_that_happen(seed: int, scale: float, noise: float) -> None:
    """Whatever the logits are multiplied by."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(4000, 10))
    changed = scale * (logits + noise * generator.normal(size=logits.shape))
    happened = float((logits.argmax(axis=1) != changed.argmax(axis=1)).mean())
    assert expected_changes(logits, changed) == pytest.approx(happened, rel=0.3, abs=0.01)
    assert expected_changes(logits, scale * logits) < 1e-9


def test_a_rare_value_does_not_widen_the_percentile() -> None:
    """If it is rarer than one in 200,000."""
    values = np.append(np.maximum(np.random.default_rng(0).normal(size=500_000), 0), 60.0)
    low, high = percentile(Seen(_histogram(values), np.empty((0, 2))), "uint8")
    assert low == 0
    assert 4 < high < 6


def test_a_few_images_do_not_widen_the_range_of_most() -> None:
    """However large their values are; the values of the others are all in it, at both ends."""
    generator = np.random.default_rng(0)
    extremes = np.stack([-generator.uniform(1, 2, 1000), generator.uniform(3, 4, 1000)], axis=1)
    expected = extremes.min(axis=0)[0], extremes.max(axis=0)[1]
    extremes[::11] *= 100
    low, high = images_90(Seen(_histogram(np.zeros(1)), extremes), "uint8")
    assert expected[0] <= low < -1.9
    assert 3.9 < high <= expected[1]


def test_extremes_are_of_each_image_and_bounded() -> None:
    """Those of the first 1,024 batches are kept, and all are passed on."""
    passed: list[np.ndarray] = []
    watch = Extremes(lambda batch, values: passed.append(values))
    for index in range(1100):
        watch(Batch(np.empty(0), [str(index)]), np.array([[-index, index], [0.0, 1.0]]))
    found = watch.of({"first": (0, 0), "second": (0, 0)})
    assert found["first"].tolist() == [[-index, index] for index in range(1024)]
    assert found["second"].tolist() == [[0, 1]] * 1024
    assert len(passed) == 1100


@pytest.mark.parametrize("kind", ["uint8", "symmetric"])
@pytest.mark.parametrize("shape", ["normal", "uniform", "long tail"])
def test_the_least_error_is_found(shape: str, kind) -> None:
    """No other range changes the values much less: compared with every pair of 100 limits."""
    generator = np.random.default_rng(0)
    values = {
        "normal": generator.normal(size=20_000),
        "uniform": generator.uniform(-1, 2, 20_000),
        "long tail": np.maximum(generator.standard_t(3, 20_000), -0.4),
    }[shape]
    histogram = _histogram(values)

    def error(low: float, high: float) -> float:
        grid = activation_grid(low, high, kind)
        return float(((grid.dequantize(grid.quantize(values)) - values) ** 2).mean())

    shares = np.linspace(0.01, 1, 100)
    best = min(error(histogram.low * low, histogram.high * high) for low in shares[::5] for high in shares)
    assert error(*least_error(Seen(histogram, np.empty((0, 2))), kind)) < 1.1 * best


def test_histograms_count_every_value(fp32: Bundle) -> None:
    """Of the network's input too."""
    model, tensors = prepare(onnx.load(str(fp32.model_path))), fp32.golden().tensors
    batches = [Batch(tensors[place : place + 1], ["image"]) for place in range(4)]
    ranges = ranges_of(model, batches)
    found = histograms(model, with_width(ranges), batches)
    assert set(found) == {name for name, (low, high) in ranges.items() if high > low}
    entry = found[model.graph.input[0].name]
    expected, _ = np.histogram(tensors[:4], 2048, (entry.low, entry.high))
    assert entry.counts.sum() == tensors[:4].size
    assert np.abs(np.cumsum(entry.counts) - np.cumsum(expected)).max() < 0.01 * tensors[:4].size


def _all_values(model: onnx.ModelProto, names: Iterable[str], tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Activations of a graph that ONNX Runtime does not optimise, for single images."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    entry = model.graph.input[0].name
    computed = [name for name in names if name != entry]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in computed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers = [session.run(computed, {entry: tensor[None]}) for tensor in tensors]
    parts = zip(*answers, strict=True)
    return {entry: tensors} | {name: np.stack(part) for name, part in zip(computed, parts, strict=True)}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "convnet",
        "mobilenet_v3_small",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("efficientnet_b0", "resnet18")),
    ],
)
def test_ranges_are_those_of_the_plain_graph(
    name: str, dynamic: bool, untrained: Callable[..., Bundle], tmp_path: Path
) -> None:
    """To rounding, though ONNX Runtime optimises the graph and some limits are computed from others."""
    exported = export_bundle(
        untrained(name, tmp_path / "source"), "onnx", tmp_path / "onnx", Options(dynamic_batch=dynamic)
    )
    model, tensors = prepare(onnx.load(str(exported.model_path))), exported.golden().tensors[:4]
    size = 4 if dynamic else 1
    seen: list[np.ndarray] = []
    parts = [Batch(tensors[place : place + size], ["image"]) for place in range(0, 4, size)]
    ranges = ranges_of(model, parts, lambda batch, values: seen.append(values))
    values = _all_values(model, ranges, tensors)
    for place, (activation, (low, high)) in enumerate(ranges.items()):
        expected = values[activation]
        rounding = 1e-3 * float(np.ptp(expected)) + 1e-6
        assert (low, high) == pytest.approx((expected.min(), expected.max()), abs=rounding), activation
        assert seen[0][place] == pytest.approx((expected[:size].min(), expected[:size].max()), abs=rounding)


def test_the_best_method_is_recorded(fp32: Bundle, tmp_path) -> None:
    """With the share of answers that each was expected to change; a named one is used as it is."""
    recorded = {}
    for method in (AUTO, *METHODS):
        options = QuantizeOptions(target="tensorrt", calibration=method, calibration_images=64, selection_images=20)
        made = quantize(fp32, options, out=tmp_path / method).bundle
        recorded[method] = made.manifest.details["calibration"]
    best, expected = recorded[AUTO]["method"], recorded[AUTO]["expected_changes"]
    assert set(expected) == set(METHODS)
    assert min(expected, key=expected.get) == best
    assert all(recorded[method]["method"] == method for method in METHODS)
    assert (tmp_path / AUTO / "model.onnx").read_bytes() == (tmp_path / best / "model.onnx").read_bytes()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50), st.integers(1, 70_000))
def test_counting_in_parts_counts_each_value(values: list[float], repeated: int) -> None:
    """In the bin that it lies in, however many there are; values outside the range are in the last bins."""
    counted = Histogram(-500.0, 500.0, np.zeros(2048, np.int64))
    count(counted, np.repeat(np.asarray(values, np.float32), repeated)[None])
    places = np.clip((np.asarray(values, np.float32) + np.float32(500)) * np.float32(2.048), 0, 2047).astype(int)
    assert counted.counts.tolist() == (repeated * np.bincount(places, minlength=2048)).tolist()


def test_an_unknown_method_names_the_others(fp32: Bundle, tmp_path) -> None:
    """Before anything is made."""
    with pytest.raises(EdgeKitError, match="kl") as error:
        quantize(fp32, QuantizeOptions(calibration="kl"), out=tmp_path / "made")
    assert all(name in f"{error.value} {error.value.fix}" for name in (AUTO, *METHODS))


@pytest.mark.parametrize("batch", [None, 5])
def test_every_image_comes_once(fp32: Bundle, batch: int | None) -> None:
    """A fixed batch is padded with the last image; a free one is shorter instead."""
    images = part_of(fp32, "train").take(range(11))
    manifest = dataclasses.replace(fp32.manifest, input=dataclasses.replace(fp32.manifest.input, batch=batch))
    made = list(batches(manifest, images, "calibration", lambda stage, share: None))
    ids = [name for each in made for name in each.ids]
    assert ids == [*images.ids, *[images.ids[-1]] * (4 if batch else 0)]
    assert all(len(each.ids) == len(each.tensor) for each in made)


def test_images_are_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch, fp32: Bundle) -> None:
    """A model that takes any batch does not get all of them at once, whose activations would need the memory."""
    model = prepare(onnx.load(str(fp32.model_path)))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    sizes: list[int] = []
    real = gate._runner

    def counted(content: bytes, level: onnxruntime.GraphOptimizationLevel):
        run = real(content, level)

        def each(tensors: np.ndarray) -> np.ndarray:
            sizes.append(len(tensors))
            return run(tensors)

        return each

    monkeypatch.setattr(gate, "_runner", counted)
    tensors = fp32.golden().tensors
    for run in (gate.run_float, gate.run_optimised):
        assert run(model, tensors).shape == (len(tensors), 10)
    assert set(sizes) == {1}
