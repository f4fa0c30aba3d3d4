"""edgekit inspect."""

from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_bundles
from .options import AsJson
from .output import show


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="A bundle's folder. Default: the newest in runs/.", autocompletion=complete_bundles),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle contains."""
    from ..inspect import inspect_bundle
    from ..report.terminal import facts_table
    from ..workspace import given_or_newest

    show(inspect_bundle(given_or_newest(bundle, lambda _: True, "bundle", "edgekit train")), facts_table, as_json)
