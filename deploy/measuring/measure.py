"""The measuring loop: models side by side, each in processes of its own, timed in interleaved blocks.

It knows neither what the models are nor which one should win; it returns raw values.
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, stdev
from typing import Any, NamedTuple

from ..bundle import Bundle
from ..environment import allowed_cores, temperature
from ..progress import Progress, silent
from ..runtimes.runtime import OptionValue, Runtime
from ..session import runtime_for
from .measurement import Block, Frames, Measurement, Predictions, Sustained, Throughput, WarmUp
from .plan import HALF_WIDTH_WANTED, SAMPLES_WANTED, Candidate, Plan
from .rules import RULES
from .worker_process import WorkerProcess

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_THROUGHPUT_S = 0.3

# A model whose processes take longer than this together to start and to warm up gets fewer of them, three at least.
_SETUP_S, _LEAST_PROCESSES = 30.0, 3

# A device is cool again when it is so near to its temperature before.
_COOL_ENOUGH_C = 3.0


@dataclass
class _Subject:
    """One model while it is measured."""

    candidate: Candidate
    runtime: Runtime
    path: Path
    batch: int | None
    planted: bool
    called: str
    given: int
    setup_s: float = 0.0
    worker: WorkerProcess | None = None
    opened: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, float] = field(default_factory=dict)
    golden_logits: list[list[float]] = field(default_factory=list)
    predictions: Predictions | None = None
    peak_rss_bytes: int | None = None
    calls: int = 1
    samples: int = 1
    blocks: list[Block] = field(default_factory=list)
    one_thread: list[Block] = field(default_factory=list)
    checked: int = 0
    differed: int = 0
    throughput: list[Throughput] = field(default_factory=list)
    frames: list[Frames] = field(default_factory=list)
    sustained: list[Sustained] = field(default_factory=list)

    def start(self, images: Path | None) -> WorkerProcess:
        """A fresh process of this model."""
        choice = self.candidate.choice
        return WorkerProcess(self.path, images, choice and choice.name, planted=self.planted)

    def ask(self, what: str, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Ask the worker of the moment."""
        assert self.worker is not None  # noqa: S101 # measure() starts one first
        return self.worker.ask(what, on_progress, **arguments)

    def prepare(self, plan: Plan) -> None:
        """Warm up; the first process settles how long a sample and a block are, for all of them."""
        answer = self.ask("prepare")
        self.prepared.append(answer)
        if len(self.prepared) == 1:
            self.samples, self.calls = _block_of(answer["call_ns"], plan)

    def time(self, number: int, process: int, at: float) -> None:
        """Time one block, and hold its last answer against the accuracy run's."""
        answer = self.ask("time", samples=self.samples, calls=self.calls)
        self.blocks.append(Block(number, process, at, self.calls, tuple(answer["ns"]), answer["switches"]))
        if self.predictions is not None:
            self.checked += 1
            self.differed += answer["class"] != self.predictions.classes[answer["input"]]

    def result(self) -> Measurement:
        return Measurement(
            bundle=self.candidate.key,
            session=self.opened[0]["session"],
            **{name: tuple(answer[name] for answer in self.opened) for name in ("file_ms", "load_ms", "first_ms")},
            **{
                name: tuple(value for answer in self.prepared for value in answer[name])
                for name in ("preprocess_ns", "postprocess_ns")
            },
            stages={
                stage: tuple(ns for answer in self.prepared for ns in answer["stages"][stage])
                for stage in self.prepared[0]["stages"]
            },
            warm_ups=tuple(WarmUp(**answer["warm_up"]) for answer in self.prepared),
            blocks=tuple(self.blocks),
            one_thread=tuple(self.one_thread),
            processes=self.given,
            checked=self.checked,
            differed=self.differed,
            peak_rss_bytes=self.peak_rss_bytes,
            parity=self.parity,
            golden_logits=self.golden_logits,
            predictions=self.predictions,
            throughput=tuple(self.throughput),
            frames=tuple(self.frames),
            sustained=tuple(self.sustained),
        )


class _Loading(NamedTuple):
    """How all models are loaded: on which cores, with which options where a candidate names none."""

    cores: Sequence[int] | None
    defaults: Mapping[str, OptionValue]

    def of(self, subject: _Subject, threads: int | None = None) -> dict[str, Any]:
        """A worker's arguments of "open" for this model, with so many threads whatever else was asked for."""
        options = {**self.defaults, **subject.candidate.options, **({} if threads is None else {"threads": threads})}
        taken = subject.runtime.option_names()
        return {"cores": self.cores, **{name: value for name, value in options.items() if name in taken}}

    def threads(self, subject: _Subject) -> int:
        """Threads of one inference of this model."""
        return subject.candidate.threads or int(self.defaults["threads"])


def _subject(candidate: Candidate, path: Path, plan: Plan, *, planted: bool) -> _Subject:
    """What is measured of a candidate, whose bundle is in this folder."""
    bundle, choice = Bundle.open(path), candidate.choice
    runtime = runtime_for(bundle, choice and choice.name, planted=planted)
    called = f"{bundle.manifest.format} {bundle.manifest.precision}{f' on {choice}' if choice else ''}"
    return _Subject(candidate, runtime, path, bundle.manifest.input.batch, planted, called, plan.processes)


def measure(
    bundles: Mapping[str, Path], plan: Plan, images: Path | None, cores: Sequence[int] | None, progress: Progress,
    keep: Callable[[list[Measurement]], None] = lambda _: None, *, planted: bool = False,
) -> list[Measurement]:  # fmt: skip
    """Measure models together on this machine.

    Every model has one process at a time, a fresh one for each of the plan's processes, so that memory holds each model
    once; in a process's turn the models are timed in alternation.

    Args:
        bundles: bundle id -> folder; the plan says which runtimes run each.
        images: a folder that ImageSet.save wrote, or None for no accuracy.
        cores: those that every model runs on, or None for all that are allowed.
        keep: takes what was measured so far, after each process but the last.
        planted: the models are the self-test's own (see runtime.PLANTED).

    Returns:
        One measurement per candidate, in the plan's order.

    Raises:
        EdgeKitError: a model cannot be loaded or run.
    """
    how = _Loading(cores, {**plan.options, "threads": plan.threads or allowed_cores()})
    subjects = [
        _subject(candidate, bundles[candidate.bundle], plan, planted=planted) for candidate in plan.measured(bundles)
    ]
    generator = random.Random(plan.seed)
    origin, stage = time.monotonic(), "latency"
    for process in range(plan.processes):
        here = [subject for subject in subjects if process < subject.given]
        if not here:
            break
        with _workers(here, images):
            _load(here, how, progress if process == 0 else silent)
            if process == 0:
                _answer_once(subjects, images, how, progress)
            _warm_up(here, plan, progress if process == 0 else silent)
            if process == 0:
                _ration(subjects)
                stage = _latency_stage(subjects, plan)
                plan = replace(plan, processes=max(subject.given for subject in subjects))
            _time_blocks(here, plan, process, generator, origin, progress, stage)
            if plan.offline:
                _load_in_batches(here, process, progress, plan)
            if plan.fps is not None and plan.sustained_s is None:
                _offer(here, process, progress, plan, plan.fps)
            if process == 0 and max(how.threads(subject) for subject in subjects) > 1:
                _time_with_one_thread(subjects, plan, how, origin, progress)
        if process + 1 < plan.processes:
            keep([subject.result() for subject in subjects])
    if plan.sustained_s is not None:
        _sustain(subjects, images, how, plan, progress)
    return [subject.result() for subject in subjects]


@contextlib.contextmanager
def _workers(subjects: Sequence[_Subject], images: Path | None) -> Iterator[None]:
    """A fresh process a model, all started before the first is asked anything."""
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            subject.worker = subject.start(images)
            stack.callback(subject.worker.close)
        yield


def _load(subjects: Sequence[_Subject], how: "_Loading", progress: Progress) -> None:
    for index, subject in enumerate(subjects):
        progress("loading", index / len(subjects))
        start = time.monotonic()
        subject.opened.append(subject.ask("open", **how.of(subject)))
        subject.setup_s = time.monotonic() - start if len(subject.opened) == 1 else subject.setup_s
    progress("loading", 1.0)


def _warm_up(subjects: Sequence[_Subject], plan: Plan, progress: Progress) -> None:
    for index, subject in enumerate(subjects):
        progress("warm-up", index / len(subjects))
        start = time.monotonic()
        subject.prepare(plan)
        subject.setup_s += time.monotonic() - start if len(subject.prepared) == 1 else 0.0


def _ration(subjects: Sequence[_Subject]) -> None:
    """Give fewer processes to a model that is slow to start, once its first one is known; and none to a last one alone,
    which they would compare with nothing."""
    for subject in subjects:
        if subject.setup_s * subject.given > _SETUP_S:
            subject.given = max(_LEAST_PROCESSES, int(_SETUP_S / subject.setup_s))
    *_, most = sorted(subject.given for subject in subjects)[:-1] or [subjects[0].given]
    for subject in subjects:
        subject.given = min(subject.given, most)


def _latency_stage(subjects: Sequence[_Subject], plan: Plan) -> str:
    """What takes long, where a model that is slow to start does."""
    slow = [
        f"{subject.called} takes {subject.setup_s:.0f} s to start: {subject.given} processes, not {plan.processes}"
        for subject in subjects
        if subject.given < plan.processes and subject.setup_s * plan.processes > _SETUP_S
    ]
    return f"latency ({'; '.join(slow)})" if slow else "latency"


def _answer_once(subjects: Sequence[_Subject], images: Path | None, how: "_Loading", progress: Progress) -> None:
    """What one process tells of all: parity and predictions; and memory, in one more that only loads and runs."""
    for index, subject in enumerate(subjects):

        def part(share: float, index: int = index) -> None:
            progress("accuracy", (index + share) / len(subjects))

        part(0.0)
        answer = subject.ask("golden")
        subject.parity, subject.golden_logits = answer["parity"], answer["logits"]
        if images is not None:
            subject.predictions = _predict(subject, images, part)
        progress("memory", index / len(subjects))
        weighed = subject.start(None)
        with contextlib.closing(weighed):
            weighed.ask("open", **how.of(subject))
            subject.peak_rss_bytes = weighed.ask("memory")["peak_rss_bytes"]
    progress("memory", 1.0)


def _predict(subject: _Subject, images: Path, part: Callable[[float], None]) -> Predictions:
    total = len(json.loads((images / "images.json").read_text())["ids"])
    answer = subject.ask("predict", on_progress=lambda done: part(done / total))
    in_top5 = answer["in_top5"]
    return Predictions(
        tuple(answer["classes"]), tuple(answer["confidences"]), None if in_top5 is None else tuple(in_top5)
    )


def _time_blocks(
    subjects: Sequence[_Subject], plan: Plan, process: int, generator: random.Random, origin: float,
    progress: Progress, stage: str,
) -> None:  # fmt: skip
    """Pairs of rounds of one block a model: in random order, then in that order backwards (ABBA), so that a steady
    drift of the machine weighs on all models alike."""
    order = list(subjects)
    number = len(subjects[0].blocks)
    first, start = number, time.monotonic()
    least_rounds, least_s, budget_s = (
        value / plan.processes for value in (plan.rounds, plan.seconds, plan.budget_s)
    )  # fmt: skip
    while True:
        generator.shuffle(order)
        for turn in (order, order[::-1]):
            for subject in turn:
                subject.time(number, process, time.monotonic() - origin)
            number += 1
        spent = time.monotonic() - start
        done = min((number - first) / least_rounds, spent / max(least_s, 1e-9), 0.99)
        progress(stage, (process + done) / plan.processes)
        if number - first < least_rounds or spent < least_s:
            continue
        share = spent / budget_s if budget_s else 1.0
        if share >= 1 or not any(_worth_waiting_for(subject, number - first, plan, share) for subject in subjects):
            return


def _worth_waiting_for(subject: _Subject, rounds: int, plan: Plan, share: float) -> bool:
    """Whether a process's blocks of a model lack something that the rest of the time budget can still bring.

    A slow model's samples cannot: the others are not measured longer for it.

    Args:
        rounds: of this process so far.
        share: of the time budget that they took.
    """
    blocks = subject.blocks[-rounds:]
    samples = sum(len(block.ns) for block in blocks) * plan.processes / share
    return bool(lacking(blocks, plan)) and samples >= SAMPLES_WANTED


def _time_with_one_thread(
    subjects: Sequence[_Subject], plan: Plan, how: "_Loading", origin: float, progress: Progress
) -> None:
    """A few rounds with one thread, in the same processes.

    Several threads that wait for one another on a busy machine can slow one model down a hundredfold and the other not
    at all; with one thread a busy machine slows both alike. So a ratio that is many times another one here is no
    property of the models.
    """
    blocks_of = []
    for index, subject in enumerate(subjects):
        progress("one thread", index / len(subjects))
        subject.ask("open", **how.of(subject, threads=1))
        blocks_of.append(_block_of(subject.ask("prepare")["call_ns"], plan))
    for number in range(RULES.one_thread_rounds):
        turn = list(zip(subjects, blocks_of, strict=True))
        for subject, (samples, calls) in turn if number % 2 else reversed(turn):
            at = time.monotonic() - origin
            answer = subject.ask("time", samples=samples, calls=calls)
            subject.one_thread.append(Block(number, 0, at, calls, tuple(answer["ns"]), answer["switches"]))


def _block_of(call_ns: int, plan: Plan) -> tuple[int, int]:
    """How many samples a block has, and how many calls a sample."""
    calls = -(-RULES.sample_ns // call_ns)
    return max(1, round(plan.block_ms * 1e6 / (call_ns * calls))), calls


def lacking(blocks: Sequence[Block], plan: Plan) -> list[str]:
    """What one process's blocks do not have yet: its share of the samples, a narrow interval of their median."""
    found = []
    if sum(len(block.ns) for block in blocks) * plan.processes < SAMPLES_WANTED:
        found.append(f"the {SAMPLES_WANTED} samples that p99 needs")
    logs = [math.log(median(block.ns)) for block in blocks]
    if 1.96 * stdev(logs) / math.sqrt(len(logs)) > HALF_WIDTH_WANTED * math.sqrt(plan.processes):
        found.append(f"an interval of the median within {HALF_WIDTH_WANTED:.0%}")
    return found


def _load_in_batches(subjects: Sequence[_Subject], process: int, progress: Progress, plan: Plan) -> None:
    """Throughput by batch size, doubled as long as that helps; the first process settles the sizes for all of them."""
    batches = sorted({*_BATCHES, *(subject.batch for subject in subjects if subject.batch is not None)})
    for position, batch in enumerate(batches):
        for subject in subjects:
            progress("offline", (process + position / len(batches)) / plan.processes)
            if batch in _sizes(subject, process):
                answer = subject.ask("throughput", batch=batch, seconds=_THROUGHPUT_S)
                subject.throughput.append(Throughput(process, batch, tuple(answer["ns"])))


def _sizes(subject: _Subject, process: int) -> Sequence[int]:
    """The batch sizes that are still worth trying."""
    if subject.batch is not None:
        return [subject.batch]
    first = [entry for entry in subject.throughput if entry.process == 0]
    if process > 0:
        return [entry.batch for entry in first]
    rates = [entry.batch / median(entry.ns) for entry in first]
    slow = bool(first) and median(first[-1].ns) > 2e9
    return () if slow or (rates and rates[-1] < 0.9 * max(rates)) else _BATCHES


def _offer(subjects: Sequence[_Subject], process: int, progress: Progress, plan: Plan, fps: float) -> None:
    """Images at a fixed rate to one model after the other: as many as the 99th percentile needs, a minute at most."""
    frames = math.ceil(min(max(SAMPLES_WANTED, fps * plan.seconds), 60 * fps) / plan.processes)
    for index, subject in enumerate(subjects):
        progress("frames", (process + index / len(subjects)) / plan.processes)
        answer = subject.ask("serve", fps=fps, frames=frames)
        subject.frames.append(Frames(process, fps, frames, tuple(answer["ns"])))


def _sustain(
    subjects: Sequence[_Subject], images: Path | None, how: "_Loading", plan: Plan, progress: Progress
) -> None:
    """Each model alone, without a pause or at the plan's rate; a device that got warm cools down before the next."""
    cold, seconds = temperature(), plan.sustained_s or 0.0
    for index, subject in enumerate(subjects):
        if index:
            _cool_down(cold, seconds, progress)
        with _workers([subject], images):
            subject.ask("open", **how.of(subject))
            subject.ask("prepare")
            start = time.monotonic()
            while (at := time.monotonic() - start) < seconds:
                progress("sustained", (index + at / seconds) / len(subjects))
                looked = not subject.sustained or at // 60 > subject.sustained[-1].at // 60
                subject.sustained.append(Sustained(at, **subject.ask("sustain", look=looked, fps=plan.fps)))


def _cool_down(cold: float | str, longest_s: float, progress: Progress) -> None:
    """Wait until the device is nearly as cool as it was; where it has no sensor there is nothing to wait for."""
    start = time.monotonic()
    while (spent := time.monotonic() - start) < longest_s:
        warm = temperature()
        if isinstance(cold, str) or isinstance(warm, str) or warm <= cold + _COOL_ENOUGH_C:
            return
        progress("cool-down", spent / longest_s)
        time.sleep(1.0)
