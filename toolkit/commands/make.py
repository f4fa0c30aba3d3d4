"""Commands that make bundles: train, import, export, quantize, build."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ...deploy.errors import EdgeKitError
from .options import Images, MaxDrop, Out, SkipCorrupt
from .show import made, show


def train(
    data: Annotated[
        str | None, typer.Option(help="Named data set (digits, mnist, fashion-mnist, cifar10) or a path.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Network; its shipped recipe is taken when there is one.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Shipped recipe, or a .toml file. Default: digits.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How often to go through the training images.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the library's published weights.")
    ] = False,
    root: Annotated[str | None, typer.Option(help="Where a named data set is kept.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a named data set that is not on this machine.")
    ] = False,
    skip_corrupt: SkipCorrupt = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A recipe setting: train.lr=0.01. Repeatable.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the newest interrupted training in runs/; with --epochs N, extend the newest to N.",
        ),
    ] = False,
    out: Out = None,
) -> None:
    """Train a network and write a bundle."""
    from ..train import extend, newest_training
    from ..train import resume as resume_training
    from ..train import train as train_network

    if resume:
        if any((data, model, recipe, pretrained, root, download, skip_corrupt, settings, out)):
            raise EdgeKitError(
                "--resume continues a run with its own settings", fix="pass --resume alone, or with --epochs"
            )
        made(resume_training(newest_training()) if epochs is None else extend(newest_training(finished=True), epochs))
        return
    wanted = {"data.data": data, "data.root": root, "train.epochs": epochs, "model.pretrained": pretrained or None}
    wanted["data.skip_corrupt"] = skip_corrupt or None
    chosen = _recipe(recipe, model, data, [f"{k}={json.dumps(v)}" for k, v in wanted.items() if v is not None])
    made(train_network(chosen.changed(settings or []), out=out, download=download))


def import_(
    model: Annotated[
        str,
        typer.Argument(help=".onnx, TorchScript or .pt2 file, package.module:factory, net.py:Net, timm:NAME, ..."),
    ],
    name: Annotated[str, typer.Option(help="What to call it.")],
    input: Annotated[str, typer.Option(help="Channels x height x width, e.g. 3x224x224.")],
    images: Annotated[
        str, typer.Option(help="Images for golden samples, calibration and tests: a folder or named set.")
    ],
    labels: Annotated[Path | None, typer.Option(help="Text file: a class name a line, in the logits' order.")] = None,
    resize: Annotated[
        str | None, typer.Option(help="Shorter side in pixels, or HEIGHTxWIDTH. Default: the input's.")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Centre crop in pixels. Default: the input's size.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="A value a channel on the scale 0 to 1, e.g. 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="A value a channel on the scale 0 to 1, e.g. 0.229,0.224,0.225.")
    ] = None,
    interpolation: Annotated[
        str, typer.Option(help="nearest, bilinear, bicubic, lanczos, box or hamming.")
    ] = "bilinear",
    weights: Annotated[
        Path | None, typer.Option(help="For a factory or NAME: safetensors, or a plain state dict.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the division of the images into parts.")] = 0,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Make a bundle of a model of your own."""
    from ..arguments import preprocess_of, shape_of
    from ..importing import import_model, input_dtype, read_labels

    shape = shape_of(input)
    preprocess = preprocess_of(shape, resize, crop, mean, std, interpolation, input_dtype(model))
    made(
        import_model(
            model, name=name, input=shape, preprocess=preprocess,
            labels=read_labels(labels) if labels else (), images=images, weights=weights, seed=seed,
            skip_corrupt=skip_corrupt, out=out,
        )
    )  # fmt: skip


def export(
    bundle: Annotated[Path | None, typer.Argument(help="A torch bundle. Default: the newest in runs/.")] = None,
    format: Annotated[
        str, typer.Option(help="onnx, torchscript (deprecated by PyTorch) or exported-program.")
    ] = "onnx",
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Take any number of images at once.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set. Default: the lowest that suffices.")] = None,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Export with both of torch's exporters, compare.")
    ] = False,
    out: Out = None,
) -> None:
    """Export a network; refused unless it is the same model on real images."""
    from ...export import Options, export_bundle
    from ...export.eager import TORCH_FORMATS
    from ..workspace import given_or_newest, new_path

    source = given_or_newest(bundle, lambda m: m.format in TORCH_FORMATS, "torch bundle", "edgekit train")
    path = out or new_path(f"{source.manifest.name}-{format}-fp32")
    exported = export_bundle(source, format, path, Options(dynamic_batch, opset, cross_check))
    parity = exported.manifest.details["parity"]
    made(exported, f"logits within {parity['logits_max_abs']:.2g} of the original at batch 1 and 3")


def quantize(
    bundle: Annotated[Path | None, typer.Argument(help="An fp32 ONNX bundle. Default: the newest in runs/.")] = None,
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    target: Annotated[str | None, typer.Option(help="x86, x86-avx2, arm or tensorrt. Default: this machine.")] = None,
    images: Images = None,
    calibration_images: Annotated[int, typer.Option(help="Drawn by class from the training part.")] = 512,
    max_drop: MaxDrop = None,
    allow_few: Annotated[bool, typer.Option("--allow-few", help="Calibrate with fewer than 8 images too.")] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", hidden=True)] = False,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Quantize an ONNX model after training, and hold it to the accuracy contract."""
    from ..console import say
    from ..quantize import quantize as quantize_bundle
    from ..workspace import given_or_newest

    if dynamic:
        raise EdgeKitError(
            "dynamic quantization makes a CNN slower: its convolutions find their ranges anew at every image, and "
            "ONNX Runtime runs them as ConvInteger, which is slow or missing", fix="leave out --dynamic",
        )  # fmt: skip
    source = given_or_newest(
        bundle,
        lambda m: (m.format, m.precision) == ("onnx", "fp32"),
        "fp32 ONNX bundle",
        "edgekit export --format onnx",
    )
    result = quantize_bundle(
        source, precision=precision, target=target, images=images, calibration_images=calibration_images,
        max_drop=max_drop, allow_few=allow_few, skip_corrupt=skip_corrupt, out=out,
    )  # fmt: skip
    for sentence in result.sentences:
        say(sentence)
    made(result.bundle)
    raise typer.Exit(result.judgement.exit_code)


def build(
    bundle: Annotated[Path | None, typer.Argument(help="An ONNX bundle. Default: the newest in runs/.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, int8, or auto: all three, from an fp32 bundle. Default: the bundle's own."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="The machine that will run it: local, or ssh://user@host[:port].")
    ] = "local",
    batch: Annotated[
        str | None,
        typer.Option(help="Smallest, usual and largest number of images at once, of a free batch: 1,8,32."),
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Most scratch memory for a layer, in MiB.")] = None,
    opt_level: Annotated[
        int | None, typer.Option(help="0 (quickly built) to 5 (quickest to run). Default: TensorRT's, 3.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Newer versions of TensorRT load it too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Any GPU from Ampere on runs it, not this kind alone.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Its weights can be exchanged later.")] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Without weights: they come from the ONNX file at loading.")
    ] = False,
    compute_capability: Annotated[
        str | None, typer.Option(help="GPUs that are not here, e.g. 8.6,8.9 (TensorRT for RTX).")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is wrong with the graph, and how trtexec would build it.")
    ] = False,
    sign: Annotated[Path | None, typer.Option(help="Sign the engines with this ed25519 private key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    out: Out = None,
) -> None:
    """Build a TensorRT engine, on the device that runs it."""
    from ..arguments import build_options
    from ..building import build as build_engines
    from ..building import plan as plan_build
    from ..console import say
    from ..tables import build_plan_table
    from ..workspace import given_or_newest

    fitting = {"auto": ("fp32",)}.get(precision or "", ("fp32", precision) if precision else ("fp32", "fp16", "int8"))
    source = given_or_newest(
        bundle, lambda m: m.format == "onnx" and m.precision in fitting, "ONNX bundle", "edgekit export --format onnx"
    )
    options = build_options(
        batch, workspace, opt_level, compute_capability, version_compatible=version_compatible,
        hardware_compatible=hardware_compatible, refit=refit, strip_weights=strip_weights,
    )  # fmt: skip
    if plan:
        found = plan_build(source, options)
        show(found, build_plan_table, as_json)
        raise typer.Exit(1 if any(finding["severity"] == "error" for finding in found.findings) else 0)
    if as_json:
        raise EdgeKitError("--json is for --plan", fix="leave it out: the engines' folders are printed one a line")
    engines = build_engines(source, precision=precision, options=options, device=device, sign=sign, out=out)
    for engine in engines:
        made(engine)
    where = f" --device {device}" if device != "local" else ""
    say(f"next: edgekit validate {' '.join(str(engine.path) for engine in engines)}{where}")


def _recipe(recipe: str | None, model: str | None, data: str | None, settings: list[str]) -> Any:
    """The recipe that was named, else the model's, else the digits'; then the settings of single options."""
    from ..console import say
    from ..recipe import Recipe, for_model
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
        say("digits are not flipped: a mirrored digit is another one, or none")
        settings = [*settings, "augment.horizontal_flip=0.0"]
    name = Path(data).name if data else chosen.data.data
    if not recipe:
        settings = [*settings, f"name={json.dumps(safe_name(f'{chosen.model.name}-{name}'))}"]
    return chosen.changed(settings)
