"""The files that each epoch of a training run writes: the best weights, the complete state, metrics and curves."""

import csv
import io
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_weights
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ...deploy.errors import TrainingError
from ...deploy.files import write_file
from .curves import draw_curves

STATE, BEST, METRICS, CURVES = "last.pt", "best.safetensors", "metrics.csv", "curves.png"
# Of the state: it changes with what a resumed epoch would compute.
_VERSION = 3


@dataclass
class RunState:
    """The progress of a run.

    Attributes:
        epoch: number of complete epochs.
        best: the best validation accuracy; with class weights, the best mean accuracy of the classes.
        stale: number of epochs since the best.
        history: one row of metrics per epoch.
        planned: the number of epochs of the schedule.
    """

    epoch: int = 0
    best: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)
    planned: int = 0
    stale: int = 0

    def add(self, row: dict[str, float]) -> bool:
        """Record an epoch; return whether it is the best so far."""
        accuracy = row.get("validation_balanced_accuracy", row["validation_accuracy"])
        better = accuracy > self.best
        self.epoch += 1
        self.stale = 0 if better else self.stale + 1
        self.best = max(self.best, accuracy)
        self.history.append(row)
        return better


def save(
    work: Path, state: RunState, better: bool, network: nn.Module, average: AveragedModel | None, optimizer: Any,
    scheduler: Any,
) -> None:  # fmt: skip
    """Write an epoch's files atomically, the state last, because resuming relies on it.

    Args:
        average: the moving average of the weights, which is then what the best weights are taken from.
    """
    if better:
        write_file(work / BEST, save_weights(_on_host(network if average is None else average.module)))
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(state.history[-1]))
    writer.writeheader()
    writer.writerows(state.history)
    write_file(work / METRICS, table.getvalue())
    write_file(work / CURVES, draw_curves(state.history))
    stream = io.BytesIO()
    saved = {
        "version": _VERSION, "network": _on_host(network), "average": average and _on_host(average),
        "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
    }  # fmt: skip
    torch.save({**saved, **vars(state)}, stream)
    write_file(work / STATE, stream.getvalue())


def _on_host(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}


def epochs(work: Path) -> int:
    """The number of complete epochs in a run's folder."""
    return torch.load(work / STATE, weights_only=True)["epoch"]


def restore(
    work: Path, network: nn.Module, average: AveragedModel | None, optimizer: Any, scheduler: Any, planned: int
) -> RunState:
    """Load the last complete epoch into the network, optimizer and schedule; without one, start from the beginning.

    Args:
        planned: number of epochs of the schedule of a new run.

    Raises:
        TrainingError: another version of EdgeKit wrote the state.
    """
    if not (work / STATE).is_file():
        return RunState(planned=planned)
    saved = torch.load(work / STATE, weights_only=True)
    if saved.get("version") != _VERSION:
        raise TrainingError(
            f"{work} was written by another version of EdgeKit, whose schedule and batches differ",
            fix="start it anew with edgekit train",
        )
    network.load_state_dict(saved["network"])
    if average is not None:
        average.load_state_dict(saved["average"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    return RunState(**{field.name: saved[field.name] for field in fields(RunState)})
