"""edgekit predict."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .completion import complete_bundles
from .options import OUTPUT, AsJson, SkipCorrupt, Verify
from .output import show


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] IMAGES",
            help="A bundle's folder (default: the newest in runs/), and an image, a folder, a .npz or a named set (its "
            "test part).",
            autocompletion=complete_bundles,
        ),
    ],
    top: Annotated[int, typer.Option(help="Number of classes to show per image.", min=1, rich_help_panel=OUTPUT)] = 3,
    csv: Annotated[
        Path | None, typer.Option(help="Write a CSV file with the columns Image,Category.", rich_help_panel=OUTPUT)
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of up to 12 random images with true and predicted labels.", rich_help_panel=OUTPUT
        ),
    ] = None,
    skip_corrupt: SkipCorrupt = False,
    verify: Verify = None,
    as_json: AsJson = False,
) -> None:
    """Predict the classes of images."""
    from ...deploy.bundle import Bundle
    from ...deploy.engine.passport import ENGINE_FORMAT
    from ...deploy.manifest import MANIFEST
    from ..predict import draw_grid, open_for_prediction, predict, write_csv
    from ..report.terminal import prediction_table
    from ..workspace import newest

    if len(arguments) > 2:
        raise EdgeKitError(
            f"predict takes a bundle and one image source, not {len(arguments)} arguments",
            fix="pass a folder that contains the images",
        )
    *bundle, images = arguments
    if not bundle and (Path(images) / MANIFEST).is_file():
        raise EdgeKitError(f"{images} is a bundle, and the images are missing", fix=f"edgekit predict {images} IMAGES")
    opened = (
        Bundle.open(bundle[0]) if bundle else newest(lambda m: m.format != ENGINE_FORMAT, "bundle", "edgekit train")
    )
    if verify:
        from ..signing import verify_bundle

        verify_bundle(opened, verify)
    pictures = open_for_prediction(opened, images, skip_corrupt=skip_corrupt)
    predictions = predict(opened, pictures, top)
    if csv:
        write_csv(predictions, csv)
    if grid:
        draw_grid(pictures, predictions, grid)
    show(predictions, prediction_table, as_json)
