"""The types of the report documents, which are written, read and published as a JSON Schema.

A class named `_…` holds the optional entries, because `typing.NotRequired` needs Python 3.11.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypedDict

from ...deploy.documents import Length
from ...deploy.measuring.measurement import EnvironmentFacts
from ...deploy.measuring.plan import PlanEntry
from ...deploy.measuring.result import Provenance
from .contract import ExitCode, Outcome, SpeedOutcome
from .model_schema import Against, Identity, JudgementEntry, Model, Ratio, SignalEntry
from .scenario_schema import Milli

SCHEMA: Literal[4] = 4


class Noisy(TypedDict):
    """Signs of noise during a run; empty for a quiet one."""

    noise: list[SignalEntry]


class Verdict(Noisy):
    """The verdict of a document, and the noise of the runs behind it."""

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
        cores_allowed: cores that the affinity mask and the cgroup allow.
        cores_got: number of cores obtained at the start, measured with one busy thread per allowed core.
        threads: threads per inference.
    """

    name: str


class ContractEntry(TypedDict, total=False):
    """The limits that candidates are judged by.

    Attributes:
        max_drop: the largest loss of top-1 in percentage points; null for the default of 1.
        min_speedup: the smallest speed-up, a ratio; null for no limit.
        confidence: confidence level of all intervals.
    """

    max_drop: float | None
    min_speedup: float | None
    confidence: float


class Recommendation(TypedDict):
    """The recommended model; id is null if no candidate is shown to meet the contract."""

    id: str | None
    sentence: str


class AlikeEntry(TypedDict):
    """A test image, and the image that it looks like."""

    id: str
    other: str


class OverlapEntry(TypedDict):
    """Test images that the models were also made with.

    Attributes:
        unchecked: bundles that record no fingerprints of images.
        excluded: number of identical images, which were left out.
        near_duplicates: number of images that look like one that a model was made with; they are kept.
        searched: number of images compared, and of all images.
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
        images: number of test images.
        labels: names of the classes.
        targets: class of each test image; -1 without a label.
        ids: names of the test images.
        baseline: id of the source, whose accuracy is the reference.
        speed_baseline: id of the fastest model that is neither in a lower precision nor built into an engine.
        plan: the measurement plan.
        provenance: the settings that `validate --reproduce` starts from.
        source: file that the report was read from.
    """

    headline: str
    speed_baseline: str
    models: Annotated[list[Model], Length(1)]


class PlantedRatio(Ratio):
    """A self-test model compared with itself, and the outcome."""

    outcome: SpeedOutcome


class SlowedRatio(PlantedRatio):
    """The same for a slowed copy; `planted` is the injected ratio."""

    planted: float


class SelfTest(Noisy):
    """The result of `edgekit doctor --self-test`; `resolves` is the smallest resolved difference, as a share."""

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
    """A model's answers on all devices; images is null if the devices had different images."""

    images: int | None
    differ: list[DeviceAnswers]


class JoinedReport(Verdict):
    """The reports of several devices, side by side; the verdict is the worst of them."""

    schema: Literal[4]
    failed: list[Failed]
    devices: Annotated[list[Report], Length(1)]
    agreement: list[Agreement]


class _ComparisonRow(TypedDict, total=False):
    judgements: list[JudgementEntry]


class ComparisonRow(_ComparisonRow, Identity):
    """A candidate of the last report, and its counterpart in an earlier one."""

    top1: float | None
    time_ms: Milli
    outcome: SpeedOutcome | None
    against: Against


class Comparison(Verdict):
    """The last report compared with each earlier one; the first comparison decides the verdict."""

    schema: Literal[4]
    report: str
    headline: str
    rows: list[ComparisonRow]


Document = Report | JoinedReport | Comparison
