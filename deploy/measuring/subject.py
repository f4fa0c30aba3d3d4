"""One model while it is measured: its worker process, and its measurements so far."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..bundle import Bundle
from ..runtimes.runtime import OptionValue, Runtime
from ..session import runtime_for
from .measurement import Block, Frames, Measurement, Predictions, Sustained, Throughput, WarmUp
from .plan import Candidate, Plan
from .rules import RULES
from .worker_process import WorkerProcess


@dataclass
class Subject:
    """A candidate of the plan while it is measured: its bundle on its runtime."""

    candidate: Candidate
    runtime: Runtime
    path: Path
    batch: int | None
    planted: bool
    label: str
    processes: int
    size_bytes: int
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
    error: str | None = None

    def start(self, images: Path | None) -> WorkerProcess:
        """Start a fresh process of this model."""
        choice = self.candidate.choice
        return WorkerProcess(self.path, images, choice and choice.name, planted=self.planted)

    def ask(self, request: str, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send a request to the current worker process."""
        assert self.worker is not None  # noqa: S101 # measure() starts one first
        return self.worker.ask(request, on_progress, **arguments)

    def prepare(self, plan: Plan) -> None:
        """Warm up; the first process determines the sizes of samples and blocks for all processes."""
        inputs, cap_s = RULES.inputs, RULES.warm_up_cap_s
        if plan.race is not None:
            inputs, cap_s = RULES.race_inputs, RULES.race_warm_up_cap_s
        answer = self.ask("prepare", inputs=inputs, warm_up_cap_s=cap_s)
        self.prepared.append(answer)
        if len(self.prepared) == 1:
            self.samples, self.calls = block_of(answer["call_ns"], plan)

    def time(self, number: int, process: int, at: float) -> None:
        """Time one block, and compare its last answer with the accuracy run's."""
        answer = self.ask("time", samples=self.samples, calls=self.calls)
        self.blocks.append(Block(number, process, at, self.calls, tuple(answer["ns"]), answer["switches"]))
        if self.predictions is not None:
            self.checked += 1
            self.differed += answer["class"] != self.predictions.classes[answer["input"]]

    def result(self) -> Measurement:
        """The measurements so far."""
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
            processes=self.processes,
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


class Loading(NamedTuple):
    """How all models are loaded: the cores, and defaults for the options that a candidate does not set."""

    cores: Sequence[int] | None
    defaults: Mapping[str, OptionValue]

    def of(self, subject: Subject, threads: int | None = None) -> dict[str, Any]:
        """The arguments of "open" for this model; `threads` overrides its own and the default."""
        options = {**self.defaults, **subject.candidate.options, **({} if threads is None else {"threads": threads})}
        accepted = subject.runtime.option_names()
        return {"cores": self.cores, **{name: value for name, value in options.items() if name in accepted}}

    def threads(self, subject: Subject) -> int:
        """Threads per inference of this model."""
        return subject.candidate.threads or int(self.defaults["threads"])


def make_subject(candidate: Candidate, path: Path, plan: Plan, *, planted: bool) -> Subject:
    """Prepare a candidate whose bundle is in the folder `path`."""
    bundle, choice = Bundle.open(path), candidate.choice
    runtime = runtime_for(bundle, choice and choice.name, planted=planted)
    label = f"{bundle.manifest.format} {bundle.manifest.precision}{f' on {choice}' if choice else ''}"
    return Subject(
        candidate, runtime, path, bundle.manifest.input.batch, planted, label, plan.processes, bundle.size_bytes
    )


@contextlib.contextmanager
def workers(subjects: Sequence[Subject], images: Path | None) -> Iterator[None]:
    """Start a fresh process per model, all before the first request; end them afterwards."""
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            subject.worker = subject.start(images)
            stack.callback(subject.worker.close)
        yield


def block_of(call_ns: int, plan: Plan) -> tuple[int, int]:
    """The number of samples per block, and of calls per sample."""
    calls = -(-RULES.sample_ns // call_ns)
    return max(1, round(plan.block_ms * 1e6 / (call_ns * calls))), calls
