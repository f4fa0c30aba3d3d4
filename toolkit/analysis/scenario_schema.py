"""The types of a report's scenario entries: throughput by batch size, a fixed rate, a long run.

A class named `_…` holds the optional entries, because `typing.NotRequired` needs Python 3.11.
"""

from collections.abc import Mapping
from typing import Annotated, TypedDict

from ...deploy.documents import Bounds, Length

# The bounds keep logarithms and ratios finite.
Milliseconds = Annotated[float, Bounds(1e-9, 1e12)]
Share = Annotated[float, Bounds(0, 1)]


class Estimate(TypedDict):
    """A value with its interval."""

    value: float
    low: float
    high: float


class Milli(TypedDict):
    """A time in milliseconds with its interval."""

    value: Milliseconds
    low: Milliseconds
    high: Milliseconds


class BatchRate(TypedDict):
    """Throughput at a batch size."""

    batch: int
    images_per_s: float
    low: float
    high: float


class _Offline(TypedDict, total=False):
    images_per_s: float


class Offline(_Offline):
    """Throughput by batch size, and the best size."""

    sizes: list[BatchRate]
    best_batch: int


class _FrameLatency(TypedDict, total=False):
    p50: float | None
    p90: float | None


class FrameLatency(_FrameLatency):
    """Milliseconds from an image's due time to its answer; null if there are too few samples."""

    p99: float | None


class _Frames(TypedDict, total=False):
    answered: int
    latency_upper_ms: FrameLatency


class FramesEntry(_Frames):
    """Images offered at a fixed rate, and how many missed their deadline."""

    fps: float
    offered: int
    missed: int
    missed_share: Estimate
    latency_ms: FrameLatency


class Counts(TypedDict):
    """Images offered at a fixed rate, those answered late or not at all, and those dropped."""

    offered: int
    missed: int
    dropped: int


class _Minute(TypedDict, total=False):
    offered: int
    missed: int
    dropped: int


class Minute(_Minute):
    """A minute of a long run: its median latency; at a fixed rate, the images offered, missed and dropped."""

    minute: int
    p50_ms: Milliseconds


class Rate(Counts):
    """A fixed rate over a long run, and the rate of answers in its worst minute."""

    fps: float
    held_fps: float


class _SustainedEntry(TypedDict, total=False):
    rate: Rate | None
    states: list[Mapping[str, object]]


class SustainedEntry(_SustainedEntry):
    """A long run without a pause: its minutes, its trend, and the latency it approaches.

    Attributes:
        slope_per_minute: the Theil-Sen slope, as a share of the median.
        trend_p: p value of the Mann-Kendall test.
        states: states of the machine, once per minute.
    """

    minutes: Annotated[list[Minute], Length(1)]
    slope_per_minute: float
    trend_p: float
    first_ms: float
    steady_ms: Milliseconds


class Scenarios(TypedDict):
    """Scenarios other than the single stream; null for those that were not requested."""

    offline: Offline | None
    frames: FramesEntry | None
    sustained: SustainedEntry | None
