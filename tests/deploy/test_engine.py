"""Engines: built, refused, run on a simulated GPU, and told what they consist of.

The simulated GPU is a CUDA driver in C (tests/simulated), which the real cuda-bindings call; on it, a TensorRT whose
engines ONNX Runtime computes. What no simulation shows is TensorRT's own work: compiling is tested with TensorRT for
RTX, which needs no GPU for that.
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

SIMULATED = Path(__file__).parent.parent / "simulated"
ORIN = Gpu("Orin", "8.7", 8 << 30, "12.6", "540.4.0")
Run = Callable[..., subprocess.CompletedProcess[str]]


def _silent(what: str, share: float) -> None:
    """Progress is not looked at."""


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
        pytest.skip("a C compiler and cuda-bindings make the simulated GPU")
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-shared", "-fPIC", "-w", str(SIMULATED / "libcuda.c"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-ldl"], check=True)
    return folder


@pytest.fixture
def edgekit(edgekit_process: Run) -> Run:
    """In a process of its own, which finds the simulated driver and TensorRT by its environment."""
    return edgekit_process


@pytest.fixture
def gpu(libcuda: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Commands that are run see a GPU and a TensorRT; SIMULATED_… variables change them."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
    monkeypatch.setenv("PYTHONPATH", str(SIMULATED))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def _signed_off(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """A copy of an engine with other entries in its passport, its hashes right."""
    shutil.copytree(bundle.path, path)
    manifest = bundle.manifest
    entry = {**manifest.requires["tensorrt"], **changes}
    (path / MANIFEST).unlink()
    Draft(path).finish(dataclasses.replace(manifest, requires={"tensorrt": entry}))
    return Bundle.open(path)


def _orins(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """An engine that claims to be TensorRT's, for an Orin."""
    claims = {"flavour": "tensorrt", "version": "10.3.0", "compute_capabilities": ["8.7"], "cuda": "12.6"}
    return _signed_off(bundle, path, **{**claims, **changes})


# --- passports ---


def test_passport_says_what_the_engine_is_for(rtx_engine: Bundle) -> None:
    """Read back from the manifest; the header of a real engine agrees with it."""
    found = check_system(rtx_engine)
    assert found.flavour == "tensorrt-rtx"
    assert found.compute_capabilities == ("8.6", "8.9")
    assert found.gpu == found.driver == "unavailable"
    assert found.onnx_sha256


@pytest.mark.parametrize(
    ("changes", "library", "gpu", "words"),
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
        ({"cuda": "13.0"}, ("tensorrt", "10.3.0"), ORIN, "driver for CUDA 13.0; the one here serves 12.6"),
    ],
)  # fmt: skip
def test_a_foreign_engine_is_refused(
    rtx_engine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, library: tuple, gpu: Gpu | None,
    words: str,
) -> None:  # fmt: skip
    """Another product, version, GPU or driver; with the command that builds it again on the device that refused it."""
    monkeypatch.setattr(passport, "check_system", lambda bundle, device=None: Passport.of(bundle))
    engine = _orins(rtx_engine, tmp_path / "engine", **changes)
    with pytest.raises(EngineError, match=words) as caught:
        check(engine, Library(None, *library), gpu, "ssh://pi@jetson")
    if gpu is not None:
        command = "edgekit build runs/002-lenet --compute-capability 8.6,8.9 --device ssh://pi@jetson"
        assert caught.value.fix.endswith(command)


@pytest.mark.parametrize(
    ("changes", "version", "capability"),
    [({}, "10.3.0", "8.7"), ({}, "10.3.0.30", "8.7"), ({"version_compatible": True}, "10.16.1.11", "8.7"),
     ({"version_compatible": True}, "11.4.0", "8.7"), ({"hardware_compatible": True}, "10.3.0", "12.0")],
)  # fmt: skip
def test_a_fitting_engine_is_taken(
    rtx_engine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, version: str, capability: str
) -> None:
    """By the support matrix: version-compatible engines of TensorRT 10 load in 10 and 11."""
    monkeypatch.setattr(passport, "check_system", lambda bundle, device=None: Passport.of(bundle))
    engine = _orins(rtx_engine, tmp_path / "engine", **changes)
    check(engine, Library(None, "tensorrt", version), dataclasses.replace(ORIN, compute_capability=capability))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"system": "Windows"}, "was built for Windows"), ({"machine": "aarch64"}, "was built for Linux on aarch64"),
     ({"version": "1.6.1.120"}, "header says version 1.7.1.116, its passport 1.6.1.120")],
)  # fmt: skip
def test_system_and_header_are_checked(rtx_engine: Bundle, tmp_path: Path, changes: dict, words: str) -> None:
    """Before any library is asked."""
    with pytest.raises(EngineError, match=words):
        check_system(_signed_off(rtx_engine, tmp_path / "engine", **changes))


@given(entry=st.dictionaries(st.sampled_from([*Passport.__dataclass_fields__]), st.integers() | st.none() | st.text()))
def test_no_passport_ends_in_a_trace(rtx_engine: Bundle, entry: dict) -> None:
    """Whatever stands where it belongs."""
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
    """At once."""
    with pytest.raises(RecipeError):
        Options(**changes)


def test_options_survive_the_way_to_a_device() -> None:
    """As JSON, and as the words of the command that builds the engine again."""
    options = Options((1, 8, 32), 512, 5, strip_weights=True, compute_capabilities=("8.6", "8.9"))
    assert read(Options, json.loads(json.dumps(dataclasses.asdict(options)))) == options
    words = "--batch 1,8,32 --workspace 512 --opt-level 5 --strip-weights --compute-capability 8.6,8.9"
    assert options.arguments() == words.split()


def test_what_cannot_be_built_leaves_nothing(fp32: Bundle, int8: Bundle, tmp_path: Path) -> None:
    """The parser's error with its node, a GPU that is not offered, an option of another product; no GPU at all."""
    pytest.importorskip("tensorrt_rtx_bindings")
    for source, options, error, words in (
        (
            int8,
            Options(compute_capabilities=("8.6",)),
            EngineError,
            "image_QuantizeLinear: .*zero point",
        ),
        (fp32, Options(compute_capabilities=("8.7",)), DeviceError, "does not build for compute capability 8.7"),
        (fp32, Options(compute_capabilities=("8.6",), version_compatible=True), DeviceError, "belong to one release"),
        (fp32, Options(compute_capabilities=("8.6",), batch=(1, 2, 4)), BundleError, "fixed batch size of 1"),
        (fp32, Options(), DeviceError, "no NVIDIA GPU here to build for"),
    ):
        with pytest.raises(error, match=words):
            build(source, tmp_path / "engine", options, _silent)
        assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, *"abc"]), st.integers(0, 5)), max_size=12))
def test_progress_only_grows(phases: list[tuple[str, str | None, int]]) -> None:
    """Whatever phases a build tells, in whatever nesting."""

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


def test_batch_spread_finds_a_place_that_answers_otherwise() -> None:
    """Among the rows of one batch, and between batches."""
    tensor = np.ones((1, 3, 2, 2), np.float32)
    assert batch_spread(lambda batch: batch.reshape(len(batch), -1), tensor, [1, 4]) == 0
    uneven = batch_spread(lambda batch: batch.reshape(len(batch), -1) + np.arange(len(batch))[:, None], tensor, [1, 4])
    assert uneven == 3
    assert batch_spread(lambda batch: batch.reshape(len(batch), -1) * len(batch), tensor, [1, 4]) == 3
    assert np.isnan(batch_spread(lambda batch: batch.reshape(len(batch), -1) * np.nan, tensor, [2]))


# --- layers ---


def test_layers_of_a_real_engine(rtx_engine: Bundle) -> None:
    """Told by the builder, without a GPU to load the engine on."""
    engine = rtx_engine.manifest.details["engine"]
    assert engine["precisions"] == {"fp32": len(engine["layers"])}
    assert any("Conv" in layer["name"] for layer in engine["layers"])


def test_layers_in_each_generation_s_words() -> None:
    """TensorRT 10's JSON, 11's, names alone, and a builder's text."""
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


def test_simulation_has_only_names_that_tensorrt_has() -> None:
    """Otherwise what runs on it would prove nothing."""
    real = pytest.importorskip("tensorrt_rtx_bindings")
    spec = importlib.util.spec_from_file_location("simulated_tensorrt", SIMULATED / "tensorrt.py")
    assert spec is not None and spec.loader is not None
    simulated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulated)
    own = {"addresses", "cache", "content", "profiles", "session", "shape", "engine", "network"}
    for name, thing in vars(simulated).items():
        if name.startswith("_") or getattr(thing, "__module__", "") != "simulated_tensorrt":
            continue
        for member in (member for member in vars(thing) if not member.startswith("_")):
            assert member in own or hasattr(getattr(real, name), member), f"{name}.{member}"


def test_driver_calls(libcuda: Path) -> None:
    """The real cuda-bindings call each function that a stream uses; a graph replays; everything is freed."""
    code = """
import ctypes
from edgekit.deploy.engine.gpu import Stream, look
assert look().name == "Simulated Orin", look()
assert (look().compute_capability, look().cuda) == ("8.7", "13.0")
stream = Stream()
there, back, memory = stream.pinned((2, 3)), stream.pinned((2, 3)), stream.memory(24)
there[:] = 1
graph = stream.graph(lambda: (stream.to_gpu(memory, there), stream.from_gpu(back, memory)))
there[:] = 5
stream.launch(graph)
stream.wait()
assert (back == 5).all()
assert all(ns >= 0 for ns in stream.timed([lambda: stream.to_gpu(memory, there), lambda: None]))
stream.close()
assert ctypes.CDLL("libcuda.so.1").simulated_live() == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"LD_LIBRARY_PATH": str(libcuda), "PATH": "/usr/bin"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"SIMULATED_NO_GPU": "1"}, "no NVIDIA GPU here that can be used"),
     ({"SIMULATED_CUDA": "12060"}, "driver serves CUDA 12")],
)  # fmt: skip
def test_a_driver_that_does_not_fit_is_told(libcuda: Path, settings: dict, words: str) -> None:
    """No GPU, and bindings newer than the driver, as on a Jetson."""
    code = "from edgekit.deploy.engine.gpu import Stream; Stream()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"LD_LIBRARY_PATH": str(libcuda), "PATH": "/usr/bin", **settings},
    )  # fmt: skip
    assert words in done.stderr.splitlines()[-1]


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
    """An engine for 2 to 4 images answers any number; a stripped one gets its weights back."""
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
    ("fault", "words"),
    [("wrong-answers", "differs from the model it was built from"),
     ("uneven-batch", "depends on its place in the batch"),
     ("parser", "Conv /features/conv: planted: this node is not taken"),
     ("builder", "no implementation for node /features/conv"),
     ("deserialize", "the plan is not for this device")],
)  # fmt: skip
def test_a_bad_engine_is_not_kept(
    gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, trained: Bundle, fault: str, words: str
) -> None:
    """Whether it cannot be built or loaded, or is another model."""
    edgekit("export", trained.path, "--dynamic-batch", "--out", "free")
    gpu.setenv("SIMULATED_FAULT", fault)
    done = edgekit("build", "free", "--batch", "1,2,4", "--out", "engine", code=1)
    assert words in done.stderr
    assert not (tmp_path / "engine").exists()


def test_an_engine_on_another_machine_is_refused(
    gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, fp32: Bundle
) -> None:
    """Before a measurement, by predict too, with the command that builds it again."""
    edgekit("build", fp32.path, "--opt-level", "5", "--out", "engine")
    rebuild = f"fix: edgekit build {fp32.path} --opt-level 5"
    for name, value, words in (
        ("SIMULATED_CAPABILITY", "8.9", "was built for compute capability 8.7; the Simulated Orin here has 8.9"),
        ("SIMULATED_TENSORRT", "10.4.0", "was built with tensorrt 10.3.0; 10.4.0 is installed"),
    ):
        gpu.setenv(name, value)
        for command in (("validate", "engine", "--baseline", fp32.path), ("predict", "engine", "digits")):
            done = edgekit(*command, code=1)
            assert words in done.stderr
            assert rebuild in done.stderr
        gpu.delenv(name)


def test_signed_engines(gpu: pytest.MonkeyPatch, edgekit: Run, tmp_path: Path, fp32: Bundle) -> None:
    """Only what the key's owner signed is loaded, where that is asked for."""
    for key in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
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
