"""Scenarios other than the single stream: batches, images at a fixed rate, and a long run."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ..environment import temperature
from ..progress import Progress
from .measurement import Frames, Sustained, Throughput
from .plan import SAMPLES_WANTED, Plan
from .subject import Loading, Subject, workers

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_THROUGHPUT_S = 0.3

# A device has cooled down once it is this close to its initial temperature.
_COOL_ENOUGH_C = 3.0


def measure_batches(subjects: Sequence[Subject], process: int, progress: Progress, plan: Plan) -> None:
    """Measure throughput by batch size, doubled while that helps; the first process sets the sizes for all."""
    batches = sorted({*_BATCHES, *(_fixed_size(subject) for subject in subjects if subject.batch is not None)})
    for position, batch in enumerate(batches):
        for subject in subjects:
            progress("offline", (process + position / len(batches)) / plan.processes)
            if batch in _sizes(subject, process):
                answer = subject.ask("throughput", batch=batch, seconds=_THROUGHPUT_S)
                subject.throughput.append(Throughput(process, batch, tuple(answer["ns"])))


def _fixed_size(subject: Subject) -> int:
    """Of a model with a fixed batch: a batch for each of its streams, which work side by side."""
    return (subject.batch or 1) * int(subject.candidate.options.get("streams", 1))


def _sizes(subject: Subject, process: int) -> Sequence[int]:
    """The batch sizes that are still worth trying."""
    if subject.batch is not None:
        return [_fixed_size(subject)]
    first = [entry for entry in subject.throughput if entry.process == 0]
    if process > 0:
        return [entry.batch for entry in first]
    rates = [entry.batch / median(entry.ns) for entry in first]
    slow = bool(first) and median(first[-1].ns) > 2e9
    return () if slow or (rates and rates[-1] < 0.9 * max(rates)) else _BATCHES


def measure_frames(subjects: Sequence[Subject], process: int, progress: Progress, plan: Plan, fps: float) -> None:
    """Offer images at a fixed rate to each model in turn: enough for the 99th percentile, for at most a minute."""
    frames = math.ceil(min(max(SAMPLES_WANTED, fps * plan.seconds), 60 * fps) / plan.processes)
    for index, subject in enumerate(subjects):
        progress("frames", (process + index / len(subjects)) / plan.processes)
        answer = subject.ask("serve", fps=fps, frames=frames)
        subject.frames.append(Frames(process, fps, frames, tuple(answer["ns"])))


def measure_sustained(
    subjects: Sequence[Subject], images: Path | None, how: Loading, plan: Plan, progress: Progress
) -> None:
    """Run each model alone, without a pause or at the plan's rate; a warm device cools down before the next model."""
    cold, seconds = temperature(), plan.sustained_s or 0.0
    for index, subject in enumerate(subjects):
        if index:
            _cool_down(cold, seconds, progress)
        with workers([subject], images):
            subject.ask("open", **how.of(subject))
            subject.ask("prepare")
            start = time.monotonic()
            while (at := time.monotonic() - start) < seconds:
                progress("sustained", (index + at / seconds) / len(subjects))
                with_state = not subject.sustained or at // 60 > subject.sustained[-1].at // 60
                subject.sustained.append(Sustained(at, **subject.ask("sustain", with_state=with_state, fps=plan.fps)))


def _cool_down(cold: float | str, longest_s: float, progress: Progress) -> None:
    """Wait until the device is nearly as cool as before; without a temperature sensor, return at once."""
    start = time.monotonic()
    while (spent := time.monotonic() - start) < longest_s:
        warm = temperature()
        if isinstance(cold, str) or isinstance(warm, str) or warm <= cold + _COOL_ENOUGH_C:
            return
        progress("cool-down", spent / longest_s)
        time.sleep(1.0)
