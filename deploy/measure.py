"""The measuring loop: models side by side, each in processes of its own, timed in interleaved blocks.

It knows neither what the models are nor which one should win; it returns raw values.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import allowed_cores
from .errors import DeviceError, EdgeKitError
from .measurement import Block, Measurement, Predictions
from .plan import Plan

# (what is going on, share done from 0 to 1)
Progress = Callable[[str, float], None]


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
        advice = "signal 9 is mostly the kernel's, out of memory: free some, or use a smaller model"
        return DeviceError(
            f"the process of {self._bundle} {reason} during {what}{': ' + words[-1] if words else ''}",
            fix=advice if code == -9 else "run edgekit doctor; if the model is sound this is a bug worth reporting",
        )


@dataclass
class _Subject:
    """One model while it is measured."""

    bundle: str
    path: Path
    workers: list[WorkerProcess] = field(default_factory=list)
    weighed: WorkerProcess | None = None
    opened: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, float] = field(default_factory=dict)
    predictions: Predictions | None = None
    peak_rss_bytes: int | None = None
    preprocess_ns: list[int] = field(default_factory=list)
    calls: int = 1
    blocks: list[Block] = field(default_factory=list)

    def start(self, processes: int, images: Path | None, stack: contextlib.ExitStack) -> None:
        """Start the processes, and one more for memory, which does nothing but load and run."""
        self.workers = [WorkerProcess(self.path, images) for _ in range(processes)]
        self.weighed = WorkerProcess(self.path, None)
        for worker in (*self.workers, self.weighed):
            stack.callback(worker.close)

    def open(self, threads: int, progress: Callable[[float], None]) -> None:
        """Load the model in each process, one after the other."""
        assert self.weighed is not None  # noqa: S101 # start comes first
        for number, worker in enumerate(self.workers):
            self.opened.append(worker.ask("open", threads=threads))
            progress(number / (len(self.workers) + 1))
        self.weighed.ask("open", threads=threads)
        self.peak_rss_bytes = self.weighed.ask("memory")["peak_rss_bytes"]
        self.weighed.close()

    def result(self) -> Measurement:
        return Measurement(
            bundle=self.bundle,
            session=self.opened[0]["session"],
            load_ms=tuple(answer["load_ms"] for answer in self.opened),
            first_ms=tuple(answer["first_ms"] for answer in self.opened),
            preprocess_ns=tuple(self.preprocess_ns),
            blocks=tuple(self.blocks),
            peak_rss_bytes=self.peak_rss_bytes,
            parity=self.parity,
            predictions=self.predictions,
        )


def measure(bundles: Mapping[str, Path], plan: Plan, images: Path | None, progress: Progress) -> list[Measurement]:
    """Measure models together on this machine.

    Args:
        bundles: bundle id -> folder.
        images: a folder that ImageSet.save wrote, or None for no accuracy.

    Returns:
        One measurement a bundle, in their order.

    Raises:
        EdgeKitError: a model cannot be loaded or run.
    """
    threads = plan.threads or allowed_cores()
    subjects = [_Subject(name, path) for name, path in bundles.items()]
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            subject.start(plan.processes, images, stack)
        for subject, part in _steps(subjects, "loading", progress):
            subject.open(threads, part)
        for subject, part in _steps(subjects, "accuracy", progress):
            subject.parity = subject.workers[0].ask("golden")
            if images is not None:
                subject.predictions = _predict(subject, images, part)
        for subject, _ in _steps(subjects, "warm-up", progress):
            _warm_up(subject, plan)
        _time_blocks(subjects, plan, lambda share: progress("latency", share))
    return [subject.result() for subject in subjects]


def _steps(
    subjects: Sequence[_Subject], what: str, progress: Progress
) -> Iterator[tuple[_Subject, Callable[[float], None]]]:
    for index, subject in enumerate(subjects):

        def part(share: float, index: int = index) -> None:
            progress(what, (index + share) / len(subjects))

        part(0.0)
        yield subject, part
    progress(what, 1.0)


def _predict(subject: _Subject, images: Path, part: Callable[[float], None]) -> Predictions:
    total = len(json.loads((images / "images.json").read_text())["ids"])
    answer = subject.workers[0].ask("predict", on_progress=lambda done: part(done / total))
    in_top5 = answer["in_top5"]
    return Predictions(
        tuple(answer["classes"]), tuple(answer["confidences"]), None if in_top5 is None else tuple(in_top5)
    )


def _warm_up(subject: _Subject, plan: Plan) -> None:
    answers = [worker.ask("prepare") for worker in subject.workers]
    subject.preprocess_ns = [value for answer in answers for value in answer["preprocess_ns"]]
    call_ns = max(1, min(answer["call_ns"] for answer in answers))
    subject.calls = max(1, min(1000, round(plan.block_ms * 1e6 / call_ns)))


def _time_blocks(subjects: Sequence[_Subject], plan: Plan, progress: Callable[[float], None]) -> None:
    """Rounds of one block a model, in random order; every other round takes the order before it backwards, so that a
    steady drift of the machine weighs on all models alike."""
    order = list(subjects)
    generator = random.Random(plan.seed)
    start = time.monotonic()
    number = 0
    while number < plan.rounds or time.monotonic() - start < plan.seconds:
        if number % 2 == 0:
            generator.shuffle(order)
        else:
            order.reverse()
        process = (number // 2) % plan.processes
        for subject in order:
            answer = subject.workers[process].ask("time", calls=subject.calls)
            subject.blocks.append(Block(number, process, tuple(answer["ns"])))
        number += 1
        progress(min(number / plan.rounds, (time.monotonic() - start) / max(plan.seconds, 1e-9), 1.0))
