"""Virtual boards, the wire to them, and the models they run."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from PIL import Image

from . import virtual
from .virtual import HERE, VirtualBoard

DATA = HERE.parent / "data"


# linux/sched.h
CLONE_NEWNET = 0x40000000


def port_of(worker: str, extra: int = 0) -> int:
    """A separate port for each parallel test process."""
    return 23000 + 10 * int(worker.removeprefix("gw") or 0 if worker != "master" else 9) + extra


@pytest.fixture(scope="session")
def shared_board(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[VirtualBoard]:
    """One board per test process; `board` resets it for each test."""
    virtual.need_board()
    # under /tmp, since the login account must be able to reach it
    folder = Path(f"/tmp/edgekit-board-{os.getpid()}")
    with virtual.board(folder, port_of(worker_id)) as made:
        yield made


@pytest.fixture
def board(shared_board: VirtualBoard, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualBoard]:
    """A board in its initial state, known to this process's ssh."""
    shared_board.renew()
    monkeypatch.setenv("PATH", shared_board.environment["PATH"])
    yield shared_board
    shared_board.profile()


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """The committed network, and its int8 version for ARM."""
    from edgekit.toolkit.quantize.options import QuantizeOptions
    from edgekit.toolkit.quantize.quantize import quantize

    fp32 = Bundle.open(DATA / "lenet-fp32")
    return fp32, quantize(fp32, QuantizeOptions(target="arm"), out=tmp_path_factory.mktemp("arm") / "int8").bundle


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty scanned digits as JPEG files in class folders: sent encoded, decoded on the board."""
    from edgekit.toolkit.datasets import load_dataset

    folder = tmp_path_factory.mktemp("photos")
    for index, sample in enumerate(load_dataset("digits").test.stratified(60, seed=0)):
        place = folder / str(sample.label)
        place.mkdir(exist_ok=True)
        sample.image.resize((48, 48), Image.Resampling.BICUBIC).save(place / f"{index:03d}.jpg", quality=90)
    return folder


class Wire:
    """A wire to a board in another network namespace (see wire.py)."""

    def __init__(self, board: VirtualBoard, near: str, control: Path) -> None:
        self.board, self._near, self._control = board, near, control

    def set(self, **settings: Any) -> None:
        """Replace the wire's settings (see wire.py)."""
        self._control.write_text(json.dumps(settings))

    def run(self, work: Callable[[], Any]) -> "Future[Any]":
        """Run `work` in a thread inside the near end's network namespace, which its child processes inherit."""

        def inside() -> Any:
            with Path(f"/run/netns/{self._near}").open() as namespace:
                assert not ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET)
            return work()

        return ThreadPoolExecutor(1).submit(inside)


@pytest.fixture
def wired(worker_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A board at the far end of a wire."""
    virtual.need_board()
    number = port_of(worker_id) - 23000
    near, far = f"near{number}", f"far{number}"
    addresses = f"10.77.{number}.1", f"10.77.{number}.2"
    for name in (near, far):
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "add", name], check=True)
    control = tmp_path / "wire.json"
    control.write_text("{}")
    command = [sys.executable, HERE / "wire.py", near, addresses[0], far, addresses[1], control]
    carrier = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert carrier.stdout
    assert carrier.stdout.readline() == "up\n"
    board = VirtualBoard(Path(f"/tmp/edgekit-wired-{os.getpid()}"), 22, addresses[1], far)
    board.start()
    monkeypatch.setenv("PATH", board.environment["PATH"])
    try:
        yield Wire(board, near, control)
    finally:
        board.remove()
        carrier.kill()
        carrier.communicate()
        for name in (near, far):
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def until() -> Callable[[Callable[[], object], float], None]:
    """Wait for a condition to become true."""

    def wait(condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true"
            time.sleep(0.1)

    return wait
