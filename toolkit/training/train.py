"""Train a network by a recipe: new, resumed or extended runs, and the bundle that they write."""

import contextlib
import json
import logging
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import lightning_fabric
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from ...deploy.bundle import Bundle, create, make_golden
from ...deploy.errors import EdgeKitError, TrainingError
from ...deploy.files import exists, new_folder
from ...deploy.manifest import Manifest, TensorSpec
from ...deploy.progress import Progress, silent
from ..runs import RUNS, TRAINING
from ..workspace import claimed, locked, make_folder, new_path, release
from . import checkpoint
from .advice import advise
from .find_batch_size import find_batch_size
from .find_lr import find_lr
from .fit import circumstances, evaluate, fit
from .launch import RECIPE, begun_by_this_launch, describe, losses_explained
from .recipe import Recipe
from .setup import Run, open_data, open_fabric, prepare, start
from .transfer import seen_images

_log = logging.getLogger(__name__)


def train(
    recipe: Recipe, *, out: Path | None = None, runs: Path = RUNS, download: bool = False,
    find: Collection[Literal["lr", "batch_size"]] = (), progress: Progress = silent,
) -> Bundle:  # fmt: skip
    """Train a network by a recipe, and write a bundle of the epoch that is best on the validation part.

    The run's folder `NNN-name.train` beside the bundle contains the checkpoints, metrics.csv and curves.png. After an
    elastic restart of torchrun, the run that it interrupted is continued.

    Args:
        download: fetch a named data set that is not on this machine.
        find: settings of the recipe to find first (see find_lr.py and find_batch_size.py); the bundle's recipe has the
            found values.

    Raises:
        TrainingError: the loss is no longer finite, or does not fall at any learning rate.
        RecipeError: the network cannot be created with these settings, or the device is not available.
        DataError: the data set cannot be used.
    """
    fabric = open_fabric(recipe)
    # only one of several processes chooses the path, and all of them fail if it cannot
    place: Any = fabric.broadcast(_place(recipe, out, runs, find) if fabric.is_global_zero else None)
    if isinstance(place, EdgeKitError):
        raise place
    bundle_path, resumed = place
    if resumed:  # with the numbers that it found before
        recipe, find = _read_recipe(_work_of(bundle_path)), ()
    with claimed(bundle_path):
        return _train(
            fabric, recipe, _work_of(bundle_path), bundle_path, progress, resumed=resumed, download=download, find=find
        )


def _place(recipe: Recipe, out: Path | None, runs: Path, find: Collection[str]) -> tuple[Path, bool] | EdgeKitError:
    """The bundle's path, and whether a run for it is continued; else why there is none."""
    try:
        folders = [_work_of(out)] if out else runs.glob(f"*{TRAINING}")
        begun = [work for work in folders if not _bundle_of(work).exists() and begun_by_this_launch(work, recipe, find)]
        if begun:
            return _bundle_of(_newest(begun)), True
        bundle_path = out or new_path(recipe.name, runs)
        for path in (bundle_path, _work_of(bundle_path)):
            if path.exists():
                raise exists(path)
    except EdgeKitError as error:
        return error
    return bundle_path, False


def resume_training(work: Path, progress: Progress = silent) -> Bundle:
    """Continue an interrupted run from its last complete epoch.

    On one CPU, the weights equal those of an uninterrupted run.

    Raises:
        TrainingError: `work` is not the folder of an unfinished run, or another process is training in it.
    """
    bundle_path = _bundle_of(work)
    if not is_training(work) or bundle_path.exists():
        raise TrainingError(f"{work} is not the folder of an unfinished training", fix="pass a folder runs/*.train")
    recipe = _read_recipe(work)
    return _train(open_fabric(recipe), recipe, work, bundle_path, progress, resumed=True)


def extend_training(work: Path, epochs: int, progress: Progress = silent) -> Bundle:
    """Continue a finished or interrupted run until it has `epochs` epochs; a finished one becomes a new bundle.

    With the schedules "step" and "constant" on one CPU, the weights equal those of a run that started with `epochs`.

    Raises:
        TrainingError: `work` is not the folder of a training run, or already has that many epochs.
    """
    if not is_training(work) or not (work / checkpoint.STATE).is_file():
        raise TrainingError(f"{work} contains no complete epoch of a training", fix="pass a folder runs/*.train")
    completed = checkpoint.epochs(work)
    if epochs <= completed:
        raise TrainingError(
            f"{work} has {completed} epochs already", fix=f"ask for more: --resume --epochs {2 * completed}"
        )
    recipe = _read_recipe(work).changed([f"train.epochs={epochs}"])
    fabric = open_fabric(recipe)
    bundle_path = _bundle_of(work)
    if bundle_path.exists():
        copied = Path()
        if fabric.is_global_zero:
            copied = new_path(recipe.name, work.parent)
            copy_training(work, copied, recipe)
            release(copied)
        bundle_path = fabric.broadcast(copied)
    return _train(fabric, recipe, _work_of(bundle_path), bundle_path, progress, resumed=True)


def copy_training(work: Path, bundle_path: Path, recipe: Recipe) -> None:
    """Copy a run's folder to that of the future bundle `bundle_path`, where resuming continues it by `recipe`.

    Raises:
        EdgeKitError: that folder exists already, or cannot be written.
    """
    with new_folder(_work_of(bundle_path)) as folder:
        shutil.copytree(work, folder, dirs_exist_ok=True)
        (folder / RECIPE).write_text(json.dumps(recipe.to_dict(), indent=1))


def newest_training(runs: Path = RUNS, *, finished: bool = False) -> Path:
    """The folder of the newest unfinished run in `runs` that no process is training in.

    Args:
        finished: also accept a run that wrote its bundle.

    Raises:
        TrainingError: there is no such run.
    """
    folders = [entry for entry in runs.glob(f"*{TRAINING}") if finished or not _bundle_of(entry).exists()]
    folders = [entry for entry in folders if is_training(entry) and not _busy(entry)]
    if not folders:
        raise TrainingError(f"no {'' if finished else 'unfinished '}training in {runs}/", fix="run: edgekit train")
    return _newest(folders)


def _newest(folders: list[Path]) -> Path:
    return max(folders, key=lambda entry: entry.stat().st_mtime)


def is_training(work: Path) -> bool:
    """Whether this is the folder of a training, finished or not."""
    return (work / RECIPE).is_file()


def _bundle_of(work: Path) -> Path:
    return work.with_name(work.name.removesuffix(TRAINING))


def _work_of(bundle_path: Path) -> Path:
    return bundle_path.with_name(bundle_path.name + TRAINING)


def _read_recipe(work: Path) -> Recipe:
    return Recipe.from_dict(json.loads((work / RECIPE).read_text()))


def _busy(work: Path) -> bool:
    # shared, since all processes of a training look at the same time
    with locked(work, shared=True) as acquired:
        return not acquired


@contextlib.contextmanager
def _occupied(fabric: lightning_fabric.Fabric, work: Path, resumed: bool) -> Iterator[None]:
    """Create the run's folder, unless the run is resumed, and lock it against other processes.

    Raises:
        EdgeKitError: another process created or locked it first, or it is not visible on this machine.
    """
    if not fabric.is_global_zero:
        fabric.barrier()
        if not work.is_dir():
            raise TrainingError(
                f"the first process writes to {work}, which is not on {socket.gethostname()}",
                fix="start all machines in one shared folder",
            )
        yield
        return
    if not resumed:
        make_folder(work)
        release(_bundle_of(work))
    with locked(work) as acquired:
        if not acquired:
            raise TrainingError(f"another process is training in {work}", fix="wait for it, or choose another --out")
        fabric.barrier()
        yield


def _train(
    fabric: lightning_fabric.Fabric, recipe: Recipe, work: Path, bundle_path: Path, progress: Progress, *,
    resumed: bool = False, download: bool = False, find: Collection[str] = (),
) -> Bundle:  # fmt: skip
    prepared = prepare(fabric, recipe, download=download)
    with losses_explained(work), _occupied(fabric, work, resumed):
        if fabric.is_global_zero and not find:
            describe(work, recipe)
        data = open_data(prepared, recipe, fabric.device, progress)
        if "batch_size" in find:
            recipe = find_batch_size(recipe, prepared, data, progress)
        if "lr" in find:
            recipe = find_lr(recipe, prepared, data, work, progress)
        if fabric.is_global_zero and find:  # not before: an interrupted search cannot be resumed
            describe(work, recipe)
        run = start(fabric, recipe, data, prepared.network, prepared.teacher, work, progress)
        try:
            fit(run)
        except KeyboardInterrupt:
            _log.info(f"stopped; {run.state.epoch} complete epochs are kept in {work}: edgekit train --resume")
            raise
        fabric.barrier()  # the first process may still be writing the best weights
        for line in advise(run.state.history, circumstances(run)):
            _log.warning(line)
        run.result.load_state_dict(load_weights((work / checkpoint.BEST).read_bytes()))
        results = {"best_validation": run.state.best, "test": evaluate(run, "test")}
        if fabric.is_global_zero:
            _write(bundle_path, run, prepared.architecture, results)
        fabric.barrier()
    _log.info(
        f"test accuracy {results['test']['accuracy']:.4f} on {len(data.dataset.test)} images "
        f"(best validation {run.state.best:.4f})"
    )
    return Bundle.open(bundle_path)


def _write(path: Path, run: Run, architecture: dict[str, object], results: dict[str, object]) -> None:
    """Write the bundle of a trained network, with its metrics and curves."""
    network, dataset, preprocess = run.result.cpu().eval(), run.data.dataset, run.data.preprocess
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}

    def answer(tensors: object) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(tensors)).float().numpy()

    height, width = preprocess.crop or (0, 0)
    manifest = Manifest(
        name=run.recipe.name,
        format="torch",
        precision="fp32",
        model="model.safetensors",
        labels=dataset.train.labels,
        input=TensorSpec(len(preprocess.mean), height, width),
        preprocess=preprocess,
        parameters=sum(weight.numel() for weight in network.parameters()),
        architecture=architecture,
        data=dataset.reference(),
        details={"recipe": run.recipe.to_dict(), **results},
    )
    with create(path) as draft:
        (draft.folder / manifest.model).write_bytes(save_weights(weights))
        for name in (checkpoint.METRICS, checkpoint.CURVES):
            (draft.folder / name).write_bytes((run.work / name).read_bytes())
        draft.add_golden(make_golden(dataset.test, preprocess, answer))
        draft.add_splits(dataset.splits())
        origins = [Bundle.open(Path(path)) for path in (run.recipe.model.weights, run.settings.teacher) if path]
        earlier = {"earlier": seen_images(origins)} if origins else {}
        draft.add_fingerprints(dataset.fingerprints() | earlier)
        draft.finish(manifest, ("torch", "torchvision", "lightning-fabric"))
