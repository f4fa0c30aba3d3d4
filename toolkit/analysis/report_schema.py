"""The report's documents as types: what is written, read and published as a JSON Schema.

A class named `_…` holds the entries that may be missing: `typing.NotRequired` needs Python 3.11.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypedDict

from ...deploy.documents import Bounds, Length
from ...deploy.measuring.measurement import EnvironmentFacts, SessionFacts
from ...deploy.measuring.plan import PlanEntry
from ...deploy.measuring.result import HostAnswers, Provenance
from .contract import ExitCode, Outcome, SpeedOutcome

SCHEMA: Literal[4] = 4

# Logarithms and ratios of these are finite.
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


class DropEntry(TypedDict):
    """Loss of top-1 accuracy in percentage points, with its interval; positive is a loss."""

    points: float
    low: float
    high: float


class _Ratio(TypedDict, total=False):
    one_thread: float


class Ratio(_Ratio):
    """A ratio of mean latencies with its interval.

    Attributes:
        one_thread: the ratio with one thread, only where that contradicts it.
    """

    ratio: float
    low: float
    high: float


class Percentiles(TypedDict):
    """Latencies of single calls in milliseconds; null where too few samples support one."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class SignalEntry(TypedDict):
    """A sign of noise: load, quota, heat, variation, trend or switches, and what was seen."""

    name: str
    detail: str


class _JudgementEntry(TypedDict, total=False):
    strict: bool


class JudgementEntry(_JudgementEntry):
    """The outcome of a rule of the contract.

    Attributes:
        strict: the limit was asked for, so an undecided outcome has exit code 4.
    """

    rule: str
    outcome: Outcome
    sentence: str
    exit_code: ExitCode


class ClassFlips(TypedDict):
    """Images of a class that only the source (lost) or only this model (gained) gets right; p of McNemar's test,
    adjusted by Holm's method."""

    label: str
    lost: int
    gained: int
    p: float


class _Block(TypedDict, total=False):
    at: float
    ns: list[int]


class BlockEntry(_Block):
    """Calls timed in a row.

    Attributes:
        at: seconds since the run began.
        ms: mean milliseconds per call.
        ns: nanoseconds of each sample of `calls_per_sample` calls.
    """

    round: int
    process: int
    ms: Milliseconds


class Outliers(TypedDict):
    """Samples beyond Tukey's fences, and the rounds they are in; none is left out of any figure."""

    count: int
    share: float
    rounds: list[int]


class ParityEntry(TypedDict):
    """Golden samples replayed on the device: agreement with the source's pixels, tensors, logits and classes."""

    checksums_agreement: float | None
    tensor_max_abs: float | None
    logits_max_abs: float | None
    top1_agreement: float


class LayerEntry(TypedDict):
    """A layer of an engine."""

    name: str
    type: str
    precision: str


class EngineEntry(TypedDict):
    """Layers of a TensorRT engine, layers per precision, and layers that only reformat."""

    layers: list[LayerEntry]
    precisions: Mapping[str, int]
    reformats: int


class LineageEntry(TypedDict):
    """A step that a model was made from."""

    id: str
    format: str
    precision: str


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
    """Milliseconds from when an image was due to its answer; null where too few samples support one."""

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
        slope_per_minute: Theil and Sen's slope, as a share of the median.
        trend_p: of Mann and Kendall's test.
        states: of the machine, once a minute.
    """

    minutes: Annotated[list[Minute], Length(1)]
    slope_per_minute: float
    trend_p: float
    first_ms: float
    steady_ms: Milliseconds


class Scenarios(TypedDict):
    """What was measured beside the single stream; null where it was not asked for."""

    offline: Offline | None
    frames: FramesEntry | None
    sustained: SustainedEntry | None


class Named(TypedDict):
    """A model's id, name, format and precision."""

    id: str
    name: str
    format: str
    precision: str


class _Identity(TypedDict, total=False):
    runtime: str
    runtime_options: Mapping[str, str | int | float | bool]


class Identity(_Identity, Named):
    """What names a model in every document, and what ran it.

    Attributes:
        runtime: the runtime by the name that --runtime takes; missing in reports of earlier versions.
        runtime_options: those of its options that are this model's own.
    """

    session: SessionFacts


def identity_of(model: Identity) -> Identity:
    """What names a model, alone."""
    identity: Identity = {
        "id": model["id"], "name": model["name"], "format": model["format"], "precision": model["precision"],
        "session": model["session"],
    }  # fmt: skip
    if "runtime" in model and "runtime_options" in model:
        identity["runtime"], identity["runtime_options"] = model["runtime"], model["runtime_options"]
    return identity


class _SourceComparison(TypedDict, total=False):
    mcnemar_p: float


class SourceComparison(_SourceComparison):
    """How a model's answers differ from the source's; null for the source itself.

    Attributes:
        flips: images with another answer, right or wrong.
        mcnemar_p: of McNemar's exact test.
    """

    drop: DropEntry | None
    flips: int | None
    flips_by_class: list[ClassFlips] | None


class _Measured(TypedDict, total=False):
    parameters: int
    confidences: list[float] | None
    one_thread_ms: Milliseconds | None
    stages_ms: Mapping[str, float | None]
    engine: EngineEntry | None


class MeasuredModel(_Measured, Identity, SourceComparison, Scenarios):
    """A model as it was measured, before its speed is compared."""

    bundle: str
    size_bytes: int
    top1: Share | None
    top1_interval: Annotated[list[Share], Length(2, 2)] | None
    top5: float | None
    per_class: Mapping[str, float] | None
    calibration_error: float | None
    latency_ms: Percentiles
    latency_upper_ms: Percentiles
    time_ms: Milli
    samples: int
    calls_per_sample: int
    outliers: Outliers
    file_ms: float | None
    load_ms: float | None
    first_ms: float | None
    warm_up_ms: float | None
    preprocess_ms: float | None
    postprocess_ms: float | None
    peak_rss_bytes: int | None
    parity: ParityEntry
    first_difference: str
    host: HostAnswers | None
    lineage: list[LineageEntry]
    predictions: list[int] | None
    blocks: Annotated[list[BlockEntry], Length(1)]
    warnings: list[str]


class _Against(TypedDict, total=False):
    model: str
    time_ms: float
    paired: bool


class Against(_Against):
    """A candidate compared with its counterpart of an earlier report.

    Attributes:
        model: id of the counterpart.
        how: through the same baseline, or by the times of two runs.
        time_ms: mean latency of the counterpart.
        paired: the drop was counted on the same images.
    """

    report: str
    speedup: Ratio
    outcome: SpeedOutcome
    drop: DropEntry | None
    how: str


class _Model(TypedDict, total=False):
    speedup_over: dict[str, Ratio]
    judgements: list[JudgementEntry]
    against: Against


class Model(_Model, MeasuredModel):
    """A model of a report: what was measured of it, and what it is compared with.

    Attributes:
        id: SHA-256 of the manifest, which holds the hash of every file, 16 digits; with @ and the runtime where one
            was named that is not the default of the format.
        bundle: the bundle's folder, as it was named.
        top1: null without labelled test images.
        per_class: top-1 of each class.
        calibration_error: expected calibration error.
        drop: loss against `baseline`, null for the source.
        latency_ms: of single calls.
        latency_upper_ms: upper bounds of these percentiles.
        time_ms: mean latency of complete blocks; speed-ups are ratios of it.
        one_thread_ms: the same with one thread.
        stages_ms: what a GPU times itself.
        speedup: over `speed_baseline`, null for that model.
        speed_baseline: id of the fastest model that is neither quantized nor built.
        speedup_over: the ratio over every other model.
        judgements: only of candidates.
        against: only where an earlier report was the baseline.
        peak_rss_bytes: largest resident memory of a fresh process.
        first_difference: none, decoder, preprocessing or logits.
        host: the host's answers on the same images, where another machine was measured.
        predictions: class of each test image.
    """

    speedup: Ratio | None
    speed_baseline: str | None
    outcome: SpeedOutcome | None


class Noisy(TypedDict):
    """What disturbed a run; empty for a quiet one."""

    noise: list[SignalEntry]


class Verdict(Noisy):
    """The verdict of a document, and the noise that it was reached in."""

    verdict: Outcome
    reason: str
    exit_code: ExitCode


class _Device(EnvironmentFacts, total=False):
    before: Mapping[str, object]
    after: Mapping[str, object]
    isa: list[str]
    cores_allowed: int
    cores_got: float | Literal["unavailable"]


class DeviceEntry(_Device):
    """The device that was measured, and its state before and after.

    Attributes:
        cores_allowed: by the affinity mask and the cgroup.
        cores_got: how many cores as many busy threads got at the start.
        threads: of one inference.
    """

    name: str


class ContractEntry(TypedDict, total=False):
    """Limits that the candidates are judged by.

    Attributes:
        max_drop: percentage points of top-1; null for the default of 1.
        min_speedup: a ratio; null for none.
        confidence: of all intervals.
    """

    max_drop: float | None
    min_speedup: float | None
    confidence: float


class Recommendation(TypedDict):
    """The model to take; id is null where no candidate is shown to meet the contract."""

    id: str | None
    sentence: str


class AlikeEntry(TypedDict):
    """A test image, and the image it looks like."""

    id: str
    other: str


class OverlapEntry(TypedDict):
    """Test images that the models were made with.

    Attributes:
        unchecked: bundles without fingerprints of images.
        excluded: identical images, which were left out.
        near_duplicates: images that look like one that a model was made with; they stay.
        searched: images compared, and images there are.
    """

    unchecked: list[str]
    excluded: int
    excluded_ids: list[str]
    near_duplicates: int
    pairs: list[AlikeEntry]
    searched: Annotated[list[int], Length(2, 2)]


class _MeasuredReport(TypedDict, total=False):
    provenance: Provenance | None
    overlap: OverlapEntry | None


class MeasuredReport(_MeasuredReport, Noisy):
    """A report before its models are compared and judged."""

    schema: Literal[4]
    device: DeviceEntry
    plan: PlanEntry
    baseline: str
    images: int
    labels: list[str]
    targets: list[int]
    ids: list[str]


class _Report(TypedDict, total=False):
    contract: ContractEntry
    recommendation: Recommendation | None
    source: str


class Report(_Report, MeasuredReport, Verdict):
    """The report of one device: what `edgekit validate --json` prints.

    Attributes:
        images: how many test images there are.
        labels: names of the classes.
        targets: class of each test image; -1 for none.
        ids: names of the test images.
        baseline: id of the source, which accuracy is compared with.
        speed_baseline: id of the fastest model that is neither quantized nor built.
        plan: how it was measured.
        provenance: what `validate --reproduce` starts from.
        source: only of a report that was read: its file.
    """

    headline: str
    speed_baseline: str
    models: Annotated[list[Model], Length(1)]


class PlantedRatio(Ratio):
    """A model of the self-test against itself, and how the difference is called."""

    outcome: SpeedOutcome


class SlowedRatio(PlantedRatio):
    """The same for a model that was slowed; the ratio that was planted."""

    planted: float


class SelfTest(Noisy):
    """What `edgekit doctor --self-test` finds: the smallest difference that this machine resolves, as a share."""

    model: str
    call_ms: float
    seconds: float
    same: PlantedRatio
    slowed: SlowedRatio
    resolves: float


class Failed(TypedDict):
    """A device that gave no report."""

    device: str
    error: str
    fix: str


class DeviceAnswers(TypedDict):
    """A test image that devices answer differently: each device's label."""

    id: str
    answers: list[str]


class Agreement(Identity):
    """A model's answers on all devices; images is null where the devices had different ones."""

    images: int | None
    differ: list[DeviceAnswers]


class JoinedReport(Verdict):
    """The reports of several devices, side by side; the verdict is the worst of theirs."""

    schema: Literal[4]
    failed: list[Failed]
    devices: Annotated[list[Report], Length(1)]
    agreement: list[Agreement]


class _ComparisonRow(TypedDict, total=False):
    judgements: list[JudgementEntry]


class ComparisonRow(_ComparisonRow, Identity):
    """A candidate of the last report beside its counterpart of an earlier one."""

    top1: float | None
    time_ms: Milli
    outcome: SpeedOutcome | None
    against: Against


class Comparison(Verdict):
    """The last report compared with each report before it, the first of which gives the verdict."""

    schema: Literal[4]
    report: str
    headline: str
    rows: list[ComparisonRow]


Document = Report | JoinedReport | Comparison
