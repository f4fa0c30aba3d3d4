"""Signals that the machine was too noisy for reliable times (MEASURING R13)."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...deploy import environment as machine
from ...deploy.environment import UNAVAILABLE
from ...deploy.measuring.measurement import Cores, Environment, Measurement
from .statistics import mann_kendall, theil_sen

# The share of each core that other processes may use at the start.
_LOAD = 0.3
# The coefficient of variation that blocks may have.
_VARIATION = 0.05
# Involuntary context switches per second and thread: 2 to 5 on a quiet machine with two cores, hundreds if another
# process wants the same core.
_SWITCHES = 25.0
# A trend counts if it is significant and changes the latency by this share from a process's first block to its last.
_DOUBT, _CHANGE = 0.01, 0.01


class Signal(NamedTuple):
    """A sign of noise: its name (load, quota, heat, variation, trend, switches), and the observation."""

    name: str
    detail: str


def signals(environment: Environment, measurements: Mapping[str, Measurement], threads: int) -> list[Signal]:
    """The signs of noise during a run; empty for a quiet one.

    Args:
        environment: the device's environment, with its state before and after.
        measurements: each model's measurement, by name.
        threads: threads per inference.
    """
    noise = [*_of_machine(environment, threads)]
    for model, measurement in measurements.items():
        values = [block.ms for block in measurement.blocks]
        variation = float(np.std(values, ddof=1) / np.mean(values))
        if variation > _VARIATION:
            noise.append(Signal("variation", f"{model}: its blocks vary by {variation:.1%} (over {_VARIATION:.0%})"))
        change, doubt = _trend(measurement)
        if abs(change) > _CHANGE and doubt < _DOUBT:
            noise.append(Signal("trend", f"{model}: its latency moved by {change:+.1%} within a process"))
        if (rate := switch_rate(measurement)) is not None and rate > _SWITCHES * threads:
            noise.append(Signal("switches", f"{model}: lost the processor {rate:.0f} times per second"))
    return noise


def _trend(measurement: Measurement) -> tuple[float, float]:
    """The typical relative slow-down within a process, and the p value of the trend over all processes.

    Trends between processes are ignored, because each process starts at its own level.
    """
    processes: dict[int, list[tuple[float, float]]] = {}
    for block in measurement.blocks:
        processes.setdefault(block.process, []).append((block.at, math.log(block.ms)))
    runs = [tuple(zip(*points, strict=True)) for points in processes.values()]
    changes = [theil_sen(times, logs) * (times[-1] - times[0]) for times, logs in runs]
    return math.expm1(float(np.median(changes))), mann_kendall(*(logs for _, logs in runs))


def switch_rate(measurement: Measurement) -> float | None:
    """Involuntary context switches per second of timed blocks; None if the system does not count them."""
    counts = [block.switches for block in measurement.blocks if block.switches is not None]
    return sum(counts) / (sum(sum(block.ns) for block in measurement.blocks) / 1e9) if counts else None


def busy_cores(environment: Cores) -> float:
    """Number of allowed cores that other processes kept busy at the start (see deploy.environment.cores_got); 0
    if unknown."""
    allowed = environment["cores_allowed"]
    if environment["cores_got"] == UNAVAILABLE:
        return 0.0
    return machine.busy_cores(allowed, environment["cores_got"])


def load_text(environment: Cores) -> str:
    """The load of other processes at the start, which may exceed the number of cores."""
    allowed, busy = environment["cores_allowed"], busy_cores(environment)
    if busy <= allowed:
        return f"other processes kept about {busy:.1f} of {allowed} cores busy at the start"
    return f"other processes had work for about {busy:.1f} cores at the start, more than the {allowed} available"


def threads_advised(environment: Cores) -> int:
    """The largest number of threads with a core each, which is the agent's default."""
    if environment["cores_got"] == UNAVAILABLE:
        return environment["cores_allowed"]
    return machine.free_cores(environment["cores_allowed"], environment["cores_got"])


def _of_machine(environment: Environment, threads: int) -> list[Signal]:
    machine_signals = []
    allowed, busy, advised = environment["cores_allowed"], busy_cores(environment), threads_advised(environment)
    if busy / allowed > _LOAD or threads > advised:
        detail = load_text(environment)
        if threads > advised:
            detail += f"; {threads} threads then wait for one another: try --threads {advised}"
        machine_signals.append(Signal("load", detail))
    before, after = environment["before"], environment["after"]
    for key, name, description in (
        ("cgroup_throttled", "quota", "the container's CPU quota stopped the run {} times"),
        ("throttled", "heat", "the CPU was throttled {} times"),
    ):
        values = before.get(key), after.get(key)
        if isinstance(values[0], int) and isinstance(values[1], int) and values[1] > values[0]:
            machine_signals.append(Signal(name, description.format(values[1] - values[0])))
    return machine_signals
