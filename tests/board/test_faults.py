"""Faults of a board in use: the line or the power is cut, disk or memory run out, the clock is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.devices.ssh import open_board
from edgekit.deploy.errors import DeviceError, EdgeKitError, LostDeviceError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring import cargo
from edgekit.deploy.measuring.plan import Plan
from edgekit.toolkit.doctor.diagnose import diagnose_device
from edgekit.toolkit.doctor.provision import provision
from edgekit.toolkit.validation.validate import ValidateOptions, validate

from .conftest import Wire
from .virtual import VirtualBoard

pytestmark = pytest.mark.long

Until = Callable[[Callable[[], object], float], None]

EDGEKIT = [sys.executable, "-m", "edgekit.toolkit.cli"]
QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
LONG = dataclasses.replace(QUICK, processes=30)
CACHE = "root/home/edge/.cache/edgekit"


def _measure(board: VirtualBoard, bundle: Bundle, show: Any = lambda stage, share: None, plan: Plan = QUICK) -> Any:
    with open_device(board.device) as device:
        device.runtimes()
        return device.measure([bundle], plan, None, show)


@pytest.fixture
def big(tmp_path: Path) -> cargo.Parcel:
    """A parcel of 6 MB."""
    (tmp_path / "big").write_bytes(os.urandom(6_000_000))
    return cargo.parcel(iter([("big", tmp_path / "big")]), tmp_path)


@pytest.fixture
def disk(board: VirtualBoard) -> Iterator[VirtualBoard]:
    """A board whose home is a disk of 8 MB."""
    mount_point = board.folder / "disk"
    mount_point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,uid=1500", "none", mount_point], check=True)
    board.profile(HOME_DISK=1)
    board.stop()
    board.start()  # in a mount namespace that contains the disk
    yield board
    board.stop()
    subprocess.run(["umount", mount_point], check=True)


def test_missing_disk_space_is_reported(disk: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """The missing space is reported before anything is sent."""
    many = np.zeros((2000, 32, 32, 3), np.uint8)
    images = ImageSet(arm[0].manifest.labels, tuple(map(str, range(2000))), np.zeros(2000, np.int64), many)
    with (
        open_device(disk.device) as device,
        pytest.raises(DeviceError, match=r"has 8 MB free and needs 1\d MB"),
    ):
        device.measure([arm[0]], QUICK, images, lambda stage, share: None)
    assert not list((disk.folder / "disk/.cache/edgekit").iterdir())


def test_the_disk_fills_up_during_a_transfer(disk: VirtualBoard, tmp_path: Path) -> None:
    """Another program fills it: the error is one line, and the next attempt succeeds."""
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    parcel = cargo.parcel(iter([("file", tmp_path / "file")]), tmp_path)

    def fill(stage: str, share: float) -> None:
        if stage == "sending" and share == 0:
            (disk.folder / "disk/other").write_bytes(bytes(6_500_000))

    with open_board(disk.device) as device:
        with pytest.raises(DeviceError, match="the disk is full"):
            device.send([parcel], fill)
        (disk.folder / "disk/other").unlink()
        assert device.send([parcel], lambda stage, share: None).files[parcel.sha256] == "whole"


@pytest.mark.parametrize("cut_s", [4, 20])
def test_the_line_is_cut_while_files_are_sent(wired: Wire, big: cargo.Parcel, until: Until, cut_s: float) -> None:
    """A short interruption is waited out; after a long one only the missing part is sent."""
    wired.set(delay_ms=5, kbit=8000)
    stages: list[tuple[str, float]] = []

    def send() -> Any:
        with open_board(wired.board.device) as device:
            return device.send([big], lambda stage, share: stages.append((stage, share)))

    sent = wired.run(send)
    part = wired.board.folder / CACHE / f"{big.sha256}.part"
    until(lambda: part.exists() or list(part.parent.glob(f".{part.name}*")), 60)
    until(lambda: any(stage == "sending" and share > 0.3 for stage, share in stages), 60)
    wired.set(cut=True)
    time.sleep(cut_s)
    wired.set(delay_ms=5, kbit=8000)
    assert sent.result(120).files[big.sha256] == "whole"
    assert ("reconnecting" in [stage for stage, _ in stages]) == (cut_s > 15)


def test_a_damaged_file_is_sent_again(board: VirtualBoard, big: cargo.Parcel) -> None:
    """The cache contains a file with a flipped bit, or a part of another file under its name."""
    folder = board.folder / CACHE
    stages: list[str] = []
    with open_board(board.device) as device:
        device.send([big], lambda stage, share: stages.append(stage))
        content = bytearray((folder / big.sha256).read_bytes())
        content[1000] ^= 1
        (folder / big.sha256).write_bytes(content)
        assert device.send([big], lambda stage, share: stages.append(stage)).files[big.sha256] == "whole"
        assert (folder / big.sha256).read_bytes() == big.path.read_bytes()
        (folder / big.sha256).unlink()
        for size in (3_000_000, 6_000_104, 6_500_000):
            part = folder / f"{big.sha256}.part"
            part.write_bytes((bytes(content) * 2)[:size])
            os.chown(part, 1500, 1500)
            assert device.send([big], lambda stage, share: stages.append(stage)).files[big.sha256] == "whole"
            (folder / big.sha256).unlink()


def test_the_line_is_cut_while_it_measures(
    wired: Wire, arm: tuple[Bundle, Bundle], tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error follows after seconds; completed measurements are kept and can be shown; the board stops."""
    shown: list[tuple[str, float]] = []
    first = 1.2 / 3  # one of the three processes that even a model that is slow to start gets

    measuring = wired.run(
        lambda: validate(
            [arm[0]],
            images="digits",
            limit=10,
            plan=LONG,
            options=ValidateOptions(devices=[wired.board.device], keep=tmp_path / "kept"),
            progress=lambda stage, share: shown.append((stage, share)),
        )
    )
    until(lambda: any(stage.startswith("latency") and share > first for stage, share in shown), 120)
    wired.set(cut=True)
    cut = time.monotonic()
    with pytest.raises(LostDeviceError, match="is gone"):
        measuring.result(120)
    assert time.monotonic() - cut < 75
    until(lambda: not wired.board.python_processes(), 30)
    assert not (wired.board.folder / CACHE / "job").exists()
    done = subprocess.run([*EDGEKIT, "report", tmp_path / "kept/result.json", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["models"][0]
    assert model["predictions"]
    assert any("was cut short" in warning for warning in model["warnings"])


def test_the_line_is_cut_while_the_result_is_fetched(wired: Wire, arm: tuple[Bundle, Bundle], until: Until) -> None:
    """The board keeps the result until the host has received it."""
    measuring = wired.run(lambda: _measure(wired.board, arm[0], plan=dataclasses.replace(QUICK, rounds=200)))
    until(lambda: (wired.board.folder / CACHE / "job").exists(), 90)
    wired.set(delay_ms=20, kbit=60)
    until(lambda: list((wired.board.folder / CACHE).glob("result-*")), 300)
    wired.set(cut=True)
    time.sleep(18)
    wired.set()
    measured = measuring.result(120)
    assert {block.process for block in measured.measurements[0].blocks} == {0, 1, 2}
    assert not list((wired.board.folder / CACHE).glob("result-*"))


def test_a_long_and_lossy_line(wired: Wire, arm: tuple[Bundle, Bundle]) -> None:
    """A round trip of 40 ms and 1 % packet loss are slower, and give the same answers."""
    wired.set(delay_ms=20, loss=0.01)
    report = wired.run(
        lambda: (
            validate(
                [arm[0]], images="digits", limit=50, plan=QUICK, options=ValidateOptions(devices=[wired.board.device])
            ).report
        )
    ).result(300)
    assert report["models"][0]["host"] is not None
    assert report["models"][0]["host"]["differ"] == []


def test_the_board_restarts(board: VirtualBoard, arm: tuple[Bundle, Bundle], until: Until) -> None:
    """The running job is reported as lost; the next run cleans up and works."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            _measure(board, arm[0], plan=LONG)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: (board.folder / CACHE / "job/job.json").exists(), 90)
    time.sleep(5)
    board.stop()
    time.sleep(3)
    board.start()
    thread.join(60)
    assert isinstance(caught[0], LostDeviceError)
    assert (board.folder / CACHE / "job").exists(), "as after a power cut"
    _measure(board, arm[0])
    assert not (board.folder / CACHE / "job").exists()


def test_memory_runs_out(board: VirtualBoard, tmp_path: Path) -> None:
    """The kernel kills the model's process; the agent survives and reports the limit and the peak."""
    from edgekit.toolkit.importing.import_model import ImportOptions, import_model

    _write_large_model(tmp_path / "large.onnx")
    preprocess = Bundle.open(Path(__file__).parent.parent / "data/lenet-fp32").manifest.preprocess
    model = import_model(
        str(tmp_path / "large.onnx"), ImportOptions(tuple("0123456789")), name="large", preprocess=preprocess,
        images="digits", out=tmp_path / "large",
    )  # fmt: skip
    group = Path(f"/sys/fs/cgroup/memory/edgekit-{os.getpid()}")
    if not group.parent.is_dir():
        pytest.skip("needs cgroups of version 1")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
        board.stop()
        board.start(cgroup=group)
        with pytest.raises(EdgeKitError, match=r"killed by signal 9 .+ the limit is 419 MB, the peak was 4\d\d MB"):
            _measure(board, model)
    finally:
        board.stop()
        group.rmdir()


def _write_large_model(path: Path) -> None:
    """Write a model with ten logits and a layer of 250 MB."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    features, width = 32 * 32, 60_000
    weights = {
        "w": np.zeros((features, width), np.float32),
        "v": np.eye(width, 10, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["wide"]),
        helper.make_node("MatMul", ["wide", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "large", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_the_clock_is_off_by_a_year(board: VirtualBoard, arm: tuple[Bundle, Bundle]) -> None:
    """Measuring still works; doctor reports the clock and the consequences."""
    board.profile(PRELOAD="/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1", FAKETIME="-365d")
    assert "off by -365 days" in diagnose_device(open_device(board.device))["remarks"][0]
    (measured,) = _measure(board, arm[0]).measurements
    assert all(ns > 0 for block in measured.blocks for ns in block.ns)


def test_a_bare_board_is_provisioned(
    board: VirtualBoard, arm: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wheels for its platform are installed offline, then it measures; --clean leaves nothing."""
    (board.folder / "site").mkdir(exist_ok=True)
    board.profile(SITE=board.folder / "empty-site")
    (board.folder / "empty-site").mkdir(exist_ok=True)
    with pytest.raises(DeviceError, match="it has no numpy"):
        _measure(board, arm[0])
    packages = {"numpy", "pillow", "onnxruntime"}
    assert provision(board.device, offline=True).keys() == packages
    assert provision(board.device, runtimes=["ncnn"], offline=True).keys() == {*packages, "ncnn"}
    assert provision(board.device, offline=True).keys() == {*packages, "ncnn"}, "again: upgrades what is there"
    with monkeypatch.context() as change:
        change.setattr("edgekit.toolkit.doctor.provision.download_wheels", lambda facts, names, folder: folder.mkdir())
        with pytest.raises(DeviceError):
            provision(board.device, offline=True)
    _measure(board, arm[0])  # the failed installation left the working one
    found = {package.name: package for package in diagnose_device(open_device(board.device))["packages"]}
    assert found["ncnn"].version is not None
    assert found["openvino"].version is None
    assert found["openvino"].install == f"edgekit provision --device {board.device} --runtime openvino"
    with open_device(board.device) as device:
        assert device.runtimes() == {"onnxruntime", "ncnn"}
    subprocess.run([*EDGEKIT, "provision", "--device", board.device, "--clean"], check=True, env=board.environment)
    assert [name for name in board.files() if "edgekit" in name] == []
