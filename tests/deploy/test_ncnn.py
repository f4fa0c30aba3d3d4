"""ncnn: the precision asked for runs or is refused; damaged models and failed conversions are refused by one line."""

import io
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.layers import Layer
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError, ParityError, RecipeError
from edgekit.deploy.measuring import worker
from edgekit.deploy.runtimes import ncnn as runtime
from edgekit.deploy.runtimes.ncnn import check_model, check_precision, read_layer
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.deploy.session import open_session
from edgekit.export import ncnn as ncnn_export
from edgekit.export.export_bundle import Options, export_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

ncnn = pytest.importorskip("ncnn")
pnnx = pytest.importorskip("pnnx")

_RELATIVE = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01}


@pytest.fixture(scope="module")
def exported(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained network as an ncnn bundle."""
    return export_bundle(trained, "ncnn", tmp_path_factory.mktemp("ncnn") / "made")


def test_the_weights_belong_to_the_model(exported: Bundle) -> None:
    """They are counted in its size; nothing else that pnnx writes is kept, above all none of its Python files."""
    assert {path.name for path in exported.model_files} == {"model.param", "model.bin"}
    assert exported.size_bytes == sum(path.stat().st_size for path in exported.model_files)
    names = {path.name for path in exported.path.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("model")} == {"model.param", "model.bin"}
    assert not any(name.endswith((".py", ".onnx")) for name in names)


def test_the_time_of_reading_the_model_includes_its_weights(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker reads both files before it loads the model."""
    read: list[str] = []
    monkeypatch.setattr(worker, "_read_from_disk", lambda path: read.append(path.name))
    process = worker.Worker(io.StringIO())
    process.start(str(exported.path), None)
    assert process.open(threads=1)["session"]["layers"]["precisions"]["fp32"] >= 5
    assert sorted(read) == ["model.bin", "model.param"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_runs_or_is_refused(precision: str, exported: Bundle) -> None:
    """The layers that compute run in it, and the logits show its rounding; else the message says what would run."""
    golden = exported.golden()
    try:
        session = open_session(exported, precision=precision, threads=1)
    except DeviceError as error:
        assert precision != "fp32"
        assert f"does not multiply {precision}" in str(error)
        assert not runtime.multiplies(precision)
        return
    assert session.facts["precision"] == precision
    assert session.facts["layers"]["precisions"][precision] >= 3
    error = np.abs(session.run(golden.tensors) - golden.logits).max() / np.abs(golden.logits).max()
    assert error <= _RELATIVE[precision]
    if precision != "fp32":
        assert error > 1e-5, "float32 logits"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_precision_of_a_layer_is_that_of_its_values(precision: str, exported: Bundle) -> None:
    """What is read back from the layers equals the type of the values that ncnn hands from layer to layer."""
    if not runtime.multiplies(precision):
        pytest.skip(f"this CPU has no {precision}")
    net = ncnn.Net()
    runtime._set(net.opt, runtime.NcnnOptions(precision=precision, threads=1))
    assert net.load_param(str(exported.model_path)) == 0
    assert net.load_model(str(exported.model_path.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    extractor.set_light_mode(False)
    extractor.input(net.input_indexes()[0], ncnn.Mat(exported.golden().tensors[0]).clone())
    for layer in net.layers():
        if layer.type != "Input":
            _, values = extractor.extract(layer.tops[0], 1)
            assert (values.elembits() == 16) is (read_layer(layer, precision).precision != "fp32"), layer.name


def test_bf16_without_its_instructions_is_refused(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise ncnn would store values in bf16, and compute in fp32."""
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {"avx512f", "asimdhp"})
    with pytest.raises(DeviceError, match="does not multiply bf16"):
        open_session(exported, precision="bf16")


def test_a_silent_fallback_is_refused() -> None:
    """Layers that do not have the precision here compute in float32."""
    plain = SimpleNamespace(name="a", type="Convolution", support_fp16_storage=False, support_bf16_storage=True)
    assert read_layer(plain, "fp16") == Layer("a", "Convolution", "fp32")
    assert read_layer(plain, "bf16") == Layer("a", "Convolution", "bf16")
    assert read_layer(plain, "fp32") == Layer("a", "Convolution", "fp32")
    pooling = Layer("b", "Pooling", "fp16")
    check_precision("fp16", [read_layer(plain, "fp16"), Layer("c", "InnerProduct", "fp16")])
    check_precision("fp32", [pooling, read_layer(plain, "fp32")])
    with pytest.raises(DeviceError, match="computes in fp32 here, not in fp16"):
        check_precision("fp16", [pooling, read_layer(plain, "fp16")])


@pytest.mark.parametrize("text", ["ncnn:precision=int8", "ncnn:threads=0", "ncnn:device=gpu"])
def test_a_wrong_option_is_refused(text: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(RecipeError):
        Choice.parse(text)


def test_threads_keep_to_the_cores_of_the_process(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ncnn itself would take all of the machine's; a number that was asked for is kept."""
    monkeypatch.setattr(runtime, "allowed_cores", lambda: 1)
    assert open_session(exported).facts["threads"] == 1
    assert open_session(exported, threads=3).facts["threads"] == 3


class _InPlace(nn.Module):
    """An activation first, a linear layer that ncnn answers as a matrix, and an odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 5 * 7, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(images).flatten(1))


def test_the_callers_images_are_not_worked_on(exported: Bundle, tmp_path: Path) -> None:
    """A network whose first layer works in place leaves them as they are, and does not crash."""
    network, images = _InPlace().eval(), np.random.default_rng(0).standard_normal((3, 3, 5, 7)).astype(np.float32)
    ncnn_export.export(network, images, tmp_path / "model.param", Options(), exported.manifest)
    session = open_session(Bundle(tmp_path, replace(exported.manifest, model="model.param"), "x"), threads=1)
    before = images.copy()
    with torch.inference_mode():
        expected = network(torch.from_numpy(before)).numpy()
    np.testing.assert_allclose(session.run(images), expected, atol=1e-5)
    np.testing.assert_array_equal(images, before)


def _damaged(exported: Bundle, folder: Path, change: Callable[[str], str]) -> Bundle:
    for path in exported.model_files:
        shutil.copy(path, folder)
    (folder / "model.param").write_text(change(exported.model_path.read_text()))
    return Bundle(folder, exported.manifest, "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("Convolution ", "Evil.Layer  ", 1), "ncnn has no layer Evil.Layer"),
        (lambda text: text.replace(" 4=1 ", " 4=99999 ", 1), "Convolution has a size over 1024: 4=99999"),
        (lambda text: text.replace(" 4=1 ", " 4=1e9 ", 1), "has the parameter '4=1e9'"),
        (lambda text: text.replace(" 4=1 ", " 4=$(reboot) ", 1), "has the parameter"),
        (lambda text: text.replace("7767517", "7767518", 1), "do not count its layers"),
        (lambda text: "\n".join(text.split("\n")[:5]), "do not count its layers"),
        (lambda text: text.replace(" 1 1 ", " 1 -1 ", 1), "no layer"),
        (lambda text: text.replace("Input", "Inpüt", 1), "'ascii' codec"),
        (lambda _: "", "do not count its layers"),
        (lambda text: text.replace(" out0", " out0 1=" + "9," * (9 << 20), 1), "over 16777216 bytes"),
    ],
)  # fmt: skip
def test_a_damaged_model_is_refused_before_it_is_read(
    change: Callable[[str], str], words: str, exported: Bundle, tmp_path: Path
) -> None:
    """By one line, since ncnn itself would crash on some."""
    with pytest.raises(BundleError) as caught:
        open_session(_damaged(exported, tmp_path, change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_or_short_weights_are_refused(exported: Bundle, tmp_path: Path) -> None:
    """By the file's name."""
    damaged = _damaged(exported, tmp_path, lambda text: text)
    weights = tmp_path / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(BundleError, match=r"cannot load .*model\.bin"):
        open_session(damaged)
    weights.unlink()
    with pytest.raises(BundleError, match=r"model\.bin is missing"):
        open_session(damaged)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_text_makes_the_check_fail_otherwise(data: st.DataObject, exported: Bundle, tmp_path: Path) -> None:
    """A changed .param file passes or is refused; nothing else is raised."""
    text = exported.model_path.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    inserted = data.draw(st.text(max_size=20) | st.sampled_from(["=", "\n", "-23300=", "9" * 30, "1 1", '0="']))
    (tmp_path / "model.bin").touch()
    (tmp_path / "model.param").write_text(text[:start] + inserted + text[end:], encoding="utf-8")
    try:
        check_model(tmp_path / "model.param")
    except BundleError as error:
        assert error.fix


class _Sums(nn.Module):
    """An operator that pnnx reads and ncnn lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cumsum(images, 3).mean((1, 2)))


def _convert(network: nn.Module, exported: Bundle, folder: Path) -> None:
    images = exported.golden().tensors[:3]
    ncnn_export.export(network.eval(), images, folder / "model.param", Options(), exported.manifest)


def _pnnx(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Put a script in pnnx's place; `real()` in it runs pnnx."""
    script = folder / "pnnx"
    script.write_text(
        f"#!{sys.executable}\nimport os, signal, subprocess, sys, time\n"
        f"def real(): subprocess.run([{pnnx.EXEC_PATH!r}, *sys.argv[1:]], check=True)\n{body}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(script))


_RENAMED = (
    "real(); text = open('model.ncnn.param').read()\n"
    "open('model.ncnn.param', 'w').write(text.replace('Convolution ', 'torch.unbind ', 1))\n"
    "print('unbind along  batch axis 0 is not supported')"
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("pass", "it wrote no model"),
        ("sys.exit(3)", "it exited with code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (signal 11)"),
        ("time.sleep(60)", "it took over 1 seconds"),
        (
            "print('x' * (4 << 20)); print('a is not supported ' + 'y' * 999); sys.exit(1)",
            "reports: a is not supported",
        ),
        (_RENAMED, "ncnn has no torch.unbind; it reports: unbind along batch axis 0 is not supported"),
    ],
)
def test_what_pnnx_cannot_convert_is_one_line(
    body: str, words: str, trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is kept."""
    _pnnx(monkeypatch, tmp_path, body)
    monkeypatch.setattr(ncnn_export, "_TIMEOUT_S", 1 if "sleep" in body else 600)
    with pytest.raises(EdgeKitError, match="pnnx cannot convert this network") as caught:
        export_bundle(trained, "ncnn", tmp_path / "made")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "made").exists()


def test_an_operator_that_ncnn_lacks_is_named(exported: Bundle, tmp_path: Path) -> None:
    """pnnx itself reports success."""
    with pytest.raises(EdgeKitError, match=r"cannot convert this network: ncnn has no CumSum"):
        _convert(_Sums(), exported, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silently_wrong_conversion_is_refused(
    trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias that the converter changed fails the parity gate."""
    body = (
        "real(); data = bytearray(open('model.ncnn.bin', 'rb').read()); data[-4:] = b'\\x00\\x00\\x80\\x40'\n"
        "open('model.ncnn.bin', 'wb').write(data)"
    )
    _pnnx(monkeypatch, tmp_path, body)
    with pytest.raises(ParityError, match="not the same model"):
        export_bundle(trained, "ncnn", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("options", [Options(dynamic_batch=True), Options(opset=18), Options(cross_check=True)])
def test_options_of_other_formats_are_refused(options: Options, trained: Bundle, tmp_path: Path) -> None:
    """ncnn has no batch dimension, and no opset."""
    with pytest.raises(BundleError, match="does not apply to --format ncnn"):
        export_bundle(trained, "ncnn", tmp_path / "made", options)
