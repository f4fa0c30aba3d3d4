"""Find a batch size by its speed: the number of images per step is doubled as long as that pays off."""

import gc
import logging
from dataclasses import replace

import torch

from ...deploy.errors import RecipeError
from ...deploy.progress import Progress
from .recipe import Recipe
from .setup import Prepared, Run, TrainingData, start_trial
from .step import endless_steps, seconds_per_step

_log = logging.getLogger(__name__)

# The first number of images per step, for each part of a step.
_FIRST = 16
# The smallest number of steps in an epoch: with fewer, a network hardly learns.
_LEAST_STEPS = 20
# A size that trains fewer images per second than this times the previous size ends the search.
_GAIN = 1.05
# Speed is that of the fastest of several blocks, because another process only makes a block slower.
_WARM_UP, _BLOCKS, _BLOCK_S, _MOST_STEPS = 3, 3, 0.5, 50


def find_batch_size(recipe: Recipe, prepared: Prepared, data: TrainingData, progress: Progress) -> Recipe:
    """The recipe with the number of images per step from which on doubling it gains less than 5 % of speed.

    On a GPU, the search also ends at the memory's limit. The network keeps its weights.

    Raises:
        RecipeError: there are several processes, or too few images.
        EdgeKitError: an image cannot be read.
    """
    images, size = len(data.dataset.train), _FIRST * recipe.train.accumulate
    run = start_trial(recipe, prepared, data)
    if run.fabric.world_size > 1:
        raise RecipeError(
            "--find-batch-size measures one process",
            fix="find it without torchrun, and pass --set train.batch_size with that number times the processes",
        )
    if size * _LEAST_STEPS > images:
        raise RecipeError(
            f"{images} training images are fewer than {_LEAST_STEPS} steps of {size}", fix="leave out --find-batch-size"
        )
    speeds: dict[int, float] = {}
    reason = f"an epoch keeps {_LEAST_STEPS} steps"
    while size * _LEAST_STEPS <= images:
        progress(f"{size} images per step", size * _LEAST_STEPS / images)
        run.recipe = replace(run.recipe, train=replace(run.recipe.train, batch_size=size))
        speed = _images_per_s(run, size)
        if speed is None:
            reason = f"{size} do not fit into the GPU's memory"
            break
        if speeds and speed < _GAIN * max(speeds.values()):
            reason = f"{size} make {speed:.0f} images/s"
            break
        speeds[size] = speed
        size *= 2
    if not speeds:
        raise RecipeError(f"{size} images per step do not fit into the GPU's memory", fix="--set preprocess.size=…")
    best = max(speeds)
    _log.info(f"batch size {best}: {speeds[best]:.0f} images/s; {reason}")
    return replace(recipe, train=replace(recipe.train, batch_size=best))


def _images_per_s(run: Run, size: int) -> float | None:
    """The speed of the next steps; None if they do not fit into the GPU's memory."""
    steps, device = endless_steps(run), run.fabric.device
    try:
        seconds_per_step(steps, _WARM_UP, device)
        seconds = seconds_per_step(steps, 1, device)
        count = max(1, min(_MOST_STEPS, round(_BLOCK_S / seconds)))
        return size / min(seconds_per_step(steps, count, device) for _ in range(_BLOCKS))
    except torch.cuda.OutOfMemoryError:
        pass
    del steps
    run.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    return None
