"""The agent measures models side by side and reports deaths as such."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices import open_device
from edgekit.deploy.environment import UNAVAILABLE, allowed_cores, describe
from edgekit.deploy.errors import DeviceError, EdgeKitError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measure import WorkerProcess
from edgekit.deploy.measurement import Measurement
from edgekit.deploy.plan import Plan

QUICK = Plan(seconds=0.2, rounds=6, processes=2, block_ms=5, threads=1)


@pytest.fixture
def images() -> ImageSet:
    """Twenty digits with labels."""
    from edgekit.toolkit.datasets import load_dataset

    return load_dataset("digits").test.take(range(20))


def test_local_device(fp32: Bundle, int8: Bundle, images: ImageSet) -> None:
    """Both models in every round, from both processes, predictions in the images' order, everything else recorded."""
    stages: list[str] = []
    measured = open_device("local").measure([fp32, int8], QUICK, images, lambda what, share: stages.append(what))
    first, second = measured.measurements
    assert [first.bundle, second.bundle] == [fp32.id, int8.id]
    for one in measured.measurements:
        assert [block.round for block in one.blocks] == list(range(len(one.blocks)))
        assert len(one.blocks) >= 6
        assert {block.process for block in one.blocks} == {0, 1}
        assert all(ns > 0 for block in one.blocks for ns in block.ns)
        assert one.predictions is not None
        assert len(one.predictions.classes) == len(images)
        assert np.mean(np.asarray(one.predictions.classes) == images.targets) > 0.7
        assert one.peak_rss_bytes is None or one.peak_rss_bytes > 10_000_000
        assert len(one.load_ms) == len(one.first_ms) == 2
        assert one.session["threads"] == 1
    assert first.parity["logits_max_abs"] == pytest.approx(0, abs=1e-4)
    assert second.parity["logits_max_abs"] > 1e-3
    assert measured.environment["cpu"]
    assert list(dict.fromkeys(stages)) == ["loading", "accuracy", "warm-up", "latency"]


def test_a_measurement_survives_json(fp32: Bundle) -> None:
    """What comes back from a device is what was measured there."""
    measured = open_device("local").measure([fp32], QUICK, None, lambda what, share: None)
    one = measured.measurements[0]
    assert one.predictions is None
    assert Measurement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_killed_worker_is_reported_with_its_signal(fp32: Bundle) -> None:
    """As the kernel's out-of-memory killer does it."""
    worker = WorkerProcess(fp32.path, None)
    worker.ask("open", threads=1)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="killed by signal 9") as caught:
        worker.ask("golden")
    assert "memory" in caught.value.fix
    worker.close()


def test_a_damaged_bundle_is_refused_by_the_device_too(int8: Bundle, tmp_path: Path) -> None:
    """The agent checks what arrived, before it loads it."""
    import shutil

    copy = shutil.copytree(int8.path, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"x")
    with pytest.raises(EdgeKitError, match=r"model\.onnx"):
        open_device("local").measure([Bundle(copy, int8.manifest, int8.id)], QUICK, None, lambda what, share: None)


def test_an_agent_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch, fp32: Bundle) -> None:
    """Not a hang, not an empty report."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="no result"):
        open_device("local").measure([fp32], QUICK, None, lambda what, share: None)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at Linux's /proc")
def test_no_process_is_left_behind(fp32: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a measurement neither the agent nor a worker runs on."""
    monkeypatch.setenv("EDGEKIT_TEST", str(tmp_path))
    open_device("local").measure([fp32], QUICK, None, lambda what, share: None)
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # processes come and go
            if f"EDGEKIT_TEST={tmp_path}".encode() in environ.read_bytes():
                left.append(environ.parent.name)
    assert left == []


def test_the_environment_says_unavailable_and_never_zero() -> None:
    """Of anything that cannot be read."""
    found = describe()
    assert found["cores_allowed"] == allowed_cores() >= 1
    assert found["governor"] == UNAVAILABLE or found["governor"].isalpha()
    assert all(value not in (0, "", None) for key, value in found.items() if key != "load")
