"""A race: like `measure`, but each candidate is measured only until it has certainly lost (see elimination.py)."""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..bundle import Bundle
from ..documents import DocumentError
from ..environment import allowed_cores, memory_cap
from ..errors import EdgeKitError
from ..progress import Progress, silent
from .elimination import INDIFFERENCE, decided, points_lost, relative_batch_log, relative_logs, survivors
from .measure import load, measure_memory, predict, replay_golden, time_blocks, warm_up
from .measurement import Measurement
from .plan import Plan, Race
from .scenarios import measure_batches
from .subject import Loading, Subject, make_subject, workers

# Candidates that are loaded at the same time, besides the first one: as memory allows, and at most so many.
_MOST_LOADED, _BYTES_EACH = 6, 400_000_000
# Options that change the speed of a model and not its answers.
_SPEED_ONLY = ("threads", "streams", "cache", "spinning")


def race(
    bundles: Mapping[str, Path], plan: Plan, images: Path | None, cores: Sequence[int] | None, progress: Progress,
    keep: Callable[[list[Measurement], dict[str, str]], None] = lambda *_: None, *, planted: bool = False,
) -> tuple[list[Measurement], dict[str, str]]:  # fmt: skip
    """Measure models on this machine until the best of them is known.

    The first candidate is the reference: it runs in every process, beside a few others at a time, and the times of the
    others count relative to its own. After each process, those are dropped that exceed a limit of the race or are
    certainly slower than another one. It ends when the remaining ones are equally fast, after the plan's processes, or
    when its time is over. Then candidates that were not loaded yet are listed as failed.

    Args:
        bundles, images, cores, planted: as for `measure.measure`.
        keep: receives the measurements and failures so far, after each process.

    Returns:
        One measurement per candidate, in the plan's order, and the candidates that cannot be loaded or run, with the
        reason.

    Raises:
        EdgeKitError: the first candidate cannot be loaded or run.
    """
    defaults = {**plan.options, "threads": plan.threads or allowed_cores()}
    candidates = plan.measured(bundles)
    subjects = [make_subject(candidate, bundles[candidate.bundle], plan, planted=planted) for candidate in candidates]
    state = _State(subjects, plan, plan.race or Race(), Loading(cores, defaults), images, progress)
    reference, racing = subjects[0], list(subjects)
    for process in range(plan.processes):
        state.run(process, racing)
        for subject in (reference, *racing):
            subject.processes = process + 1
        racing = _go_on(racing, reference, state.rules, plan.processes, images)
        if process == 0 and state.rules.max_rss_bytes is None:
            for subject in racing:
                measure_memory(subject, state.how)
        keep(*state.outcome())
        if not racing or state.is_late() or decided(_logs(racing, reference, state.rules)):
            break
    return state.outcome()


class _State:
    """A race while it runs: its candidates, the reference first, and how they are measured."""

    def __init__(
        self, subjects: Sequence[Subject], plan: Plan, rules: Race, how: Loading, images: Path | None,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.rules, self.how = rules, how
        self._subjects, self._plan, self._images, self._progress = subjects, plan, images, progress
        self._generator, self._origin = random.Random(plan.seed), time.monotonic()

    def run(self, process: int, racing: Sequence[Subject]) -> None:
        """Time a fresh process of the reference and of each candidate that is still in the race, a few at a time."""
        reference, *_ = self._subjects
        others = [subject for subject in racing if subject is not reference]
        with workers([reference], self._images):
            load([reference], self.how, silent)
            warm_up([reference], self._plan, silent)
            for number, group in enumerate(_groups(others)):
                if process == 0 and number and self.is_late():
                    for subject in group:
                        subject.error = "the time of the search was over before it was measured (--budget)"
                    continue
                with workers(group, self._images):
                    self._run_group(process, group, f"race, {len(racing)} candidates")

    def _run_group(self, process: int, group: Sequence[Subject], stage: str) -> None:
        _start(group, self.how, self._plan, self._progress if process == 0 else silent)
        running = [self._subjects[0], *(subject for subject in group if subject.error is None)]
        if process == 0:
            _answer(running, self._subjects, self._images, self.how, self.rules, self._progress)
        time_blocks(running, self._plan, process, self._generator, self._origin, self._progress, stage)
        if self.rules.objective == "throughput":
            measure_batches(running, process, self._progress, self._plan)

    def is_late(self) -> bool:
        """Whether the time of the race is over."""
        return self.rules.seconds is not None and time.monotonic() - self._origin > self.rules.seconds

    def outcome(self) -> tuple[list[Measurement], dict[str, str]]:
        """The measurements so far, and the failures."""
        measured = [subject.result() for subject in self._subjects if subject.error is None]
        failed = {subject.candidate.key: subject.error for subject in self._subjects if subject.error is not None}
        return measured, failed


def check_race(measurements: Sequence[Measurement], reference: str, rules: Race) -> None:
    """Refuse measurements that a race cannot have.

    Args:
        reference: key of the first candidate.

    Raises:
        DocumentError: the reference is missing, a candidate was not timed beside it, or a process has no batches.
    """
    if not measurements or measurements[0].bundle != reference:
        raise DocumentError("the reference was not measured")
    rounds = {(block.process, block.round) for block in measurements[0].blocks}
    for measurement in measurements:
        processes = {block.process for block in measurement.blocks}
        if processes != set(range(len(processes))) or not {(b.process, b.round) for b in measurement.blocks} <= rounds:
            raise DocumentError(f"{measurement.bundle} was not timed beside the reference")
        if rules.objective == "throughput" and not processes <= {entry.process for entry in measurement.throughput}:
            raise DocumentError(f"{measurement.bundle} was not timed in batches")


def _groups(subjects: Sequence[Subject]) -> Iterator[list[Subject]]:
    """The candidates that are loaded together; an empty group if there are none, for the reference alone."""
    memory = memory_cap()[0]
    size = _MOST_LOADED if isinstance(memory, str) else min(_MOST_LOADED, max(1, int(memory // _BYTES_EACH)))
    for start in range(0, max(1, len(subjects)), size):
        yield list(subjects[start : start + size])


@contextlib.contextmanager
def _alone(subject: Subject) -> Iterator[None]:
    """A candidate that cannot be loaded or run is left out; its error does not end the race."""
    try:
        yield
    except EdgeKitError as error:
        subject.error = str(error)


def _start(group: Sequence[Subject], how: Loading, plan: Plan, progress: Progress) -> None:
    """Load and warm up each candidate; a failure is recorded."""
    for index, subject in enumerate(group):
        progress("loading", index / len(group))
        with _alone(subject):
            if subject.runtime.check is not None:
                subject.runtime.check(Bundle.open(subject.path), None)
            load([subject], how, silent)
            warm_up([subject], plan, silent)


def _answer(
    running: Sequence[Subject], subjects: Sequence[Subject], images: Path | None, how: Loading, rules: Race,
    progress: Progress,
) -> None:  # fmt: skip
    """Measure parity and predictions, and memory if it is limited.

    Candidates that differ only in speed have the same answers, so one of them classifies the images for all.
    """
    for index, subject in enumerate(running):
        if subject.parity:  # the reference, in a later group
            continue

        def show_share(share: float, index: int = index) -> None:
            progress("accuracy", (index + share) / len(running))

        show_share(0.0)
        replay_golden(subject)
        if images is not None:
            known = [other.predictions for other in subjects if other.predictions and _same_answers(other, subject)]
            subject.predictions = known[0] if known else predict(subject, images, show_share)
        if rules.max_rss_bytes is not None:
            measure_memory(subject, how)


def _same_answers(first: Subject, second: Subject) -> bool:
    def computation(subject: Subject) -> tuple[object, ...]:
        options = {name: value for name, value in subject.candidate.options.items() if name not in _SPEED_ONLY}
        return subject.candidate.bundle, subject.runtime.name, sorted(options.items())

    return computation(first) == computation(second)


def _go_on(
    racing: Sequence[Subject], reference: Subject, rules: Race, looks: int, images: Path | None
) -> list[Subject]:  # fmt: skip
    """The candidates that stay within the limits and may still be the best."""
    targets = _targets(images)
    fitting = [
        subject for subject in racing if subject.error is None and _within_limits(subject, reference, rules, targets)
    ]
    if rules.objective == "size" and fitting:
        limit = INDIFFERENCE * min(subject.size_bytes for subject in fitting)
        fitting = [subject for subject in fitting if subject.size_bytes <= limit]
    if not fitting:
        return []
    alive = survivors(_logs(fitting, reference, rules), looks)
    return [subject for subject in fitting if subject.candidate.key in alive]


def _within_limits(subject: Subject, reference: Subject, rules: Race, targets: Sequence[int]) -> bool:
    if rules.max_bytes is not None and subject.size_bytes > rules.max_bytes:
        return False
    if rules.max_rss_bytes is not None and (subject.peak_rss_bytes or 0) > rules.max_rss_bytes:
        return False
    if rules.max_loss is None or subject.predictions is None or reference.predictions is None:
        return True
    lost = points_lost(targets, reference.predictions.classes, subject.predictions.classes)
    return lost <= rules.max_loss


def _targets(images: Path | None) -> list[int]:
    return [] if images is None else json.loads((images / "images.json").read_text())["targets"]


def _logs(subjects: Sequence[Subject], reference: Subject, rules: Race) -> dict[str, list[list[float]]]:
    """Each candidate's times in its processes, relative to the reference's (see elimination.Logs)."""
    return {
        subject.candidate.key: [
            [relative_batch_log(subject.throughput, reference.throughput, process)]
            if rules.objective == "throughput"
            else relative_logs(subject.blocks, reference.blocks, process)
            for process in range(subject.processes)
        ]
        for subject in subjects
    }
