"""edgekit inspect."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .completion import complete_bundles
from .options import MEASURING, OUTPUT, AsJson
from .output import show


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="A bundle's folder. Default: the newest in runs/.", autocompletion=complete_bundles),
    ] = None,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast",
            help="In about half a minute, and without images, forecast how fast int8, other precisions, runtimes and "
            "numbers of threads are on this machine.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write how the bundle was quantized as an HTML page.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle contains, or what lower precisions and other runtimes will bring."""
    from ..inspect import inspect_bundle
    from ..report.terminal import facts_table
    from ..workspace import given_or_newest

    if forecast:
        if html:
            raise EdgeKitError("--forecast writes no page", fix="leave out --html or --forecast")
        _forecast(bundle, as_json)
        return
    found = given_or_newest(bundle, lambda _: True, "bundle", "edgekit train")
    if html:
        from ..report.quantization import write_quantization

        write_quantization(found, html)
    show(inspect_bundle(found), facts_table, as_json)


def _forecast(path: Path | None, as_json: bool) -> None:
    from ..console import progress_bar
    from ..optimizing.forecast import forecast_here, forecast_source
    from ..optimizing.variants import is_source
    from ..report.forecast import forecast_table
    from ..workspace import given_or_newest

    needed = "original model (fp32 ONNX, or from train or import)"
    source = forecast_source(given_or_newest(path, is_source, needed, "edgekit train"))
    with progress_bar("forecast", announced=False) as progress:
        result = forecast_here(source, progress=progress)
    show(result, forecast_table, as_json)
