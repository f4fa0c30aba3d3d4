"""One step of training: images, their changes, forward, backward, and the optimizer."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation
from torchvision.transforms import v2

from .setup import Run
from .sharding import divided
from .transfer import set_frozen

# The parts of a step, in the order in which they run.
PHASES: tuple[str, ...] = ("data", "augment", "forward", "backward", "optimizer")
Lap = Callable[[str], None]


class Step(NamedTuple):
    """What a step computed for this process's images, on the training device.

    Attributes:
        loss: float32 [], summed over the images, before the step changed the weights.
        correct: int64 [], the number of correct answers.
        images: number of images.
        waited: seconds until the images were there.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    images: int
    waited: float


def _no_lap(phase: str) -> None:
    del phase


def train_steps(run: Run, epoch: int, lap: Lap = _no_lap) -> Iterator[Step]:
    """Make one pass over the training images, a step per iteration.

    Args:
        lap: called at the end of each of `PHASES`; with accumulation, forward and backward take turns.

    Raises:
        EdgeKitError: an image cannot be read.
    """
    set_frozen(run.plain, epoch < run.recipe.model.freeze)
    # one seed per epoch: a resumed run draws the same numbers as an uninterrupted one
    seed = run.settings.seed * 100_003 + epoch + 1
    torch.manual_seed(seed + 1_000_003 * run.share.rank)
    images = len(run.data.dataset.train)
    plan = divided(np.random.default_rng(seed).permutation(images), run.settings.batch_size)
    sizes, shares = [len(batch) for batch in plan], [run.share.of(batch) for batch in plan]
    draw = run.augmentation.draw(images, seed, run.fabric.device)
    mix = _mixing(run)
    begun = time.monotonic()
    for batch, size in zip(run.data.pixels["train"].batches(shares, epoch), sizes, strict=True):
        waited = time.monotonic() - begun
        lap("data")
        inputs = network_input(run.augmentation(batch.pixels, draw.of(batch.indices)))
        if run.input_std is None:
            run.input_std = float(inputs.std())
        lap("augment")
        loss, correct = _backward(run, inputs, batch.targets, size, mix, lap)
        if run.settings.clip:
            run.fabric.clip_gradients(run.network, run.optimizer, max_norm=run.settings.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.scheduler.step()
        if run.average is not None:
            run.average.update_parameters(run.plain)
        lap("optimizer")
        yield Step(loss, correct, len(batch.targets), waited)
        begun = time.monotonic()


def endless_steps(run: Run, lap: Lap = _no_lap) -> Iterator[Step]:
    """The steps of one epoch after the other; see train_steps."""
    for epoch in itertools.count():
        yield from train_steps(run, epoch, lap)


def seconds_per_step(steps: Iterator[Step], count: int, device: torch.device) -> float:
    """Make the next `count` steps, and wait until a GPU has computed them."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(count):
        next(steps)
    synchronize(device)
    return (time.perf_counter() - begun) / count


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network_input(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the channels of a pixel side by side."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _backward(
    run: Run, inputs: torch.Tensor, targets: torch.Tensor, size: int, mix: Any, lap: Lap
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of the mean loss over the `size` images of all processes.

    Returns:
        The summed loss and the number of correct answers, of this process's images.
    """
    losses, correct = [], []
    parts = list(
        zip(inputs.tensor_split(run.settings.accumulate), targets.tensor_split(run.settings.accumulate), strict=True)
    )
    for index, (part, expected) in enumerate(parts):
        mixed, soft = mix(part, expected) if mix else (part, expected)
        with run.fabric.no_backward_sync(run.network, enabled=index < len(parts) - 1):
            logits = run.network(mixed)
            loss = F.cross_entropy(
                logits, soft, weight=run.weights, reduction="sum", label_smoothing=run.settings.label_smoothing
            )
            if run.teacher is not None:
                share = run.settings.teacher_weight
                loss = (1 - share) * loss + share * run.teacher.loss(mixed, logits)
            lap("forward")
            # gradients are averaged over the processes
            run.fabric.backward(loss * (run.share.processes / size))
        losses.append(loss.detach())
        correct.append((logits.argmax(1) == expected).sum())
        lap("backward")
    return reduce(torch.add, losses), reduce(torch.add, correct)


def _mixing(run: Run) -> Any:
    """Mixes the images of a batch, and their targets, by MixUp or CutMix; None if the recipe has neither."""
    augment, classes = run.recipe.augment, len(run.data.dataset.train.labels)
    chosen = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix))
        if alpha
    ]
    return v2.RandomChoice(chosen) if chosen else None
