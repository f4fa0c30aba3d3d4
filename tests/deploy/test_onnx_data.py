"""External files of an ONNX model are found without the onnx package, wherever a tensor can occur."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.errors import BundleError
from edgekit.deploy.onnx_data import external_files
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


def _external(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def _graph(**parts: list) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["y"], **{"value": parts["constant"]} if "constant" in parts else {})
    nodes = [node, *parts.get("nodes", [])]
    return helper.make_graph(nodes, "g", [], [], initializer=parts.get("initializers", []))


def test_every_place_of_a_tensor_is_read(tmp_path: Path) -> None:
    """Tensors occur in initializers, constants, subgraphs, sparse tensors and functions."""
    inner = _graph(initializers=[_external("inner.bin")])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    graph = _graph(initializers=[_external("a.bin")], constant=_external("../b.bin"), nodes=[branch])  # type: ignore[arg-type]
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(_external("sparse.bin"))
    function = helper.make_function(
        "d", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=_external("/etc/f.bin"))], []
    )
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    files = external_files(tmp_path / "m.onnx")
    assert files == {"a.bin", "../b.bin", "inner.bin", "sparse.bin", "/etc/f.bin"}


def test_a_self_contained_model_has_none() -> None:
    """EdgeKit writes only such models."""
    assert external_files(Path(__file__).parent.parent / "data" / "lenet-int8" / "model.onnx") == set()


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 73_000), value=st.integers(0, 255), cut=st.integers(0, 73_659))
def test_damaged_bytes_are_refused_or_read(at: int, value: int, cut: int) -> None:
    """There is no other error and no endless loop."""
    source = Path(__file__).parent.parent / "data" / "lenet-int8" / "model.onnx"
    content = bytearray(source.read_bytes())
    content[at] = value
    path = Path(_scratch) / "m.onnx"
    path.write_bytes(content[:cut] if cut % 2 else content)
    try:
        assert isinstance(external_files(path), set)
    except BundleError:
        return


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _scratch
    _scratch = str(tmp_path_factory.mktemp("onnx"))


_scratch = ""
