"""Optimizers, and learning rate schedules that are stepped once per batch."""

import warnings
from typing import Any

import torch

from .recipe import TrainSettings

OPTIMIZERS = {
    "sgd": lambda weights, s: torch.optim.SGD(weights, s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda weights, s: torch.optim.Adam(weights, s.lr, weight_decay=s.weight_decay),
    "adamw": lambda weights, s: torch.optim.AdamW(weights, s.lr, weight_decay=s.weight_decay),
}

# Schedules whose rate depends on the total number of steps.
NEEDS_TOTAL_STEPS = ("cosine", "one-cycle")


def make_schedule(optimizer: Any, settings: TrainSettings, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that is stepped once per batch."""
    schedules = torch.optim.lr_scheduler
    total = settings.epochs * steps
    if settings.schedule == "step":
        return schedules.StepLR(optimizer, settings.step_size * steps, settings.gamma)
    if settings.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, total)
    if settings.schedule == "one-cycle":
        return schedules.OneCycleLR(optimizer, settings.lr, total_steps=total + 1)
    return schedules.ConstantLR(optimizer, factor=1.0)


def remake_schedule(optimizer: Any, settings: TrainSettings, steps: int, epoch: int) -> Any:
    """A new schedule of all epochs, advanced to `epoch`; the optimizer keeps its moments."""
    for group in optimizer.param_groups:
        del group["initial_lr"]
        group["lr"] = settings.lr
    scheduler = make_schedule(optimizer, settings, steps)
    with warnings.catch_warnings():  # torch warns that the optimizer has not stepped yet
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(epoch * steps):
            scheduler.step()
    return scheduler
