"""Engines: building them, refusing them, running them on a simulated GPU, and listing their layers.

The simulated GPU is a CUDA driver in C (tests/simulated), which the real cuda-bindings call. A simulated TensorRT uses
it, with engines that ONNX Runtime computes. The real compiler is tested with TensorRT for RTX, which compiles without a
GPU.
"""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle, Draft
from edgekit.deploy.documents import read
from edgekit.deploy.engine import passport
from edgekit.deploy.engine.build import Options, batch_spread, build
from edgekit.deploy.engine.gpu import Gpu
from edgekit.deploy.engine.layers import Layer, parse_json, parse_text, summarize
from edgekit.deploy.engine.library import Library, progress_monitor
from edgekit.deploy.engine.passport import Passport, check, check_system
from edgekit.deploy.errors import BundleError, DeviceError, EngineError, RecipeError
from edgekit.deploy.manifest import MANIFEST
from hypothesis import given
from hypothesis import strategies as st

from tests.needs import make_ssh_keys

SIMULATED = Path(__file__).parent.parent / "simulated"
ORIN = Gpu("Orin", "8.7", 8 << 30, "12.6", "540.4.0")
Run = Callable[..., subprocess.CompletedProcess[str]]


def _silent(stage: str, share: float) -> None:
    """Ignore progress."""


@pytest.fixture(scope="session")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The committed fp32 bundle, compiled for two GPUs by TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx_bindings")
    path = tmp_path_factory.mktemp("rtx") / "engine"
    source = Bundle.open(Path(__file__).parent.parent / "data/lenet-fp32")
    build(source, path, Options(compute_capabilities=("8.6", "8.9")), _silent, named="runs/002-lenet")
    return Bundle.open(path)


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated driver's folder."""
    if shutil.which("cc") is None or importlib.util.find_spec("cuda") is None:
        pytest.skip("the simulated GPU needs a C compiler and cuda-bindings")
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-shared", "-fPIC", "-w", str(SIMULATED / "libcuda.c"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-ldl"], check=True)
    return folder


@pytest.fixture
def edgekit(edgekit_process: Run) -> Run:
    """Run in a separate process, whose environment names the simulated driver and TensorRT."""
    return edgekit_process


@pytest.fixture
def gpu(libcuda: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Make commands see a GPU and a TensorRT, which SIMULATED_… variables change."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
    monkeypatch.setenv("PYTHONPATH", str(SIMULATED))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def _with_passport(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """Copy an engine with changed passport entries and correct hashes."""
    shutil.copytree(bundle.path, path)
    manifest = bundle.manifest
    entry = {**manifest.requires["tensorrt"], **changes}
    (path / MANIFEST).unlink()
    Draft(path).finish(dataclasses.replace(manifest, requires={"tensorrt": entry}))
    return Bundle.open(path)


def _for_orin(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """Copy an engine that claims to be built by TensorRT for an Orin."""
    claims = {"flavour": "tensorrt", "version": "10.3.0", "compute_capabilities": ["8.7"], "cuda": "12.6"}
    return _with_passport(bundle, path, **{**claims, **changes})


# --- passports ---


def test_a_passport_describes_its_engine(rtx_engine: Bundle) -> None:
    """It is read from the manifest and agrees with the header of a real engine."""
    checked = check_system(rtx_engine)
    assert checked.flavour == "tensorrt-rtx"
    assert checked.compute_capabilities == ("8.6", "8.9")
    assert checked.gpu == checked.driver == "unavailable"
    assert checked.onnx_sha256


@pytest.mark.parametrize(
    ("changes", "library", "gpu", "message"),
    [
        ({}, ("tensorrt-rtx", "1.7.1.116"), ORIN, "requires tensorrt, but tensorrt-rtx is installed"),
        ({}, ("tensorrt", "10.4.0"), ORIN, "built with tensorrt 10.3.0; 10.4.0 is installed"),
        ({}, ("tensorrt", "8.6.1"), ORIN, "8.6.1 is installed"),
        ({"version_compatible": True}, ("tensorrt", "10.2.0"), ORIN, "10.2.0 is installed"),
        ({"version_compatible": True}, ("tensorrt", "12.0.0"), ORIN, "12.0.0 is installed"),
        ({"flavour": "tensorrt-rtx", "version_compatible": True}, ("tensorrt-rtx", "10.4.0"), ORIN,
         "10.4.0 is installed"),
        ({}, ("tensorrt", "10.3.0"), None, "needs an NVIDIA GPU of compute capability 8.7"),
        ({}, ("tensorrt", "10.3.0"), dataclasses.replace(ORIN, compute_capability="8.9"), "the Orin here has 8.9"),
        ({"hardware_compatible": True}, ("tensorrt", "10.3.0"), dataclasses.replace(ORIN, compute_capability="7.5"),
         "8.0 or newer"),
        ({"cuda": "13.0"}, ("tensorrt", "10.3.0"), ORIN, "driver for CUDA 13.0; the driver here supports 12.6"),
    ],
)  # fmt: skip
def test_a_foreign_engine_is_refused(
    rtx_engine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, library: tuple, gpu: Gpu | None,
    message: str,
) -> None:  # fmt: skip
    """It needs another product, version, GPU or driver; the fix is the command that rebuilds it on the device."""
    monkeypatch.setattr(passport, "check_system", lambda bundle, device=None: Passport.of(bundle))
    engine = _for_orin(rtx_engine, tmp_path / "engine", **changes)
    with pytest.raises(EngineError, match=message) as caught:
        check(engine, Library(None, *library), gpu, "ssh://pi@jetson")
    if gpu is not None:
        command = "edgekit build runs/002-lenet --compute-capability 8.6,8.9 --device ssh://pi@jetson"
        assert caught.value.fix.endswith(command)


@pytest.mark.parametrize(
    ("changes", "version", "capability"),
    [({}, "10.3.0", "8.7"), ({}, "10.3.0.30", "8.7"), ({"version_compatible": True}, "10.16.1.11", "8.7"),
     ({"version_compatible": True}, "11.4.0", "8.7"), ({"hardware_compatible": True}, "10.3.0", "12.0")],
)  # fmt: skip
def test_a_compatible_engine_is_accepted(
    rtx_engine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, version: str, capability: str
) -> None:
    """According to the support matrix, version-compatible engines of TensorRT 10 load in 10 and 11."""
    monkeypatch.setattr(passport, "check_system", lambda bundle, device=None: Passport.of(bundle))
    engine = _for_orin(rtx_engine, tmp_path / "engine", **changes)
    check(engine, Library(None, "tensorrt", version), dataclasses.replace(ORIN, compute_capability=capability))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"system": "Windows"}, "was built for Windows"), ({"machine": "aarch64"}, "was built for Linux on aarch64"),
     ({"version": "1.6.1.120"}, "header says version 1.7.1.116, its passport 1.6.1.120")],
)  # fmt: skip
def test_system_and_header_are_checked(rtx_engine: Bundle, tmp_path: Path, changes: dict, message: str) -> None:
    """They are checked before any library is loaded."""
    with pytest.raises(EngineError, match=message):
        check_system(_with_passport(rtx_engine, tmp_path / "engine", **changes))


@given(entry=st.dictionaries(st.sampled_from([*Passport.__dataclass_fields__]), st.integers() | st.none() | st.text()))
def test_no_passport_gives_a_traceback(rtx_engine: Bundle, entry: dict) -> None:
    """Any value of any entry is accepted or is an error with a fix."""
    requires = {"tensorrt": {**rtx_engine.manifest.requires["tensorrt"], **entry}}
    bundle = dataclasses.replace(rtx_engine, manifest=dataclasses.replace(rtx_engine.manifest, requires=requires))
    try:
        check_system(bundle)
    except BundleError as error:
        assert "edgekit build" in error.fix


# --- building ---


@pytest.mark.parametrize(
    "changes",
    [{"batch": (8, 1, 32)}, {"batch": (0, 1, 2)}, {"workspace_mb": 0}, {"optimization_level": 6},
     {"compute_capabilities": ("sm86",)}, {"compute_capabilities": ("8.6", "8.6")}],
)  # fmt: skip
def test_options_out_of_range_are_refused(changes: dict) -> None:
    """The error is raised when they are created."""
    with pytest.raises(RecipeError):
        Options(**changes)


def test_options_survive_serialization() -> None:
    """They become JSON, or arguments of the command that rebuilds the engine."""
    options = Options((1, 8, 32), 512, 5, strip_weights=True, compute_capabilities=("8.6", "8.9"))
    assert read(Options, json.loads(json.dumps(dataclasses.asdict(options)))) == options
    command = "--batch 1,8,32 --workspace 512 --opt-level 5 --strip-weights --compute-capability 8.6,8.9"
    assert options.arguments() == command.split()


def test_a_failed_build_leaves_nothing(fp32: Bundle, int8: Bundle, tmp_path: Path) -> None:
    """The parser's error with its node, an unsupported GPU, an option of another product, no GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    for source, options, error, message in (
        (
            int8,
            Options(compute_capabilities=("8.6",)),
            EngineError,
            "image_QuantizeLinear: .*zero point",
        ),
        (fp32, Options(compute_capabilities=("8.7",)), DeviceError, "does not build for compute capability 8.7"),
        (fp32, Options(compute_capabilities=("8.6",), version_compatible=True), DeviceError, "run only on the release"),
        (fp32, Options(compute_capabilities=("8.6",), batch=(1, 2, 4)), BundleError, "fixed batch size of 1"),
        (fp32, Options(), DeviceError, "no NVIDIA GPU here to build for"),
    ):
        with pytest.raises(error, match=message):
            build(source, tmp_path / "engine", options, _silent)
        assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, *"abc"]), st.integers(0, 5)), max_size=12))
def test_progress_never_decreases(phases: list[tuple[str, str | None, int]]) -> None:
    """A build may report any phases in any nesting."""

    class Trt:
        IProgressMonitor = object

    shown: list[float] = []
    monitor = progress_monitor(Trt, shown.append)
    for name, parent, steps in phases:
        monitor.phase_start(name, parent, steps)
        for step in range(steps):
            assert monitor.step_complete(name, step)
        monitor.phase_finish(name)
    assert shown == sorted(shown)
    assert all(0 <= share <= 1 for share in shown)


def test_batch_spread_detects_a_deviating_row() -> None:
    """Rows are compared within one batch and between batches."""
    tensor = np.ones((1, 3, 2, 2), np.float32)
    assert batch_spread(lambda batch: batch.reshape(len(batch), -1), tensor, [1, 4]) == 0
    uneven = batch_spread(lambda batch: batch.reshape(len(batch), -1) + np.arange(len(batch))[:, None], tensor, [1, 4])
    assert uneven == 3
    assert batch_spread(lambda batch: batch.reshape(len(batch), -1) * len(batch), tensor, [1, 4]) == 3
    assert np.isnan(batch_spread(lambda batch: batch.reshape(len(batch), -1) * np.nan, tensor, [2]))


# --- layers ---


def test_layers_of_a_real_engine(rtx_engine: Bundle) -> None:
    """The builder lists them, so no GPU is needed to load the engine."""
    engine = rtx_engine.manifest.details["engine"]
    assert engine["precisions"] == {"fp32": len(engine["layers"])}
    assert any("Conv" in layer["name"] for layer in engine["layers"])


def test_layers_are_read_in_every_format() -> None:
    """The JSON of TensorRT 10 and of 11, names alone, and a builder's text."""
    ten = {"Layers": [
        {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat",
         "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}]},
        {"Name": "conv1 + relu", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9},
         "Inputs": [{"Name": "q", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}]},
        {"Name": "pool", "LayerType": "CaskPooling", "Inputs": [{"Name": "y", "Format/Datatype": "Half"}]},
    ]}  # fmt: skip
    eleven = {
        "Layers": [{"Name": "gemm", "LayerType": "gemm", "Inputs": [{"Datatype": "BFloat16", "Format": "Linear"}]}]
    }
    assert parse_json(json.dumps(ten))[1:] == [
        Layer("conv1 + relu", "CaskConvolution", "int8"), Layer("pool", "CaskPooling", "fp16")
    ]  # fmt: skip
    assert summarize(parse_json(json.dumps(ten)))["reformats"] == 1
    assert summarize(parse_json(json.dumps(ten)))["precisions"] == {"int8": 1, "fp16": 1}
    assert parse_json(json.dumps(eleven)) == [Layer("gemm", "gemm", "bf16")]
    assert parse_json('{"Layers": ["conv1", "Reformatting x"]}')[1].type == "Reformat"
    text = (
        "Layers:\nName: a, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [1,3], Datatype: Half }], Outputs: []\nend"
    )
    assert parse_text(text) == [Layer("a", "kgen", "fp16")]
    for wrong in ("[]", "{}", '{"Layers": 3}'):
        with pytest.raises(ValueError, match="lists no layers"):
            parse_json(wrong)


# --- on a simulated GPU ---


def test_the_simulation_has_only_names_of_tensorrt() -> None:
    """Otherwise tests on it would prove nothing."""
    real = pytest.importorskip("tensorrt_rtx_bindings")
    spec = importlib.util.spec_from_file_location("simulated_tensorrt", SIMULATED / "tensorrt.py")
    assert spec is not None and spec.loader is not None
    simulated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulated)
    own = {"addresses", "cache", "content", "profiles", "session", "shape", "engine", "network"}
    for name, value in vars(simulated).items():
        if name.startswith("_") or getattr(value, "__module__", "") != "simulated_tensorrt":
            continue
        for member in (member for member in vars(value) if not member.startswith("_")):
            assert member in own or hasattr(getattr(real, name), member), f"{name}.{member}"


def test_driver_calls(libcuda: Path) -> None:
    """The real cuda-bindings call each function that a stream uses; a graph replays; everything is freed."""
    code = """
import ctypes
from edgekit.deploy.engine.gpu import Stream, find_gpu
assert find_gpu().name == "Simulated Orin", find_gpu()
assert (find_gpu().compute_capability, find_gpu().cuda) == ("8.7", "13.0")
stream = Stream()
sent, received, memory = stream.pinned((2, 3)), stream.pinned((2, 3)), stream.memory(24)
sent[:] = 1
graph = stream.graph(lambda: (stream.to_gpu(memory, sent), stream.from_gpu(received, memory)))
sent[:] = 5
stream.launch(graph)
stream.wait()
assert (received == 5).all()
assert all(ns >= 0 for ns in stream.timed([lambda: stream.to_gpu(memory, sent), lambda: None]))
stream.close()
assert ctypes.CDLL("libcuda.so.1").simulated_live() == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"LD_LIBRARY_PATH": str(libcuda), "PATH": "/usr/bin"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"SIMULATED_NO_GPU": "1"}, "no usable NVIDIA GPU here"),
     ({"SIMULATED_CUDA": "12060"}, "driver supports CUDA 12")],
)  # fmt: skip
def test_an_unusable_driver_is_reported(libcuda: Path, settings: dict, message: str) -> None:
    """No GPU, and bindings newer than the driver, as on a Jetson."""
    code = "from edgekit.deploy.engine.gpu import Stream; Stream()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"LD_LIBRARY_PATH": str(libcuda), "PATH": "/usr/bin", **settings},
    )  # fmt: skip
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_engines_are_built_run_and_compared(
    gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, fp32: Bundle
) -> None:
    """build --precision auto, validate through the agent, a recommendation, stages, layers, timing cache, predict."""
    done = edgekit("build", fp32.path, "--precision", "auto")
    paths = [tmp_path / line for line in done.stdout.split()]
    engines = [Bundle.open(path) for path in paths]
    assert [engine.manifest.precision for engine in engines] == ["fp32", "fp16", "int8"]
    first = Passport.of(engines[0])
    assert (first.flavour, first.version, first.gpu) == ("tensorrt", "10.3.0", "Simulated Orin")
    assert engines[0].manifest.details["parity"]["top1_agreement"] == 1.0
    timing = [engine.manifest.details["build"]["timing_cache"] for engine in engines]
    assert timing[0]["reused_sha256"] is None
    assert timing[1]["reused_sha256"] == timing[0]["kept_sha256"]
    done = edgekit(
        "validate", *paths, "--baseline", fp32.path, "--limit", "60", "--seconds", "0.2", "--max-drop", "20", "--json",
        "--min-speedup", "0.01",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["device"]["gpu"]["name"] == "Simulated Orin"
    # the simulated GPU computes on the CPU, so an engine may be no faster than ONNX Runtime
    faster = {model["id"] for model in report["models"] if model["outcome"] == "faster"}
    assert report["recommendation"]["id"] in (faster or {fp32.id})
    for model in report["models"][1:]:
        assert model["stages_ms"].keys() == {"host_to_device", "inference", "device_to_host"}
        assert model["engine"]["reformats"] == 1
        assert not any("logits differ" in warning or "timed calls" in warning for warning in model["warnings"])
    assert "layers" in (tmp_path / "runs" / f"{paths[-1].name}.report" / "report.html").read_text()
    assert json.loads(edgekit("predict", paths[0], "digits", "--json").stdout)


def test_batches_are_split_and_filled(gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, trained: Bundle) -> None:
    """An engine for 2 to 4 images accepts any number; a stripped one gets its weights back."""
    edgekit("export", trained.path, "--dynamic-batch", "--out", "free")
    edgekit("build", "free", "--batch", "2,3,4", "--strip-weights", "--out", "engine")
    assert (tmp_path / "engine/model.engine").stat().st_size < 100
    code = """
import numpy as np
from edgekit.deploy.session import load
session, expected = load("engine"), load("free")
images = np.random.default_rng(0).normal(size=(11, *expected._session.get_inputs()[0].shape[1:])).astype(np.float32)
for count in (1, 2, 4, 5, 11):
    np.testing.assert_allclose(session.run(images[:count]), expected.run(images[:count]), rtol=1e-5, atol=1e-5)
session.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("wrong-answers", "differs from the model it was built from"),
     ("uneven-batch", "depends on its place in the batch"),
     ("parser", "Conv /features/conv: injected: this node is not supported"),
     ("builder", "no implementation for node /features/conv"),
     ("deserialize", "the plan is not for this device")],
)  # fmt: skip
def test_a_bad_engine_is_not_kept(
    gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, trained: Bundle, fault: str, message: str
) -> None:
    """It cannot be built or loaded, or answers differently from its model."""
    edgekit("export", trained.path, "--dynamic-batch", "--out", "free")
    gpu.setenv("SIMULATED_FAULT", fault)
    done = edgekit("build", "free", "--batch", "1,2,4", "--out", "engine", code=1)
    assert message in done.stderr
    assert not (tmp_path / "engine").exists()


def test_an_engine_on_another_machine_is_refused(
    gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, fp32: Bundle
) -> None:
    """validate and predict refuse it before they run it, and name the command that rebuilds it."""
    edgekit("build", fp32.path, "--opt-level", "5", "--out", "engine")
    rebuild = f"fix: edgekit build {fp32.path} --opt-level 5"
    for name, value, message in (
        ("SIMULATED_CAPABILITY", "8.9", "was built for compute capability 8.7; the Simulated Orin here has 8.9"),
        ("SIMULATED_TENSORRT", "10.4.0", "was built with tensorrt 10.3.0; 10.4.0 is installed"),
    ):
        gpu.setenv(name, value)
        for command in (("validate", "engine", "--baseline", fp32.path), ("predict", "engine", "digits")):
            done = edgekit(*command, code=1)
            assert message in done.stderr
            assert rebuild in done.stderr
        gpu.delenv(name)


def test_signed_engines(gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, fp32: Bundle) -> None:
    """With --verify, only engines that the key's owner signed are loaded."""
    for key in ("mine", "other"):
        make_ssh_keys(tmp_path / key)
    done = edgekit("build", fp32.path, "--sign", "mine.pub", "--out", "engine", code=1)
    assert "not an ed25519 private key" in done.stderr
    assert "cannot read the key" in edgekit("build", fp32.path, "--sign", "none", "--out", "engine", code=1).stderr
    assert not (tmp_path / "engine").exists()
    edgekit("build", fp32.path, "--sign", "mine", "--out", "engine")
    edgekit("predict", "engine", "digits", "--verify", "mine.pub")
    assert (
        "not signed by the owner of other.pub"
        in edgekit("predict", "engine", "digits", "--verify", "other.pub", code=1).stderr
    )
    manifest = tmp_path / "engine" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"name": "lenet"', '"name": "LeNet"'))
    assert "not signed by" in edgekit("predict", "engine", "digits", "--verify", "mine.pub", code=1).stderr
    done = edgekit("validate", fp32.path, "--verify", "mine.pub", code=1)
    assert "is not signed" in done.stderr
