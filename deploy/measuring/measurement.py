"""Measurements of one model on a device. They hold raw values only, from which every figure is derived."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal, TypedDict

from ..documents import Bounds, DocumentError, check_numbers, within
from ..engine.layers import SummaryEntry
from ..parity import Parity
from ..runtimes.runtime import STAGES

# The limit of any time: three years.
_MAX_MS = 1e11
# More cores than any device has.
_MAX_CORES = 4096


@dataclass(frozen=True)
class Block:
    """Calls timed in a row.

    Attributes:
        round: the models of one round were timed shortly after one another.
        process: which of the model's processes ran it.
        at: seconds since the run began.
        calls: calls per sample: 1, or as many as take a millisecond together.
        ns: nanoseconds of each sample.
        switches: involuntary context switches; None if the system does not count them.
    """

    round: int
    process: int
    at: float
    calls: int
    ns: tuple[int, ...]
    switches: int | None

    @property
    def ms(self) -> float:
        """Mean milliseconds per call: the complete block over its calls.

        Not the median, which a busy machine biases: if processes take turns of a few milliseconds, every call longer
        than a turn is interrupted, and of shorter ones only a few, so their medians do not slow down equally.
        """
        return sum(self.ns) / len(self.ns) / self.calls / 1e6

    @property
    def call_ms(self) -> list[float]:
        """Milliseconds per call, for each sample."""
        return [value / self.calls / 1e6 for value in self.ns]


@dataclass(frozen=True)
class WarmUp:
    """The warm-up of a process: its duration, calls, and whether its times settled."""

    ms: float
    calls: int
    settled: bool


@dataclass(frozen=True)
class Predictions:
    """A model's answers on the test images, in their order.

    Attributes:
        classes: index of the best class.
        confidences: softmax of the best class's logit; 0 if the logits are not finite.
        in_top5: whether the label is among the five best; None without labels.
    """

    classes: tuple[int, ...]
    confidences: tuple[float, ...]
    in_top5: tuple[bool, ...] | None


@dataclass(frozen=True)
class Throughput:
    """Calls with this many images at once, in one process: nanoseconds of each."""

    process: int
    batch: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Frames:
    """Images offered at a fixed rate to one process: nanoseconds from when each was due until its answer was ready.

    A process that fell too far behind answered fewer than were offered.
    """

    process: int
    fps: float
    offered: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Sustained:
    """One second of a long run: its start, the median of its calls, and the machine's state if it was read.

    A run at a fixed rate also has the number of images offered, of those missed (answered late or dropped), and of
    those dropped.
    """

    at: float
    call_ns: int
    state: Mapping[str, object] | None
    offered: int | None = None
    missed: int | None = None
    dropped: int | None = None


class EnvironmentFacts(TypedDict, total=False):
    """The facts that a device reports of itself."""

    machine: str
    system: str
    board: str
    soc: str
    cpu: str
    versions: Mapping[str, object]
    threads: Annotated[int, Bounds(1, _MAX_CORES)]


class Cores(TypedDict):
    """Cores that a process may use, and how many it got at the start (see environment.cores_got)."""

    cores_allowed: Annotated[int, Bounds(1, _MAX_CORES)]
    cores_got: Annotated[float, Bounds(1e-9, _MAX_CORES)] | Literal["unavailable"]


class Environment(EnvironmentFacts, Cores):
    """The facts that a report requires of a device: cores, instruction sets, and its state before and after."""

    before: Mapping[str, object]
    after: Mapping[str, object]
    isa: list[str]


class SessionFacts(TypedDict, total=False):
    """The facts of a session that reports use: its runtime and threads, operators by provider, and compiled layers."""

    runtime: str
    threads: int | None
    placement: Mapping[str, int]
    layers: SummaryEntry | None


@dataclass(frozen=True)
class Measurement:
    """One model on one device.

    Attributes:
        bundle: the candidate's key (see plan.Candidate): the bundle's id on its default runtime.
        session: the facts of the session (runtime, version, provider, threads).
        file_ms, load_ms, first_ms: per process: reading the model file (from the disk if the system drops its
            cached copy), creating the session, the first inference.
        preprocess_ns, postprocess_ns: decoding and preprocessing; softmax and ranking; one value per image.
        stages: if the device times them, nanoseconds of each of runtime.STAGES, one value per image.
        warm_ups: one per process.
        blocks: timed calls of inference alone, batch 1, in the order they ran.
        one_thread: a few blocks with one thread, if the others used several.
        checked, differed: outputs of timed calls compared with the accuracy run, and those with another class.
        peak_rss_bytes: largest resident memory of a fresh process that loaded the model and ran it; None if the
            system does not report it.
        parity: the golden samples replayed here (see deploy.parity.Parity).
        golden_logits: its logits on them, one list per sample.
        predictions: None without test images.
        throughput, frames, sustained: results of the scenarios that the plan includes.
        processes: number of processes; None for the planned number. A model that is slow to start gets fewer.
    """

    bundle: str
    session: SessionFacts
    file_ms: Sequence[float]
    load_ms: Sequence[float]
    first_ms: Sequence[float]
    preprocess_ns: Sequence[int]
    postprocess_ns: Sequence[int]
    warm_ups: Sequence[WarmUp]
    blocks: Sequence[Block]
    checked: int
    differed: int
    peak_rss_bytes: int | None
    parity: Mapping[str, float]
    golden_logits: Sequence[Sequence[float]]
    predictions: Predictions | None
    throughput: Sequence[Throughput] = field(default=())
    frames: Sequence[Frames] = field(default=())
    sustained: Sequence[Sustained] = field(default=())
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    one_thread: Sequence[Block] = field(default=())
    processes: int | None = None

    def check(self) -> None:
        """Refuse impossible values; `documents.read` calls it.

        Raises:
            DocumentError: a time, a count or the parity is impossible.
        """
        if not self.blocks or not self.warm_ups or len(self.stages) > len(STAGES):
            raise DocumentError("a measurement has no blocks or no warm-ups")
        for at, block in enumerate((*self.blocks, *self.one_thread)):
            if block.calls < 1 or not block.ns or min(block.ns) < 1 or not math.isfinite(block.at):
                raise DocumentError(f"blocks[{at}] has no valid time")
        times = (*self.file_ms, *self.load_ms, *self.first_ms, *(entry.ms for entry in self.warm_ups))
        for value in (*times, *(entry.at for entry in self.sustained)):
            within(value, 0, _MAX_MS, "a time")
        _check_scenarios(self)
        check_numbers([entry.state for entry in self.sustained], "sustained")
        if self.parity.keys() != {entry.name for entry in fields(Parity)}:
            raise DocumentError(f"parity has the entries {', '.join(sorted(self.parity))[:200]}")
        within(self.parity["top1_agreement"], 0, 1, "parity.top1_agreement")


def _check_scenarios(measurement: Measurement) -> None:
    """Refuse impossible counts: none offered, more answered than offered, more dropped than missed."""
    for entry in measurement.throughput:
        within(min((entry.batch, *entry.ns)) if entry.ns else 0, 1, _MAX_MS * 1e6, "throughput")
    for entry in measurement.frames:
        within(entry.fps, 1e-6, _MAX_MS, "fps")
        within(entry.offered, 1, _MAX_MS, "offered")
        within(len(entry.ns), 0, entry.offered, "the number of frames answered")
    for entry in measurement.sustained:
        within(entry.call_ns, 1, _MAX_MS * 1e6, "call_ns")
        if entry.offered is not None:
            within(entry.offered, 0, _MAX_MS, "offered")
            within(entry.missed or 0, 0, entry.offered, "missed")
            within(entry.dropped or 0, 0, entry.missed or 0, "dropped")


def check_measurements(measurements: Sequence[Measurement], labels: Mapping[str, int], images: int) -> None:
    """Refuse measurements of other models, or of another number of images.

    Args:
        labels: a candidate's key -> the number of classes of the model, in the order of the measurements.

    Raises:
        DocumentError: a measurement does not match.
    """
    if [measurement.bundle for measurement in measurements] != list(labels):
        raise DocumentError("the measurements are not of the requested models")
    for measurement, count in zip(measurements, labels.values(), strict=True):
        if any(len(row) != count for row in measurement.golden_logits):
            raise DocumentError(f"{measurement.bundle}: golden_logits does not have {count} values per sample")
        predictions = measurement.predictions
        if predictions is None:
            if images:
                raise DocumentError(f"{measurement.bundle} has no predictions")
            continue
        if not images:
            raise DocumentError(f"{measurement.bundle} has predictions, but there are no images")
        columns = (predictions.classes, predictions.confidences, predictions.in_top5)
        lengths = {len(column) for column in columns if column is not None}
        if lengths != {images}:
            raise DocumentError(f"{measurement.bundle}: the number of predictions is not {images}")
        classes = predictions.classes
        if classes and not 0 <= min(classes) <= max(classes) < count:
            raise DocumentError(f"{measurement.bundle}: a prediction is not one of {count} classes")
        if not all(0 <= confidence <= 1 for confidence in predictions.confidences):
            raise DocumentError(f"{measurement.bundle}: a confidence is not between 0 and 1")
