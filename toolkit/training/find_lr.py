"""Find a learning rate by the range test: the rate rises step by step until the loss diverges.

Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; the range and the end of the test are
those of fastai's `lr_find`.
"""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ...deploy.errors import TrainingError
from ...deploy.files import write_file
from ...deploy.progress import Progress
from .recipe import Recipe
from .setup import Prepared, Run, TrainingData, start_trial
from .step import endless_steps

_log = logging.getLogger(__name__)

LR_FINDER = "lr_finder.png"
# The rates of the first and the last step, and the number of steps.
_FIRST, _LAST, _STEPS = 1e-7, 10.0, 200
# The share of the earlier losses in the smoothed one.
_SMOOTHING = 0.9
# The test ends when the smoothed loss is this many times its smallest value.
_DIVERGED = 4.0
# The found rate is that of the smallest loss, divided by this. fastai's `minimum` divides by 10; with 3, networks
# trained better on Fashion-MNIST (docs/decisions/training.md).
_BELOW_MINIMUM = 3.0
# A loss that falls by less than this share of its first value has not been lowered by training.
_FALL = 0.03


class RangeTest(NamedTuple):
    """The losses of a range test.

    Attributes:
        rates: rising geometrically.
        losses: the smoothed mean loss of the step at each rate, before that step changed the weights.
    """

    rates: list[float]
    losses: list[float]


def find_lr(recipe: Recipe, prepared: Prepared, data: TrainingData, work: Path, progress: Progress) -> Recipe:
    """The recipe with the learning rate that a range test finds, and a plot of the test in `work`.

    The network keeps its weights. For one seed, the rate is the same in every run on a CPU, and in all processes.

    Raises:
        TrainingError: the loss does not fall at any rate.
        EdgeKitError: an image cannot be read.
    """
    run = start_trial(recipe, prepared, data)
    found = range_test(run, progress)
    rate = suggested_rate(found)
    if run.fabric.is_global_zero:
        write_file(work / LR_FINDER, draw_range_test(found, rate))
    _log.info(
        f"learning rate {rate:g}: a third of that with the smallest loss in {len(found.rates)} steps with rates from "
        f"{found.rates[0]:.0e} to {found.rates[-1]:.0e} (range test, {work / LR_FINDER})"
    )
    return replace(recipe, train=replace(recipe.train, lr=rate))


def range_test(run: Run, progress: Progress) -> RangeTest:
    """Train with rising rates until the loss diverges."""
    growth = (_LAST / _FIRST) ** (1 / (_STEPS - 1))
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = _FIRST
    run.scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer.optimizer, lambda step: growth**step)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, step in zip(range(_STEPS), endless_steps(run), strict=False):
        progress("learning rate", number / _STEPS)
        sums = torch.stack([step.loss, step.loss.new_tensor(step.images)])
        loss, images = torch.as_tensor(run.fabric.all_reduce(sums, reduce_op="sum")).tolist()
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss / images
        rates.append(_FIRST * growth**number)
        losses.append(mean / (1 - _SMOOTHING ** (number + 1)))
        if losses[-1] > _DIVERGED * min(losses):
            break
    return RangeTest(rates, losses)


def suggested_rate(found: RangeTest) -> float:
    """The rate to train with, to two digits.

    Raises:
        TrainingError: the loss does not fall at any rate.
    """
    if not found.losses or min(found.losses) > (1 - _FALL) * found.losses[0]:
        raise TrainingError(
            f"the loss does not fall at any learning rate from {_FIRST:.0e} to {_LAST:.0e}",
            fix="check the labels and preprocess.mean and std, or leave out --find-lr",
        )
    best = min(range(len(found.losses)), key=found.losses.__getitem__)
    return float(f"{found.rates[best] / _BELOW_MINIMUM:.2g}")


def draw_range_test(found: RangeTest, rate: float) -> bytes:
    """A PNG of the loss over the rate, with the suggested rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(found.rates, found.losses)
    axis.axvline(rate, linestyle="--", color="grey", label=f"{rate:g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=_visible(found.losses))
    axis.grid(alpha=0.3)
    axis.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _visible(losses: Sequence[float]) -> tuple[float, float]:
    """The range that shows the fall: the diverged losses at the end would flatten it."""
    margin = 0.1 * (losses[0] - min(losses))
    return min(losses) - margin, losses[0] + 5 * margin
