"""Exporting to LiteRT: the converter's packages are complete or not there, and what it makes is checked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError, MissingPackageError, ParityError
from edgekit.export import litert, litert_packages
from edgekit.export.export_bundle import Options, export_bundle
from torch import nn

pytest.importorskip("ai_edge_litert")

ROOT = Path(__file__).parent.parent.parent

# a converter that makes the file of tests/tflite.py, for the weights of a linear network or for drawn ones
_CONVERTER = f"""
import sys
sys.path.append({str(ROOT)!r})
from pathlib import Path
from tests.tflite import linear

class Converted:
    def __init__(self, image, weights):
        self.content = linear(image=image, weights=weights)[0]
    def export(self, path):
        Path(path).write_bytes(self.content)

def convert(module, args):
    weights = [each.detach().numpy() for each in module.parameters()]
    return Converted(tuple(args[0].shape[1:]), weights[0] if len(weights) == 1 else None)
"""


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uv that "installs" the converter above; its folder is first in PATH, and EdgeKit's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(litert_packages, "_PLATFORMS", {(sys.platform, litert_packages.platform.machine())})
    monkeypatch.setattr(litert_packages, "_PYTHONS", (sys.version_info[:2], sys.version_info[:2]))
    (tmp_path / "litert_torch.py").write_text(_CONVERTER)
    _write_uv(tmp_path / "bin/uv", f'cp "{tmp_path}/litert_torch.py" "$2"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "bin/uv"


def _write_uv(path: Path, script: str) -> None:
    """A uv that runs a script with its target folder as $2."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != --target ]; do shift; done\n{script}\n')
    path.chmod(0o755)


def _left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


@pytest.mark.usefixtures("installer")
def test_the_converter_is_installed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What comes, how large and where is logged before it starts; the next export says nothing."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)).eval()
    images = np.ones((2, 3, 2, 2), np.float32)
    litert_packages.converter_packages()
    made = litert.export(network, images, tmp_path / "made", Options(), None)  # type: ignore[arg-type]
    assert made == {"exporter": litert_packages.CONVERTER}
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("edgekit")]
    assert "installing litert-torch 0.10.0 once" in message
    assert "240 MB to download, 0.9 GB on the disk" in message
    assert str(litert_packages.packages_place()) in message
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "made"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, images[:1])
    interpreter.invoke()
    with torch.inference_mode():
        expected = network(torch.from_numpy(images[:1])).numpy()
    np.testing.assert_allclose(
        interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), expected, atol=1e-5
    )


def test_an_installation_that_fails_leaves_nothing(installer: Path) -> None:
    """And is one line with what to check."""
    _write_uv(installer, 'touch "$2/half"; echo noise >&2; echo "error: Failed to fetch: https://…" >&2; exit 2')
    with pytest.raises(EdgeKitError, match=r"cannot be installed: noise error: Failed to fetch") as caught:
        litert_packages.converter_packages()
    assert "check the network connection" in caught.value.fix
    assert _left(litert_packages.packages_place().parent) == []


def test_a_killed_installation_is_not_taken_for_a_complete_one(installer: Path, tmp_path: Path) -> None:
    """The next one removes what it left, and installs all."""
    good = installer.read_text()
    _write_uv(installer, 'touch "$2/half"; exec sleep 60')
    code = "from edgekit.export.litert_packages import converter_packages; converter_packages()"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    parent = litert_packages.packages_place().parent
    until = time.monotonic() + 60
    while not list(parent.rglob("half")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(parent.rglob("half"))
    assert not litert_packages.packages_place().exists()
    installer.write_text(good)
    assert _left(litert_packages.converter_packages()) == ["litert_torch.py"]
    assert _left(parent) == [litert_packages.packages_place().name]


def test_a_cache_that_cannot_be_written_is_named(installer: Path, tmp_path: Path) -> None:
    """With the variable that chooses another."""
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EdgeKitError, match="cannot be installed") as caught:
        litert_packages.converter_packages()
    assert "XDG_CACHE_HOME" in caught.value.fix


@pytest.mark.usefixtures("installer")
def test_without_uv_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is installed."""
    monkeypatch.setattr(litert_packages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingPackageError, match="uv") as caught:
        litert_packages.converter_packages()
    assert caught.value.fix == "pip install uv"


def test_a_machine_without_packages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the machines that have them."""
    monkeypatch.setattr(litert_packages.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(litert_packages.sys, "platform", "linux")
    with pytest.raises(EdgeKitError, match="on linux aarch64") as caught:
        litert_packages.converter_packages()
    assert "Linux x86-64" in caught.value.fix


class _Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


@pytest.mark.usefixtures("installer")
def test_a_network_that_cannot_be_captured(tmp_path: Path) -> None:
    """One line, and another format."""
    with pytest.raises(EdgeKitError, match="torch.export cannot capture this network: ") as caught:
        litert.export(_Branching(), np.ones((1, 3, 2, 2), np.float32), tmp_path / "made", Options(), None)  # type: ignore[arg-type]
    assert "--format onnx" in caught.value.fix


@pytest.mark.usefixtures("installer")
def test_another_model_is_refused(trained: Bundle, tmp_path: Path) -> None:
    """A converter that makes a valid file of other weights: nothing is kept."""
    with pytest.raises(ParityError, match="the litert file is not the same model"):
        export_bundle(trained, "litert", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("converter", "words"),
    [
        ("def convert(module, args): raise TypeError('Shapes must be concrete\\nmore')", "TypeError: Shapes must be"),
        ("def convert(module, args): import os; os.kill(os.getpid(), 9)", "it ended with -9"),
        ("import missing_module", "ModuleNotFoundError: No module named 'missing_module'"),
    ],
)
def test_a_network_that_cannot_be_converted(converter: str, words: str, installer: Path, tmp_path: Path) -> None:
    """One line, and another format."""
    (tmp_path / "litert_torch.py").write_text(converter)
    with pytest.raises(EdgeKitError, match=f"cannot convert this network: {words}") as caught:
        litert.export(nn.Flatten(), np.ones((1, 3, 2, 2), np.float32), tmp_path / "made", Options(), None)  # type: ignore[arg-type]
    assert "--format onnx" in caught.value.fix
    assert not (tmp_path / "made").exists()
