"""A network with fake quantization computes what the int8 file computes, and trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.qat.network import GraphNetwork, Stored, weight_scale
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.gate import run_float
from edgekit.toolkit.quantize.grid import activation_grid, for_bias, weight_grid
from edgekit.toolkit.quantize.operators import COMPUTE
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.rewrite import rewrite
from edgekit.toolkit.quantize.rewrites.graph import arrays, with_constants
from edgekit.toolkit.quantize.targets import TARGETS, Form
from edgekit.toolkit.quantize.tune import golden_ranges
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as random_arrays
from onnx import helper


def _graphs(bundle: Bundle, target: str, form: Form | None = None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float graph and the int8 graph for a target."""
    source = prepare(onnx.load(str(bundle.model_path)))
    if TARGETS[target].rewrites:
        source = rewrite(source, bundle.golden().tensors[:2]).model
    return source, emit_int8(source, golden_ranges(source, bundle), TARGETS[target], form)


def _all_values(model: onnx.ModelProto, tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of a model, as ONNX Runtime computes it without optimisations."""
    import onnxruntime

    names = [name for node in model.graph.node for name in node.output]
    every = onnx.ModelProto()
    every.CopyFrom(model)
    known = {entry.name for entry in every.graph.output}
    every.graph.output.extend(helper.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(every.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [entry.name for entry in session.get_outputs()]
    entry = session.get_inputs()[0].name
    return {entry: tensors, **dict(zip(outputs, session.run(None, {entry: tensors}), strict=True))}


def _compare_each_step(source: onnx.ModelProto, int8: onnx.ModelProto, tensor: np.ndarray, form: Form | None) -> None:
    """Each step of the network, from ONNX Runtime's values: small differences would grow from layer to layer."""
    network = GraphNetwork(source, int8, form.seven_bits if form else ())
    found, constants = _all_values(int8, tensor), arrays(int8.graph)
    quantizes = {node.output[0]: node for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    scales = {name: float(constants[node.input[1]]) for name, node in quantizes.items()}
    for name, node in quantizes.items():
        found[name] = (found[name].astype(np.float64) - constants[node.input[2]]) * scales[name]
    values = {**constants, **found}
    tensors = {
        name: torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else value.dtype))
        for name, value in values.items()
    }
    dequantized = {node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    assert len(network.steps) >= len(quantizes)
    for step in network.steps:
        with torch.inference_mode():
            results = network.run_step(step, tensors)
        for name, result in results.items():
            difference = np.abs(result.numpy() - values[name])
            if name in scales:
                assert difference.max() <= 1.01 * scales[name], name
                assert (difference > 0.5 * scales[name]).mean() < 1e-3, name
            elif name not in dequantized:
                # a weight halfway between two numbers may be rounded to the other one; without rounding it is 1e-3
                assert difference.mean() <= 1e-4 * np.abs(values[name]).max() + 1e-7, name


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt", "openvino"])
def test_logits_are_those_of_the_file(fp32: Bundle, target: str) -> None:
    """The same class for each golden sample, and a small part of the noise of the quantization itself."""
    source, int8 = _graphs(fp32, target)
    golden = fp32.golden()
    with torch.inference_mode():
        found = GraphNetwork(source, int8)(torch.from_numpy(golden.tensors)).numpy()
    expected = run_float(int8, golden.tensors)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).mean() < 0.2 * np.abs(golden.logits - expected).mean()
    _compare_each_step(source, int8, golden.tensors[:1], None)


_SLOW = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x1_0")


@pytest.mark.parametrize("name", ["cnn23", "convnet", *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW)])
def test_each_operation_is_that_of_the_file(untrained: Callable[..., Bundle], tmp_path: Path, name: str) -> None:
    """With 7-bit weights in half of the layers, a float layer, folded factors, residual sums and channel shuffles."""
    bundle = export_bundle(untrained(name, tmp_path / "made"), "onnx", tmp_path / "onnx")
    source, _ = _graphs(bundle, "x86")
    layers = [node.name for node in source.graph.node if node.op_type in COMPUTE]
    form = Form(seven_bits=frozenset(layers[::2]), float_layers=frozenset(layers[1:2]))
    int8 = emit_int8(source, golden_ranges(source, bundle), TARGETS["x86"], form)
    _compare_each_step(source, int8, bundle.golden().tensors[:1], form)


def test_what_is_trained_is_written(fp32: Bundle) -> None:
    """After a step of training, the file that is written with the new weights gives the network's logits."""
    source, int8 = _graphs(fp32, "x86")
    network, golden = GraphNetwork(source, int8), fp32.golden()
    tensors, targets = torch.from_numpy(golden.tensors), torch.from_numpy(golden.logits.argmax(axis=1))
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(network(tensors), targets)
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = with_constants(source, network.trained())
    # the ranges are those of the weights before
    written = emit_int8(changed, golden_ranges(source, fp32), TARGETS["x86"])
    before, expected = run_float(int8, golden.tensors), run_float(written, golden.tensors)
    with torch.inference_mode():
        found = network(tensors).numpy()
    assert np.abs(found - expected).max() < 0.1 * np.abs(before - expected).max()


@given(
    random_arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5),
                  elements=st.floats(-8, 8, width=32) | st.just(0.0) | st.just(1e-38)),
    st.sampled_from([None, 0, 1]), st.sampled_from([64, 127]), st.floats(1e-6, 10), st.floats(1e-6, 1e6),
)  # fmt: skip
def test_scales_are_the_quantizers(
    weight: np.ndarray, axis: Any, largest: int, high: float, factor: float
) -> None:  # fmt: skip
    """Also for channels of zeros or tiny numbers, and for large biases."""
    activation = activation_grid(0.0, high, "uint8")
    bias = np.linspace(-factor, factor, weight.shape[axis or 0], dtype=np.float32)
    expected = for_bias(weight_grid(weight, axis, largest), bias, activation)
    stored = Stored(axis, largest, float(activation.scale))
    found = weight_scale(torch.from_numpy(weight), torch.from_numpy(bias), stored)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.scale, rtol=1e-6)
