"""Fine-tune a network with fake quantization, then write, judge and keep it as quantize does."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError, EdgeKitError, RecipeError
from ...deploy.files import exists, scratch_folder
from ...deploy.parity import compare
from ...deploy.progress import Progress, silent
from ...export.eager import TORCH_FORMATS
from ...export.export_bundle import export_bundle
from ..analysis.contract import Contract
from ..datasets import BundleImages, Dataset
from ..quantize.int8 import Int8
from ..quantize.lowered import Request
from ..quantize.options import QuantizeOptions
from ..quantize.quantize import Quantized, lower
from ..training import checkpoint
from ..training.fit import evaluate, fit
from ..training.recipe import Recipe
from ..training.screening import screen
from ..training.setup import Prepared, Run, check_batches, open_data, open_fabric, start
from ..training.transfer import Teacher
from ..workspace import RUNS, derived, find, new_path
from .network import GraphNetwork

_log = logging.getLogger(__name__)

# Fine-tuning needs few epochs at a low rate. bf16 would round activations more coarsely than their grid does.
SETTINGS = (
    "train.epochs=5", "train.optimizer=adamw", "train.lr=1e-4", "train.weight_decay=0.0", "train.schedule=cosine",
    "train.warmup=0.0", "train.ema=0.0", "train.patience=0", "train.precision=32-true", "train.compile=false",
    "train.label_smoothing=0.0", "model.freeze=0", "train.clip=1.0",
)  # fmt: skip
_SECTIONS = ("train", "augment")


def train_quantized(
    bundle: Bundle,
    settings: Sequence[str] = (),
    *,
    target: str | None = None,
    max_drop: float | None = None,
    out: Path | None = None,
    runs: Path = RUNS,
    progress: Progress = silent,
) -> Quantized:
    """Quantize a network to int8, train its weights with fake quantization, and judge the result as `quantize` does.

    The network learns the labels and the probabilities of the float network. Images, their division and preprocessing
    are the bundle's; augmentation, batch size and class weights are those of its training, if that is in `runs`.

    Args:
        bundle: a trained network: torch, its fp32 ONNX export, or an int8 bundle made from that.
        settings: of the recipe's sections train and augment, such as "train.lr=0.001".
        target: see QuantizeOptions; None for the target of an int8 bundle, else for this machine.
        max_drop: see contract.judge_drop.

    Raises:
        BundleError: the bundle is of another kind, or its float network is not in `runs`.
        EdgeKitError: an operator of its graph cannot be trained; or several processes.
        RecipeError: a setting is wrong.
        DataError: its data set is not on this machine.
    """
    if out is not None and out.exists():
        raise exists(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EdgeKitError("--qat trains in one process", fix="run edgekit train --qat without torchrun")
    recipe = _recipe(bundle, settings, runs)
    source = _float_source(bundle, runs)
    if source.manifest.preprocess.dtype != "float32":
        raise BundleError(f"{source.path} takes pixels, not normalized images", fix="export it without --uint8-input")
    options, images = QuantizeOptions(target=target or _target(bundle)), BundleImages(source)
    path = out or new_path(f"{source.manifest.name}-onnx-int8-qat", runs)

    def retrain(int8: Int8, request: Request) -> Int8:
        return _retrain(int8, request, recipe)

    return lower(Request(source, options, None, images, progress), Contract(max_drop), path, retrain)


def _target(bundle: Bundle) -> str | None:
    found = bundle.manifest.details.get("target")
    return found if bundle.manifest.precision == "int8" and isinstance(found, str) else None


def _float_source(bundle: Bundle, runs: Path) -> Bundle:
    """The fp32 ONNX bundle of a network; a torch bundle is exported if its export is not in `runs`."""
    manifest, places = bundle.manifest, (bundle.path.parent, runs)
    kind = manifest.format, manifest.precision
    if kind == ("onnx", "fp32"):
        return bundle
    if kind == ("onnx", "int8") and manifest.lineage:
        source = find(manifest.lineage[-1]["id"], *places)
        if source is None:
            raise BundleError(f"the fp32 ONNX bundle of {bundle.path} is not in {places[0]}/", fix="pass that bundle")
        return source
    if manifest.format not in TORCH_FORMATS:
        raise BundleError(
            f"{bundle.path} is {' '.join(kind)}, which cannot be trained",
            fix="pass a bundle of edgekit train, or its fp32 or int8 ONNX bundle",
        )
    for made in derived(bundle.id, *places):
        if (made.manifest.format, made.manifest.preprocess.dtype) == ("onnx", "float32"):
            _log.info(f"using {made.path}")
            return made
    made = export_bundle(bundle, "onnx", new_path(f"{manifest.name}-onnx-fp32", runs))
    _log.info(f"exported {made.path}")
    return made


def _recipe(bundle: Bundle, settings: Sequence[str], runs: Path) -> Recipe:
    """The recipe of the network's training, changed for fine-tuning and by the user's settings."""
    for setting in settings:
        if setting.partition(".")[0].strip() not in _SECTIONS or setting.startswith("train.teacher="):
            raise RecipeError(
                f"--qat takes its network, images, preprocessing and teacher from the bundle, not from --set {setting}",
                fix=f"change settings of {' or '.join(_SECTIONS)}",
            )
    lineage = bundle.manifest.lineage
    origin = find(lineage[0]["id"], bundle.path.parent, runs) if lineage else bundle
    recorded = origin.manifest.details.get("recipe") if origin else None
    recipe = Recipe.from_dict(recorded) if isinstance(recorded, dict) else Recipe()
    if not isinstance(recorded, dict):
        _log.info(f"the recipe of this network is not in {runs}/: training without augmentation")
    start = replace(recipe.model, freeze=0, pretrained=False, weights=None)
    recipe = replace(recipe, name=bundle.manifest.name, model=start, train=replace(recipe.train, teacher=None))
    return recipe.changed([*SETTINGS, *settings])


def _retrain(int8: Int8, request: Request, recipe: Recipe) -> Int8:
    """Train the weights of an int8 network; the epoch with the best validation accuracy is kept, or the beginning."""
    network, plain = _networks(int8, request.bundle)
    data = _dataset(request)
    headers = screen(data)
    check_batches(recipe.train, len(data.train), 1, network)
    fabric = open_fabric(recipe)
    teacher = Teacher(plain.to(fabric.device), recipe.train.temperature)
    preprocess = request.bundle.manifest.preprocess
    preprocess = replace(preprocess, crop=preprocess.crop or request.bundle.manifest.input.shape[1:])
    prepared = Prepared(data, headers, preprocess, network, {}, teacher)
    training = open_data(prepared, recipe, fabric.device, request.progress)
    with scratch_folder() as work:
        run = start(fabric, recipe, training, network, teacher, work, request.progress)
        before = _keep_beginning(run)
        fit(run)
        network.load_state_dict(load_weights((work / checkpoint.BEST).read_bytes()))
    history = run.state.history
    record = {"recipe": recipe.to_dict(), "before": before, "history": history}
    best = max((before["accuracy"], *(row["validation_accuracy"] for row in history)))
    epochs = "1 epoch" if len(history) == 1 else f"{len(history)} epochs"
    remark = f"trained for {epochs}: validation accuracy in int8 {before['accuracy']:.4f} -> {best:.4f}"
    return int8.retrained(network.trained(), request, record, remark)


def _keep_beginning(run: Run) -> dict[str, float]:
    """Evaluate the network before the first epoch, and keep it as the best one so far."""
    before = evaluate(run, "validation")
    run.state.best = before.get("balanced_accuracy", before["accuracy"])
    weights = {name: value.cpu().contiguous() for name, value in run.plain.state_dict().items()}
    (run.work / checkpoint.BEST).write_bytes(save_weights(weights))
    _log.info(f"int8 before training: validation {before['loss']:.3f}, {before['accuracy']:.3f}")
    return before


def _networks(int8: Int8, source: Bundle) -> tuple[GraphNetwork, GraphNetwork]:
    """The int8 network and the float one.

    Raises:
        EdgeKitError: torch computes the float graph differently.
    """
    plain = GraphNetwork(int8.source).eval()
    golden = source.golden()
    with torch.inference_mode():
        found = compare(golden, plain(torch.from_numpy(golden.tensors)).numpy())
    if not found.exact:
        raise EdgeKitError(
            f"torch computes the graph of {source.path} differently: logits differ by up to {found.logits_max_abs:.3g}",
            fix="report the network",
        )
    return GraphNetwork(int8.source, int8.graph(), int8.form.seven_bits), plain


def _dataset(request: Request) -> Dataset:
    """The bundle's own images in their recorded parts.

    Raises:
        DataError: it records none.
    """
    recorded: dict[str, Any] = dict(request.bundle.manifest.data)
    parts = {part: request.source.part(part) for part in ("train", "validation", "test")}
    if None in parts.values():
        raise BundleError(f"{request.bundle.path} records no images", fix="import it with --images")
    return Dataset(recorded["data"], recorded["root"], recorded["seed"], **parts)  # type: ignore[arg-type]
