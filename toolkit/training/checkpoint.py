"""The files that each epoch of a training run writes: the best weights, the complete state, metrics and curves."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_weights
from torch import nn

from ...deploy.files import write_file
from .curves import draw_curves

STATE, BEST, METRICS, CURVES = "last.pt", "best.safetensors", "metrics.csv", "curves.png"


@dataclass
class RunState:
    """The progress of a run.

    Attributes:
        epoch: number of complete epochs.
        best: the best validation accuracy.
        history: one row of metrics per epoch.
        planned: the number of epochs of the schedule.
    """

    epoch: int = 0
    best: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)
    planned: int = 0

    def add(self, row: dict[str, float]) -> bool:
        """Record an epoch; return whether it is the best so far."""
        better = row["validation_accuracy"] > self.best
        self.epoch += 1
        self.best = max(self.best, row["validation_accuracy"])
        self.history.append(row)
        return better


def save(work: Path, state: RunState, better: bool, network: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """Write an epoch's files atomically, the state last, because resuming relies on it."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    if better:
        write_file(work / BEST, save_weights(weights))
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(state.history[-1]))
    writer.writeheader()
    writer.writerows(state.history)
    write_file(work / METRICS, table.getvalue())
    write_file(work / CURVES, draw_curves(state.history))
    stream = io.BytesIO()
    saved = {"network": weights, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({**saved, **vars(state)}, stream)
    write_file(work / STATE, stream.getvalue())


def epochs(work: Path) -> int:
    """The number of complete epochs in a run's folder."""
    return torch.load(work / STATE, weights_only=True)["epoch"]


def restore(work: Path, network: nn.Module, optimizer: Any, scheduler: Any, planned: int) -> RunState:
    """Load the last complete epoch into the network, optimizer and schedule; without one, start from the beginning.

    Args:
        planned: number of epochs of the schedule, if the state does not record it.
    """
    if not (work / STATE).is_file():
        return RunState()
    saved = torch.load(work / STATE, weights_only=True)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    return RunState(saved["epoch"], saved["best"], saved["history"], saved.get("planned", planned))
