"""The contract of every session, parametrised over the registry."""

from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.gpu import look
from edgekit.deploy.errors import BundleError, DeviceError, RecipeError
from edgekit.deploy.parity import compare, replay
from edgekit.deploy.session import PROVIDERS, RUNTIMES, SessionOptions, in_batches_of, load, open_session
from edgekit.export.export_bundle import export_bundle
from edgekit.export.formats import FORMATS
from edgekit.toolkit.building.build import build
from hypothesis import given
from hypothesis import strategies as st

_NO_GPU = pytest.mark.skipif(look() is None, reason="no NVIDIA GPU here")


@pytest.fixture(params=[pytest.param(name, marks=_NO_GPU if name == "tensorrt" else ()) for name in sorted(RUNTIMES)])
def bundle(request: pytest.FixtureRequest, trained: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of each format that has a runtime."""
    if request.param == "tensorrt":
        (engine,) = build(export_bundle(trained, "onnx", tmp_path / "onnx"), out=tmp_path / "engine")
        return engine
    return trained if request.param == "torch" else export_bundle(trained, request.param, tmp_path / "exported")


def test_every_format_has_a_runtime() -> None:
    """What can be exported can be run."""
    assert set(FORMATS) < set(RUNTIMES)


def test_session_contract(bundle: Bundle) -> None:
    """Any number of images from 1, float32 logits, the same for an image whatever is beside it, and the golden ones."""
    session = load(bundle.path, SessionOptions(threads=1))
    golden = bundle.golden()
    assert session.facts["runtime"]
    assert session.facts["threads"] == 1
    one, five = session.run(golden.tensors[:1]), session.run(golden.tensors[:5])
    assert one.dtype == five.dtype == np.float32
    assert one.shape == (1, 10)
    np.testing.assert_allclose(one, five[:1], atol=1e-4)
    assert compare(golden, session.run(golden.tensors)).exact
    assert replay(bundle, session.run).same_input
    session.close()


def test_a_format_without_a_runtime_is_named(fp32: Bundle) -> None:
    """With what there is."""
    import dataclasses

    strange = dataclasses.replace(fp32, manifest=dataclasses.replace(fp32.manifest, format="onxn"))
    with pytest.raises(BundleError, match="did you mean onnx"):
        open_session(strange)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_model_file_that_is_none_is_refused(name: str, trained: Bundle, tmp_path: Path) -> None:
    """A whole bundle around a broken model file is an error of the bundle, not a trace."""
    import dataclasses

    (tmp_path / "model").write_bytes(b"not a model at all")
    manifest = dataclasses.replace(trained.manifest, format=name, model="model")
    with pytest.raises(BundleError):
        open_session(Bundle(tmp_path, manifest, "x"))


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 5)))
def test_in_batches_of(count: int, size: int | None) -> None:
    """A model of a fixed batch sees exactly that many images, and no answer is lost or invented."""
    batch = np.arange(count, dtype=np.float32)[:, None]

    def run(part: np.ndarray) -> np.ndarray:
        assert size is None or len(part) == size
        return part * 2

    np.testing.assert_array_equal(in_batches_of(size, batch, run), batch * 2)


def test_a_provider_that_is_not_here_is_refused(fp32: Bundle) -> None:
    """With what installs it; a name that is none, with the nearest."""
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider"):
        open_session(fp32, SessionOptions(provider="cuda"))
    with pytest.raises(RecipeError, match="did you mean cuda"):
        open_session(fp32, SessionOptions(provider="cude"))


def test_a_silent_fallback_to_the_cpu_is_refused(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's cloud provider takes no operator of a local model: all of them run on the CPU, unsaid."""
    monkeypatch.setitem(PROVIDERS, "cuda", "AzureExecutionProvider")
    with pytest.raises(DeviceError, match=r"leaves (\d+) of \1 operators .* to the CPU: .*Conv"):
        open_session(fp32, SessionOptions(provider="cuda"))
    session = open_session(fp32, SessionOptions(provider="cuda", allow_fallback=True))
    assert session.facts["placement"].keys() == {"CPUExecutionProvider"}
    assert len(session.run(fp32.golden().tensors)) == len(fp32.golden().logits)


def test_placement_is_read_from_a_profile() -> None:
    """Each node once, by its provider; what is no node's run does not count."""
    from edgekit.deploy.runtimes.ort import read_placement

    def event(name: str, provider: str, op: str) -> dict:
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": {"provider": provider, "op_name": op}}

    events = [
        {"cat": "Session", "name": "model_run"}, {"cat": "Node", "name": "fence", "args": {}},
        event("/conv", "CUDAExecutionProvider", "Conv"), event("/conv", "CUDAExecutionProvider", "Conv"),
        event("/shape", "CPUExecutionProvider", "Shape"),
    ]  # fmt: skip
    assert read_placement(events) == {
        "CUDAExecutionProvider": ["Conv /conv"], "CPUExecutionProvider": ["Shape /shape"]
    }  # fmt: skip
