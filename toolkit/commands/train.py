"""edgekit train."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from ...deploy.errors import EdgeKitError
from ..dataset_names import DATASETS
from ..quantize.targets import TARGETS
from .completion import complete_bundles, complete_datasets, complete_networks, complete_targets
from .options import IMAGES, MODEL, QUANTIZATION, TRAINING, AsJson, Out, SkipCorrupt
from .output import report_new_bundle, show

if TYPE_CHECKING:  # imports numpy, which --help does not need
    from ...deploy.bundle import Bundle


def command(
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Named data set ({', '.join(DATASETS)}) or a path.",
            rich_help_panel=IMAGES,
            autocompletion=complete_datasets,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of the network; its shipped recipe is used if there is one.",
            rich_help_panel=MODEL,
            autocompletion=complete_networks,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Shipped recipe, or a .toml file. Default: the network's, or digits.", rich_help_panel=TRAINING
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recipe file with a section [sweep]: train each combination of its values in its own process, and "
            "compare them. With --resume, continue the newest such sweep.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Number of passes over the training images.", rich_help_panel=TRAINING)
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the library's published weights.", rich_help_panel=MODEL)
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Start from the weights of this trained bundle; a classifier of other classes is new.",
            rich_help_panel=MODEL,
            autocompletion=complete_bundles,
        ),
    ] = None,
    freeze_backbone: Annotated[
        int | None,
        typer.Option(
            help="Train only the classifier for this number of epochs, then all layers.", rich_help_panel=TRAINING
        ),
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Folder that contains the named data set.", rich_help_panel=IMAGES)
    ] = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Download a named data set that is not on this machine.", rich_help_panel=IMAGES
        ),
    ] = False,
    skip_corrupt: SkipCorrupt = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a recipe setting, e.g. train.lr=0.01. Repeatable.", rich_help_panel=TRAINING
        ),
    ] = None,
    qat: Annotated[
        Path | None,
        typer.Option(
            "--qat",
            metavar="BUNDLE",
            help="Train this network with fake quantization, and write it in int8: a trained bundle, or its fp32 or "
            "int8 ONNX bundle.",
            rich_help_panel=QUANTIZATION,
            autocompletion=complete_bundles,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help=f"With --qat: {', '.join(TARGETS)}. Default: that of the int8 bundle, else the one for this machine.",
            rich_help_panel=QUANTIZATION,
            autocompletion=complete_targets,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="With --qat: the largest allowed loss of top-1 accuracy, as in edgekit quantize.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the newest interrupted training in runs/; with --epochs N, extend the newest training to N.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="First find the learning rate, by 200 steps with rising rates; the recipe gets the found one.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    find_batch_size: Annotated[
        bool,
        typer.Option(
            "--find-batch-size",
            help="First find the number of images per step, by doubling it while that trains faster and fits into the "
            "GPU; the recipe gets the found one.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Instead of training, measure for about half a minute where the time of a step goes.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Train a network and write a bundle."""
    from ...deploy.bundle import Bundle
    from ..console import progress_bar, stderr, stdout
    from ..training.train import train

    # torchrun starts one process per GPU; only the first one prints
    stderr.quiet = stdout.quiet = os.environ.get("RANK", "0") != "0"
    find: list[Literal["lr", "batch_size"]] = []
    if find_batch_size:
        find.append("batch_size")
    if find_lr:
        find.append("lr")
    others = (data, model, recipe, pretrained, weights, freeze_backbone, root, download, skip_corrupt, find, profile)
    if qat:
        if any((*others, resume, sweep, as_json)):
            raise EdgeKitError(
                "--qat takes its network, images and recipe from the bundle",
                fix="pass it with --epochs, --set, --target, --max-drop or --out",
            )
        _train_quantized(qat, epochs, settings or [], target, max_drop, out)
    if target or max_drop is not None:
        raise EdgeKitError("--target and --max-drop are about int8", fix="pass them with --qat, or to edgekit quantize")
    _check(find, settings or [], sweep=sweep, profile=profile, out=out, as_json=as_json)
    if resume and not sweep:
        if any((*others, settings, out)):
            raise EdgeKitError(
                "--resume continues a run with its own settings", fix="pass --resume alone, or with --epochs"
            )
        report_new_bundle(_resumed(epochs))
        return
    values = {
        "data.data": data, "data.root": root, "data.skip_corrupt": skip_corrupt or None, "train.epochs": epochs,
        "model.pretrained": pretrained or None, "model.weights": weights and str(weights.resolve()),
        "model.freeze": freeze_backbone,
    }  # fmt: skip
    if weights:
        architecture = Bundle.open(weights).manifest.architecture
        model = model or architecture.get("name")
        values["model.activation"] = architecture.get("activation")
    named = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    if sweep:
        if recipe or model:
            raise EdgeKitError(
                "--sweep names the recipe and its model",
                fix="leave out --recipe, --model and --weights; model.name and model.weights are keys of the file",
            )
        _show_sweep(str(sweep), [*named, *(settings or [])], out, resume=resume, download=download, as_json=as_json)
        return
    chosen = _recipe(recipe, model, data, named).changed(settings or [])
    if profile:
        _show_profile(chosen, download=download, as_json=as_json)
        return
    with progress_bar("train", announced=False) as progress:
        bundle = train(chosen, out=out, download=download, find=find, progress=progress)
    report_new_bundle(bundle)


def _resumed(epochs: int | None) -> "Bundle":
    """Continue the newest interrupted training, or extend the newest one to this number of epochs."""
    from ..console import progress_bar
    from ..training.train import extend_training, newest_training, resume_training

    with progress_bar("train", announced=False) as progress:
        if epochs is None:
            return resume_training(newest_training(), progress)
        return extend_training(newest_training(finished=True), epochs, progress)


def _show_profile(recipe: Any, *, download: bool, as_json: bool) -> None:
    from ..console import progress_bar
    from ..report.training_profile import profile_table
    from ..training.profile import profile_training

    with progress_bar("profile", announced=False) as progress:
        found = profile_training(recipe, download=download, progress=progress)
    show(found, profile_table, as_json)


def _check(
    find: Sequence[str], settings: list[str], *, sweep: Path | None, profile: bool, out: Path | None, as_json: bool
) -> None:
    """Refuse options that exclude each other."""
    for name in find:
        if any(setting.partition("=")[0].strip() == f"train.{name}" for setting in settings):
            raise EdgeKitError(f"train.{name} is both given and to be found", fix="leave out one of the two options")
    if profile and (find or out):
        raise EdgeKitError("--profile does not train", fix="leave out --out, --find-lr and --find-batch-size")
    if sweep and (find or profile):
        raise EdgeKitError(
            "--sweep trains the settings of its file", fix="leave out --find-lr, --find-batch-size and --profile"
        )
    if as_json and not (profile or sweep):
        raise EdgeKitError("--json is for --profile and --sweep", fix="leave out --json; the bundle has manifest.json")


def _show_sweep(
    name: str, settings: list[str], out: Path | None, *, resume: bool, download: bool, as_json: bool
) -> None:
    """Run the sweep of a file, say where its files are, and print its table."""
    from ..console import say
    from ..report.terminal import sweep_table
    from ..training.run_sweep import PLOT, TABLE, run_sweep
    from ..training.sweep import Sweep

    found = run_sweep(Sweep.load(name, settings), out=out, resume=resume, download=download)
    for file in (TABLE, PLOT):
        say(f"wrote {found.folder / file}")
    show(found.rows, sweep_table, as_json)


def _train_quantized(
    path: Path, epochs: int | None, settings: list[str], target: str | None, max_drop: float | None, out: Path | None
) -> NoReturn:
    """Train with fake quantization, report the int8 bundle, and exit as quantize does."""
    from ...deploy.bundle import Bundle
    from ..console import progress_bar, say
    from ..qat.qat import train_quantized

    if epochs is not None:
        settings = [f"train.epochs={epochs}", *settings]
    with progress_bar("train", announced=False) as show:
        result = train_quantized(
            Bundle.open(path), settings, target=target, max_drop=max_drop, out=out, progress=show
        )  # fmt: skip
    for sentence in result.sentences:
        say(sentence)
    report_new_bundle(result.bundle)
    raise typer.Exit(result.judgement.exit_code)


def _recipe(recipe: str | None, model: str | None, data: str | None, settings: list[str]) -> Any:
    """The named recipe, else the model's, else the one for digits, changed by the other options."""
    from ..console import say
    from ..training.recipe import Recipe, for_model
    from ..workspace import safe_name

    if recipe:
        chosen = Recipe.load(recipe)
        if model:
            chosen = chosen.changed([f"model.name={json.dumps(model)}"])
    elif model or data not in (None, "digits"):
        chosen = for_model(model or "convnet")
    else:
        chosen = Recipe.load("digits")
    if data in ("digits", "mnist") and chosen.augment.horizontal_flip:
        say("flipping disabled: mirrored digits lose their meaning")
        settings = [*settings, "augment.horizontal_flip=0.0"]
    name = Path(data.partition("{")[0]).name if data else chosen.data.data
    if not recipe:
        settings = [*settings, f"name={json.dumps(safe_name(f'{chosen.model.name}-{name}'))}"]
    return chosen.changed(settings)
