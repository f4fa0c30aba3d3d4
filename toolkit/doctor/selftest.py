"""Testing the measurement: its cost per call, and the smallest difference that it detects on this machine."""

import io
import time
from collections.abc import Sequence

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.devices.device import open_device
from ...deploy.files import scratch_folder
from ...deploy.measuring.measurement import Block
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.worker import Worker
from ...deploy.progress import Progress, silent
from ...deploy.session import runtime_for
from ..analysis.contract import FAIL, INCONCLUSIVE, PASS, speed_outcome
from ..analysis.diagnosis import Overhead
from ..analysis.document import measured_times
from ..analysis.noise import signals
from ..analysis.report_schema import SelfTest
from ..analysis.statistics import CONFIDENCE, process_speedups, ratio_of_times, student_critical, student_mean
from ..analysis.verdict import ratio
from .planted_models import null_bundle, slowed

# The injected slowdown that the test has to detect.
SLOWER = 1.03

# A process of three models takes about 3 seconds to start and warm up.
_PROCESS_S = 5.0


def overhead() -> Overhead:
    """Nanoseconds per timed call of a model that does nothing: in this process, and through the agent."""
    with scratch_folder() as folder:
        bundle = null_bundle(folder / "null")
        worker = Worker(io.StringIO())
        worker.start(str(bundle.path), None, planted=True)
        worker.open(threads=1)
        worker.prepare()
        in_process = worker.time(samples=20, calls=2000)["ns"]
        plan = Plan(seconds=0.3, processes=3, block_ms=20, threads=1)
        (measured,) = open_device("local", planted=True).measure([bundle], plan, None, silent).measurements
        return {"in_process_ns": float(np.median(in_process)) / 2000, "through_agent_ns": _call_ns(measured.blocks)}


def run_self_test(
    bundle: Bundle | None, seconds: float = 60.0, seed: int = 0, progress: Progress = silent
) -> tuple[SelfTest, int]:
    """Measure a model against itself and against a copy slowed by 3 %, in about `seconds`.

    Args:
        bundle: the model to test with; None takes one that spins for a millisecond.

    Returns:
        The result, and the exit code: 0 for "no difference" and "slower", 3 if an outcome contradicts these, 4
        if this machine is too noisy to decide.
    """
    processes = max(3, int(seconds / _PROCESS_S))
    plan = Plan(seconds=max(0.3, seconds - 3.0 * processes), processes=processes, seed=seed)
    begin = time.monotonic()
    with scratch_folder() as folder:
        if bundle is not None:
            runtime_for(bundle).opener(bundle.manifest.format)  # before test runtimes are enabled
        source = bundle or null_bundle(folder / "null", ns=1_000_000)
        trio = [slowed(source, folder / name, factor) for name, factor in _trio()]
        measured = open_device("local", planted=True).measure(trio, plan, None, progress)
    base, same, slow = (measured_times(measurement.blocks) for measurement in measured.measurements)
    speedups = [ratio_of_times(base, times) for times in (same, slow)]
    outcomes = [speed_outcome(speedup) for speedup in speedups]
    names = [name for name, _ in _trio()]
    threads = measured.environment.get("threads", 1)
    noise = signals(measured.environment, dict(zip(names, measured.measurements, strict=True)), threads)
    if outcomes == ["no difference", "slower"]:
        code = PASS
    else:
        code = FAIL if outcomes[0] in ("faster", "slower") or outcomes[1] == "faster" else INCONCLUSIVE
    result: SelfTest = {
        "model": source.manifest.name,
        "call_ms": _call_ns(measured.measurements[0].blocks) / 1e6,
        "seconds": time.monotonic() - begin,
        "same": {**ratio(speedups[0]), "outcome": speed_outcome(speedups[0])},
        "slowed": {**ratio(speedups[1]), "outcome": speed_outcome(speedups[1]), "planted": 1 / SLOWER},
        "resolves": smallest_difference([process_speedups(base, times) for times in (same, slow)]),
        "noise": [{"name": signal.name, "detail": signal.detail} for signal in noise],
    }
    return result, code


def smallest_difference(comparisons: Sequence[Sequence[float]]) -> float:
    """The smallest relative difference detected nine times out of ten, from comparisons of known outcome.

    The sum of two quantiles of Student's t, times the standard error of the less exact comparison. It is itself
    an estimate from few processes.

    Args:
        comparisons: logarithms of a ratio, one value per process.
    """
    largest = 0.0
    for values in comparisons:
        interval, freedom = student_mean(values), len(values) - 1
        error = (interval.high - interval.value) / student_critical(CONFIDENCE, freedom)
        largest = max(largest, error * (student_critical(CONFIDENCE, freedom) + student_critical(0.8, freedom)))
    return float(np.expm1(largest))


def _trio() -> list[tuple[str, float]]:
    return [("model", 1.0), ("the same model", 1.0), ("the model slowed", SLOWER)]


def _call_ns(blocks: Sequence[Block]) -> float:
    return float(np.median([value for block in blocks for value in block.call_ms])) * 1e6
