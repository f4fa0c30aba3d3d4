"""The virtual ARM64 board over SSH: what it runs, and how failures are reported."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.engine.passport import Passport
from edgekit.deploy.errors import DeviceError, EdgeKitError
from edgekit.deploy.image_sources import open_images
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.progress import Progress
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.doctor.diagnose import diagnose_device
from edgekit.toolkit.doctor.provision import remove_all
from edgekit.toolkit.packing.pack import write_packed
from edgekit.toolkit.report.files import write_reports
from edgekit.toolkit.validation.validate import ValidateOptions, validate

from tests.conftest import heed_signals

from .virtual import VirtualBoard

pytestmark = pytest.mark.slow

EDGEKIT = [sys.executable, "-m", "edgekit.toolkit.cli"]
QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
CACHE = "root/home/edge/.cache/edgekit"


def _silent(stage: str, share: float) -> None:
    """Ignore progress."""


def _measure(board: VirtualBoard, bundle: Bundle, show: Progress = _silent, images: ImageSet | None = None) -> Any:
    """Run the shortest possible measurement."""
    with open_device(board.device) as device:
        device.runtimes()
        return device.measure([bundle], QUICK, images, show)


@pytest.fixture
def only_cache_left(board: VirtualBoard) -> Iterator[None]:
    """Check after the test that no EdgeKit process runs on the board and only the cache is left there."""
    yield
    deadline = time.monotonic() + 30
    while running := board.python_processes():
        assert time.monotonic() < deadline, running
        time.sleep(0.2)
    assert not [name for name in board.files() if name.endswith("/job") or "/result-" in name]
    assert all("edgekit" in name or name.endswith("/.cache") for name in board.files()), board.files()


@pytest.mark.usefixtures("only_cache_left")
def test_fp32_and_int8_are_validated_on_arm64(
    board: VirtualBoard, arm: tuple[Bundle, Bundle], photos: Path, tmp_path: Path
) -> None:
    """Parity, accuracy on 60 images and the full report; answers equal the host's. A second run sends nothing."""
    fp32, int8 = arm
    result = validate(
        [int8],
        baseline=fp32,
        images=str(photos),
        plan=QUICK,
        contract=Contract(max_drop=20.0),
        options=ValidateOptions(devices=[board.device]),
    )
    report = result.report
    assert report["device"]["name"] == board.device
    assert report["device"]["machine"] == "aarch64"
    assert report["device"]["versions"]["python"].startswith("3.11.2")
    assert report["device"]["temperature_c" if "temperature_c" in report["device"] else "board"] == "unavailable"
    assert report["images"] == 60
    for model in report["models"]:
        assert model["parity"]["checksums_agreement"] == 1.0, "the golden images are decoded to the same pixels"
        assert model["parity"]["tensor_max_abs"] == 0.0
        assert model["top1"] > 0.5
        assert model["peak_rss_bytes"] is None or model["peak_rss_bytes"] > 10e6
        assert model["load_ms"] > 0
        assert model["host"]["images"] == 60
        assert all(image["gap"] <= 2 * model["host"]["logits_max_abs"] for image in model["host"]["differ"])
    assert report["models"][0]["host"]["differ"] == []
    assert report["models"][0]["parity"]["logits_max_abs"] < 1e-3
    assert result.exit_code == 0, report["reason"]
    page = write_reports(report, result.images, tmp_path / "report")[-1].read_text()
    assert "Device against host" in page
    assert board.device in page

    stages: list[str] = []
    images = open_images(photos, fp32.manifest.labels)
    with open_device(board.device) as device:
        measured = device.measure([fp32], QUICK, images, lambda stage, share: stages.append(stage))
    assert "sending" not in stages
    repeated = measured.measurements[0].predictions
    assert repeated is not None
    assert list(repeated.classes) == report["models"][0]["predictions"]


def _without(board: VirtualBoard, package: str) -> None:
    """Remove a package from the board."""
    site = board.folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(board.folder / "root/usr/local/lib/python3.11/dist-packages", site)
    shutil.rmtree(site / package)
    board.profile(SITE=site)


def test_a_board_without_the_runtime(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The error names the missing package and the command that installs it; doctor shows the details."""
    _without(board, "onnxruntime")
    with pytest.raises(DeviceError, match="it has no onnxruntime") as caught:
        _measure(board, arm[0])
    assert f"edgekit provision --device {board.device}" in caught.value.fix
    diagnosis = diagnose_device(open_device(board.device))
    versions = {package.name: package.version for package in diagnosis["packages"]}
    assert [name for name in ("numpy", "pillow", "onnxruntime") if versions[name] is None] == ["onnxruntime"]
    assert diagnosis["remarks"] == ["it has no onnxruntime"]
    assert diagnosis["python"]["machine"] == "aarch64"
    assert not (board.folder / CACHE / "venv").exists(), "nothing is installed without a request"


def test_a_runtime_for_another_processor(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The error says that it does not work, not that it is missing."""
    _without(board, "numpy")
    host_numpy = Path(np.__file__).parent
    shutil.copytree(host_numpy, board.folder / "site/numpy")
    with pytest.raises(DeviceError, match="its numpy does not work on this aarch64"):
        _measure(board, arm[0])


def test_a_board_without_python(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The error names the version to install."""
    board.profile(NO_PYTHON=1)
    with pytest.raises(DeviceError, match="has no working python3") as caught:
        _measure(board, arm[0])
    assert "3.10" in caught.value.fix


def test_an_old_python(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The error names its version and the required one."""
    board.profile(OLD_PYTHON=1)
    with pytest.raises(DeviceError, match=r"has Python 3\.9\.2; EdgeKit needs 3\.10 or newer"):
        _measure(board, arm[0])


def test_another_host_key(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The connection is refused; the fix covers a board that was reinstalled."""
    board.trust(board.ssh / "id.pub")
    with pytest.raises(DeviceError, match="a different host key") as caught:
        _measure(board, arm[0])
    assert "ssh-keygen -R" in caught.value.fix


def test_an_unknown_host_key(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """It is never accepted automatically."""
    (board.ssh / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match="an unknown host key"):
        _measure(board, arm[0])


def test_a_password_is_never_asked_for(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The error follows at once, even if there is a terminal."""
    (board.ssh / "authorized_keys").write_text("")
    start = time.monotonic()
    with pytest.raises(DeviceError, match="EdgeKit does not ask for passwords") as caught:
        _measure(board, arm[0])
    assert time.monotonic() - start < 15
    assert "ssh-copy-id" in caught.value.fix


def test_a_board_without_an_ssh_server(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """No ssh server runs on the board."""
    board.stop()
    with pytest.raises(DeviceError, match="no ssh server listens there"):
        _measure(board, arm[0])


@pytest.mark.parametrize(
    "address",
    ["ssh://", "ssh://-oProxyCommand=x", "ssh://-x@host", "ssh://a b@host:port", "ssh://host:22x", "ftp://host"],
)
def test_an_invalid_address_is_refused(address: str) -> None:
    """The error is raised before ssh is called."""
    with pytest.raises(DeviceError):
        open_device(address)


@pytest.mark.usefixtures("only_cache_left")
def test_a_second_measurement_at_once_is_refused(
    board: VirtualBoard, arm: tuple[Bundle, Bundle], until: Callable[[Callable[[], object], float], None]
) -> None:
    """The second gets an error that names the first, which is not disturbed."""
    lock = board.folder / CACHE / "lock"
    outcome: list[Any] = []
    first = threading.Thread(target=lambda: outcome.append(_measure(board, arm[0])))
    first.start()
    until(lambda: lock.exists() and lock.read_text(), 60)
    with pytest.raises(EdgeKitError, match="another EdgeKit is measuring on this board, for .+@"):
        _measure(board, arm[0])
    first.join()
    assert len(outcome) == 1
    assert lock.read_text() == ""


@pytest.mark.usefixtures("only_cache_left")
def test_ctrl_c_stops_the_board(
    board: VirtualBoard,
    arm: tuple[Bundle, Bundle],
    tmp_path: Path,
    until: Callable[[Callable[[], object], float], None],
) -> None:
    """The exit code is 130, and seconds later nothing runs on the board."""
    command = [*EDGEKIT, "validate", arm[0].path, "--device", board.device, "--limit", "10"]
    process = subprocess.Popen(
        command, env=board.environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert process.stderr
    until(lambda: (board.folder / CACHE / "job").exists(), 60)
    until(board.python_processes, 30)
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    until(lambda: not board.python_processes(), 10)


def test_a_home_with_a_space_and_one_that_is_read_only(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """Files go to the cache in the first, by sftp, and to the temporary folder in the second, by rsync."""
    home, rsync = board.folder / "root/home/edge pi", board.folder / "root/usr/bin/rsync"
    home.mkdir()
    os.chown(home, 1500, 1500)
    rsync.rename(rsync.with_name("rsync-away"))
    try:
        board.profile(BOARD_HOME="/home/edge pi")
        with open_device(board.device) as device:
            about = device.describe().about
            assert about is not None and about.machine["machine"] == "aarch64"
        assert (home / ".cache/edgekit").is_dir()
    finally:
        rsync.with_name("rsync-away").rename(rsync)
        shutil.rmtree(home)
    board.profile(HOME_READ_ONLY=1)
    assert diagnose_device(open_device(board.device))["python"]["cache"].startswith("/tmp/edgekit-")
    assert remove_all(board.device) == ["/tmp/edgekit-0"]
    assert not list((board.folder / "tmp").iterdir())


def test_a_folder_of_another_user_is_not_trusted(board: VirtualBoard) -> None:
    """Anyone may create it in /tmp first: its Python is not run, and nothing is stored in it."""
    trap = board.folder / "tmp/edgekit-0/venv/bin/python3"
    trap.parent.mkdir(parents=True)
    trap.write_text("#!/bin/sh\ntouch /tmp/trapped\n")
    trap.chmod(0o755)
    board.profile(HOME_READ_ONLY=1)
    with pytest.raises(DeviceError, match="has no writable folder"):
        diagnose_device(open_device(board.device))
    assert not (board.folder / "tmp/trapped").exists()


def test_several_devices_at_once(board: VirtualBoard, arm: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    """One report compares them; a device that fails is reported and does not affect the others."""
    result = validate(
        [arm[0]],
        images="digits",
        limit=20,
        plan=QUICK,
        options=ValidateOptions(devices=["local", board.device, "ssh://nobody@127.0.0.1:1"]),
    )
    report = result.report
    assert [device["device"]["name"] for device in report["devices"]] == ["local", board.device]
    assert [device["device"]["machine"] for device in report["devices"]][1] == "aarch64"
    assert report["failed"][0]["device"] == "ssh://nobody@127.0.0.1:1"
    (entry,) = report["agreement"]
    assert (entry["images"], entry["differ"]) == (20, [])
    assert result.exit_code == 1
    assert "no ssh server listens there" in report["reason"]
    paths = write_reports(report, result.images, tmp_path / "report")
    page = paths[-1].read_text()
    assert page.count("<details>") == 2
    assert json.loads(paths[0].read_text())["agreement"][0]["images"] == 20


def test_a_packed_model_runs_on_the_board(
    board: VirtualBoard, arm: tuple[Bundle, Bundle], photos: Path, tmp_path: Path
) -> None:
    """Copied by hand, run with the board's own Python, and its result joined with another device's."""
    fp32, int8 = arm
    write_packed(
        [fp32, int8], [int8.id], open_images(photos, fp32.manifest.labels), QUICK, Contract(), tmp_path / "lenet.pyz"
    )
    home = board.folder / "root/home/edge"
    shutil.copyfile(tmp_path / "lenet.pyz", home / "lenet.pyz")
    login = ["ssh", "-p", str(board.port), f"edge@{board.address}"]
    done = subprocess.run([*login, "python3 lenet.pyz"], capture_output=True, text=True, env=board.environment)
    assert done.returncode == 0, done.stderr
    assert "60 test images" in done.stdout
    shutil.copyfile(home / "result.json", tmp_path / "result.json")
    local = validate([int8], baseline=fp32, images=str(photos), plan=QUICK)
    write_reports(local.report, None, tmp_path / "local")
    command = [*EDGEKIT, "report", tmp_path / "local/report.json", tmp_path / "result.json", "--join", "--json"]
    joined = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    machines = [device["device"]["machine"] for device in joined["devices"]]
    assert machines == [local.report["device"]["machine"], "aarch64"]
    assert [(entry["precision"], entry["images"]) for entry in joined["agreement"]] in (
        [("fp32", 60), ("int8", 60)], [("int8", 60), ("fp32", 60)],
    )  # fmt: skip
    assert all(len(entry["differ"]) <= 3 for entry in joined["agreement"])


def test_an_engine_is_built_on_the_board_and_fetched(
    board: VirtualBoard, edgekit: Callable[..., subprocess.CompletedProcess[str]], fp32: Bundle, tmp_path: Path
) -> None:
    """The agent uses the board's (simulated) TensorRT; the board keeps the engine, so it is not sent again."""
    done = edgekit("build", fp32.path, "--device", board.device, code=1)
    assert "has no TensorRT that its Python can import" in done.stderr
    packages = board.folder / "root/home/edge/.local/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    shutil.copy(Path(__file__).parent.parent / "simulated/tensorrt.py", packages / "tensorrt_rtx.py")
    done = edgekit("build", fp32.path, "--device", board.device, code=1)
    assert "no NVIDIA GPU here to build for" in done.stderr
    options = ("--device", board.device, "--compute-capability", "8.6")
    edgekit("build", fp32.path, *options, "--out", "engine")
    engine = Bundle.open(tmp_path / "engine")
    passport = Passport.of(engine)
    assert (passport.machine, passport.compute_capabilities) == ("aarch64", ("8.6",))
    (cached,) = [path for path in (board.folder / CACHE).iterdir() if path.is_file() and engine.id in _names(path)]
    before = cached.stat().st_mtime_ns
    done = edgekit("validate", "engine", "--device", board.device, "--baseline", fp32.path, "--limit", "10", code=1)
    assert "needs an NVIDIA GPU of compute capability 8.6" in done.stderr
    assert cached.stat().st_mtime_ns == before
    assert not list((board.folder / CACHE).glob("*.part"))


def _names(path: Path) -> str:
    """The names in a zip file; empty for any other file."""
    return " ".join(zipfile.ZipFile(path).namelist()) if zipfile.is_zipfile(path) else ""
