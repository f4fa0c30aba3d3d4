"""Only layers whose sums of two products overflow 16 bits without VNNI get 7-bit weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.integer_run import IntegerRun
from edgekit.toolkit.quantize.observe import Batch, ranges_of
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.saturation import can_saturate, overflowing_layers, saturated_sums
from edgekit.toolkit.quantize.targets import TARGETS, Form
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

IMAGES = np.random.default_rng(1).uniform(0.5, 1, size=(4, 4, 8, 8)).astype(np.float32)


def planted(overflowing: str | None) -> onnx.ModelProto:
    """Four layers, of which the named one has neighbouring weights that are both as large as its largest.

    In the others, each weight is followed by a zero: a single product of 255 and 127 fits into int16.
    """
    generator = np.random.default_rng(0)
    shapes = {"first": (16, 4, 3, 3), "depthwise": (16, 1, 3, 3), "second": (16, 16, 3, 3), "fc": (16, 5)}
    constants, nodes = [], []
    for name, shape in shapes.items():
        weight = np.abs(generator.normal(size=shape)).astype(np.float32)
        if name == "fc":
            weight[1::2] = 0
        elif name != "depthwise":
            weight[:, 1::2] = 0
        if name == overflowing:
            weight[...] = weight.max()
        constants.append(numpy_helper.from_array(weight / weight.sum(), f"{name}_w"))
    for name, source, groups in (("first", "image", 1), ("depthwise", "first", 16), ("second", "depthwise", 1)):
        pads = {"pads": [1, 1, 1, 1], "group": groups}
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [name], name, **pads))
    nodes += [
        helper.make_node("GlobalAveragePool", ["second"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "fc_w"], ["logits"], "fc"),
    ]
    graph = helper.make_graph(
        nodes, "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])], constants,
    )  # fmt: skip
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def emitted(model: onnx.ModelProto, seven_bits: tuple[str, ...] = (), target: str = "x86-avx2") -> onnx.ModelProto:
    """The int8 graph of a model, calibrated on IMAGES."""
    ranges = ranges_of(model, [Batch(IMAGES, ["uniform"])])
    return emit_int8(model, ranges, TARGETS[target], Form(seven_bits=frozenset(seven_bits)))


def _largest(model: onnx.ModelProto) -> dict[str, int]:
    return {
        layer.name: int(np.abs(layer.weights.astype(int)).max()) for layer in IntegerRun(model, signed=False).layers
    }


@pytest.mark.parametrize("overflowing", ["first", "second", "fc"])
def test_only_the_overflowing_layer_gets_seven_bits(overflowing: str) -> None:
    """The others keep the largest stored number 127."""
    model = planted(overflowing)
    found = overflowing_layers(emitted(model), [IMAGES])
    assert list(found.counts) == [overflowing]
    assert found.counts[overflowing] > 0
    assert found.layers == 4
    assert found.remarks == ("7-bit weights in 1 of 4 layers: their sums could overflow on CPUs without VNNI",)
    final = emitted(model, tuple(found.counts))
    assert _largest(final) == {name: 64 if name == overflowing else 127 for name in _largest(final)}
    assert not overflowing_layers(final, [IMAGES]).counts


@pytest.mark.parametrize("overflowing", [None, "depthwise"])
def test_no_layer_gets_seven_bits_without_overflow(overflowing: str | None) -> None:
    """Depthwise kernels multiply in 16 bits and add in 32, so their weights do not count."""
    found = overflowing_layers(emitted(planted(overflowing)), [IMAGES])
    assert found == ({}, 4)
    assert found.remarks == ()


def test_small_inputs_do_not_overflow() -> None:
    """Large weights alone are not enough: calibration images decide."""
    quantized = emitted(planted("first"))
    assert any(map(can_saturate, IntegerRun(quantized, signed=False).layers))
    assert not overflowing_layers(quantized, [IMAGES / 4]).counts


@given(seed=st.integers(0, 10_000), groups=st.sampled_from([1, 2]), length=st.integers(1, 9))
@settings(max_examples=40)
def test_saturated_sums_are_those_of_the_instruction(seed: int, groups: int, length: int) -> None:
    """Each pair is added in int16 with saturation, an odd last number alone; then in int32."""
    generator = np.random.default_rng(seed)
    layer = IntegerRun(emitted(planted("first")), signed=False).layers[0]
    weights = generator.integers(-127, 128, size=(groups, length, 3)).astype(np.int8)
    layer = layer._replace(weights=weights)
    columns = generator.integers(0, 256, size=(2, groups, 5, length)).astype(np.uint8)
    expected = np.zeros((2, groups, 5, 3))
    for start in range(0, length, 2):
        pair = slice(start, start + 2)
        products = columns[..., pair].astype(int) @ weights[:, pair].astype(int)
        expected += np.clip(products, -(1 << 15), (1 << 15) - 1)
    assert (saturated_sums(layer, columns) == expected).all()
    if not can_saturate(layer):
        assert (layer.sums(columns) == expected).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_the_bound_on_weights_is_sound_and_tight(seed: int) -> None:
    """A layer that cannot saturate does not for the inputs 0 and 255; one that can does for some of them."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(-100, 101, size=(1, 2, 1)).astype(np.int8)
    layer = IntegerRun(emitted(planted("first")), signed=False).layers[0]._replace(weights=weights)
    columns = np.array([[[[0, 0], [0, 255], [255, 0], [255, 255]]]], np.uint8)
    saturates = bool((saturated_sums(layer, columns) != layer.sums(columns)).any())
    assert can_saturate(layer) == saturates


def test_quantize_reports_the_layers_with_seven_bits(fp32: Bundle, tmp_path: Path) -> None:
    """In the manifest and in a remark; other targets have none."""
    result = quantize(fp32, QuantizeOptions(target="x86-avx2"), out=tmp_path / "avx2")
    seven = result.bundle.manifest.details["seven_bits"]
    largest = _largest(onnx.load(str(result.bundle.model_path)))
    assert {name for name, number in largest.items() if number <= 64} == set(seven)
    assert any("7-bit weights in" in remark for remark in result.remarks) == bool(seven)
    other = quantize(fp32, QuantizeOptions(target="x86"), out=tmp_path / "x86")
    assert other.bundle.manifest.details["seven_bits"] == {}
