"""The training loop: epochs of steps, their evaluation and their metrics."""

import logging
import math
import time

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation

from ...deploy.errors import TrainingError
from . import checkpoint
from .advice import SCALE_FIX, Circumstances, unusual_scale
from .augment import normalized
from .setup import Run
from .sharding import divided, step_count
from .step import Step, network_input, train_steps
from .tensorboard_log import tensorboard_log

_log = logging.getLogger(__name__)

# Seconds between two looks at the loss. Each waits until the GPU has computed it.
_LOOK_S = 0.5


def fit(run: Run) -> None:
    """Train, evaluate and record the remaining epochs.

    Raises:
        TrainingError: the loss is not finite.
        EdgeKitError: an image cannot be read.
    """
    wanted = run.settings.tensorboard and run.fabric.is_global_zero
    with tensorboard_log(run.recipe, run.work, run.state.epoch + 1, wanted=wanted) as log:
        for epoch in range(run.state.epoch, run.settings.epochs):
            if run.settings.patience and run.state.stale >= run.settings.patience:
                _log.info(f"stopped early: no better validation accuracy in {run.state.stale} epochs (train.patience)")
                break
            begun = time.monotonic()
            row = _train_epoch(run, epoch)
            row |= {f"validation_{key}": value for key, value in evaluate(run, "validation").items()}
            row["seconds"] = time.monotonic() - begun
            better = run.state.add(row)
            log(row)
            if run.fabric.is_global_zero:
                checkpoint.save(run.work, run.state, better, run.plain, run.average, run.optimizer, run.scheduler)
            _log.info(
                f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.3f}  "
                f"validation {row['validation_loss']:.3f}, {row['validation_accuracy']:.3f}  "
                f"{row['images_per_s']:.0f} images/s"
            )


def circumstances(run: Run) -> Circumstances:
    """What the run's metrics depend on."""
    targets = run.data.dataset.validation.targets
    guessing = float(np.bincount(targets).max() / len(targets))
    return Circumstances(guessing, len(targets), run.input_std, run.settings.lr)


def evaluate(run: Run, part: str) -> dict[str, float]:
    """Mean loss and accuracy on a part, over all processes; with class weights also the mean accuracy of the classes.

    Raises:
        EdgeKitError: an image cannot be read.
    """
    network = run.result.eval()
    indices = run.share.of(np.arange(len(getattr(run.data.dataset, part))))
    plan = divided(indices, run.settings.batch_size) if len(indices) else []
    sums = torch.zeros(5, device=run.fabric.device, dtype=torch.float64)
    with torch.inference_mode(), run.fabric.autocast():
        for batch in run.data.pixels[part].batches(plan, epoch=0):
            logits = network(network_input(normalized(batch.pixels, run.data.preprocess))).float()
            sums[0] += F.cross_entropy(logits, batch.targets, reduction="sum")
            right = logits.argmax(1) == batch.targets
            sums[1] += right.sum()
            sums[2] += len(batch.targets)
            if run.weights is not None:
                weights = run.weights[batch.targets]
                sums[3] += weights[right].sum()
                sums[4] += weights.sum()
    loss, correct, seen, weighted, weight = torch.as_tensor(run.fabric.all_reduce(sums, reduce_op="sum")).tolist()
    balanced = {"balanced_accuracy": weighted / weight} if weight else {}
    return {"loss": loss / seen, "accuracy": correct / seen, **balanced}


class Meter:
    """Sums over the steps of an epoch, on the training device: reading them at every step would stop a GPU."""

    def __init__(self, run: Run, epoch: int) -> None:
        self._run, self._epoch = run, epoch
        self._steps = step_count(len(run.data.dataset.train), run.settings.batch_size)
        self._start = self._looked = time.monotonic()
        self._unread: list[Step] = []
        self._sums = torch.zeros(2, device=run.fabric.device, dtype=torch.float64)
        self._waited, self._step, self._seen = 0.0, 0, 0

    def add(self, step: Step) -> None:
        """Count a step."""
        self._unread.append(step)
        self._waited += step.waited
        self._step, self._seen = self._step + 1, self._seen + step.images
        if self._step == self._steps or time.monotonic() - self._looked > _LOOK_S:
            self._look()

    def _look(self) -> None:
        run = self._run
        sums = torch.stack([torch.stack([step.loss, step.correct]) for step in self._unread]).double()
        self._sums += sums.sum(0)
        losses = sums[:, 0].tolist()
        first = self._step - len(losses)
        broken = next((index for index, value in enumerate(losses) if not math.isfinite(value)), None)
        if broken is not None:
            raise _not_a_number(run, losses[broken], self._epoch, first + broken)
        self._unread.clear()
        self._looked = time.monotonic()
        parts = [f"epoch {self._epoch + 1}/{run.settings.epochs}", f"{self.speed:.0f} images/s"]
        if (waiting := self._waited / (self._looked - self._start)) > 0.01:
            parts.append(f"{waiting:.0%} waiting for images")
        if run.fabric.device.type == "cuda":
            parts.append(f"{torch.cuda.max_memory_allocated(run.fabric.device) / 2**30:.1f} GiB of GPU memory")
        share = (self._epoch * self._steps + self._step) / (run.settings.epochs * self._steps)
        run.progress(", ".join(parts), share)

    @property
    def speed(self) -> float:
        """Images per second, of all processes."""
        return self._seen * self._run.share.processes / (time.monotonic() - self._start)

    def row(self) -> dict[str, float]:
        """The epoch's metrics, over all processes."""
        speed = self.speed
        sums = torch.cat([self._sums, self._sums.new_tensor([self._seen])])
        loss, correct, seen = torch.as_tensor(self._run.fabric.all_reduce(sums, reduce_op="sum")).tolist()
        return {
            "epoch": self._epoch + 1,
            "lr": self._run.scheduler.get_last_lr()[0],
            "train_loss": loss / seen,
            "train_accuracy": correct / seen,
            "images_per_s": speed,
            "waiting": self._waited / (time.monotonic() - self._start),
        }


def _train_epoch(run: Run, epoch: int) -> dict[str, float]:
    """Make one pass over the training images; return the epoch's row of metrics."""
    meter = Meter(run, epoch)
    for step in train_steps(run, epoch):
        meter.add(step)
    return meter.row()


def _not_a_number(run: Run, value: float, epoch: int, step: int) -> TrainingError:
    best = run.work / checkpoint.BEST
    checkpoint_note = f"the best checkpoint so far is {best}" if best.exists() else "no epoch was finished yet"
    scale = unusual_scale(run.input_std)
    return TrainingError(
        f"the loss became {value} in epoch {epoch + 1}, step {step + 1}, at learning rate "
        f"{run.scheduler.get_last_lr()[0]:.3g}: {scale or 'the rate is too high or the gradients explode'}; "
        f"{checkpoint_note}",
        fix=SCALE_FIX if scale else "try a tenth of the rate (--set train.lr=…), or --set train.clip=1.0",
    )
