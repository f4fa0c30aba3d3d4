"""Conclusions from a forecast: the likely speed-up of each candidate with an interval, and how right it was."""

import math
from collections.abc import Sequence
from statistics import median
from typing import TypedDict

import numpy as np

from .search_schema import CandidateEntry, DeviceSearch, SpeedEntry

# The shares of a candidate's blocks below and above the interval, before it is widened.
_OUTSIDE = 0.1
# The factor by which both sides are widened, because processes differ by more than the blocks of one: two standard
# deviations of a candidate's ratio to the reference. In four processes with one thread on a busy Xeon, with blocks of
# 20 ms, one was 7 %, pooled over six candidates of MobileNetV2, MobileNetV3-Large, EfficientNet-B0 (together 4.5 %) and
# ResNet-18, whose int8 on OpenVINO is an outlier with up to 20 %.
_BETWEEN_PROCESSES = 1.15
# A forecast counts as right within this factor of the raced speed-up.
_RIGHT = 1.2


class TimeEntry(TypedDict):
    """Milliseconds per image on a free machine, with an interval of their ratio to the reference's times."""

    ms: float
    low: float
    high: float


class ForecastEntry(TypedDict):
    """The forecast for a candidate.

    Attributes:
        name: precision, target, runtime and options, as in tables.
        file: format, precision and target of its file.
        precision: that it computes in.
        runtime: as `edgekit validate --runtime` takes it.
        time: null if it was not timed.
        speedup: over the fastest candidate that computes in float32; null if it was not timed.
        reason: why it was not timed; "" if it was.
    """

    name: str
    file: str
    precision: str
    runtime: str
    time: TimeEntry | None
    speedup: SpeedEntry | None
    reason: str


class Forecast(TypedDict):
    """What the candidates of this machine will bring for a network, before they are made and measured.

    Attributes:
        source: path of the float32 bundle.
        baseline: name of the candidate to which the speed-ups are relative.
        sentence: the result in words.
        candidates: the fastest first, those that were not timed last.
        seconds: how long it took.
    """

    source: str
    baseline: str
    sentence: str
    candidates: list[ForecastEntry]
    seconds: float


def time_of(ratios: Sequence[float], reference_ms: float) -> TimeEntry:
    """A candidate's time from the times of its blocks, relative to the reference's in the blocks beside them.

    Args:
        ratios: at least one.
        reference_ms: the reference's typical time per image.
    """
    low, high = np.quantile(ratios, [_OUTSIDE, 1 - _OUTSIDE])
    return {
        "ms": median(ratios) * reference_ms,
        "low": float(low) / _BETWEEN_PROCESSES * reference_ms,
        "high": float(high) * _BETWEEN_PROCESSES * reference_ms,
    }


def speedup_over(baseline: TimeEntry, own: TimeEntry) -> SpeedEntry:
    """The speed-up over a baseline. The errors of both are independent, so the logarithms of their bounds add squared.

    Without bounds for the baseline itself.
    """
    ratio = baseline["ms"] / own["ms"]
    if own is baseline:
        return {"ratio": ratio, "low": None, "high": None}
    shorter = math.hypot(math.log(baseline["low"] / baseline["ms"]), math.log(own["high"] / own["ms"]))
    longer = math.hypot(math.log(baseline["high"] / baseline["ms"]), math.log(own["low"] / own["ms"]))
    return {"ratio": ratio, "low": ratio * math.exp(-shorter), "high": ratio * math.exp(longer)}


def conclude_forecast(entries: Sequence[ForecastEntry], source: str, seconds: float) -> Forecast:
    """The forecast with speed-ups and a sentence.

    Args:
        entries: with times; one that computes in float32 was timed.
        seconds: how long it took.
    """
    floats = [(time["ms"], entry) for entry in entries if (time := entry["time"]) and entry["precision"] == "fp32"]
    baseline = min(floats, key=lambda pair: pair[0])[1]
    base = baseline["time"]
    done: list[ForecastEntry] = [
        {**entry, "speedup": speedup_over(base, own) if base and (own := entry["time"]) else None} for entry in entries
    ]
    done.sort(key=lambda entry: entry["time"]["ms"] if entry["time"] else math.inf)
    return {
        "source": source, "baseline": baseline["name"], "sentence": _sentence(done, baseline["name"]),
        "candidates": done, "seconds": round(seconds, 1),
    }  # fmt: skip


def _sentence(entries: Sequence[ForecastEntry], baseline: str) -> str:
    """Names the candidate of lower precision that is the fastest for certain, by the lower bounds of the speed-ups."""
    lower = [
        (low, speedup, entry["name"])
        for entry in entries
        if entry["precision"] != "fp32" and (speedup := entry["speedup"]) and (low := speedup["low"]) is not None
    ]
    if not lower:
        return f"forecast: no lower precision runs here; {baseline} is the fastest"
    low, speedup, name = max(lower, key=lambda found: found[0])
    figures = f"{name}, {speedup['ratio']:.2f}x [{low:.2f}, {speedup['high']:.2f}] as fast as {baseline} here"
    if low <= 1:
        return f"forecast: a lower precision may not be faster: {figures}"
    return f"forecast: {figures}; accuracy is not forecast"


def with_forecast(found: DeviceSearch, forecast: Forecast) -> DeviceSearch:
    """The search with the forecast of each candidate, over the search's own baseline."""
    timed = {entry["name"]: time for entry in forecast["candidates"] if (time := entry["time"])}
    names = {entry["id"]: entry["name"] for entry in found["candidates"]}
    baseline = timed.get(names[found["baseline"]])
    if baseline is None:
        return found
    candidates: list[CandidateEntry] = [
        {**entry, "forecast_speedup": speedup_over(baseline, own) if (own := timed.get(entry["name"])) else None}
        for entry in found["candidates"]
    ]
    return {**found, "candidates": candidates}


def forecast_line(found: DeviceSearch) -> str | None:
    """How often a search's forecast was right, in words; None without a forecast."""
    pairs = [
        (speedup["ratio"], expected["ratio"])
        for entry in found["candidates"]
        if entry["id"] != found["baseline"]
        and (speedup := entry["speedup"])
        and (expected := entry["forecast_speedup"])
    ]
    if not pairs:
        return None
    right = sum(max(raced / expected, expected / raced) <= _RIGHT for raced, expected in pairs)
    return f"the forecast was within {100 * (_RIGHT - 1):.0f} % for {right} of {len(pairs)} candidates"
