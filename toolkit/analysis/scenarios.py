"""Evaluation of the scenarios other than the single stream."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...deploy.environment import UNAVAILABLE
from ...deploy.measuring.measurement import Measurement, Sustained
from ...deploy.measuring.plan import Plan
from .scenario_schema import BatchRate, Counts, FramesEntry, Minute, Offline, Rate, Scenarios, SustainedEntry
from .statistics import mann_kendall, percentile, steady_state, student_mean, theil_sen, wilson

# A last minute that is shorter says little about the rate.
_PART_OF_A_MINUTE_S = 9.0


def scenarios(measurement: Measurement, plan: Plan, confidence: float) -> Scenarios:
    """The entries of a model's document: offline, frames, sustained; None for scenarios that were not requested."""
    return {
        "offline": _offline(measurement, confidence) if measurement.throughput else None,
        "frames": _frames(measurement, confidence) if measurement.frames else None,
        "sustained": _sustained(measurement.sustained, plan.fps) if measurement.sustained else None,
    }


def _offline(measurement: Measurement, confidence: float) -> Offline:
    """Images per second by batch size, with intervals over the processes, and the best size."""
    rates: dict[int, list[float]] = {}
    for entry in measurement.throughput:
        rates.setdefault(entry.batch, []).append(entry.batch / float(np.median(entry.ns)) * 1e9)
    sizes: list[BatchRate] = []
    for batch, values in rates.items():
        logs = student_mean(np.log(values).tolist(), confidence)
        value, low, high = (float(np.exp(logarithm)) for logarithm in (logs.value, logs.low, logs.high))
        sizes.append({"batch": batch, "images_per_s": value, "low": low, "high": high})
    best = max(sizes, key=lambda size: size["images_per_s"])
    return {"sizes": sizes, "best_batch": best["batch"], "images_per_s": best["images_per_s"]}


def _frames(measurement: Measurement, confidence: float) -> FramesEntry:
    """Missed deadlines and answer times at a fixed rate; a deadline is when the next image is due."""
    fps = measurement.frames[0].fps
    latencies = np.concatenate([entry.ns for entry in measurement.frames]) / 1e6
    offered = sum(entry.offered for entry in measurement.frames)
    missed = offered - len(latencies) + int((latencies > 1e3 / fps).sum())
    share = wilson(missed, offered, confidence)
    complete = len(latencies) == offered  # percentiles of answered images only would be too optimistic
    p50, p90, p99 = (percentile(latencies, percent) if complete else None for percent in (50, 90, 99))
    return {
        "fps": fps,
        "offered": offered,
        "answered": len(latencies),
        "missed": missed,
        "missed_share": {"value": share.value, "low": share.low, "high": share.high},
        "latency_ms": {"p50": p50 and p50.value, "p90": p90 and p90.value, "p99": p99 and p99.value},
        "latency_upper_ms": {"p50": p50 and p50.upper, "p90": p90 and p90.upper, "p99": p99 and p99.upper},
    }


def _sustained(seconds: Sequence[Sustained], fps: float | None) -> SustainedEntry:
    """Medians and missed images per minute, the trend, and the latency it approaches."""
    times = [second.at for second in seconds]
    values = [second.call_ns / 1e6 for second in seconds]
    minutes: dict[int, list[Sustained]] = {}
    for second in seconds:
        minutes.setdefault(int(second.at // 60), []).append(second)
    return {
        "minutes": [_minute(minute + 1, recorded) for minute, recorded in sorted(minutes.items())],
        "rate": _rate(list(minutes.values()), fps),
        "slope_per_minute": 60 * theil_sen(times, values) / float(np.median(values)),
        "trend_p": mann_kendall(values),
        "first_ms": float(np.median(values[:5])),
        "steady_ms": steady_state(times, values),
        "states": [{"at": second.at, **_state(second.state)} for second in seconds if second.state is not None],
    }


def _minute(minute: int, seconds: Sequence[Sustained]) -> Minute:
    p50 = float(np.median([second.call_ns for second in seconds])) / 1e6
    if seconds[0].offered is None:
        return {"minute": minute, "p50_ms": p50}
    return {"minute": minute, "p50_ms": p50, **_counts(seconds)}


def _rate(minutes: Sequence[Sequence[Sustained]], fps: float | None) -> Rate | None:
    """Images offered, missed and dropped at a fixed rate; the sustained rate is that of answers in the worst minute.

    None for a run without a fixed rate.
    """
    if fps is None or minutes[0][0].offered is None:
        return None
    full_minutes = [minute for minute in minutes if minute[-1].at - minute[0].at >= _PART_OF_A_MINUTE_S] or minutes
    shares = [1 - counts["dropped"] / max(1, counts["offered"]) for counts in map(_counts, full_minutes)]
    return {"fps": fps, **_counts([second for minute in minutes for second in minute]), "held_fps": fps * min(shares)}


def _counts(seconds: Sequence[Sustained]) -> Counts:
    return {
        "offered": sum(second.offered or 0 for second in seconds),
        "missed": sum(second.missed or 0 for second in seconds),
        "dropped": sum(second.dropped or 0 for second in seconds),
    }


def _state(state: Mapping[str, object]) -> dict[str, object]:
    names = ("mhz", "temperature_c", "throttled", "cgroup_throttled")
    return {name: state.get(name, UNAVAILABLE) for name in names}  # a device may leave one out
