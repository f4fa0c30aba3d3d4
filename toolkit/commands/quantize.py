"""edgekit quantize."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from ...deploy.registry import choose
from ..quantize.methods import AUTO, METHODS
from ..quantize.targets import FORMATS, TARGETS
from .completion import complete_bundles, complete_methods, complete_targets
from .options import IMAGES, MEASURING, MODEL, Images, MaxDrop, MinSpeedup, Out, SkipCorrupt
from .output import report_new_bundle


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="An fp32 ONNX or LiteRT bundle. Default: the newest in runs/, ONNX without --target.",
            autocompletion=complete_bundles,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="int8, fp16, or int8-weights (a small file, computed in float32).", rich_help_panel=MODEL),
    ] = "int8",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(TARGETS)}; repeatable, for a bundle each. Default: the one for this machine.",
            rich_help_panel=MODEL,
            autocompletion=complete_targets,
        ),
    ] = None,
    images: Images = None,
    calibration: Annotated[
        str,
        typer.Option(
            help=f"How the ranges of activations are set: {AUTO} (the best of the others), {', '.join(METHODS)}.",
            rich_help_panel=IMAGES,
            autocompletion=complete_methods,
        ),
    ] = AUTO,
    calibration_images: Annotated[
        int,
        typer.Option(
            help="Number of calibration images, drawn by class from the training part.", rich_help_panel=IMAGES
        ),
    ] = 512,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="The largest resident memory of calibration, e.g. 600MB.", metavar="SIZE", rich_help_panel=IMAGES
        ),
    ] = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for the search for layers that must stay float, e.g. 90s, 10m. Default: until it is done.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Also measure where the noise comes from if no layer must stay float; edgekit inspect shows it.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    allow_few: Annotated[
        bool, typer.Option("--allow-few", help="Allow fewer than 8 calibration images.", rich_help_panel=IMAGES)
    ] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", hidden=True)] = False,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Quantize an ONNX or LiteRT model after training, and check it against the accuracy contract."""
    from ..analysis.contract import PASS, overall
    from ..console import progress_bar, say
    from ..quantize.options import QuantizeOptions
    from ..quantize.quantize import quantize
    from ..workspace import given_or_newest
    from .parsing import bytes_of, seconds_of

    limit = bytes_of(memory_limit, "--memory-limit") if memory_limit else None
    budget_s = seconds_of(budget, "--budget") if budget else None
    if dynamic:
        raise EdgeKitError(
            "dynamic quantization makes a CNN slower: it recomputes the ranges of convolutions for every image, and "
            "ONNX Runtime runs them as ConvInteger, which is slow or missing", fix="leave out --dynamic",
        )  # fmt: skip
    if out is not None and len(target or ()) > 1:
        raise EdgeKitError("--out names one bundle, and several targets make several", fix="leave out --out")
    for name in target or ():
        choose(TARGETS, name, "target", EdgeKitError)
    judgements = []
    for name in target or [None]:
        formats = (TARGETS[name].format,) if name else tuple(FORMATS) if bundle else ("onnx",)
        source = given_or_newest(
            bundle,
            lambda m, formats=formats: m.format in formats and m.precision == "fp32",
            f"fp32 {' or '.join(FORMATS[each] for each in formats)} bundle",
            f"edgekit export --format {formats[0]}",
        )
        with progress_bar("quantize") as show:
            options = QuantizeOptions(
                precision=precision, target=name, calibration=calibration, calibration_images=calibration_images,
                allow_few=allow_few, skip_corrupt=skip_corrupt, memory_limit=limit, budget_s=budget_s,
                sensitivity=sensitivity,
            )  # fmt: skip
            result = quantize(
                source, options, images=images, max_drop=max_drop, min_speedup=min_speedup, out=out,
                progress=show,
            )  # fmt: skip
        for sentence in result.sentences:
            say(sentence)
        failed = result.judgement.exit_code != PASS and result.judgement.rule != "min_speedup"
        if failed and precision == "int8" and source.manifest.data:
            say(f"to train its weights for int8: edgekit train --qat {result.bundle.path}")
        report_new_bundle(result.bundle)
        judgements.append(result.judgement)
    raise typer.Exit(overall(judgements).exit_code)
