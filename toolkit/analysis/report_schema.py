"""The report's documents as types: what is written, read and published as a JSON Schema.

A class named `_…` holds the entries that may be missing: `typing.NotRequired` needs Python 3.11.
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
