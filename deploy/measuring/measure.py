"""The measuring loop: models side by side, each in processes of its own, timed in interleaved blocks.

It knows neither what the models are nor which one should win; it returns raw values.
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
from ..progress import Progress, silent
from .measurement import Block, Measurement, Predictions
from .plan import HALF_WIDTH_WANTED, SAMPLES_WANTED, Plan
from .rules import RULES
from .scenarios import measure_batches, measure_frames, measure_sustained
from .subject import Loading, Subject, block_of, make_subject, workers

# A model whose processes take longer than this together to start and to warm up gets fewer of them, three at least.
_SETUP_S, _LEAST_PROCESSES = 30.0, 3


def measure(
    bundles: Mapping[str, Path], plan: Plan, images: Path | None, cores: Sequence[int] | None, progress: Progress,
    keep: Callable[[list[Measurement]], None] = lambda _: None, *, planted: bool = False,
) -> list[Measurement]:  # fmt: skip
    """Measure models together on this machine.

    Every model has one process at a time, a fresh one for each of the plan's processes, so that memory holds each model
    once; in a process's turn the models are timed in alternation.

    Args:
        bundles: bundle id -> folder; the plan names the runtimes of each.
        images: a folder that ImageSet.save wrote, or None for no accuracy.
        cores: those that every model runs on, or None for all that are allowed.
        keep: receives the measurements so far, after each process but the last.
        planted: the models are the self-test's own (see runtime.PLANTED).

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
        here = [subject for subject in subjects if process < subject.processes]
        if not here:
            break
        with workers(here, images):
            _load(here, how, progress if process == 0 else silent)
            if process == 0:
                _answer_once(subjects, images, how, progress)
            _warm_up(here, plan, progress if process == 0 else silent)
            if process == 0:
                _ration(subjects)
                stage = _latency_stage(subjects, plan)
                plan = replace(plan, processes=max(subject.processes for subject in subjects))
            _time_blocks(here, plan, process, generator, origin, progress, stage)
            if plan.offline:
                measure_batches(here, process, progress, plan)
            if plan.fps is not None and plan.sustained_s is None:
                measure_frames(here, process, progress, plan, plan.fps)
            if process == 0 and max(how.threads(subject) for subject in subjects) > 1:
                _time_with_one_thread(subjects, plan, how, origin, progress)
        if process + 1 < plan.processes:
            keep([subject.result() for subject in subjects])
    if plan.sustained_s is not None:
        measure_sustained(subjects, images, how, plan, progress)
    return [subject.result() for subject in subjects]


def _load(subjects: Sequence[Subject], how: Loading, progress: Progress) -> None:
    for index, subject in enumerate(subjects):
        progress("loading", index / len(subjects))
        start = time.monotonic()
        subject.opened.append(subject.ask("open", **how.of(subject)))
        subject.setup_s = time.monotonic() - start if len(subject.opened) == 1 else subject.setup_s
    progress("loading", 1.0)


def _warm_up(subjects: Sequence[Subject], plan: Plan, progress: Progress) -> None:
    for index, subject in enumerate(subjects):
        progress("warm-up", index / len(subjects))
        start = time.monotonic()
        subject.prepare(plan)
        subject.setup_s += time.monotonic() - start if len(subject.prepared) == 1 else 0.0


def _ration(subjects: Sequence[Subject]) -> None:
    """Give fewer processes to a model that is slow to start, once its first one is known; and none to a last one alone,
    which they would compare with nothing."""
    for subject in subjects:
        if subject.setup_s * subject.processes > _SETUP_S:
            subject.processes = max(_LEAST_PROCESSES, int(_SETUP_S / subject.setup_s))
    *_, most = sorted(subject.processes for subject in subjects)[:-1] or [subjects[0].processes]
    for subject in subjects:
        subject.processes = min(subject.processes, most)


def _latency_stage(subjects: Sequence[Subject], plan: Plan) -> str:
    """What takes long, where a model that is slow to start does."""
    slow = [
        f"{subject.label} takes {subject.setup_s:.0f} s to start: {subject.processes} processes, not {plan.processes}"
        for subject in subjects
        if subject.processes < plan.processes and subject.setup_s * plan.processes > _SETUP_S
    ]
    return f"latency ({'; '.join(slow)})" if slow else "latency"


def _answer_once(subjects: Sequence[Subject], images: Path | None, how: Loading, progress: Progress) -> None:
    """Measure once per model: parity and predictions; and memory, in another process that only loads and runs."""
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


def _predict(subject: Subject, images: Path, part: Callable[[float], None]) -> Predictions:
    total = len(json.loads((images / "images.json").read_text())["ids"])
    answer = subject.ask("predict", on_progress=lambda done: part(done / total))
    in_top5 = answer["in_top5"]
    return Predictions(
        tuple(answer["classes"]), tuple(answer["confidences"]), None if in_top5 is None else tuple(in_top5)
    )


def _time_blocks(
    subjects: Sequence[Subject], plan: Plan, process: int, generator: random.Random, origin: float,
    progress: Progress, stage: str,
) -> None:  # fmt: skip
    """Pairs of rounds with one block per model: in random order, then in that order backwards (ABBA), so that a steady
    drift of the machine affects all models equally."""
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
    subjects: Sequence[Subject], plan: Plan, how: Loading, origin: float, progress: Progress
) -> None:
    """A few rounds with one thread, in the same processes.

    Several threads that wait for one another on a busy machine can slow one model down a hundredfold and the other not
    at all; with one thread a busy machine slows both equally. So a ratio that is many times another one here is no
    property of the models.
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
    """The shortcomings of one process's blocks: its share of the samples, a narrow interval of their median."""
    found = []
    if sum(len(block.ns) for block in blocks) * plan.processes < SAMPLES_WANTED:
        found.append(f"the {SAMPLES_WANTED} samples that p99 needs")
    logs = [math.log(median(block.ns)) for block in blocks]
    if 1.96 * stdev(logs) / math.sqrt(len(logs)) > HALF_WIDTH_WANTED * math.sqrt(plan.processes):
        found.append(f"an interval of the median within {HALF_WIDTH_WANTED:.0%}")
    return found
