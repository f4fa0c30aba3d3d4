"""The document of a search for the best model of each device: optimize.json."""

from typing import Literal, TypedDict

from ...deploy.measuring.measurement import Environment
from .contract import ExitCode, Outcome
from .report_schema import Failed

SCHEMA = 1

# Why a candidate was not chosen, or that it was.
Status = Literal[
    "chosen", "close", "slower", "larger", "loses accuracy", "too large", "takes too much memory", "failed"
]


class SpeedEntry(TypedDict):
    """A ratio with its interval; null bounds after a single process, which shows no variation."""

    ratio: float
    low: float | None
    high: float | None


class CandidateEntry(TypedDict):
    """A file on a runtime with its options.

    Attributes:
        id: of the candidate in the plan.
        name: precision, target, runtime and options, as in tables.
        bundle: path of its bundle.
        format: of the bundle.
        precision: that it computes in.
        target: of an int8 file (see `edgekit quantize --target`); null for other files.
        runtime: as `edgekit validate --runtime` takes it.
        size_bytes: of the model's file.
        peak_rss_bytes: largest resident memory; null where it was not measured.
        speedup: over the fastest candidate that is not optimised.
        forecast_speedup: the same, as forecast before the race; null where it was not forecast.
        time_ms: typical time per image at batch 1.
        images_per_s: in the best batch; null unless the objective is throughput.
        points_lost: percentage points of top-1 lost on the selection images; null without labels.
        changed: share of the selection images with another answer than the source's; null without images.
        processes: number of processes that measured it.
        pareto: no other candidate within the limits is better in one of time, accuracy and size and as good in the
            others.
        status: why it was not chosen, or that it was.
        detail: the reason in words; for a failure, its message.
    """

    id: str
    name: str
    bundle: str
    format: str
    precision: str
    target: str | None
    runtime: str
    size_bytes: int
    peak_rss_bytes: int | None
    speedup: SpeedEntry | None
    forecast_speedup: SpeedEntry | None
    time_ms: float | None
    images_per_s: float | None
    points_lost: float | None
    changed: float | None
    processes: int
    pareto: bool
    status: Status
    detail: str


class NotMade(TypedDict):
    """A file that could not be made, and why."""

    name: str
    reason: str


class DeviceSearch(TypedDict):
    """The search on one device.

    Attributes:
        name: the device's name.
        environment: its hardware, libraries and state.
        candidates: the chosen one first, then by time.
        chosen: id of the candidate to use; null if none is within the limits.
        baseline: id of the fastest candidate that is not optimised.
        sentence: what to use and why.
        use: the command that validates the chosen candidate again.
        report: folder of the confirmation's report; null if there is nothing to confirm.
        headline: of the confirmation; null if there is nothing to confirm.
        verdict, reason: of the confirmation, or why there is none.
        exit_code: 0, or 3 if the limits are not met, 4 if not proved.
        seconds: how long the race took.
    """

    name: str
    environment: Environment
    candidates: list[CandidateEntry]
    chosen: str | None
    baseline: str
    sentence: str
    use: str | None
    report: str | None
    headline: str | None
    verdict: Outcome
    reason: str
    exit_code: ExitCode
    seconds: float


class SharedFile(TypedDict):
    """The single file that suits all devices best.

    Attributes:
        bundle: its path.
        slower: per device, its best time divided by the best of all files.
        candidates: per device, the name of its fastest candidate.
    """

    bundle: str
    slower: dict[str, float]
    candidates: dict[str, str]


class LimitsEntry(TypedDict):
    """What a model must keep to.

    Attributes:
        max_drop: percentage points of top-1; null for the default, 1.0.
        min_speedup: over the fastest model that is not optimised; null for none.
        size_bytes, memory_bytes: null for none.
    """

    max_drop: float | None
    min_speedup: float | None
    size_bytes: int | None
    memory_bytes: int | None


class Search(TypedDict):
    """A search for the best model of each device.

    Attributes:
        search: the schema.
        source: path of the float32 bundle that all files were made from.
        objective: latency, throughput or size.
        images: number of selection images, which judged the accuracy of all candidates.
        not_made: files that could not be made.
        devices: one search each.
        failed: devices that could not be searched.
        shared: the single file for all devices; null for one device, or if no file that was raced on all is
            within the limits there.
        seconds: of the whole search.
        verdict: the worst of the devices.
        exit_code: the worst of the devices; 1 if one failed.
    """

    search: int
    source: str
    objective: str
    limits: LimitsEntry
    images: int
    not_made: list[NotMade]
    devices: list[DeviceSearch]
    failed: list[Failed]
    shared: SharedFile | None
    seconds: float
    verdict: Outcome
    exit_code: ExitCode
