"""Find a learning rate by the range test: the rate rises step by step until the loss diverges.

Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; the range, the smoothing and the end of
the test are those of fastai's `lr_find`.
"""

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ...deploy.errors import TrainingError
from .setup import Run, start
from .step import endless_steps

# The rates of the first and the last step, and the number of steps.
_FIRST, _LAST, _STEPS = 1e-7, 10.0, 200
# The share of the earlier losses in the smoothed one.
_SMOOTHING = 0.95
# The test ends when the smoothed loss is this many times its smallest value.
_DIVERGED = 4.0


class RangeTest(NamedTuple):
    """The losses of a range test.

    Attributes:
        rates: rising geometrically.
        losses: the smoothed mean loss of the step at each rate.
    """

    rates: list[float]
    losses: list[float]


def range_test(run: Run) -> RangeTest:
    """Train with rising rates until the loss diverges; the run cannot be used for anything else afterwards."""
    growth = (_LAST / _FIRST) ** (1 / (_STEPS - 1))
    rates: list[float] = []
    losses: list[float] = []
    average = best = 0.0
    run.scheduler = torch.optim.lr_scheduler.LambdaLR(
        run.optimizer.optimizer, lambda step: _FIRST * growth**step / run.settings.lr
    )
    for number, step in zip(range(_STEPS), endless_steps(run), strict=False):
        pass
    return RangeTest(rates, losses)
