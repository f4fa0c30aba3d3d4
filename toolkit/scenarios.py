"""The scenarios beside the single stream: what their raw values say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..deploy.measurement import Measurement, Sustained
from .statistics import mann_kendall, percentile, steady_state, student_mean, theil_sen, wilson


def scenarios(measurement: Measurement, confidence: float) -> dict[str, Any]:
    """The entries of a model's document: offline, frames, sustained; None for what was not asked for."""
    return {
        "offline": _offline(measurement, confidence) if measurement.throughput else None,
        "frames": _frames(measurement, confidence) if measurement.frames else None,
        "sustained": _sustained(measurement.sustained) if measurement.sustained else None,
    }


def _offline(measurement: Measurement, confidence: float) -> dict[str, Any]:
    """Images a second by batch size, with the interval that the processes leave, and the best size."""
    rates: dict[int, list[float]] = {}
    for entry in measurement.throughput:
        rates.setdefault(entry.batch, []).append(entry.batch / float(np.median(entry.ns)) * 1e9)
    sizes = []
    for batch, values in rates.items():
        logs = student_mean(np.log(values).tolist(), confidence)
        value, low, high = (float(np.exp(one)) for one in (logs.value, logs.low, logs.high))
        sizes.append({"batch": batch, "images_per_s": value, "low": low, "high": high})
    best = max(sizes, key=lambda size: size["images_per_s"])
    return {"sizes": sizes, "best_batch": best["batch"], "images_per_s": best["images_per_s"]}


def _frames(measurement: Measurement, confidence: float) -> dict[str, Any]:
    """How many offered images were not answered before the next was due, and how long an answer took."""
    fps = measurement.frames[0].fps
    late = np.concatenate([entry.ns for entry in measurement.frames]) / 1e6
    offered = sum(entry.offered for entry in measurement.frames)
    missed = offered - len(late) + int((late > 1e3 / fps).sum())
    share = wilson(missed, offered, confidence)
    whole = len(late) == offered  # percentiles of the answered alone would flatter
    found = {f"p{which}": percentile(late, which) if whole else None for which in (50, 90, 99)}
    return {
        "fps": fps,
        "offered": offered,
        "answered": len(late),
        "missed": missed,
        "missed_share": {"value": share.value, "low": share.low, "high": share.high},
        "latency_ms": {name: one and one.value for name, one in found.items()},
        "latency_upper_ms": {name: one and one.upper for name, one in found.items()},
    }


def _sustained(seconds: Sequence[Sustained]) -> dict[str, Any]:
    """Medians by minute, the trend, and where it is heading."""
    times = [one.at for one in seconds]
    values = [one.call_ns / 1e6 for one in seconds]
    minutes: dict[int, list[float]] = {}
    for at, value in zip(times, values, strict=True):
        minutes.setdefault(int(at // 60), []).append(value)
    return {
        "minutes": [
            {"minute": minute + 1, "p50_ms": float(np.median(found))} for minute, found in sorted(minutes.items())
        ],
        "slope_per_minute": 60 * theil_sen(times, values) / float(np.median(values)),
        "trend_p": mann_kendall(values),
        "first_ms": float(np.median(values[:5])),
        "steady_ms": steady_state(times, values),
        "states": [{"at": one.at, **_state(one.state)} for one in seconds if one.state is not None],
    }


def _state(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: state[key] for key in ("mhz", "temperature_c", "throttled", "cgroup_throttled")}
