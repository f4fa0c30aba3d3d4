"""edgekit clean."""

import sys
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .completion import complete_runs


def command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="Bundles, reports or trainings: folders of runs/.", autocompletion=complete_runs
        ),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove without asking, even if other bundles were made from it.")
    ] = False,
) -> None:
    """Remove folders from runs/."""
    from ..console import say
    from ..runs import made_from, named_run
    from ..workspace import remove_runs

    chosen = list({run.path: run for run in map(named_run, names)}.values())
    going = {run.path for run in chosen}
    for run in chosen:
        later = [str(path) for path in made_from(run) if path not in going]
        if not later or yes:
            continue
        reason = f"{', '.join(later)} was made from {run.path}, and is compared with it by validate"
        if not sys.stdin.isatty():
            raise EdgeKitError(reason, fix="pass --yes to remove it anyway")
        say(reason)
        if not typer.confirm("Remove it?", err=True):
            raise typer.Exit(1)
    freed = remove_runs(chosen)
    say(f"removed {', '.join(str(run.path) for run in chosen)}: {freed / 1e6:.2f} MB freed")
