"""Optimizers, and learning rate schedules that are stepped once per batch."""

import math
import warnings
from typing import Any

import torch

from .recipe import TrainSettings

# Schedules whose rate depends on the total number of steps.
NEEDS_TOTAL_STEPS = ("cosine", "one-cycle")


def make_optimizer(weights: Any, settings: TrainSettings, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        fused: update all weights by one kernel, which is faster; not with the gradient scaler of 16-mixed.
    """
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, momentum=settings.momentum, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](weights, **common)


def make_schedule(optimizer: Any, settings: TrainSettings, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that is stepped once per batch.

    Args:
        steps: number of steps per epoch.
    """
    if settings.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.epochs * steps + 1)
    rise, total = round(settings.warmup * steps), settings.epochs * steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if settings.schedule == "step":
            return settings.gamma ** (step // (settings.step_size * steps))
        if settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


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
