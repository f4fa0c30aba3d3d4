"""The types of a report's model entries.

A class named `_…` holds the optional entries, because `typing.NotRequired` needs Python 3.11.
"""

from collections.abc import Mapping
from typing import Annotated, TypedDict

from ...deploy.documents import Length
from ...deploy.engine.layers import SummaryEntry
from ...deploy.measuring.measurement import SessionFacts
from ...deploy.measuring.result import HostAnswers
from .contract import ExitCode, Outcome, SpeedOutcome
from .scenario_schema import Milli, Milliseconds, Scenarios, Share


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
        one_thread: the ratio with one thread, present only if it contradicts `ratio`.
    """

    ratio: float
    low: float
    high: float


class Percentiles(TypedDict):
    """Latencies of single calls in milliseconds; null if there are too few samples."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class SignalEntry(TypedDict):
    """A sign of noise (load, quota, heat, variation, trend or switches), and the observation."""

    name: str
    detail: str


class _JudgementEntry(TypedDict, total=False):
    strict: bool


class JudgementEntry(_JudgementEntry):
    """The outcome of a rule of the contract.

    Attributes:
        strict: the limit was requested, so an undecided outcome has exit code 4.
    """

    rule: str
    outcome: Outcome
    sentence: str
    exit_code: ExitCode


class ClassFlips(TypedDict):
    """Images of a class that only the source (lost) or only this model (gained) gets right; `p` is that of McNemar's
    test, adjusted by Holm's method."""

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
    """Samples beyond Tukey's fences, and the rounds that they are in; every figure includes them."""

    count: int
    share: float
    rounds: list[int]


class ParityEntry(TypedDict):
    """Golden samples replayed on the device: agreement with the source's pixels, tensors, logits and classes."""

    checksums_agreement: float | None
    tensor_max_abs: float | None
    logits_max_abs: float | None
    top1_agreement: float


class LineageEntry(TypedDict):
    """An earlier model that a model was made from."""

    id: str
    format: str
    precision: str


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
    """The entries that identify a model in every document, and the session that ran it.

    Attributes:
        runtime: the runtime's name, as --runtime takes it; missing in reports of earlier versions.
        runtime_options: the runtime options chosen for this model.
    """

    session: SessionFacts


def identity_of(model: Identity) -> Identity:
    """The entries that identify a model, without the others."""
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
        flips: images with a different answer, right or wrong.
        mcnemar_p: p value of McNemar's exact test.
    """

    drop: DropEntry | None
    flips: int | None
    flips_by_class: list[ClassFlips] | None


class _Measured(TypedDict, total=False):
    parameters: int
    confidences: list[float] | None
    one_thread_ms: Milliseconds | None
    stages_ms: Mapping[str, float | None]
    engine: SummaryEntry | None


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
    """A candidate compared with its counterpart in an earlier report.

    Attributes:
        model: id of the counterpart.
        how: the method of comparison: through the same baseline, or by the times of two runs.
        time_ms: mean latency of the counterpart.
        paired: whether the drop was counted on the same images.
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
    """A model of a report: its measurements, comparisons and judgements.

    Attributes:
        id: first 16 digits of the SHA-256 of the manifest, which contains the hash of every file; followed by @ and the
            runtime if it is not the default of the format.
        bundle: the bundle's folder, as the user passed it.
        top1: null without labelled test images.
        per_class: top-1 of each class.
        calibration_error: expected calibration error.
        drop: loss against `baseline`, null for the source.
        latency_ms: percentiles of single calls.
        latency_upper_ms: upper bounds of these percentiles.
        time_ms: mean latency of complete blocks; speed-ups are ratios of it.
        one_thread_ms: the same with one thread.
        stages_ms: times that the GPU measures itself.
        speedup: over `speed_baseline`, null for that model.
        speed_baseline: id of the fastest model that is neither in a lower precision nor built into an engine.
        speedup_over: the ratio over every other model.
        judgements: present only for candidates.
        against: present only if an earlier report was the baseline.
        peak_rss_bytes: largest resident memory of a fresh process.
        first_difference: none, decoder, preprocessing or logits.
        host: the host's answers on the same images, if another machine was measured.
        predictions: class of each test image.
    """

    speedup: Ratio | None
    speed_baseline: str | None
    outcome: SpeedOutcome | None
