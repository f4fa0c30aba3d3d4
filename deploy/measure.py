"""The measuring loop: models side by side, each in processes of its own, timed in interleaved blocks.

It knows neither what the models are nor which one should win; it returns raw values.
"""

import contextlib
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, stdev
from typing import Any

from .bundle import Bundle
from .environment import allowed_cores, memory_cap, temperature
from .errors import DeviceError, EdgeKitError
from .measurement import Block, Frames, Measurement, Predictions, Sustained, Throughput, WarmUp
from .plan import HALF_WIDTH_WANTED, SAMPLES_WANTED, Plan

# (what is going on, share done from 0 to 1)
Progress = Callable[[str, float], None]

# Calls are timed together until they take this long, so that the clock's own cost does not count.
_SAMPLE_NS = 1_000_000

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_THROUGHPUT_S = 0.3

# A device is cool again when it is so near to its temperature before.
_COOL_ENOUGH_C = 3.0


class WorkerProcess:
    """The near end of one worker (see worker.py); it starts at once, and imports its runtime while others do."""

    def __init__(self, bundle: Path, images: Path | None) -> None:
        self._bundle = bundle
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 # closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )
        self._send("start", bundle=str(bundle), images=str(images) if images else None)
        self._started = False

    def ask(self, what: str, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            EdgeKitError: the worker says what is wrong.
            DeviceError: the worker is gone; the message has its last words.
        """
        if not self._started:
            self._started = True
            self._receive("start", None)
        self._send(what, **arguments)
        return self._receive(what, on_progress)

    def _send(self, what: str, **arguments: Any) -> None:
        assert self._process.stdin  # noqa: S101 # it is a pipe
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()

    def _receive(self, what: str, on_progress: Callable[[int], None] | None) -> dict[str, Any]:
        assert self._process.stdout  # noqa: S101 # it is a pipe
        for line in self._process.stdout:
            answer = json.loads(line)
            if "progress" not in answer:
                break
            if on_progress:
                on_progress(answer["progress"])
        else:
            raise self._death(what)
        if "error" in answer:
            raise EdgeKitError(answer["error"], fix=answer["fix"])
        return answer

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        with contextlib.suppress(ValueError, BrokenPipeError):  # closed before
            self._process.communicate()
        self._stderr.close()

    def _death(self, what: str) -> DeviceError:
        code = self._process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        message = f"the process of {self._bundle} {reason} during {what}{': ' + words[-1] if words else ''}"
        if code == -signal.SIGKILL:
            limit, peak = memory_cap()
            return DeviceError(
                f"{message}; mostly that is the kernel's doing, out of memory: the cap here is {megabytes(limit)}, the "
                f"peak was {megabytes(peak)}",
                fix="free memory, or use a smaller model",
            )
        return DeviceError(message, fix="run edgekit doctor; if the model is sound this is a bug worth reporting")


@dataclass
class _Subject:
    """One model while it is measured."""

    bundle: str
    path: Path
    batch: int | None
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
    checked: int = 0
    differed: int = 0
    throughput: list[Throughput] = field(default_factory=list)
    frames: list[Frames] = field(default_factory=list)
    sustained: list[Sustained] = field(default_factory=list)

    def ask(self, what: str, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Ask the worker of the moment."""
        assert self.worker is not None  # noqa: S101 # measure() starts one first
        return self.worker.ask(what, on_progress, **arguments)

    def prepare(self, plan: Plan) -> None:
        """Warm up; the first process settles how long a sample and a block are, for all of them."""
        answer = self.ask("prepare")
        self.prepared.append(answer)
        if len(self.prepared) == 1:
            call_ns = answer["call_ns"]
            self.calls = -(-_SAMPLE_NS // call_ns)
            self.samples = max(1, round(plan.block_ms * 1e6 / (call_ns * self.calls)))

    def time(self, number: int, process: int, at: float) -> None:
        """Time one block, and hold its last answer against the accuracy run's."""
        answer = self.ask("time", samples=self.samples, calls=self.calls)
        self.blocks.append(Block(number, process, at, self.calls, tuple(answer["ns"]), answer["switches"]))
        if self.predictions is not None:
            self.checked += 1
            self.differed += answer["class"] != self.predictions.classes[answer["input"]]

    def result(self) -> Measurement:
        return Measurement(
            bundle=self.bundle,
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


def measure(
    bundles: Mapping[str, Path], plan: Plan, images: Path | None, cores: Sequence[int] | None, progress: Progress,
    keep: Callable[[list[Measurement]], None] = lambda _: None,
) -> list[Measurement]:  # fmt: skip
    """Measure models together on this machine.

    Every model has one process at a time, a fresh one for each of the plan's processes, so that memory holds each model
    once; in a process's turn the models are timed in alternation.

    Args:
        bundles: bundle id -> folder.
        images: a folder that ImageSet.save wrote, or None for no accuracy.
        cores: those that every model runs on, or None for all that are allowed.
        keep: takes what was measured so far, after each process but the last.

    Returns:
        One measurement a bundle, in their order.

    Raises:
        EdgeKitError: a model cannot be loaded or run.
    """
    how = {**asdict(plan.session(allowed_cores())), "cores": cores}
    subjects = [_Subject(name, path, Bundle.open(path).manifest.input.batch) for name, path in bundles.items()]
    generator = random.Random(plan.seed)
    origin = time.monotonic()
    for process in range(plan.processes):
        with _workers(subjects, images):
            _load(subjects, how, progress if process == 0 else _silent)
            if process == 0:
                _answer_once(subjects, images, how, progress)

            def part(share: float, process: int = process) -> None:
                progress("latency", (process + share) / plan.processes)

            for index, subject in enumerate(subjects):
                if process == 0:
                    progress("warm-up", index / len(subjects))
                subject.prepare(plan)
            _time_blocks(subjects, plan, process, generator, origin, part)
            if plan.offline:
                _load_in_batches(subjects, process, progress, plan)
            if plan.fps is not None:
                _offer(subjects, process, progress, plan, plan.fps)
        if process + 1 < plan.processes:
            keep([subject.result() for subject in subjects])
    if plan.sustained_s is not None:
        _sustain(subjects, images, how, plan.sustained_s, progress)
    return [subject.result() for subject in subjects]


def megabytes(size: int | str) -> str:
    """Bytes as MB (10^6), for a message."""
    return f"{size / 1e6:.0f} MB" if isinstance(size, int) else size


def _silent(what: str, share: float) -> None:
    """Only the first process's loading is news."""


@contextlib.contextmanager
def _workers(subjects: Sequence[_Subject], images: Path | None) -> Iterator[None]:
    """A fresh process a model, all started before the first is asked anything."""
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            subject.worker = WorkerProcess(subject.path, images)
            stack.callback(subject.worker.close)
        yield


def _load(subjects: Sequence[_Subject], how: Mapping[str, Any], progress: Progress) -> None:
    for index, subject in enumerate(subjects):
        progress("loading", index / len(subjects))
        subject.opened.append(subject.ask("open", **how))
    progress("loading", 1.0)


def _answer_once(subjects: Sequence[_Subject], images: Path | None, how: Mapping[str, Any], progress: Progress) -> None:
    """What one process tells of all: parity and predictions; and memory, in one more that only loads and runs."""
    for index, subject in enumerate(subjects):

        def part(share: float, index: int = index) -> None:
            progress("accuracy", (index + share) / len(subjects))

        part(0.0)
        answer = subject.ask("golden")
        subject.parity, subject.golden_logits = answer["parity"], answer["logits"]
        if images is not None:
            subject.predictions = _predict(subject, images, part)
        weighed = WorkerProcess(subject.path, None)
        with contextlib.closing(weighed):
            weighed.ask("open", **how)
            subject.peak_rss_bytes = weighed.ask("memory")["peak_rss_bytes"]
    progress("accuracy", 1.0)


def _predict(subject: _Subject, images: Path, part: Callable[[float], None]) -> Predictions:
    total = len(json.loads((images / "images.json").read_text())["ids"])
    answer = subject.ask("predict", on_progress=lambda done: part(done / total))
    in_top5 = answer["in_top5"]
    return Predictions(
        tuple(answer["classes"]), tuple(answer["confidences"]), None if in_top5 is None else tuple(in_top5)
    )


def _time_blocks(
    subjects: Sequence[_Subject], plan: Plan, process: int, generator: random.Random, origin: float,
    progress: Callable[[float], None],
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
        progress(min((number - first) / least_rounds, spent / max(least_s, 1e-9), 0.99))
        if number - first < least_rounds or spent < least_s:
            continue
        if spent >= budget_s or not any(lacking(subject.blocks[first:], plan) for subject in subjects):
            return


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
    subjects: Sequence[_Subject], images: Path | None, how: Mapping[str, Any], seconds: float, progress: Progress
) -> None:
    """Each model alone, without a pause; a device that got warm cools down before the next."""
    cold = temperature()
    for index, subject in enumerate(subjects):
        if index:
            _cool_down(cold, seconds, progress)
        with _workers([subject], images):
            subject.ask("open", **how)
            subject.ask("prepare")
            start = time.monotonic()
            while (at := time.monotonic() - start) < seconds:
                progress("sustained", (index + at / seconds) / len(subjects))
                looked = not subject.sustained or at // 60 > subject.sustained[-1].at // 60
                answer = subject.ask("sustain", look=looked)
                subject.sustained.append(Sustained(at, answer["call_ns"], answer["state"]))


def _cool_down(cold: float | str, longest_s: float, progress: Progress) -> None:
    """Wait until the device is nearly as cool as it was; where it has no sensor there is nothing to wait for."""
    start = time.monotonic()
    while (spent := time.monotonic() - start) < longest_s:
        warm = temperature()
        if isinstance(cold, str) or isinstance(warm, str) or warm <= cold + _COOL_ENOUGH_C:
            return
        progress("cool-down", spent / longest_s)
        time.sleep(1.0)
