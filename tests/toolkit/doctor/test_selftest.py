"""The self-test runs from end to end, and finds the differences that it injects."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.session import open_session
from edgekit.toolkit.doctor.planted_models import null_bundle, slowed
from edgekit.toolkit.doctor.selftest import overhead, run_self_test, smallest_difference
from edgekit.toolkit.validation.validate import validate

Run = Callable[..., subprocess.CompletedProcess[str]]
ONE = {"threads": 1}


def test_slowed_is_the_same_model_at_a_known_speed(fp32: Bundle, tmp_path: Path) -> None:
    """The same answers, slower by the factor; with a drift, slower and slower."""
    made = slowed(fp32, tmp_path / "slowed", factor=3.0)
    tensors = fp32.golden().tensors[:1]
    np.testing.assert_array_equal(
        open_session(made, planted=True, **ONE).run(tensors), open_session(fp32, **ONE).run(tensors)
    )
    assert made.manifest.lineage == fp32.manifest.lineage
    null = null_bundle(tmp_path / "null", ns=1_000_000)
    constant = slowed(null, tmp_path / "constant", factor=3.0)
    drifting = slowed(null, tmp_path / "drifting", drift_per_s=0.1, since=time.time() - 10)
    for bundle, least_ns in ((constant, 3_000_000), (drifting, 2_000_000)):
        session, start = open_session(bundle, planted=True, **ONE), time.perf_counter_ns()
        session.run(tensors)
        assert time.perf_counter_ns() - start >= least_ns


def test_an_invalid_null_model_is_refused(tmp_path: Path) -> None:
    """Like an invalid model of any other runtime."""
    made = null_bundle(tmp_path / "null")
    (made.path / "model.json").write_text('{"ns": "fast"}')
    with pytest.raises(BundleError, match="not a null model"):
        open_session(made, planted=True)


@pytest.mark.parametrize("kind", ["null", "slowed"])
def test_a_foreign_bundle_cannot_open_a_test_model(kind: str, fp32: Bundle, tmp_path: Path) -> None:
    """The formats used to test measuring are refused in a bundle: by a session, a device and a command."""
    made = null_bundle(tmp_path / kind) if kind == "null" else slowed(fp32, tmp_path / kind)
    with pytest.raises(BundleError, match=f"unknown bundle format '{kind}'"):
        open_session(made)
    with pytest.raises(EdgeKitError, match=f"unknown bundle format '{kind}'"):
        open_device("local").measure([made], Plan(seconds=0, processes=3), None, lambda what, share: None)
    assert kind not in open_device("local").runtimes()
    with pytest.raises(DeviceError, match="cannot run"):
        validate([made])
    with pytest.raises(BundleError, match="unknown bundle format"):
        run_self_test(made, seconds=1)


@pytest.mark.parametrize("change", [{"model": "../other/model.onnx"}, {"format": "slowed"}])
def test_a_slowed_model_wraps_a_model_in_its_own_bundle(change: dict, fp32: Bundle, tmp_path: Path) -> None:
    """A file outside the bundle is refused, and so is the slowed model itself."""
    made = slowed(fp32, tmp_path / "slowed")
    shutil.copytree(fp32.path, tmp_path / "other")
    settings = json.loads(made.model_path.read_text())
    made.model_path.write_text(json.dumps({**settings, **change}))
    with pytest.raises(BundleError, match="its own bundle"):
        open_session(made, planted=True, **ONE)


def test_overhead_is_measured_both_ways() -> None:
    """In this process and through the agent, an empty call takes measurable time."""
    measured = overhead()
    assert measured.keys() == {"in_process_ns", "through_agent_ns"}
    assert all(value > 0 for value in measured.values())


def test_the_smallest_difference_is_found_nine_times_in_ten() -> None:
    """Five processes that differ by 1 %: the reported difference is significant in about 90 % of experiments."""
    from edgekit.toolkit.analysis.statistics import student_mean

    generator = np.random.default_rng(0)
    # the standard error is estimated from few processes, so the median size is used
    size = np.log1p(np.median([smallest_difference([generator.normal(0, 0.01, 5).tolist()]) for _ in range(500)]))
    significant = [student_mean((size + generator.normal(0, 0.01, 5)).tolist()).low > 0 for _ in range(2000)]
    assert 0.8 <= np.mean(significant) <= 0.97


@pytest.mark.slow
def test_self_test_on_the_command_line(edgekit: Run, fp32: Bundle) -> None:
    """A short run reports both comparisons and the resolution; it exits with 0 only if both are as expected."""
    command = [sys.executable, "-m", "edgekit.toolkit.cli", "doctor", "--self-test", "--seconds", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert result["slowed"]["planted"] == pytest.approx(1 / 1.03)
    assert result["resolves"] > 0
    expected = (result["same"]["outcome"], result["slowed"]["outcome"]) == ("no difference", "slower")
    assert (done.returncode == 0) == expected
    assert done.returncode in (0, 3, 4)
    assert "self-test" in edgekit("doctor", fp32.path, code=1).stderr
