"""Can the verdict be trusted? Runs with known results, on this machine, for three quarters of an hour.

`pytest -s -m long tests/test_trust.py` prints a line per run, and the counts.
"""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.measuring.plan import Plan
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.analysis.contract import speed_outcome
from edgekit.toolkit.analysis.document import measured_times
from edgekit.toolkit.analysis.statistics import Interval, ratio_of_times
from edgekit.toolkit.doctor.planted_models import null_bundle, slowed
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize

pytestmark = pytest.mark.long

RUNS = 40


def _speedups(bundles: list[Bundle], plan: Plan) -> list[Interval]:
    """The speed-up of each bundle over the first."""
    measured = open_device("local", planted=True).measure(bundles, plan, None, lambda what, share: None)
    base, *others = (measured_times(measurement.blocks) for measurement in measured.measurements)
    return [ratio_of_times(base, other) for other in others]


@contextlib.contextmanager
def _burner() -> Iterator[None]:
    """Another process that keeps a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.fixture(params=["null", "onnx"])
def model(request: pytest.FixtureRequest, untrained: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """A fake model that spins for a millisecond, or MobileNetV3-Small at 96 pixels in ONNX Runtime."""
    if request.param == "null":
        return null_bundle(tmp_path / "null", ns=1_000_000)
    return export_bundle(untrained("mobilenet_v3_small", tmp_path / "torch", side=96), "onnx", tmp_path / "onnx")


def test_a_model_against_itself_and_against_itself_slowed(model: Bundle, tmp_path: Path) -> None:
    """40 runs of 20 to 25 s: at least 95 % find "no difference", and at least 90 % find the injected 3 %."""
    factors = {"base": 1.0, "same": 1.0, "slow": 1.03}
    trio = [slowed(model, tmp_path / name, factor) for name, factor in factors.items()]
    same, slow = Counter(), Counter()
    for seed in range(RUNS):
        begin = time.monotonic()
        speedups = _speedups(trio, Plan(seconds=6, threads=1, seed=seed))
        for counter, speedup in zip((same, slow), speedups, strict=True):
            counter[speed_outcome(speedup)] += 1
        text = ", ".join(
            f"{entry.value:.4f} [{entry.low:.4f}, {entry.high:.4f}] {speed_outcome(entry)}" for entry in speedups
        )
        print(f"{model.manifest.format} run {seed}, {time.monotonic() - begin:.0f} s: {text}", flush=True)
    print(f"{model.manifest.format}: against itself {dict(same)}, 3 % slower {dict(slow)}")
    assert same["no difference"] >= 0.95 * RUNS
    assert slow["slower"] >= 0.9 * RUNS


def test_a_linear_drift_does_not_bias_the_ratio(tmp_path: Path) -> None:
    """The machine slows down by 20 % over the run; one of its two models is 1.5 times as fast as the other."""
    ratios = []
    for seed in range(5):
        drift = {"drift_per_s": 0.2 / 20, "since": time.time()}
        pair = [
            slowed(null_bundle(tmp_path / f"null-{seed}-{ns}", ns), tmp_path / f"{seed}-{ns}", **drift)
            for ns in (1_500_000, 1_000_000)
        ]
        (speedup,) = _speedups(pair, Plan(seconds=8, threads=1, seed=seed))
        print(f"drift run {seed}: {speedup.value:.5f} [{speedup.low:.5f}, {speedup.high:.5f}]", flush=True)
        ratios.append(speedup.value)
    assert sum(ratios) / len(ratios) == pytest.approx(1.5, rel=0.005)


def test_a_busy_neighbour_does_not_change_the_ratio(untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """One thread, with another process on one core: the interval still overlaps that of the quiet machine."""
    fp32 = export_bundle(untrained("resnet18", tmp_path / "torch"), "onnx", tmp_path / "fp32")
    int8 = quantize(fp32, QuantizeOptions(calibration_images=64), out=tmp_path / "int8").bundle
    plan = Plan(seconds=10, threads=1)
    (quiet,) = _speedups([fp32, int8], plan)
    with _burner():
        (busy,) = _speedups([fp32, int8], plan)
    print(f"quiet {quiet}, busy {busy}")
    assert busy.low <= quiet.high
    assert quiet.low <= busy.high
