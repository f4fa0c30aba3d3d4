"""Training: one flat loop on Lightning Fabric."""

import csv
import io
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights
from torch import nn
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation
from torch.utils.data import DataLoader

from ..deploy.bundle import Bundle, Manifest, TensorSpec, create, make_golden
from ..deploy.errors import EdgeKitError, RecipeError, TrainingError
from ..deploy.files import write_file
from ..deploy.preprocess import Preprocess
from ..models import create as create_model
from .augment import Examples
from .console import err, say
from .curves import draw_curves, over_fitting
from .datasets import Dataset, load_dataset
from .preprocessing import decide
from .recipe import Recipe, TrainSettings
from .workspace import RUNS, new_path

WORK = ".train"
_STATE, _BEST, _RECIPE, _METRICS, _CURVES = "last.pt", "best.safetensors", "recipe.json", "metrics.csv", "curves.png"

OPTIMIZERS = {
    "sgd": lambda weights, s: torch.optim.SGD(weights, s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda weights, s: torch.optim.Adam(weights, s.lr, weight_decay=s.weight_decay),
    "adamw": lambda weights, s: torch.optim.AdamW(weights, s.lr, weight_decay=s.weight_decay),
}


@dataclass
class _State:
    """What a run can be continued from."""

    epoch: int = 0
    best: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(recipe: Recipe, *, out: Path | None = None, runs: Path = RUNS) -> Bundle:
    """Train a network as the recipe says, keep the epoch that is best on the validation part, write a bundle.

    The run's folder `NNN-name.train` beside the bundle holds the checkpoints, metrics.csv and curves.png.

    Raises:
        TrainingError: the loss is not a number any more.
        RecipeError: the network cannot be made like this, or the device is not there.
        DataError: the data set is not usable.
    """
    bundle_path = out or new_path(recipe.name, runs)
    if bundle_path.exists():
        raise EdgeKitError(f"{bundle_path} exists already", fix="choose another --out, or remove it first")
    work = bundle_path.with_name(bundle_path.name + WORK)
    write_file(work / _RECIPE, json.dumps(recipe.to_dict(), indent=1))
    return _run(recipe, work, bundle_path)


def resume(work: Path) -> Bundle:
    """Continue an interrupted run from its last whole epoch; on one CPU the weights are those of an unbroken run.

    Raises:
        TrainingError: `work` is not the folder of an unfinished run.
    """
    bundle_path = work.with_name(work.name.removesuffix(WORK))
    if not (work / _RECIPE).is_file() or bundle_path.exists():
        raise TrainingError(f"{work} is not the folder of an unfinished training", fix="pass a folder runs/*.train")
    recipe = Recipe.from_dict(json.loads((work / _RECIPE).read_text()))
    return _run(recipe, work, bundle_path)


def newest_unfinished(runs: Path = RUNS) -> Path:
    """The folder of the newest training in `runs` that wrote no bundle.

    Raises:
        TrainingError: there is none.
    """
    folders = [entry for entry in runs.glob(f"*{WORK}") if not entry.with_name(entry.name.removesuffix(WORK)).exists()]
    if not folders:
        raise TrainingError(f"no unfinished training in {runs}/", fix="run: edgekit train")
    return max(folders, key=lambda entry: entry.stat().st_mtime)


def _run(recipe: Recipe, work: Path, bundle_path: Path) -> Bundle:
    settings = recipe.train
    fabric = _fabric(settings)
    torch.manual_seed(settings.seed)
    dataset = load_dataset(**_data_arguments(recipe))
    if not dataset.train.labelled:
        raise TrainingError(f"{dataset.data} has images without labels", fix="put them into class folders")
    preprocess = decide(recipe.preprocess, dataset.train)
    network, architecture = _network(recipe, preprocess, len(dataset.train.labels))
    say(
        f"{recipe.model.name} on {dataset.data}: {len(dataset.train)} training, {len(dataset.validation)} validation, "
        f"{len(dataset.test)} test images, {fabric.device.type}, {fabric._precision.precision}"
    )
    plain = network
    optimizer = OPTIMIZERS[settings.optimizer](network.parameters(), settings)
    loaders = _loaders(dataset, preprocess, recipe)
    scheduler = _scheduler(optimizer, settings, steps=len(loaders["train"]))
    network, optimizer = fabric.setup(network, optimizer)
    train_loader, validation_loader = fabric.setup_dataloaders(loaders["train"], loaders["validation"])
    state = _restore(work, plain, optimizer, scheduler)
    with _epoch_progress(settings.epochs, len(train_loader)) as progress:
        for epoch in range(state.epoch, settings.epochs):
            # One seed an epoch: a run that is resumed here draws what an uninterrupted one does.
            torch.manual_seed(settings.seed * 100_003 + epoch + 1)
            row = _train_epoch(fabric, network, optimizer, scheduler, train_loader, settings, epoch, progress, work)
            row |= {f"validation_{key}": value for key, value in _evaluate(fabric, network, validation_loader).items()}
            _keep(fabric, work, state, row, plain, optimizer, scheduler)
            progress.told(row)
    if warning := over_fitting(state.history):
        say(warning)
    plain.load_state_dict(load_weights((work / _BEST).read_bytes()))
    test = _evaluate(fabric, network, fabric.setup_dataloaders(loaders["test"]))
    if fabric.is_global_zero:
        _write(bundle_path, recipe, dataset, preprocess, plain, architecture, {"best": state.best, "test": test}, work)
    fabric.barrier()
    say(f"test accuracy {test['accuracy']:.4f} on {len(dataset.test)} images (best validation {state.best:.4f})")
    return Bundle.open(bundle_path)


def _data_arguments(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {
        "data": data.data,
        "root": data.root,
        "seed": data.seed,
        "validation": data.validation,
        "skip_corrupt": data.skip_corrupt,
    }


def _fabric(settings: TrainSettings) -> lightning_fabric.Fabric:
    """Fabric on the wanted device; under torchrun on all of its processes."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise RecipeError("torch finds no CUDA GPU here", fix="--set train.device=cpu, or run edgekit doctor")
    device = ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device
    precision = settings.precision
    if precision == "auto":
        mixed = "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported() else "16-mixed"
        precision = mixed if device == "cuda" else "32-true"
    world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // world
    fabric = lightning_fabric.Fabric(accelerator=device, devices=world, num_nodes=nodes, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def _network(recipe: Recipe, preprocess: Preprocess, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and the arguments that make it again."""
    architecture = {
        "name": recipe.model.name,
        "num_classes": classes,
        "in_channels": len(preprocess.mean),
        "image_size": preprocess.crop,
        "activation": recipe.model.activation,
    }
    try:
        return create_model(**architecture, pretrained=recipe.model.pretrained), architecture
    except ValueError as error:
        raise RecipeError(str(error), fix="change the [model] or [preprocess] section of the recipe") from error
    except OSError as error:
        raise RecipeError(
            f"cannot download the published weights: {error}", fix="--set model.pretrained=false"
        ) from error


def _loaders(dataset: Dataset, preprocess: Preprocess, recipe: Recipe) -> dict[str, DataLoader]:
    """Loaders of the three parts; arrays in memory load faster in this process than across to another."""
    settings = recipe.train
    files = isinstance(dataset.train.pictures, list)
    workers = settings.workers if settings.workers >= 0 else min(4, os.cpu_count() or 1) * files
    common: dict[str, Any] = {
        "num_workers": workers, "persistent_workers": workers > 0,
        "multiprocessing_context": "spawn" if workers else None,
    }  # fmt: skip
    # BatchNorm cannot train on a last batch of one image
    short = len(dataset.train) > settings.batch_size and len(dataset.train) % settings.batch_size == 1
    return {
        "train": DataLoader(
            Examples(dataset.train, preprocess, recipe.augment),
            settings.batch_size, shuffle=True, drop_last=short, **common,
        ),
        "validation": DataLoader(Examples(dataset.validation, preprocess), settings.batch_size, **common),
        "test": DataLoader(Examples(dataset.test, preprocess), settings.batch_size, **common),
    }  # fmt: skip


def _scheduler(optimizer: Any, settings: TrainSettings, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that is stepped once a batch."""
    total = settings.epochs * steps
    schedules = torch.optim.lr_scheduler
    if settings.schedule == "step":
        return schedules.StepLR(optimizer, settings.step_size * steps, settings.gamma)
    if settings.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, total)
    if settings.schedule == "one-cycle":
        return schedules.OneCycleLR(optimizer, settings.lr, total_steps=total + 1)
    return schedules.ConstantLR(optimizer, factor=1.0)


def _train_epoch(
    fabric: Any, network: Any, optimizer: Any, scheduler: Any, loader: Any, settings: TrainSettings,
    epoch: int, progress: Any, work: Path,
) -> dict[str, float]:  # fmt: skip
    """One pass over the training images; returns the epoch's row of metrics."""
    network.train()
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    start, total, right, seen = time.monotonic(), 0.0, 0, 0
    for step, (inputs, targets) in enumerate(loader):
        logits = network(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise _not_a_number(value, epoch, step, scheduler.get_last_lr()[0], work)
        fabric.backward(loss)
        if settings.clip:
            fabric.clip_gradients(network, optimizer, max_norm=settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        total += value * len(targets)
        right += int((logits.argmax(1) == targets).sum())
        seen += len(targets)
        progress.step(len(targets))
    seconds = time.monotonic() - start
    return {
        "epoch": epoch + 1,
        "lr": scheduler.get_last_lr()[0],
        "train_loss": total / seen,
        "train_accuracy": right / seen,
        "images_per_s": seen / seconds,
    }


def _evaluate(fabric: Any, network: Any, loader: Any) -> dict[str, float]:
    """Mean loss and accuracy over a part, summed over all processes."""
    network.eval()
    sums = torch.zeros(3, device=fabric.device, dtype=torch.float64 if fabric.device.type != "mps" else torch.float32)
    with torch.inference_mode():
        for inputs, targets in loader:
            logits = network(inputs).float()
            loss = F.cross_entropy(logits, targets, reduction="sum")
            sums += torch.stack(
                [loss.to(sums), (logits.argmax(1) == targets).sum().to(sums), sums.new_tensor(len(targets))]
            )
    loss, right, seen = fabric.all_reduce(sums, reduce_op="sum").tolist()
    return {"loss": loss / seen, "accuracy": right / seen}


def _not_a_number(value: float, epoch: int, step: int, lr: float, work: Path) -> TrainingError:
    kept = f"the best checkpoint so far is {work / _BEST}" if (work / _BEST).exists() else "no epoch was finished yet"
    return TrainingError(
        f"the loss became {value} in epoch {epoch + 1}, step {step + 1}, at learning rate {lr:.3g}: "
        f"the rate is too high or the gradients explode; {kept}",
        fix="try a tenth of the rate (--set train.lr=…), or --set train.clip=1.0",
    )


def _restore(work: Path, network: nn.Module, optimizer: Any, scheduler: Any) -> _State:
    """Load the last whole epoch of an interrupted run into the network, optimizer and schedule, if there is one."""
    path = work / _STATE
    if not path.is_file():
        return _State()
    saved = torch.load(path, weights_only=True)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    say(f"resuming {work} after epoch {saved['epoch']}")
    return _State(saved["epoch"], saved["best"], saved["history"])


def _keep(
    fabric: Any, work: Path, state: _State, row: dict[str, float], network: nn.Module, optimizer: Any, scheduler: Any
) -> None:
    """Record an epoch: the best weights, then everything that resuming needs, then the metrics and their picture."""
    state.epoch += 1
    state.history.append(row)
    better = row["validation_accuracy"] > state.best
    state.best = max(state.best, row["validation_accuracy"])
    if not fabric.is_global_zero:
        return
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    if better:
        write_file(work / _BEST, save_weights(weights))
    stream = io.BytesIO()
    saved = {"network": weights, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({**saved, "epoch": state.epoch, "best": state.best, "history": state.history}, stream)
    write_file(work / _STATE, stream.getvalue())
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(row))
    writer.writeheader()
    writer.writerows(state.history)
    write_file(work / _METRICS, table.getvalue())
    write_file(work / _CURVES, draw_curves(state.history))


def _write(
    path: Path, recipe: Recipe, dataset: Dataset, preprocess: Preprocess, network: nn.Module,
    architecture: dict[str, Any], results: dict[str, Any], work: Path,
) -> None:  # fmt: skip
    network = network.cpu().eval()

    def run(tensors: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(tensors)).float().numpy()

    height, width = preprocess.crop or (0, 0)
    manifest = Manifest(
        name=recipe.name,
        format="torch",
        precision="fp32",
        model="model.safetensors",
        labels=dataset.train.labels,
        input=TensorSpec(len(preprocess.mean), height, width),
        preprocess=preprocess,
        parameters=sum(weight.numel() for weight in network.parameters()),
        architecture=architecture,
        data=dataset.reference(),
        details={"recipe": recipe.to_dict(), **results},
    )
    with create(path) as draft:
        (draft.folder / manifest.model).write_bytes(save_weights(network.state_dict()))
        for name in (_METRICS, _CURVES):
            (draft.folder / name).write_bytes((work / name).read_bytes())
        draft.add_golden(make_golden(dataset.test, preprocess, run))
        draft.add_splits(dataset.splits())
        draft.finish(manifest, ("torch", "torchvision", "lightning-fabric"))


class _epoch_progress:  # noqa: N801 # used as `with _epoch_progress(...)`
    """A bar with images/s and time left on a terminal; a line an epoch everywhere."""

    def __init__(self, epochs: int, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"), BarColumn(),
            TextColumn("{task.fields[speed]:.0f} images/s"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task("train", total=epochs * steps, epoch=1, epochs=epochs, speed=0.0)
        self._start, self._images = time.monotonic(), 0

    def __enter__(self) -> "_epoch_progress":
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def step(self, images: int) -> None:
        """One batch is done."""
        self._images += images
        self._bar.update(self._task, advance=1, speed=self._images / (time.monotonic() - self._start))

    def told(self, row: dict[str, float]) -> None:
        """One epoch is done."""
        self._bar.update(self._task, epoch=int(row["epoch"]) + 1)
        say(
            f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}  "
            f"validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.4f}  "
            f"{row['images_per_s']:.0f} images/s"
        )
