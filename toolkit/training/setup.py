"""Set up a training run: device, network, optimizer, images, and the state of an interrupted run."""

import copy
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning_fabric
import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...deploy.errors import RecipeError
from ...deploy.preprocess import Header, Preprocess
from ...deploy.progress import Progress, silent
from ...models.network import create_network, published
from ..datasets import PARTS, Dataset, load_dataset
from . import checkpoint
from .augment import Augmentation
from .choose_preprocess import choose_preprocess
from .pixels import Decoded, Pixels, Streamed, open_pixels
from .recipe import Recipe, TrainSettings
from .schedules import NEEDS_TOTAL_STEPS, make_optimizer, make_schedule, remake_schedule
from .screening import processes, screen
from .sharding import Share, step_count
from .tensorboard_log import check_tensorboard
from .transfer import Teacher, load_fitting, open_weights

_log = logging.getLogger(__name__)

_PART_NAMES = {"train": "training", "validation": "validation", "test": "test"}
# The GPU's own settings of a deterministic run: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_CUBLAS, _CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"

# The epochs of a trial's schedule, which ends before.
_ENDLESS = 1_000_000


class TrainingData(NamedTuple):
    """A data set, its preprocessing, and the pixels of its parts."""

    dataset: Dataset
    preprocess: Preprocess
    pixels: dict[str, Pixels]


@dataclass
class Run:
    """A training run in progress.

    Attributes:
        plain: the network; `network` is the same one wrapped by Fabric.
        average: the moving average of its weights, if the recipe asks for one.
        weights: of the classes in the loss, float32 [k]; None if all are equal.
        input_std: standard deviation of the first batch of inputs, once a step was made.
    """

    fabric: lightning_fabric.Fabric
    recipe: Recipe
    work: Path
    data: TrainingData
    augmentation: Augmentation
    plain: nn.Module
    network: Any
    average: AveragedModel | None
    weights: torch.Tensor | None
    teacher: Teacher | None
    optimizer: Any
    scheduler: Any
    state: checkpoint.RunState
    progress: Progress
    input_std: float | None = None

    @property
    def settings(self) -> TrainSettings:
        """Those of the recipe."""
        return self.recipe.train

    @property
    def share(self) -> Share:
        """Of this process."""
        return Share(self.fabric.global_rank, self.fabric.world_size)

    @property
    def result(self) -> nn.Module:
        """The network whose weights are evaluated and kept."""
        return self.plain if self.average is None else self.average.module


class Prepared(NamedTuple):
    """What a recipe names, before an image is read.

    Attributes:
        headers: of the images of each part.
        network: with its first weights.
        architecture: the arguments that recreate the network.
    """

    dataset: Dataset
    headers: dict[str, list[Header]]
    preprocess: Preprocess
    network: nn.Module
    architecture: dict[str, Any]
    teacher: Teacher | None


def prepare(fabric: lightning_fabric.Fabric, recipe: Recipe, *, download: bool = False) -> Prepared:
    """Load and check what a recipe names.

    Raises:
        TrainingError: the data set cannot train a classifier.
        RecipeError: the network cannot be created with these settings.
        DataError: the data set cannot be used.
    """
    if recipe.train.tensorboard:
        check_tensorboard()
    torch.manual_seed(recipe.train.seed)
    data = recipe.data
    dataset = load_dataset(
        data.data, root=data.root, seed=data.seed, validation=data.validation, skip_corrupt=data.skip_corrupt,
        download=download,
    )  # fmt: skip
    headers = screen(dataset)
    preprocess = choose_preprocess(recipe.preprocess, dataset.train, _known_preprocess(recipe))
    network, architecture = _make_network(recipe, preprocess, len(dataset.train.labels))
    check_batches(recipe.train, len(dataset.train), fabric.world_size, network)
    teacher = _open_teacher(recipe, dataset.train.labels, preprocess, fabric.device)
    counts = ", ".join(f"{len(getattr(dataset, part))} {name}" for part, name in _PART_NAMES.items())
    _log.info(f"{recipe.model.name} on {data.data}: {counts} images, {fabric.device.type}")
    return Prepared(dataset, headers, preprocess, network, architecture, teacher)


def start(
    fabric: lightning_fabric.Fabric, recipe: Recipe, data: TrainingData, plain: nn.Module, teacher: Teacher | None,
    work: Path, progress: Progress,
) -> Run:  # fmt: skip
    """Everything that the loop requires, for a new run or from the state of an interrupted one."""
    settings = recipe.train
    if settings.sync_batchnorm:
        plain = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    # convolutions run faster on the channels of a pixel side by side, on CPUs and GPUs
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(plain.parameters(), settings, fused=precision_of(settings) != "16-mixed")
    compiled: Any = torch.compile(plain) if settings.compile else plain
    network, wrapped_optimizer = fabric.setup(compiled, optimizer)
    average = None
    if settings.ema:
        average = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
    steps = step_count(len(data.dataset.train), settings.batch_size)
    scheduler = make_schedule(optimizer, settings, steps)
    state = checkpoint.restore(work, plain, average, optimizer, scheduler, settings.epochs)
    if state.epoch:
        _log.info(f"resuming {work} after epoch {state.epoch}")
    if state.epoch and state.planned != settings.epochs and settings.schedule in NEEDS_TOTAL_STEPS:
        _log.info(
            f"the schedule {settings.schedule} depends on the number of epochs: the first {state.epoch} used the "
            f"schedule for {state.planned}, the others use that for {settings.epochs}; a new run of {settings.epochs} "
            "epochs would differ"
        )
        scheduler = remake_schedule(optimizer, settings, steps, state.epoch)
    state.planned = settings.epochs
    weights = _class_weights(data.dataset).to(fabric.device) if settings.class_weights == "balanced" else None
    return Run(
        fabric, recipe, work, data, Augmentation(recipe.augment, data.preprocess), plain, network, average, weights,
        teacher, wrapped_optimizer, scheduler, state, progress,
    )  # fmt: skip


def start_trial(recipe: Recipe, prepared: Prepared, data: TrainingData) -> Run:
    """A run of any number of steps on a copy of the network, which trains all layers: nothing of it is kept.

    It has a Fabric of its own, because a gradient scaler changes with every step.
    """
    trial = replace(
        recipe, model=replace(recipe.model, freeze=0), train=replace(recipe.train, epochs=_ENDLESS, warmup=0.0)
    )
    network = copy.deepcopy(prepared.network)
    return start(open_fabric(trial), trial, data, network, prepared.teacher, Path(os.devnull), silent)


def check_batches(settings: TrainSettings, images: int, processes: int, network: nn.Module) -> None:
    """Check that no process gets a batch without an image, or BatchNorm one image, from which it cannot learn.

    Raises:
        RecipeError: one does.
    """
    parts = processes * settings.accumulate
    least = 1 + any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    if images // step_count(images, settings.batch_size) // parts < least:
        divided = f", divided into {parts} parts," if parts > 1 else ""
        raise RecipeError(
            f"{images} training images in batches of at most {settings.batch_size}{divided} leave a part with fewer "
            f"than {least} image{'s' * (least > 1)}",
            fix=f"--set train.batch_size={(least + 1) * parts}" if images >= least * parts else "use more images",
        )


def open_fabric(recipe: Recipe) -> lightning_fabric.Fabric:
    """Start Fabric on the requested device; under torchrun, on all its processes."""
    settings = recipe.train
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch finds no CUDA GPU here", fix="--set train.device=cpu, or run edgekit doctor")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.sync_batchnorm and world_size > 1 and _device(settings) == "cpu":
        raise RecipeError("torch's SyncBatchNorm runs on GPUs only", fix="--set train.sync_batchnorm=false")
    precision: Any = precision_of(settings)
    if settings.deterministic:
        os.environ.setdefault(_CUBLAS, _CUBLAS_DETERMINISTIC)
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    torch.set_float32_matmul_precision("high")  # TF32 for what is left in float32 on a GPU
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = world_size // local_processes
    # frozen layers have no gradient to average
    strategy = "ddp_find_unused_parameters_true" if recipe.model.freeze and world_size > 1 else "auto"
    fabric = lightning_fabric.Fabric(
        accelerator=_device(settings), devices=local_processes, num_nodes=nodes, precision=precision, strategy=strategy
    )
    fabric.launch()
    return fabric


def _device(settings: TrainSettings) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device


def precision_of(settings: TrainSettings) -> str:
    """The recipe's precision, or for auto the fastest one that the device trains reliably in."""
    if settings.precision != "auto":
        return settings.precision
    if _device(settings) == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def _known_preprocess(recipe: Recipe) -> Preprocess | None:
    """What the weights that training starts from were trained with; None if it starts from random ones.

    Raises:
        RecipeError: the network has no published weights, or the bundle has another network.
        BundleError: the bundle cannot be read.
    """
    if recipe.model.weights:
        manifest = open_weights(recipe.model.weights, recipe.model.name).manifest
        return replace(manifest.preprocess, crop=manifest.preprocess.crop or manifest.input.shape[1:])
    if not recipe.model.pretrained:
        return None
    try:
        found = published(recipe.model.name)
    except ValueError as error:
        raise RecipeError(str(error), fix="--set model.pretrained=false") from error
    return Preprocess("RGB", found.resize, found.crop, found.interpolation, found.mean, found.std)


def _make_network(recipe: Recipe, preprocess: Preprocess, classes: int) -> tuple[nn.Module, dict[str, Any]]:
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
        if recipe.model.weights:
            kept = load_fitting(network, open_weights(recipe.model.weights, recipe.model.name))
            _log.info(f"weights of {recipe.model.weights}" + (f", but new ones for {', '.join(kept)}" if kept else ""))
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


def _open_teacher(
    recipe: Recipe, labels: tuple[str, ...], preprocess: Preprocess, device: torch.device
) -> Teacher | None:
    """The recipe's teacher, if it names one.

    Raises:
        RecipeError: its labels or its image size are others.
        BundleError: it is not a bundle that torch runs.
    """
    settings = recipe.train
    if not settings.teacher:
        return None
    return Teacher.open(settings.teacher, labels, preprocess, settings.temperature, device)


def open_data(prepared: Prepared, recipe: Recipe, device: torch.device, progress: Progress) -> TrainingData:
    """The data set with the pixels of each part; the test images are read only once, so they are not kept in memory.

    Raises:
        EdgeKitError: an image cannot be read.
    """
    opened: dict[str, Pixels] = {}
    for part in PARTS:
        crop = recipe.augment.resized_crop if part == "train" else 0.0
        images = Decoded(getattr(prepared.dataset, part), prepared.preprocess, crop, recipe.train.seed)
        workers = processes(recipe.train.workers, prepared.headers[part])
        if part == "test" or not recipe.data.cache:
            opened[part] = Streamed(images, workers, device)
        else:
            opened[part] = open_pixels(images, workers, device, f"reading {_PART_NAMES[part]} images", progress)
    return TrainingData(prepared.dataset, prepared.preprocess, opened)


def _class_weights(dataset: Dataset) -> torch.Tensor:
    """Weights, float32 [k], whose mean over the training images is 1; a class without images has 0."""
    counts = np.bincount(dataset.train.targets, minlength=len(dataset.train.labels))
    weights = np.where(counts > 0, len(dataset.train) / np.maximum(counts, 1), 0.0) / max(1, (counts > 0).sum())
    return torch.from_numpy(weights.astype(np.float32))
