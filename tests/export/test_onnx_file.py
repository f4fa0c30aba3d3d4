"""ONNX files that other tools can read: sorted, checked, with the same answers in two runtimes."""

import random

import numpy as np
import onnx
import pytest
from edgekit.deploy.errors import EdgeKitError
from edgekit.export.onnx_file import sort_nodes, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper


def _chain(length: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(length)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", f"t{length}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_any_order_becomes_a_valid_one(generator: random.Random, length: int) -> None:
    """A shuffled graph passes the full check once sorted, with every node kept."""
    model = _chain(length)
    nodes = list(model.graph.node)
    generator.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content = to_bytes(model)
    onnx.checker.check_model(content, full_check=True)
    assert [node.name for node in onnx.load_from_string(content).graph.node] == [f"n{i}" for i in range(length)]


def test_a_valid_order_is_kept() -> None:
    """Sorting does not change a sorted graph: parallel branches keep their places."""
    model = _chain(3)
    model.graph.node.insert(2, helper.make_node("Neg", ["t0"], ["side"], name="side"))
    before = [node.name for node in model.graph.node]
    sort_nodes(model.graph)
    assert [node.name for node in model.graph.node] == before


def test_a_subgraph_depends_on_the_outer_tensors_it_reads() -> None:
    """An If whose branch reads a tensor comes after the node that computes it."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["made"], ["out"])], "b", [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    choose = helper.make_node("If", ["yes"], ["result"], then_branch=branch, else_branch=branch)
    make = helper.make_node("Relu", ["x"], ["made"])
    graph = helper.make_graph(
        [choose, make], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
         helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Relu", "If"]


def test_a_cycle_and_an_invalid_graph_are_errors() -> None:
    """Each is a one-line error without a traceback of onnx."""
    model = _chain(2)
    model.graph.node[0].input[0] = "t2"
    with pytest.raises(EdgeKitError, match="cycle"):
        to_bytes(model)
    model = _chain(2)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EdgeKitError, match="not valid ONNX"):
        to_bytes(model)


def test_an_unsorted_graph_gives_the_same_answers_once_sorted() -> None:
    """ONNX Runtime and ONNX's reference evaluator agree on it."""
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    model = _chain(4)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content = to_bytes(model)
    x = np.asarray([-1.0, 2.0], np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"t0": x})
    np.testing.assert_allclose(ReferenceEvaluator(content).run(None, {"t0": x})[0], np.asarray(expected))
