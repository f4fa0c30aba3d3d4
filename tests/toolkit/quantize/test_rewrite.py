"""Rewrites keep the function, and are kept only if they do and are faster."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.quantize import tune as tuning
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.gate import run_float
from edgekit.toolkit.quantize.observe import Batch, ranges_of
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.rewrite import REWRITES, rewrite
from edgekit.toolkit.quantize.targets import TARGETS, Form
from edgekit.toolkit.quantize.tune import tune
from edgekit.toolkit.quantize.verify import verify_int8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

IMAGES = np.random.default_rng(5).normal(size=(4, 3, 16, 16)).astype(np.float32)
ACTIVATIONS = ("HardSwish", "Relu", "HardSigmoid", "x * relu6(x + 3) / 6")


def _mobile(
    channels: int = 24, activation: str = "HardSwish", gated: bool = True, mean: str = "keep", opset: int = 17
) -> onnx.ModelProto:
    """A block of a mobile network: full, depthwise, squeeze-and-excitation, full, mean, classifier."""
    generator = np.random.default_rng(channels)

    def normal(*shape: int) -> np.ndarray:
        return (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "first": normal(channels, 3, 3, 3), "first_b": normal(channels),
        "depthwise": normal(channels, 1, 3, 3), "depthwise_b": normal(channels),
        "squeeze": normal(8, channels, 1, 1), "excite": normal(channels, 8, 1, 1), "excite_b": normal(channels),
        "project": normal(16, channels, 1, 1), "head": normal(16, 10), "three": np.float32(3), "six": np.float32(6),
        "zero": np.float32(0), "axes": np.asarray([-1, 2]),
    }  # fmt: skip
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: str, output: str, **attributes: object) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], f"{output}_node", **attributes))

    def activate(source: str, output: str) -> None:
        if activation in ("HardSwish", "Relu", "HardSigmoid"):
            node(activation, source, output, **({"alpha": 1 / 6} if activation == "HardSigmoid" else {}))
            return
        node("Add", f"{source} three", f"{output}_sum")
        node("Clip", f"{output}_sum zero six", f"{output}_clip")
        node("Mul", f"{source} {output}_clip", f"{output}_product")
        node("Div", f"{output}_product six", output)

    def average(source: str, output: str, keepdims: int) -> None:
        if opset >= 18:
            node("ReduceMean", f"{source} axes", output, keepdims=keepdims)
        else:
            node("ReduceMean", source, output, axes=[2, 3], keepdims=keepdims)

    node("Conv", "image first first_b", "a", pads=[1] * 4)
    activate("a", "b")
    node("Conv", "b depthwise depthwise_b", "c", pads=[1] * 4, strides=[2, 2], group=channels)
    activate("c", "d")
    if gated:
        average("d", "s0", 1)
        node("Conv", "s0 squeeze", "s1")
        node("Relu", "s1", "s2")
        node("Conv", "s2 excite excite_b", "s3")
        node("HardSigmoid", "s3", "s4")
        node("Mul", "d s4", "e")
    else:
        node("Identity", "d", "e")
    node("Conv", "e project", "f")
    average("f", "g", int(mean == "keep"))
    node("Flatten", "g", "h") if mean == "keep" else node("Identity", "g", "h")
    node("MatMul", "h head", "logits")
    return _model(nodes, constants, opset)


def _model(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 17) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in read],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    constants = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    return {node.name: constants[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    return emit_int8(model, ranges_of(model, [Batch(IMAGES, ["images"])]), TARGETS["x86"])


@settings(max_examples=40)
@given(
    st.integers(2, 40), st.sampled_from(ACTIVATIONS), st.booleans(), st.sampled_from(["keep", "drop"]),
    st.sampled_from([17, 18]),
)  # fmt: skip
def test_rewrites_keep_the_function(channels: int, activation: str, gated: bool, mean: str, opset: int) -> None:
    """To 1e-5 of the largest logit; each depthwise convolution has a multiple of 16 channels, and none is lost."""
    model = prepare(_mobile(channels, activation, gated, mean, opset))
    result = rewrite(model, IMAGES)
    assert result.refused == {}
    assert ("depthwise convolutions of full vectors" in result.applied) == (channels % 16 != 0)
    expected = run_float(model, IMAGES)
    assert np.abs(run_float(result.model, IMAGES) - expected).max() <= 1e-5 * np.abs(expected).max()
    onnx.checker.check_model(result.model, full_check=True)
    assert _weights(result.model)["c_node"][0] == -(-channels // 16) * 16
    operators = {node.op_type for node in result.model.graph.node}
    assert not operators & {"ReduceMean", "HardSwish", "HardSigmoid"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_integer_chain_is_whole(activation: str) -> None:
    """After the rewrites ONNX Runtime runs nothing in float but the classifier's end, and the logits stay close."""
    model = prepare(_mobile(activation=activation))
    before, after = (_quantized(entry) for entry in (model, rewrite(model, IMAGES).model))
    run = verify_int8(after)["operators_as_run"]
    assert not {"HardSwish", "HardSigmoid", "Clip", "Div", "ReduceMean", "Mul", "Add"} & set(run), run
    assert run["QuantizeLinear"] == 1, "of the image"
    expected = run_float(model, IMAGES)
    errors = [float(np.square(run_float(entry, IMAGES) - expected).mean()) for entry in (before, after)]
    assert errors[1] <= 1.5 * errors[0] + 1e-4 * float(np.square(expected).mean())


def _branches(end: str) -> onnx.ModelProto:
    """A depthwise convolution of three channels whose neighbours cannot get more."""
    generator = np.random.default_rng(1)
    constants = {
        "w0": generator.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "w1": generator.normal(size=(3, 1, 3, 3)).astype(np.float32),
        "w2": generator.normal(size=(10, 3, 1, 1)).astype(np.float32),
        "wide": generator.normal(size=(10, 6, 1, 1)).astype(np.float32),
        "each": generator.normal(size=(1, 3, 1, 1)).astype(np.float32),
        "head": generator.normal(size=(3, 10)).astype(np.float32),
    }
    chains = {
        "image": [("Conv", "image w1", "c", {"group": 3, "pads": [1] * 4}), ("Conv", "c w2", "d", {})],
        "concatenation": [
            ("Conv", "image w0", "a", {}), ("Conv", "a w1", "c", {"group": 3, "pads": [1] * 4}),
            ("Concat", "a c", "b", {"axis": 1}), ("Conv", "b wide", "d", {}),
        ],
        "constant per channel": [
            ("Conv", "image w0", "a", {}), ("Conv", "a w1", "c", {"group": 3, "pads": [1] * 4}),
            ("Relu", "c", "r", {}), ("Mul", "r each", "b", {}), ("Conv", "b w2", "d", {}),
        ],
        "shared weights": [
            ("Conv", "image w0", "a", {}), ("Conv", "a w1", "c", {"group": 3, "pads": [1] * 4}),
            ("Conv", "image w1", "b", {"group": 3, "pads": [1] * 4}), ("Add", "b c", "e", {}),
            ("Conv", "e w2", "d", {}),
        ],
        "spatial gate": [
            ("Conv", "image w0", "a", {}), ("Conv", "a w1", "c", {"group": 3, "pads": [1] * 4}),
            ("ReduceMax", "c", "m", {"axes": [1]}), ("Mul", "c m", "b", {}), ("Conv", "b w2", "d", {}),
        ],
    }  # fmt: skip
    nodes = [
        helper.make_node(kind, inputs.split(), [output], f"{output}_node", **attributes)
        for kind, inputs, output, attributes in chains[end]
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["d"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "end"),
    ]
    return _model(nodes, constants)


@pytest.mark.parametrize("end", ["image", "concatenation", "constant per channel", "shared weights", "spatial gate"])
def test_channels_that_cannot_be_added_are_not(end: str) -> None:
    """The graph stays as it is."""
    model = prepare(_branches(end))
    result = rewrite(model, IMAGES)
    assert result.applied == []
    assert result.refused == {}
    assert _weights(result.model) == _weights(model)


def test_a_rewrite_that_changes_the_function_is_refused() -> None:
    """With the size of the change; the others are kept."""

    def double(graph: onnx.GraphProto) -> bool:
        weights = next(entry for entry in graph.initializer if entry.name == "project")
        weights.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weights), "project"))
        return True

    def cut(graph: onnx.GraphProto) -> bool:
        del graph.node[0]
        return True

    model = prepare(_mobile())
    result = rewrite(model, IMAGES, rewrites={"double": double, "cut": cut, **REWRITES})
    assert set(result.refused) == {"double", "cut"}
    assert result.refused["double"].startswith("changes the logits by ")
    assert result.applied == list(REWRITES)
    expected = run_float(model, IMAGES)
    assert np.abs(run_float(result.model, IMAGES) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_rewrite_that_is_not_faster_is_not_kept() -> None:
    """Each is compared with the graph that has the rewrites before it."""
    seen = list[tuple[int, int]]()

    def only_padding(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
        counts = [Counter(node.op_type for node in model.graph.node) for model in (before, after)]
        seen.append((counts[0]["ReduceMean"], counts[1]["ReduceMean"]))
        return _weights(after) != _weights(before)

    result = rewrite(prepare(_mobile(gated=False)), IMAGES, only_padding)
    assert result.applied == ["depthwise convolutions of full vectors"]
    assert set(result.refused.values()) == {"not faster here"}
    assert seen == [(1, 0), (1, 1), (1, 1)]


@pytest.mark.parametrize(("times", "expected"), [((0.9, 0.9), 0), ((1.3, 1.1), 1), ((1.1, 1.4), 2), ((1.01, 1.0), 2)])
def test_the_fastest_form_is_taken(
    fp32: Bundle, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], expected: int
) -> None:
    """Where the target can be timed; of those as fast, the one with the most in float, which the user is told."""
    monkeypatch.setattr(tuning, "this_machine", lambda: "x86")
    monkeypatch.setattr(tuning, "_FLOAT_SHARE", 1.0)
    speeds = iter(times)
    monkeypatch.setattr(tuning, "speedup", lambda *arguments: next(speeds))
    model = prepare(onnx.load(str(fp32.model_path)))
    tuned = tune(model, fp32, "x86")
    assert tuned.form == Form(float_convolutions=expected)
    assert (tuned.gain is None) == (expected == 0)
    assert any("float" in line for line in tuned.remarks) == (expected > 0)
    untimed = tune(model, fp32, "arm")
    assert (untimed.form, untimed.timed) == (Form(), False)


def test_a_start_with_many_weights_is_not_left_float(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is: the file would not become a quarter of its size."""
    monkeypatch.setattr(tuning, "this_machine", lambda: "x86")
    model = prepare(onnx.load(str(fp32.model_path)))
    for share, expected in ((0.05, 2), (0.01, 1), (0.001, 0)):  # LeNet's two convolutions have 0.25 and 3.9 %
        speeds = iter((5.0, 9.0))
        monkeypatch.setattr(tuning, "speedup", lambda *arguments, speeds=speeds: next(speeds))
        monkeypatch.setattr(tuning, "_FLOAT_SHARE", share)
        assert tune(model, fp32, "x86").form.float_convolutions == expected


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_start_that_stays_float(count: int) -> None:
    """Exactly so many convolutions have float weights, and the answers are closer to those of the float model."""
    model = rewrite(prepare(_mobile(activation="Relu")), IMAGES).model
    ranges = ranges_of(model, [Batch(IMAGES, ["images"])])
    made = emit_int8(model, ranges, TARGETS["x86"], Form(float_convolutions=count))
    constants = {entry.name for entry in made.graph.initializer}
    floats = [node.name for node in made.graph.node if node.op_type == "Conv" and node.input[1] in constants]
    assert floats == ["a_node", "c_node"][:count]
