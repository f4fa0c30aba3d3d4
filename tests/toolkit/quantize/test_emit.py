"""Grids, and the graphs that emit_int8 writes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.grid import activation_grid, bias_grid, for_bias, weight_grid
from edgekit.toolkit.quantize.observe import Batch, ranges_of
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.rewrites.graph import arrays
from edgekit.toolkit.quantize.targets import TARGETS
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

_GENERATOR = np.random.default_rng(0)
IMAGES = _GENERATOR.normal(size=(8, 3, 12, 12)).astype(np.float32)
_VALUES = st.floats(-1e6, 1e6, width=32)


@given(_VALUES, _VALUES, st.sampled_from(["uint8", "int8", "symmetric", "by sign"]))
def test_activations_are_rounded_to_a_step(first: float, second: float, kind) -> None:
    """Inside to half a step, at the ends to one, because zero has a number of its own."""
    low, high = min(first, second), max(first, second)
    grid = activation_grid(low, high, kind)
    values = np.linspace(low, high, 50)
    changed = np.abs(grid.dequantize(grid.quantize(values)) - values)
    rounding = 1e-6 * max(abs(low), abs(high))
    assert (changed <= 1.001 * grid.scale + rounding).all()
    assert np.median(changed) <= 0.501 * grid.scale + rounding
    assert grid.dequantize(grid.quantize(np.zeros(1))) == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([64, 127]))
def test_weights_use_the_range_of_each_channel(seed: int, largest: int) -> None:
    """A channel of zeros keeps room for its bias."""
    generator = np.random.default_rng(seed)
    weights = (generator.normal(size=(4, 3)) * 10.0 ** generator.integers(-6, 6, (4, 1))).astype(np.float32)
    weights[2] = 0
    grid = weight_grid(weights, 0, largest)
    stored = grid.quantize(weights)
    assert np.abs(stored).max(axis=1).tolist() == [largest, largest, 0, largest]
    assert np.abs(grid.dequantize(stored) - weights).max(axis=1) == pytest.approx(0, abs=0.51 * float(grid.scale.max()))
    activation, bias = activation_grid(0, 1e-3, "uint8"), np.array([1e5, 0, -1e5, 1e-9], np.float32)
    wider = for_bias(grid, bias, activation)
    kept = bias_grid(wider, activation)
    assert kept.dequantize(kept.quantize(bias)) == pytest.approx(bias, rel=1e-3, abs=float(kept.scale.max()))


def _run(model: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": IMAGES})[0])


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [value("x", float32, ["n", 3, 12, 12])], [value("y", float32, ["n", 5])], initializers
    )
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def _weights(*shape: int) -> np.ndarray:
    return (_GENERATOR.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _network(clip: tuple[float, float] = (0.0, 6.0), alpha: float = 1.0, beta: float = 1.0) -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        make("Clip", ["c1", "low", "high"], ["a1"]),
        make("MaxPool", ["a1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p", "w2", "b1"], ["c2"], pads=[1, 1, 1, 1], group=8),
        make("Add", ["c2", "p"], ["s"]),
        make("Pad", ["s", "pads"], ["padded"], mode="constant"),
        make("Concat", ["padded", "padded"], ["cat"], axis=1),
        make("GlobalAveragePool", ["cat"], ["pool"]),
        make("Flatten", ["pool"], ["flat"]),
        make("Gemm", ["flat", "w3", "b3"], ["y"], alpha=alpha, beta=beta),
    ]
    constants = {
        "w1": _weights(8, 3, 3, 3), "b1": _weights(8, 1)[:, 0], "w2": _weights(8, 1, 3, 3), "w3": _weights(16, 5),
        "b3": _weights(5, 1)[:, 0], "low": np.float32(clip[0]), "high": np.float32(clip[1]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    return _model(nodes, {name: np.asarray(value) for name, value in constants.items()})


def _emitted(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    made = emit_int8(model, ranges_of(model, [Batch(IMAGES, ["images"])]), TARGETS[target])
    onnx.checker.check_model(made, full_check=True)
    return made


def _noise(model: onnx.ModelProto, made: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> float:
    expected = _run(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return float(np.sqrt(((_run(made, level) - expected) ** 2).mean() / expected.var()))


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.runtime == "onnxruntime"])
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_answers_stay_close(target: str, level: str) -> None:
    """As ONNX Runtime fuses the graph, and without; factors of a Gemm, a bias of two layers, and shared grids."""
    model = _network(alpha=0.5, beta=2.0)
    assert _noise(model, _emitted(model, target), getattr(onnxruntime.GraphOptimizationLevel, level)) < 0.08


def test_a_clip_is_left_to_the_grid_only_if_it_cuts_off_the_same() -> None:
    """A grid includes zero, so it does not cut off at 0.5; a symmetric one does not cut off at 0."""
    for clip, target, kept in (((0.0, 6.0), "x86", 0), ((0.5, 6.0), "x86", 1), ((0.0, 6.0), "tensorrt", 1)):
        model = _network(clip)
        made = _emitted(model, target)
        assert sum(node.op_type == "Clip" for node in made.graph.node) == kept
        assert _noise(model, made, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL) < 0.1


def test_values_that_only_move_keep_their_grid() -> None:
    """So that runtimes move bytes; the logits and the parameters of a Clip or Pad have no pair."""
    made = _emitted(_network(), "x86")
    scales = {node.input[0]: node.input[1] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert scales["p"] == scales["a1"]
    assert scales["padded"] == scales["s"]
    assert scales["flat"] == scales["pool"]
    assert "y" not in scales
    assert not {"low", "high", "pads"} & {name.removesuffix("_quantized") for name in arrays(made.graph)} - {"pads"}
