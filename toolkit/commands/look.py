"""Commands that look: predict, inspect, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .options import AsJson, SkipCorrupt, Verify
from .show import show


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] IMAGES",
            help="A bundle's folder (default: the newest in runs/), and an image, a folder, a .npz or a named set (its "
            "test part).",
        ),
    ],
    top: Annotated[int, typer.Option(help="How many classes an image.", min=1)] = 3,
    csv: Annotated[Path | None, typer.Option(help="Write Image,Category here.")] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw 12 random images with true and predicted labels here.")
    ] = None,
    skip_corrupt: SkipCorrupt = False,
    verify: Verify = None,
    as_json: AsJson = False,
) -> None:
    """Predict one image or many."""
    from ...deploy.bundle import MANIFEST, Bundle
    from ...deploy.engine.passport import FORMAT as ENGINE
    from ..predict import draw_grid, open_for_prediction, write_csv
    from ..predict import predict as predict_images
    from ..tables import prediction_table
    from ..workspace import newest

    if len(arguments) > 2:
        raise EdgeKitError(
            f"predict takes a bundle and one place of images, not {len(arguments)} arguments",
            fix="pass a folder that holds the images",
        )
    *bundle, images = arguments
    if not bundle and (Path(images) / MANIFEST).is_file():
        raise EdgeKitError(f"{images} is a bundle, and no images are given", fix=f"edgekit predict {images} IMAGES")
    opened = Bundle.open(bundle[0]) if bundle else newest(lambda m: m.format != ENGINE, "bundle", "edgekit train")
    if verify:
        from ..signing import verify_bundle

        verify_bundle(opened, verify)
    pictures = open_for_prediction(opened, images, skip_corrupt=skip_corrupt)
    predictions = predict_images(opened, pictures, top)
    if csv:
        write_csv(predictions, csv)
    if grid:
        draw_grid(pictures, predictions, grid)
    show([vars(one) for one in predictions], prediction_table, as_json)


def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder. Default: the newest in runs/.")] = None,
    as_json: AsJson = False,
) -> None:
    """What is in a bundle."""
    from ..inspecting import inspect_bundle
    from ..tables import facts_table
    from ..workspace import given_or_newest

    show(inspect_bundle(given_or_newest(bundle, lambda _: True, "bundle", "edgekit train")), facts_table, as_json)


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
    from ..doctor import diagnose, diagnose_board
    from ..selftest import self_test as run_self_test
    from ..tables import board_table, doctor_table, self_test_table

    if device and self_test:
        raise EdgeKitError("the self-test is of this machine", fix="run edgekit doctor --self-test on the board itself")
    if not self_test:
        if bundle:
            raise EdgeKitError("a bundle is used by the self-test alone", fix=f"edgekit doctor --self-test {bundle}")
        if device:
            show(diagnose_board(device), board_table, as_json)
            return
        show(diagnose(), doctor_table, as_json)
        return
    from ...deploy.bundle import Bundle

    found, code = run_self_test(Bundle.open(bundle) if bundle else None, seconds)
    show(found, self_test_table, as_json)
    raise typer.Exit(code)
