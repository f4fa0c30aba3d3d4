"""Runtimes for a board, without one: what is installed, what is kept, what is refused, and the fix that errors name."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.board import bootstrap
from edgekit.deploy.devices.board.board import Board
from edgekit.deploy.devices.board.install import install
from edgekit.deploy.devices.board.probe import NEEDED, OPTIONAL, Facts, Probe
from edgekit.deploy.devices.device import how_to_install
from edgekit.deploy.devices.ssh import open_board
from edgekit.deploy.errors import DeviceError, EdgeKitError, RecipeError
from edgekit.deploy.progress import silent
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.doctor.diagnose import diagnose_device
from edgekit.toolkit.doctor.provision import download_wheels, provision
from edgekit.toolkit.validation.ancestors import with_ancestors
from edgekit.toolkit.validation.candidates import candidates_of

CACHE = "/home/pi/.cache/edgekit"
FACTS = Facts((3, 11, 2), "/usr/bin/python3", "/usr/bin/python3", "aarch64", ("glibc", "2.36"), "Linux", CACHE, True,
              1e9, 1 << 30, 0)  # fmt: skip
VENV = FACTS._replace(executable=f"{CACHE}/venv/bin/python3")


class _Boards:
    """A board without a connection: `facts` and `found` are what its Python says, `commands` what ran there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.facts, self.found, self.broken = FACTS, dict[str, str](), set[str]()
        self.commands: list[str] = []
        monkeypatch.setattr(Board, "_ask", lambda board, request: iter(self._answer(request)))
        monkeypatch.setattr(Board, "run", lambda board, command, timeout: self._run(command))
        monkeypatch.setattr(Board, "__enter__", lambda board: board)
        monkeypatch.setattr(Board, "__exit__", lambda board, *error: None)

    def _answer(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield {"facts": self.facts._asdict()}
        yield {"found": {module: self.found[module] for module in request["find"] if module in self.found}}
        for module in request["import"]:
            if module in self.broken:
                yield {"failed": module, "missing": False, "error": "illegal instruction"}
            elif module in self.found:
                yield {"imported": module, "version": "?"}
            else:
                yield {"failed": module, "missing": True, "error": "no module"}

    def _run(self, command: str) -> None:
        """Install what the command names, in the venv."""
        self.commands.append(command)
        if " pip install " in command:
            modules = {**NEEDED, **{module: names[0] for module, names in OPTIONAL.items()}}
            names = command.split()
            self.facts, self.found = VENV, {module: "1.0" for module, name in modules.items() if name in names}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> _Boards:
    """A board without EdgeKit's venv."""
    return _Boards(monkeypatch)


def test_runtimes_are_installed_and_kept(board: _Boards) -> None:
    """With ONNX Runtime; provisioning again without --runtime installs the same, with another adds it."""
    usual = {"numpy": "1.0", "pillow": "1.0", "onnxruntime": "1.0"}
    assert provision("ssh://pi", offline=False) == usual
    assert provision("ssh://pi", runtimes=["openvino", "onnxruntime"], offline=False) == {**usual, "openvino": "1.0"}
    assert provision("ssh://pi", offline=False).keys() == {*usual, "openvino"}
    named = "ssh://pi/usr/bin/python3"  # another Python makes the venv, which still has OpenVINO
    assert provision(named, runtimes=["ncnn"], offline=False).keys() == {*usual, "openvino", "ncnn"}
    with open_board("ssh://pi") as device:
        assert device.runtimes() == {"onnxruntime", "openvino", "ncnn"}


def test_what_a_new_venv_lacks_is_said(board: _Boards, caplog: pytest.LogCaptureFixture) -> None:
    """A runtime that was installed by hand, and one of the system's Python, which is not EdgeKit's to copy."""
    with caplog.at_level("INFO", "edgekit"):
        board.found = {"ncnn": "1"}
        assert "ncnn" not in provision("ssh://pi", offline=False)
        assert (
            "does not have ncnn, which the Python before it had (edgekit provision --device ssh://pi --" in caplog.text
        )
        board.found |= {"executorch": "1.5", "litert": "1"}
        provision("ssh://pi", offline=False)
    assert "does not have executorch, which the Python before it had (on the board: pip install" in caplog.text


def test_a_runtime_that_cannot_be_imported(board: _Boards) -> None:
    """It is installed and named; one that kills the interpreter hides those after it."""
    board.broken = {"openvino"}
    with pytest.raises(DeviceError, match="installed, but not working: openvino: illegal instruction"):
        provision("ssh://pi", runtimes=["openvino"], offline=False)


@pytest.mark.parametrize(
    ("runtime", "message", "fix"),
    [
        ("executorch", "provision does not install executorch: it needs torch", "on the board: pip install"),
        ("tensorrt", "provision does not install tensorrt: it comes with the system", "/usr/bin/python3"),
        ("torch", "boards do not run torch", "choose one of: onnxruntime, openvino, litert, ncnn"),
        ("openvimo", "unknown runtime 'openvimo'; did you mean openvino", "choose one of"),
        ("ncnn:threads=1", "unknown runtime 'ncnn:threads=1'", "choose one of"),
    ],
)
def test_runtimes_that_are_refused(board: _Boards, runtime: str, message: str, fix: str) -> None:
    """In one line, before anything is connected."""
    with pytest.raises(RecipeError) as caught:
        provision("ssh://pi", runtimes=[runtime], offline=True)
    assert message in str(caught.value)
    assert fix in caught.value.fix
    assert not board.commands


def test_nothing_is_installed_and_removed_at_once(edgekit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """--clean takes no runtimes."""
    done = edgekit("provision", "--device", "ssh://pi", "--runtime", "ncnn", "--clean", code=1)
    assert "--clean installs nothing" in done.stderr


def test_a_failed_installation_says_how_to_go_on() -> None:
    """The old venv is back; a kept runtime that has no wheel any more does not block the board for ever."""
    probe, commands = Probe(FACTS, CACHE, {}, {}, None, None, {}), list[str]()

    def run(command: str, timeout: float) -> None:
        commands.append(command)
        if " pip install " in command:
            raise DeviceError("ssh://pi: no matching distribution found for ncnn", fix="")

    with pytest.raises(DeviceError, match="no matching distribution found for ncnn") as caught:
        install(probe, ["numpy", "ncnn"], run, lambda parcels, progress: probe, None, silent)
    assert "--clean, and provision without that runtime" in caught.value.fix
    assert commands[-1].endswith(f"mv {CACHE}/venv.old {CACHE}/venv; fi")


def test_wheels_are_downloaded_for_the_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of all its packages, and of pip, which an offline venv lacks; one that does not exist is named in one line."""
    words: list[str] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        words.extend(command)
        error = "ERROR: Could not find it\nERROR: No matching distribution found for ncnn\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr("edgekit.toolkit.doctor.provision.find_spec", lambda name: True)
    monkeypatch.setattr("edgekit.toolkit.doctor.provision.subprocess.run", run)
    with pytest.raises(EdgeKitError, match="no wheels for aarch64, Python 3.11: No matching .* for ncnn") as caught:
        download_wheels(FACTS, ["numpy", "ncnn"], tmp_path / "wheels")
    assert "\n" not in f"{caught.value}{caught.value.fix}"
    assert words[-3:] == ["pip", "numpy", "ncnn"]
    assert "manylinux_2_28_aarch64" in words


def test_doctor_lists_the_packages_of_all_runtimes(board: _Boards) -> None:
    """With the version or the command that installs it."""
    board.found = {"PIL": "11", "ncnn": "1.0.20261020"}  # without numpy it cannot describe its hardware
    packages = {package.name: package for package in diagnose_device(open_board("ssh://pi"))["packages"]}
    assert packages["ncnn"].version == "1.0.20261020"
    for name, runtime in (("openvino", "openvino"), ("ai-edge-litert", "litert")):
        assert packages[name].version is None
        assert packages[name].install == f"edgekit provision --device ssh://pi --runtime {runtime}"
    assert packages["numpy"].install == "edgekit provision --device ssh://pi"
    assert "pip install executorch torch" in packages["torch"].install
    assert packages["torch"].purpose == "running ExecuTorch programs"


def test_how_a_runtime_is_installed() -> None:
    """On this machine by pip, on a board by provision or by hand, in a browser not at all."""
    assert how_to_install("local", "ncnn") == "pip install 'edgekit-vision[ncnn]'"
    assert how_to_install("adb://PHONE1", "ncnn") == "edgekit provision --device adb://PHONE1 --runtime ncnn"
    assert how_to_install("ssh://pi", "torch") == ""
    assert how_to_install("browser", "ncnn") == how_to_install("a packed file", "ncnn") == ""


def test_a_validation_names_the_command_that_installs_the_runtime(fp32: Bundle) -> None:
    """For a named runtime, and for the default one of a bundle."""
    command = "edgekit provision --device ssh://pi --runtime openvino; or leave out --runtime openvino:threads=1"
    choices = [Choice("openvino", {"threads": 1})]
    with pytest.raises(DeviceError, match="ssh://pi cannot run openvino: it runs onnxruntime") as caught:
        candidates_of([fp32], {fp32.id}, choices, ["onnxruntime"], "ssh://pi")
    assert caught.value.fix == command
    with pytest.raises(DeviceError, match="a packed file cannot run openvino") as caught:
        candidates_of([fp32], {fp32.id}, choices, ["onnxruntime"], "a packed file")
    assert caught.value.fix == "leave out --runtime openvino:threads=1"
    with pytest.raises(DeviceError, match="which ssh://pi cannot run") as caught:
        with_ancestors([fp32], None, {"ncnn"}, "ssh://pi")
    assert caught.value.fix.startswith("edgekit provision --device ssh://pi --runtime onnxruntime; or ")


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path) -> None:
    """The first program runs in the home folder, which may hold a clone of a runtime's sources."""
    (tmp_path / "clone").mkdir()
    request = {"find": {"clone": ["clone"], "numpy": ["no-such-name", "numpy"], "json": ["no-such-name"]}}
    program = f"{Path(bootstrap.__file__).read_text()}\nmain({request!r})\n"
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert '"clone"' not in done.stdout
    assert '"json": "unknown"' in done.stdout
    assert '"numpy": "' in done.stdout


def test_executorch_without_torch() -> None:
    """The error fits a board, where pip installs one without the other."""
    program = """\
import sys
sys.modules["torch"] = None
from edgekit.deploy.errors import MissingPackageError
try:
    import edgekit.deploy.runtimes.executorch_session
except MissingPackageError as error:
    print(error, error.fix, sep=": ")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = "executorch needs the package torch, which is not installed: pip install torch, where executorch is"
    assert done.stdout.strip() == expected
