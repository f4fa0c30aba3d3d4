"""Each operator computes in torch what ONNX Runtime computes."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.errors import EdgeKitError
from edgekit.toolkit.qat.network import GraphNetwork
from edgekit.toolkit.qat.operators import OPERATORS
from edgekit.toolkit.quantize.gate import run_float
from onnx import helper, numpy_helper

_MAKE = np.random.default_rng(0)
_IMAGE = (1, 4, 7, 9)


def _random(*shape: int) -> np.ndarray:
    return _MAKE.normal(size=shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_POSITIVE = np.abs(_random(4)) + 0.5
_KERNEL = {"kernel_shape": [3, 3]}
# operator, attributes, further inputs
_CASES: list[tuple[str, dict[str, Any], list[np.ndarray | None]]] = [
    ("Conv", {}, [_random(6, 4, 3, 3), _random(6)]),
    ("Conv", {"group": 4, "pads": [0, 1, 2, 3], "strides": [2, 1], "dilations": [1, 2]}, [_random(8, 1, 2, 3)]),
    ("Conv", {"auto_pad": "VALID"}, [_random(6, 4, 3, 3)]),
    ("MatMul", {}, [_random(9, 5)]),
    *((name, {}, [_random(4, 1, 1)]) for name in ("Add", "Sub", "Mul", "Div")),
    ("Pow", {}, [np.array(2, np.float32)]),
    *((name, {}, []) for name in ("Erf", "Tanh", "Relu", "Sigmoid", "HardSwish", "Identity")),
    ("Clip", {}, [np.array(-0.5, np.float32), np.array(0.25, np.float32)]),
    ("Clip", {}, [None, np.array(0.25, np.float32)]),
    ("Clip", {}, []),
    ("LeakyRelu", {"alpha": 0.3}, []),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.4}, []),
    ("Softmax", {"axis": 1}, []),
    ("LogSoftmax", {}, []),
    ("MaxPool", {**_KERNEL, "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("MaxPool", {**_KERNEL, "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}, []),
    ("AveragePool", {**_KERNEL, "pads": [1, 1, 1, 1], "strides": [2, 1]}, []),
    ("AveragePool", {**_KERNEL, "pads": [0, 1, 1, 0], "count_include_pad": 1}, []),
    ("GlobalAveragePool", {}, []),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, []),
    ("BatchNormalization", {"epsilon": 1e-3}, [_random(4), _random(4), _random(4), _POSITIVE]),
    ("LayerNormalization", {"axis": -2}, [_random(7, 9), _random(7, 9)]),
    ("Concat", {"axis": 1}, [_random(1, 2, 7, 9)]),
    ("Reshape", {}, [_ints(0, 2, -1)]),
    ("Flatten", {}, []),
    ("Flatten", {"axis": 2}, []),
    ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    ("Unsqueeze", {}, [_ints(0, -1)]),
    ("Squeeze", {}, [_ints(0)]),
    ("Pad", {}, [_ints(0, 1, 2, 0, 0, 0, 1, 3), np.array(0.5, np.float32)]),
    ("Slice", {}, [_ints(1, 0), _ints(100, -2), _ints(2, 3), _ints(2, 1)]),
    ("Split", {"axis": 1}, [_ints(1, 3)]),
]  # fmt: skip


def _model(operator: str, given: dict[str, Any], inputs: list[np.ndarray | None], shape: tuple[int, ...]) -> Any:
    names = ["" if value is None else f"input_{place}" for place, value in enumerate(inputs)]
    outputs = ["first", "second"] if operator == "Split" else ["first"]
    node = helper.make_node(operator, ["image", *names], outputs, "node", **given)
    constants = [numpy_helper.from_array(value, name) for name, value in zip(names, inputs, strict=True) if name]
    graph = helper.make_graph(
        [node], "graph", [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case[0]}-{','.join(case[1])}")
def test_an_operator_computes_what_onnx_runtime_does(case: tuple[str, dict[str, Any], list[np.ndarray | None]]) -> None:
    """With attributes, uneven padding and optional inputs."""
    model, image = _model(*case, _IMAGE), _random(*_IMAGE)
    found = GraphNetwork(model)(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(found, run_float(model, image), rtol=1e-5, atol=1e-5)


def test_a_gemm_has_factors_and_transposed_inputs() -> None:
    """As ONNX defines them, in a float graph."""
    given = {"alpha": 0.5, "beta": 2.0, "transB": 1}
    model, rows = _model("Gemm", given, [_random(5, 9), _random(5)], (1, 9)), _random(1, 9)
    found = GraphNetwork(model)(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(found, run_float(model, rows), rtol=1e-5, atol=1e-6)


def test_every_operator_is_compared() -> None:
    """Except the square root, of which random numbers have none."""
    assert {*OPERATORS} - {case[0] for case in _CASES} == {"Gemm", "Sqrt"}


@pytest.mark.parametrize(("operator", "given", "named"), [
    ("Conv", {"auto_pad": "SAME_UPPER"}, "auto_pad SAME_UPPER"),
    ("Pad", {"mode": "reflect"}, "mode reflect"),
    ("AveragePool", {**_KERNEL, "pads": [0, 1, 1, 0]}, "AveragePool"),
    ("Selu", {}, "Selu"),
])  # fmt: skip
def test_what_is_not_supported_is_refused(operator: str, given: dict[str, Any], named: str) -> None:
    """The error names it, and the alternative."""
    inputs: dict[str, list[np.ndarray | None]] = {"Conv": [_random(6, 4, 3, 3)], "Pad": [_ints(0, 0, 1, 1, 0, 0, 1, 1)]}
    with pytest.raises(EdgeKitError, match=named) as caught:
        GraphNetwork(_model(operator, given, inputs.get(operator, []), _IMAGE))(torch.from_numpy(_random(*_IMAGE)))
    assert "edgekit quantize" in caught.value.fix


@pytest.mark.parametrize("shape", [(1, 2, -1), (1, 4, 63), (7, 4, 9)])
def test_a_reshape_for_one_image_takes_a_batch(shape: tuple[int, ...]) -> None:
    """Exports for one image contain its number in shapes."""
    model = _model("Reshape", {}, [_ints(*shape)], _IMAGE)
    images = _random(3, *_IMAGE[1:])
    found = GraphNetwork(model)(torch.from_numpy(images)).detach().numpy()
    alone = [GraphNetwork(model)(torch.from_numpy(images[index : index + 1])).detach().numpy() for index in range(3)]
    np.testing.assert_array_equal(found, np.concatenate(alone))
