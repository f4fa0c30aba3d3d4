"""The measuring loop: models side by side, each in its own processes, timed in interleaved blocks.

It does not know what the models are or which one should win; it returns raw values.
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, stdev

from ..environment import allowed_cores
from ..errors import DeviceError
from ..progress import Progress, silent
from .measurement import Block, Measurement, Predictions
from .plan import HALF_WIDTH_WANTED, SAMPLES_WANTED, Plan
from .rules import RULES
from .scenarios import measure_batches, measure_frames, measure_sustained
from .subject import Loading, Subject, block_of, make_subject, workers

# A model whose processes together take longer than this to start and warm up gets fewer of them, but at least three.
_SETUP_S, _LEAST_PROCESSES = 30.0, 3


def measure(
    bundles: Mapping[str, Path], plan: Plan, images: Path | None, cores: Sequence[int] | None, progress: Progress,
    keep: Callable[[list[Measurement]], None] = lambda _: None, *, planted: bool = False,
) -> list[Measurement]:  # fmt: skip
    """Measure models together on this machine.

    Every model has one process at a time, so that memory holds each model once. The plan's processes run one after the
    other; during each, the models are timed in alternation.

    Args:
        bundles: bundle id -> folder; the plan names the runtimes of each.
        images: a folder that ImageSet.save wrote, or None for no accuracy.
        cores: the cores that every model runs on, or None for all allowed ones.
        keep: receives the measurements so far, after each process but the last.
        planted: whether the models are the self-test's (see runtime.PLANTED).

    Returns:
        One measurement per candidate, in the plan's order.

    Raises:
        EdgeKitError: a model cannot be loaded or run.
    """
    how = Loading(cores, {**plan.options, "threads": plan.threads or allowed_cores()})
    candidates = plan.measured(bundles)
    subjects = [make_subject(candidate, bundles[candidate.bundle], plan, planted=planted) for candidate in candidates]
    generator = random.Random(plan.seed)
    origin, stage = time.monotonic(), "latency"
    for process in range(plan.processes):
        running = [subject for subject in subjects if process < subject.processes]
        if not running:
            break
        with workers(running, images):
            load(running, how, progress if process == 0 else silent)
            if process == 0:
                answer_once(subjects, images, how, progress)
            warm_up(running, plan, progress if process == 0 else silent)
            if process == 0:
                _ration(subjects)
                stage = _latency_stage(subjects, plan)
                plan = replace(plan, processes=max(subject.processes for subject in subjects))
            time_blocks(running, plan, process, generator, origin, progress, stage)
            if plan.offline:
                measure_batches(running, process, progress, plan)
            if plan.fps is not None and plan.sustained_s is None:
                measure_frames(running, process, progress, plan, plan.fps)
            if process == 0 and max(how.threads(subject) for subject in subjects) > 1:
                _time_with_one_thread(subjects, plan, how, origin, progress)
        if process + 1 < plan.processes:
            keep([subject.result() for subject in subjects])
    if plan.sustained_s is not None:
        measure_sustained(subjects, images, how, plan, progress)
    return [subject.result() for subject in subjects]


def load(subjects: Sequence[Subject], how: Loading, progress: Progress) -> None:
    """Load each model in its process, and run it once.

    Raises:
        EdgeKitError: a model cannot be loaded.
        DeviceError: it runs with another number of threads than its candidate names.
    """
    for index, subject in enumerate(subjects):
        progress("loading", index / len(subjects))
        start = time.monotonic()
        subject.opened.append(subject.ask("open", **how.of(subject)))
        wanted, used = subject.candidate.threads, subject.opened[-1]["session"].get("threads")
        if wanted is not None and used is not None and used != wanted:
            raise DeviceError(
                f"{subject.label} runs with {used} threads here, not {wanted}", fix=f"pass threads={used}"
            )
        subject.setup_s = time.monotonic() - start if len(subject.opened) == 1 else subject.setup_s
    progress("loading", 1.0)


def warm_up(subjects: Sequence[Subject], plan: Plan, progress: Progress) -> None:
    """Run each model until its times settle."""
    for index, subject in enumerate(subjects):
        progress("warm-up", index / len(subjects))
        start = time.monotonic()
        subject.prepare(plan)
        subject.setup_s += time.monotonic() - start if len(subject.prepared) == 1 else 0.0


def _ration(subjects: Sequence[Subject]) -> None:
    """Give fewer processes to models whose first process was slow to start. No model gets more than the second most,
    since its additional processes would be compared with nothing."""
    for subject in subjects:
        if subject.setup_s * subject.processes > _SETUP_S:
            subject.processes = max(_LEAST_PROCESSES, int(_SETUP_S / subject.setup_s))
    *_, most = sorted(subject.processes for subject in subjects)[:-1] or [subjects[0].processes]
    for subject in subjects:
        subject.processes = min(subject.processes, most)


def _latency_stage(subjects: Sequence[Subject], plan: Plan) -> str:
    """The name of the stage, with the models that get fewer processes because they are slow to start."""
    slow = [
        f"{subject.label} takes {subject.setup_s:.0f} s to start: {subject.processes} processes instead of "
        f"{plan.processes}"
        for subject in subjects
        if subject.processes < plan.processes and subject.setup_s * plan.processes > _SETUP_S
    ]
    return f"latency ({'; '.join(slow)})" if slow else "latency"


def answer_once(subjects: Sequence[Subject], images: Path | None, how: Loading, progress: Progress) -> None:
    """Measure parity, predictions and memory once per model."""
    for index, subject in enumerate(subjects):

        def show_share(share: float, index: int = index) -> None:
            progress("accuracy", (index + share) / len(subjects))

        show_share(0.0)
        replay_golden(subject)
        if images is not None:
            subject.predictions = predict(subject, images, show_share)
        progress("memory", index / len(subjects))
        measure_memory(subject, how)
    progress("memory", 1.0)


def replay_golden(subject: Subject) -> None:
    """Measure the parity with the golden samples."""
    answer = subject.ask("golden")
    subject.parity, subject.golden_logits = answer["parity"], answer["logits"]


def measure_memory(subject: Subject, how: Loading) -> None:
    """Measure the resident memory of another process, which only loads the model and runs it."""
    memory_worker = subject.start(None)
    with contextlib.closing(memory_worker):
        memory_worker.ask("open", **how.of(subject))
        subject.peak_rss_bytes = memory_worker.ask("memory")["peak_rss_bytes"]


def predict(subject: Subject, images: Path, show_share: Callable[[float], None]) -> Predictions:
    """Classify all images."""
    total = len(json.loads((images / "images.json").read_text())["ids"])
    answer = subject.ask("predict", on_progress=lambda done: show_share(done / total))
    in_top5 = answer["in_top5"]
    return Predictions(
        tuple(answer["classes"]), tuple(answer["confidences"]), None if in_top5 is None else tuple(in_top5)
    )


def time_blocks(
    subjects: Sequence[Subject], plan: Plan, process: int, generator: random.Random, origin: float,
    progress: Progress, stage: str,
) -> None:  # fmt: skip
    """Time pairs of rounds with one block per model: in random order, then in reverse (ABBA), so that a steady drift of
    the machine affects all models equally."""
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


def _worth_waiting_for(subject: Subject, rounds: int, plan: Plan, share: float) -> bool:
    """Whether more blocks, within the time budget, can make up for the shortcomings of a model's blocks so far.

    A model too slow to reach the required samples does not prolong the measurement of the others.

    Args:
        rounds: number of rounds of this process so far.
        share: share of the time budget that they took.
    """
    blocks = subject.blocks[-rounds:]
    samples = sum(len(block.ns) for block in blocks) * plan.processes / share
    return bool(lacking(blocks, plan)) and samples >= SAMPLES_WANTED


def _time_with_one_thread(
    subjects: Sequence[Subject], plan: Plan, how: Loading, origin: float, progress: Progress
) -> None:
    """Time a few rounds with one thread, in the same processes.

    On a busy machine, threads that wait for one another can slow one model down a hundredfold and another not at all.
    With one thread, both slow down equally. So a ratio that is many times the one measured here is not a property of
    the models.
    """
    blocks_of = []
    for index, subject in enumerate(subjects):
        progress("one thread", index / len(subjects))
        subject.ask("open", **how.of(subject, threads=1))
        blocks_of.append(block_of(subject.ask("prepare")["call_ns"], plan))
    for number in range(RULES.one_thread_rounds):
        turn = list(zip(subjects, blocks_of, strict=True))
        for subject, (samples, calls) in turn if number % 2 else reversed(turn):
            at = time.monotonic() - origin
            answer = subject.ask("time", samples=samples, calls=calls)
            subject.one_thread.append(Block(number, 0, at, calls, tuple(answer["ns"]), answer["switches"]))


def lacking(blocks: Sequence[Block], plan: Plan) -> list[str]:
    """The shortcomings of one process's blocks: too few samples, too wide an interval of their median."""
    shortcomings = []
    if sum(len(block.ns) for block in blocks) * plan.processes < SAMPLES_WANTED:
        shortcomings.append(f"the {SAMPLES_WANTED} samples that p99 needs")
    logs = [math.log(median(block.ns)) for block in blocks]
    if 1.96 * stdev(logs) / math.sqrt(len(logs)) > HALF_WIDTH_WANTED * math.sqrt(plan.processes):
        shortcomings.append(f"an interval of the median within {HALF_WIDTH_WANTED:.0%}")
    return shortcomings
