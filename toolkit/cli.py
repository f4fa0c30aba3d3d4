"""The commands: each parses, calls one function, and prints. Everything heavy is imported inside the bodies."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..deploy.errors import EdgeKitError, missing_package

app = typer.Typer(
    name="edgekit",
    help="Take an image classifier from PyTorch to a device, and prove there that it is faster and still right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path | None, typer.Option(help="Folder of the new bundle; default: the next one in runs/.")]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be decoded; lists them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Images = Annotated[
    str | None,
    typer.Option(
        "--images", "--data", help="Images from elsewhere than the bundle's own data set: a folder, .npz or named set."
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Largest allowed loss of top-1 accuracy in percentage points, judged on the interval's bound: exit 3 when "
        "missed, 4 when not proved. Without it 1.0 is held, and not proved is said and exits 0."
    ),
]

MinSpeedup = Annotated[float | None, typer.Option(help="Least allowed speed-up over the baseline (a ratio).")]
Confidence = Annotated[float, typer.Option(help="Of every interval.", min=0.5, max=0.999)]
Devices = Annotated[
    list[str] | None,
    typer.Option(help="Where: local (the default), ssh://user@host[:port], browser or browser+webgpu. Repeatable."),
]
AcrossHardware = Annotated[bool, typer.Option("--across-hardware", help="Compare reports of different machines.")]


@app.command()
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
    skip_corrupt: SkipCorrupt = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A recipe setting: train.lr=0.01. Repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest interrupted training in runs/.")
    ] = False,
    out: Out = None,
) -> None:
    """Train a network and write a bundle."""
    from .train import newest_unfinished
    from .train import resume as resume_training
    from .train import train as train_network

    if resume:
        if any((data, model, recipe, epochs, pretrained, root, skip_corrupt, settings, out)):
            raise EdgeKitError("--resume continues a run with its own settings", fix="pass --resume alone")
        _made(resume_training(newest_unfinished()))
        return
    wanted = {"data.data": data, "data.root": root, "train.epochs": epochs, "model.pretrained": pretrained or None}
    wanted["data.skip_corrupt"] = skip_corrupt or None
    chosen = _recipe(recipe, model, data, [f"{k}={json.dumps(v)}" for k, v in wanted.items() if v is not None])
    _made(train_network(chosen.changed(settings or []), out=out))


@app.command("import")
def import_(
    model: Annotated[
        str, typer.Argument(help=".onnx, TorchScript or .pt2 file, package.module:factory, or net.py:Net")
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
    weights: Annotated[Path | None, typer.Option(help="For a factory: safetensors, or a plain state dict.")] = None,
    seed: Annotated[int, typer.Option(help="Of the division of the images into parts.")] = 0,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Make a bundle of a model of your own."""
    from .arguments import preprocess_of, shape_of
    from .importing import import_model, read_labels

    shape = shape_of(input)
    _made(
        import_model(
            model, name=name, input=shape, preprocess=preprocess_of(shape, resize, crop, mean, std, interpolation),
            labels=read_labels(labels) if labels else (), images=images, weights=weights, seed=seed,
            skip_corrupt=skip_corrupt, out=out,
        )
    )  # fmt: skip


@app.command()
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
    from ..export import Options, export_bundle
    from ..export.eager import TORCH_FORMATS
    from .workspace import given_or_newest, new_path

    source = given_or_newest(bundle, lambda m: m.format in TORCH_FORMATS, "torch bundle", "edgekit train")
    path = out or new_path(f"{source.manifest.name}-{format}-fp32")
    made = export_bundle(source, format, path, Options(dynamic_batch, opset, cross_check))
    parity = made.manifest.details["parity"]
    _made(made, f"logits within {parity['logits_max_abs']:.2g} of the original at batch 1 and 3")


@app.command()
def quantize(
    bundle: Annotated[Path | None, typer.Argument(help="An fp32 ONNX bundle. Default: the newest in runs/.")] = None,
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    target: Annotated[str | None, typer.Option(help="x86, x86-avx2, arm or tensorrt. Default: this machine.")] = None,
    images: Images = None,
    calibration_images: Annotated[int, typer.Option(help="Drawn by class from the training part.")] = 512,
    max_drop: MaxDrop = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", hidden=True)] = False,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Quantize an ONNX model after training, and hold it to the accuracy contract."""
    from .console import say
    from .quantize import quantize as quantize_bundle
    from .workspace import given_or_newest

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
        max_drop=max_drop, skip_corrupt=skip_corrupt, out=out,
    )  # fmt: skip
    say(result.judgement.sentence)
    _made(result.bundle)
    raise typer.Exit(result.judgement.exit_code)


@app.command()
def validate(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Optimised bundles. Default: the newest in runs/.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare with this bundle, or with an earlier report.json. Default: the source model."),
    ] = None,
    images: Images = None,
    limit: Annotated[int | None, typer.Option(help="Take this many test images, drawn by class.", min=1)] = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    seconds: Annotated[
        float, typer.Option(help="Least time for the latency blocks; three times this at most.", min=0)
    ] = 8.0,
    threads: Annotated[
        int | None, typer.Option(help="Threads for one inference. Default: the cores allowed.", min=1)
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="single_stream, or offline: that and throughput by batch size.")
    ] = "single_stream",
    fps: Annotated[
        float | None, typer.Option(help="Also offer this many images a second; counts the deadlines missed.")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(help="Also run each model this long without a pause: 90s, 10m, 1h.")
    ] = None,
    across_hardware: AcrossHardware = False,
    skip_corrupt: SkipCorrupt = False,
    device: Devices = None,
    ort_web: Annotated[
        Path | None, typer.Option(help="With --device browser: folder of onnxruntime-web's files.")
    ] = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, .html, junit.xml, summary.md; default: in runs/.")
    ] = None,
) -> None:
    """Compare original and optimised models on this machine or another: accuracy, latency, a verdict."""
    from ..deploy.bundle import Bundle
    from .arguments import plan_of
    from .comparison import read_report
    from .contract import Contract
    from .tables import devices_table, validation_table
    from .validate import validate as validate_bundles
    from .workspace import RUNS, newest

    plan = plan_of(seconds, threads, scenario, fps, sustained)
    stored = read_report(baseline) if baseline and baseline.is_file() else None
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format != "torch" and bool(m.lineage), "optimised bundle", "edgekit quantize")
    ]
    folder, devices = out or RUNS / f"{chosen[-1].path.name}.report", device or ["local"]
    result = validate_bundles(
        chosen, baseline=Bundle.open(baseline) if baseline and stored is None else None, stored=stored, images=images,
        limit=limit, contract=Contract(max_drop, min_speedup, confidence), plan=plan, devices=devices,
        skip_corrupt=skip_corrupt, across_hardware=across_hardware, keep=folder,
        ort_web=ort_web,
    )  # fmt: skip
    _report(result, folder)
    _show(result.report, validation_table if len(devices) == 1 else devices_table, as_json)
    raise typer.Exit(result.exit_code)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    images: Annotated[str, typer.Argument(help="An image, a folder, a .npz or a named set (its test part).")],
    top: Annotated[int, typer.Option(help="How many classes an image.", min=1)] = 3,
    csv: Annotated[Path | None, typer.Option(help="Write Image,Category here.")] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw 12 random images with true and predicted labels here.")
    ] = None,
    skip_corrupt: SkipCorrupt = False,
    as_json: AsJson = False,
) -> None:
    """Predict one image or many."""
    from ..deploy.bundle import Bundle
    from .predict import draw_grid, open_for_prediction, write_csv
    from .predict import predict as predict_images
    from .tables import prediction_table

    opened = Bundle.open(bundle)
    pictures = open_for_prediction(opened, images, skip_corrupt=skip_corrupt)
    predictions = predict_images(opened, pictures, top)
    if csv:
        write_csv(predictions, csv)
    if grid:
        draw_grid(pictures, predictions, grid)
    _show([vars(one) for one in predictions], prediction_table, as_json)


@app.command()
def inspect(bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")], as_json: AsJson = False) -> None:
    """What is in a bundle."""
    from ..deploy.bundle import Bundle
    from .inspecting import inspect_bundle
    from .tables import facts_table

    _show(inspect_bundle(Bundle.open(bundle)), facts_table, as_json)


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="With --self-test: a model to do it with.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Measure a model against itself, and against itself slowed by 3 %.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="With --self-test: how long.", min=1)] = 60.0,
    device: Annotated[str | None, typer.Option(help="A board instead of this machine: ssh://user@host[:port].")] = None,
    as_json: AsJson = False,
) -> None:
    """What is installed, what this machine has and can measure, what is missing and the line that installs it."""
    from .doctor import diagnose, diagnose_board
    from .selftest import self_test as run_self_test
    from .tables import board_table, doctor_table, self_test_table

    if device and self_test:
        raise EdgeKitError("the self-test is of this machine", fix="run edgekit doctor --self-test on the board itself")
    if not self_test:
        if bundle:
            raise EdgeKitError("a bundle is used by the self-test alone", fix=f"edgekit doctor --self-test {bundle}")
        if device:
            _show(diagnose_board(device), board_table, as_json)
            return
        _show(diagnose(), doctor_table, as_json)
        return
    from ..deploy.bundle import Bundle

    found, code = run_self_test(Bundle.open(bundle) if bundle else None, seconds)
    _show(found, self_test_table, as_json)
    raise typer.Exit(code)


@app.command()
def pack(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Optimised bundles (default: the newest in runs/); with --verify, a packed file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; with --verify, a folder for its bundles.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Compare with this bundle. Default: the fp32 ONNX.")] = None,
    images: Images = None,
    limit: Annotated[int, typer.Option(help="How many test images go with it, drawn by class.", min=1)] = 200,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    seconds: Annotated[float, typer.Option(help="Least time for the latency blocks.", min=0)] = 8.0,
    sign: Annotated[Path | None, typer.Option(help="Sign it with this ed25519 private key.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Check that a packed file is signed by the owner of this public key.")
    ] = None,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    """Make one file of a model to carry to a board: `python3 FILE` validates it there and writes result.json."""
    from ..deploy.bundle import Bundle
    from ..deploy.plan import Plan
    from .console import out as stdout
    from .console import say
    from .contract import Contract
    from .datasets import part_of
    from .lineage import with_ancestors
    from .pack import pack as pack_bundles
    from .pack import unpack, verify_packed
    from .workspace import newest

    if verify:
        if sign or len(bundles or []) != 1:
            raise EdgeKitError("--verify takes one packed file", fix="edgekit pack --verify key.pub model.pyz")
        packed = verify_packed((bundles or [])[0], verify)
        say(f"signed by the owner of {verify}, every byte as it was")
        for path in unpack(packed, out) if out else []:
            stdout.print(str(path), markup=False)
        return
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format == "onnx" and bool(m.lineage), "ONNX bundle", "edgekit quantize")
    ]
    chain = with_ancestors(chosen, Bundle.open(baseline) if baseline else None, {"onnx"}, "a packed file")
    test = part_of(chosen[0], "test", images, skip_corrupt=skip_corrupt)
    path = out or Path(f"{chosen[-1].manifest.name}.pyz")
    pack_bundles(
        chain, [bundle.id for bundle in chosen], test.stratified(limit, seed=0) if test is not None else None,
        Plan(seconds=seconds), Contract(max_drop, min_speedup, confidence), path, sign,
    )  # fmt: skip
    say(f"{path.stat().st_size / 1e6:.2f} MB; on the board: python3 {path.name}, then here: edgekit report result.json")
    stdout.print(str(path), markup=False)


@app.command()
def provision(
    device: Annotated[str, typer.Option(help="The board: ssh://user@host[:port].")],
    offline: Annotated[
        bool, typer.Option("--offline", help="Download the board's wheels here and send them: it has no network.")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove all that EdgeKit put there.")] = False,
) -> None:
    """Install ONNX Runtime on a board, in a venv of EdgeKit's own; or remove all of EdgeKit from it."""
    from .console import out
    from .provision import clean as clean_board
    from .provision import provision as provision_board

    if clean:
        if offline:
            raise EdgeKitError("--clean installs nothing", fix="leave out --offline")
        for folder in clean_board(device):
            out.print(f"removed {folder}", markup=False)
        return
    for name, version in provision_board(device, offline=offline).items():
        out.print(f"{name} {version}", markup=False)


@app.command()
def report(
    reports: Annotated[
        list[Path],
        typer.Argument(help="report.json or result.json files; of several, the last is held against each before it."),
    ],
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    across_hardware: AcrossHardware = False,
    join: Annotated[bool, typer.Option("--join", help="Show reports of several devices side by side.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the page of a single report, or of joined ones, here.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a report again, or hold one against earlier ones, without measuring."""
    from .comparison import compare_reports, read_document, read_report
    from .contract import Contract
    from .files import write_junit, write_markdown, write_page
    from .joined import join_reports
    from .tables import comparison_table, devices_table, validation_table

    contract = Contract(max_drop, min_speedup, confidence)
    if join:
        document, table = join_reports([read_report(path) for path in reports]), devices_table
    elif len(reports) == 1:
        document = read_document(reports[0], contract if contract != Contract() else None)
        table = devices_table if "devices" in document else validation_table
    else:
        read = [read_report(path) for path in reports]
        document, table = compare_reports(read, contract, across_hardware=across_hardware), comparison_table
    for path, write in ((html, write_page), (junit, write_junit), (markdown, write_markdown)):
        if path:
            write(document, path)
    _show(document, table, as_json)
    raise typer.Exit(document["exit_code"])


@app.command()
def demo() -> None:
    """Train a small CNN on embedded digits, export, quantize, validate, and write the report."""
    from .demo import demo as run_demo
    from .tables import validation_table
    from .workspace import RUNS

    quantized, result = run_demo()
    _report(result, RUNS / f"{quantized.bundle.path.name}.report")
    _show(result.report, validation_table, as_json=False)
    raise typer.Exit(result.exit_code)


def _recipe(recipe: str | None, model: str | None, data: str | None, settings: list[str]) -> Any:
    """The recipe that was named, else the model's, else the digits'; then the settings of single options."""
    from .console import say
    from .recipe import Recipe, for_model

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
        settings = [*settings, f"name={json.dumps(f'{chosen.model.name}-{name}')}"]
    return chosen.changed(settings)


def _made(bundle: Any, remark: str = "") -> None:
    """Say what was made: the folder on standard output, the rest for the person."""
    from .console import out, say

    manifest = bundle.manifest
    say(f"{manifest.format} {manifest.precision}, {bundle.size_bytes / 1e6:.2f} MB" + (f", {remark}" if remark else ""))
    out.print(str(bundle.path), markup=False)


def _report(result: Any, folder: Path) -> None:
    from .console import say
    from .files import write_reports

    for path in write_reports(result.report, result.images, folder):
        say(f"wrote {path}")


def _show(result: Any, table: Any, as_json: bool) -> None:
    """Print a result as JSON for programs, or as a table for people."""
    from .console import out

    if as_json:
        print(json.dumps(result, default=vars, ensure_ascii=False))
    else:
        for part in table(result):
            out.print(part)


def main() -> None:
    """Run the command line; a user's error is one line and its fix, anything else is a bug and shows its trace."""
    try:
        app()
    except EdgeKitError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        _fail(missing)


def _fail(error: EdgeKitError) -> None:
    print(f"error: {error}\nfix: {error.fix}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
