"""The contract of every session, parametrized over the runtime registry."""

import platform
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.gpu import find_gpu
from edgekit.deploy.engine.layers import REFORMAT, Layer
from edgekit.deploy.errors import BundleError, DeviceError, RecipeError
from edgekit.deploy.parity import compare, replay
from edgekit.deploy.runtimes.onnxruntime import PROVIDERS, read_layers
from edgekit.deploy.runtimes.runtime import RUNTIMES, Runtime, all_runtimes, formats
from edgekit.deploy.session import in_batches_of, load, open_session
from edgekit.export.export_bundle import export_bundle
from edgekit.export.formats import FORMATS
from edgekit.toolkit.building.build import build
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from hypothesis import given
from hypothesis import strategies as st

from tests.needs import need_converter

# converting to LiteRT takes 20 s
_MARKS = {
    "tensorrt": pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU"),
    "litert": pytest.mark.slow,
}


_PAIRS = [(runtime, format) for runtime in all_runtimes() for format in runtime.formats if runtime.installed]
_NAMES = [f"{runtime.name}-{format}" for runtime, format in _PAIRS]


def _bundle(format: str, trained: Bundle, folder: Path) -> Bundle:
    if format == "tensorrt":
        (engine,) = build(export_bundle(trained, "onnx", folder / "onnx"), out=folder / "engine")
        return engine
    need_converter(format)
    return trained if format == "torch" else export_bundle(trained, format, folder / "exported")


def test_every_format_has_a_runtime() -> None:
    """Every format that can be exported can be run."""
    assert set(FORMATS) < set(formats(RUNTIMES))


@pytest.mark.parametrize(
    ("runtime", "format"),
    [pytest.param(*pair, marks=_MARKS.get(pair[1], ())) for pair in _PAIRS],
    ids=_NAMES,
)
def test_session_contract(runtime: Runtime, format: str, trained: Bundle, tmp_path: Path) -> None:
    """Any batch size works; logits are float32, equal the golden ones, and do not depend on the batch."""
    bundle = _bundle(format, trained, tmp_path)
    options = {"threads": 1} if "threads" in runtime.option_names() else {}
    session = load(bundle.path, runtime.name, **options)
    golden = bundle.golden()
    assert session.facts["runtime"]
    assert session.facts["threads"] == options.get("threads")
    one, five = session.run(golden.tensors[:1]), session.run(golden.tensors[:5])
    assert one.dtype == five.dtype == np.float32
    assert one.shape == (1, 10)
    np.testing.assert_allclose(one, five[:1], atol=1e-4)
    assert compare(golden, session.run(golden.tensors)).exact
    assert replay(bundle, session.run).same_input
    session.close()


def test_a_format_without_a_runtime_is_named(fp32: Bundle) -> None:
    """The error suggests the nearest format."""
    import dataclasses

    strange = dataclasses.replace(fp32, manifest=dataclasses.replace(fp32.manifest, format="onxn"))
    with pytest.raises(BundleError, match="did you mean onnx"):
        open_session(strange)


@pytest.mark.parametrize(("runtime", "format"), _PAIRS, ids=_NAMES)
def test_an_invalid_model_file_is_refused(runtime: Runtime, format: str, trained: Bundle, tmp_path: Path) -> None:
    """A broken model file in a valid bundle is a one-line BundleError, not a traceback."""
    import dataclasses

    (tmp_path / "model").write_bytes(b"not a model at all")
    manifest = dataclasses.replace(trained.manifest, format=format, model="model")
    with pytest.raises(BundleError) as caught:
        open_session(Bundle(tmp_path, manifest, "x"), runtime.name)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 5)))
def test_in_batches_of(count: int, size: int | None) -> None:
    """A model with a fixed batch size gets exactly that many images; no answer is lost or added."""
    batch = np.arange(count, dtype=np.float32)[:, None]

    def run(part: np.ndarray) -> np.ndarray:
        assert size is None or len(part) == size
        return part * 2

    np.testing.assert_array_equal(in_batches_of(size, batch, run), batch * 2)


def test_a_missing_provider_is_refused(fp32: Bundle) -> None:
    """The error names the provider; for an unknown name it suggests the nearest."""
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider"):
        open_session(fp32, provider="cuda")
    with pytest.raises(RecipeError, match="did you mean cuda"):
        open_session(fp32, provider="cude")


def test_a_silent_fallback_to_the_cpu_is_refused(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's cloud provider supports no operator of a local model: all silently run on the CPU."""
    monkeypatch.setitem(PROVIDERS, "cuda", "AzureExecutionProvider")
    with pytest.raises(DeviceError, match=r"leaves (\d+) of \1 operators .* to the CPU: .*Conv"):
        open_session(fp32, provider="cuda")
    session = open_session(fp32, provider="cuda", allow_fallback=True)
    assert session.facts["placement"].keys() == {"CPUExecutionProvider"}
    assert len(session.run(fp32.golden().tensors)) == len(fp32.golden().logits)


@pytest.mark.parametrize(("provider", "option"), [("xnnpack", "intra_op_num_threads"), ("dnnl", "num_of_threads")])
def test_providers_for_cpus_get_their_threads_and_no_silent_fallback(
    fp32: Bundle, monkeypatch: pytest.MonkeyPatch, provider: str, option: str
) -> None:
    """Without them in the build, the error names what it has; planted, all operators fall to the CPU: refused."""
    with pytest.raises(DeviceError, match=r"here has no \w+, only .*CPUExecutionProvider") as caught:
        open_session(fp32, provider=provider)
    assert f"--use_{provider}" in caught.value.fix
    settings = []
    real = onnxruntime.InferenceSession

    def opened(*given: object, providers: list, **more: object) -> onnxruntime.InferenceSession:
        settings.append(dict(providers))
        return real(*given, providers=[name for name, _ in providers], **more)

    monkeypatch.setitem(PROVIDERS, provider, "AzureExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(DeviceError, match=r"leaves (\d+) of \1 operators"):
        open_session(fp32, provider=provider, threads=2)
    assert settings == [{"AzureExecutionProvider": {option: "2"}, "CPUExecutionProvider": {}}]


def test_spinning_is_switched_off(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting reaches ONNX Runtime, the session reports it, and the logits stay the same."""
    seen = []
    real = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions, "add_session_config_entry",
        lambda self, key, value: (seen.append((key, value)), real(self, key, value)),
    )  # fmt: skip
    sessions = [open_session(fp32, threads=2, spinning=spinning) for spinning in (True, False)]
    assert seen == [("session.intra_op.allow_spinning", "0")]
    assert [session.facts["spinning"] for session in sessions] == [True, False]
    tensors = fp32.golden().tensors
    np.testing.assert_array_equal(*(session.run(tensors) for session in sessions))


def test_a_float16_model_reports_the_precision_that_it_runs_in(fp32: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime casts it to float32 on CPUs without float16 arithmetic, as on x86; other models report none."""
    assert open_session(fp32).facts["layers"] is None
    half = quantize(fp32, QuantizeOptions(precision="fp16"), out=tmp_path / "half").bundle
    layers = open_session(half, threads=1).facts["layers"]
    assert {"Conv", "MaxPool"} <= {layer["type"].removeprefix("Fused") for layer in layers["layers"]}
    if platform.machine() in ("x86_64", "AMD64"):
        assert layers["precisions"].keys() == {"fp32"}


def test_layers_are_read_from_a_profile() -> None:
    """By the type of the first tensor that an operator reads; casts and layouts only reformat."""
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "args": {"provider": "p", "op_name": name, **more}}
        for name, more in (
            ("NhwcFusedConv", {"input_type_shape": [{"float16": [1, 8, 8, 3]}, {"float16": [4, 3, 3, 3]}]}),
            ("Transpose", {"input_type_shape": [{"float16": [1, 3, 8, 8]}]}),
            ("ReduceMean", {"input_type_shape": [{"float": [1, 4, 8, 8]}]}),
            ("Custom", {}),
        )
    ]
    assert read_layers([*events, {"cat": "Node", "name": "fence", "args": {}}, events[0]]) == [
        Layer("NhwcFusedConv", "NhwcFusedConv", "fp16"), Layer("Transpose", REFORMAT, "fp16"),
        Layer("ReduceMean", "ReduceMean", "fp32"), Layer("Custom", "Custom", "unknown"),
    ]  # fmt: skip


def test_placement_is_read_from_a_profile() -> None:
    """Each node counts once, for its provider; other events do not count."""
    from edgekit.deploy.runtimes.onnxruntime import read_placement

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
