"""edgekit import."""

from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_datasets
from .options import IMAGES, MODEL, PREPROCESSING, Out, SkipCorrupt
from .output import report_new_bundle


def command(
    model: Annotated[
        str,
        typer.Argument(
            help=".onnx, TorchScript or .pt2 file, package.module:factory, net.py:Net, timm:NAME or torchvision:NAME."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the model.", rich_help_panel=MODEL)],
    input: Annotated[str, typer.Option(help="Channels x height x width, e.g. 3x224x224.", rich_help_panel=MODEL)],
    images: Annotated[
        str,
        typer.Option(
            help="Images for golden samples, calibration and tests: a folder or named set.",
            rich_help_panel=IMAGES,
            autocompletion=complete_datasets,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Text file with one class name per line, in the order of the logits.", rich_help_panel=MODEL),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="Shorter side in pixels, or HEIGHTxWIDTH. Default: the input's shorter side.",
            rich_help_panel=PREPROCESSING,
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(help="Centre crop in pixels. Default: the input's size.", rich_help_panel=PREPROCESSING),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="One value per channel for pixels from 0 to 1, e.g. 0.485,0.456,0.406.", rich_help_panel=PREPROCESSING
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            help="One value per channel for pixels from 0 to 1, e.g. 0.229,0.224,0.225.", rich_help_panel=PREPROCESSING
        ),
    ] = None,
    interpolation: Annotated[
        str, typer.Option(help="nearest, bilinear, bicubic, lanczos, box or hamming.", rich_help_panel=PREPROCESSING)
    ] = "bilinear",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a network in code or of NAME: safetensors, or a plain state dict.", rich_help_panel=MODEL
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for dividing the images into parts.", rich_help_panel=IMAGES)] = 0,
    skip_corrupt: SkipCorrupt = False,
    out: Out = None,
) -> None:
    """Import your own model as a bundle."""
    from ...deploy.labels import read_labels
    from ..importing.import_model import ImportOptions, import_model, input_dtype
    from .parsing import preprocess_of, shape_of

    shape = shape_of(input)
    preprocess = preprocess_of(shape, resize, crop, mean, std, interpolation, input_dtype(model))
    report_new_bundle(
        import_model(
            model, ImportOptions(read_labels(labels) if labels else (), weights, seed, skip_corrupt),
            name=name, preprocess=preprocess, images=images, out=out,
        )
    )  # fmt: skip
