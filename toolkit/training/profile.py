"""Measure where the time of a training step goes."""

import time
from dataclasses import replace

import torch

from ...deploy.errors import RecipeError
from ...deploy.progress import Progress, silent
from ..analysis.statistics import student_mean
from ..analysis.training_profile import Measured, TrainingProfile, advice, phase_entries, roofline
from .recipe import Recipe
from .roofline import Counter, measure_limits
from .setup import Prepared, Run, TrainingData, open_data, open_fabric, precision_of, prepare, start_trial
from .step import PHASES, endless_steps, seconds_per_step, synchronize

# Steps that find algorithms and fill caches, before anything is measured.
_WARM_UP = 5
# Blocks of steps of either kind, in turns; each takes about this many seconds, and has at most this many steps.
_BLOCKS, _BLOCK_S, _MOST_STEPS = 5, 1.0, 20


def profile_training(recipe: Recipe, *, download: bool = False, progress: Progress = silent) -> TrainingProfile:
    """Measure the steps of a recipe's training, without keeping anything of it.

    Steps are measured in blocks, in turns: in one kind, the device is waited for after each phase, which on a GPU makes
    the step longer; the other kind is not disturbed. With frozen layers, the steps are those that train all layers.

    Args:
        download: fetch a named data set that is not on this machine.

    Raises:
        RecipeError: there are several processes, or the recipe cannot be trained.
        DataError: the data set cannot be used.
    """
    fabric = open_fabric(recipe)
    if fabric.world_size > 1:
        raise RecipeError("a profile is that of one process", fix="run edgekit train --profile without torchrun")
    prepared = prepare(fabric, recipe, download=download)
    data = open_data(prepared, recipe, fabric.device, progress)
    precision = precision_of(recipe.train)
    progress("measuring the device", 0.0)
    limits = measure_limits(fabric.device, precision)
    flops, moved = _counted(recipe, prepared, data)
    phases, whole, steps = _timed(start_trial(recipe, prepared, data), progress)
    found = Measured(phases, whole, flops, moved, limits)
    step = student_mean(whole)
    batch_size = min(recipe.train.batch_size, len(data.dataset.train))
    return TrainingProfile(
        name=f"{recipe.model.name} on {recipe.data.data}",
        device=fabric.device.type,
        threads=torch.get_num_threads(),
        precision=precision,
        batch_size=batch_size,
        steps=steps,
        step_ms=step.value * 1e3,
        step_ms_interval=(step.low * 1e3, step.high * 1e3),
        images_per_s=batch_size / step.value,
        phases=phase_entries(found),
        roofline=roofline(found),
        sentence=advice(found, fabric.device.type),
    )


class _Stopwatch:
    """Seconds per phase; while it is stopped, a lap costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device, self._last = dict.fromkeys(PHASES, 0.0), device, 0.0
        self.running = False

    def start(self) -> None:
        synchronize(self._device)
        self.running, self._last = True, time.perf_counter()

    def lap(self, phase: str) -> None:
        if self.running:
            synchronize(self._device)
            now = time.perf_counter()
            self.seconds[phase] += now - self._last
            self._last = now


def _timed(run: Run, progress: Progress) -> tuple[dict[str, float], list[float], int]:
    """Seconds per step of each phase, those of whole steps in each block, and the number of steps."""
    watch = _Stopwatch(run.fabric.device)
    steps = endless_steps(run, watch.lap)
    seconds_per_step(steps, _WARM_UP, run.fabric.device)
    count = max(1, min(_MOST_STEPS, round(_BLOCK_S / seconds_per_step(steps, 1, run.fabric.device))))
    whole = []
    for number in range(_BLOCKS):
        progress(f"{count} steps at a time", number / _BLOCKS)
        whole.append(seconds_per_step(steps, count, run.fabric.device))
        watch.start()
        seconds_per_step(steps, count, run.fabric.device)
        watch.running = False
    return {name: total / (count * _BLOCKS) for name, total in watch.seconds.items()}, whole, 2 * count * _BLOCKS


def _counted(recipe: Recipe, prepared: Prepared, data: TrainingData) -> tuple[dict[str, int], int]:
    """Operations of each phase of a step, and the bytes that forward and backward move."""
    flops, moved = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    counter, before = Counter(), (0, 0)

    def lap(phase: str) -> None:
        nonlocal before
        flops[phase] += counter.flops - before[0]
        moved[phase] += counter.moved - before[1]
        before = (counter.flops, counter.moved)

    # a compiled network hides its operators
    run = start_trial(replace(recipe, train=replace(recipe.train, compile=False)), prepared, data)
    with counter:
        next(endless_steps(run, lap))
    return flops, moved["forward"] + moved["backward"]
