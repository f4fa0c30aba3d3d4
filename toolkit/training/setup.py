"""Set up a training run: device, network, optimizer, loaders, and the state of an interrupted run."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from torch import nn
from torch.utils.data import DataLoader

from ...deploy.errors import RecipeError
from ...deploy.preprocess import Header, Preprocess
from ...deploy.progress import Progress
from ...models.network import create_network
from ..datasets import PARTS, Dataset
from . import checkpoint
from .augment import Examples, collate
from .recipe import Recipe, TrainSettings
from .schedules import NEEDS_TOTAL_STEPS, OPTIMIZERS, make_schedule, remake_schedule
from .screening import processes

_log = logging.getLogger(__name__)

_PART_NAMES = {"train": "training", "validation": "validation", "test": "test"}


@dataclass
class Run:
    """A training run in progress. `network` is `plain` wrapped by Fabric, with the same weights."""

    fabric: lightning_fabric.Fabric
    settings: TrainSettings
    work: Path
    plain: nn.Module
    network: Any
    optimizer: Any
    scheduler: Any
    loaders: dict[str, Any]
    state: checkpoint.RunState
    progress: Progress


def start(
    fabric: lightning_fabric.Fabric,
    recipe: Recipe,
    parts: dict[str, DataLoader],
    plain: nn.Module,
    work: Path,
    progress: Progress,
) -> Run:
    """Everything that the loop requires, for a new run or from the state of an interrupted one."""
    settings = recipe.train
    counts = ", ".join(f"{len(loader.dataset)} {_PART_NAMES[part]}" for part, loader in parts.items())  # type: ignore[arg-type]
    _log.info(f"{recipe.model.name} on {recipe.data.data}: {counts} images, {fabric.device.type}")
    optimizer = OPTIMIZERS[settings.optimizer](plain.parameters(), settings)
    network, wrapped_optimizer = fabric.setup(plain, optimizer)
    loaders = {part: fabric.setup_dataloaders(loader) for part, loader in parts.items()}
    scheduler = make_schedule(optimizer, settings, steps=len(loaders["train"]))
    state = checkpoint.restore(work, plain, optimizer, scheduler, settings.epochs)
    if state.epoch:
        _log.info(f"resuming {work} after epoch {state.epoch}")
    if state.epoch and state.planned != settings.epochs and settings.schedule in NEEDS_TOTAL_STEPS:
        _log.info(
            f"the schedule {settings.schedule} depends on the number of epochs: the first {state.epoch} used the "
            f"schedule for {state.planned}, the others use that for {settings.epochs}; a new run of {settings.epochs} "
            "epochs would differ"
        )
        scheduler = remake_schedule(optimizer, settings, len(loaders["train"]), state.epoch)
    state.planned = settings.epochs
    return Run(fabric, settings, work, plain, network, wrapped_optimizer, scheduler, loaders, state, progress)


def open_fabric(settings: TrainSettings) -> lightning_fabric.Fabric:
    """Start Fabric on the requested device; under torchrun, on all its processes."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise RecipeError("torch finds no CUDA GPU here", fix="--set train.device=cpu, or run edgekit doctor")
    device = ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device
    precision: Any = settings.precision
    if precision == "auto":
        mixed = "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported() else "16-mixed"
        precision = mixed if device == "cuda" else "32-true"
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // local_processes
    fabric = lightning_fabric.Fabric(accelerator=device, devices=local_processes, num_nodes=nodes, precision=precision)
    fabric.launch()
    return fabric


def make_network(recipe: Recipe, preprocess: Preprocess, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and the arguments that recreate it."""
    architecture = {
        "name": recipe.model.name,
        "num_classes": classes,
        "in_channels": len(preprocess.mean),
        "image_size": preprocess.crop,
        "activation": recipe.model.activation,
    }
    try:
        network = create_network(**architecture, pretrained=recipe.model.pretrained)
        with torch.inference_mode():  # some networks reject small images only when they run
            network.eval()(torch.zeros(1, architecture["in_channels"], *preprocess.crop or ()))
        return network, architecture
    except (ValueError, RuntimeError) as error:
        raise RecipeError(
            f"{recipe.model.name} cannot take images of {preprocess.crop}: {error}",
            fix="choose another --model or other settings, e.g. --set preprocess.mode=RGB --set preprocess.size=64",
        ) from error
    except OSError as error:
        raise RecipeError(
            f"cannot download the published weights: {error}", fix="--set model.pretrained=false"
        ) from error


def make_loaders(
    dataset: Dataset, headers: dict[str, list[Header]], preprocess: Preprocess, recipe: Recipe
) -> dict[str, DataLoader]:
    """A loader for each part, with worker processes if its images are slow to load."""
    settings = recipe.train
    # BatchNorm cannot train on a last batch of one image
    drop_last = len(dataset.train) > settings.batch_size and len(dataset.train) % settings.batch_size == 1
    loaders = {}
    for part in PARTS:
        workers, training = processes(settings.workers, headers[part]), part == "train"
        loaders[part] = DataLoader(
            Examples(getattr(dataset, part), preprocess, recipe.augment if training else None),
            shuffle=training, drop_last=training and drop_last, batch_size=settings.batch_size, collate_fn=collate,
            num_workers=workers, persistent_workers=workers > 0, multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip
    return loaders
