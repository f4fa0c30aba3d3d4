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
            metavar="NAME", help="Folders of runs/: bundles, reports or trainings.", autocompletion=complete_runs
        ),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove without asking, even if other bundles were made from them.")
    ] = False,
) -> None:
    """Remove folders from runs/."""
    from ..console import say
    from ..runs import made_from, named_run
    from ..workspace import remove_runs

    chosen = list({run.path: run for run in map(named_run, names)}.values())
    removed = {run.path for run in chosen}
    for run in chosen:
        descendants = [str(path) for path in made_from(run) if path not in removed]
        if not descendants or yes:
            continue
        reason = f"{run.path} is the source of {', '.join(descendants)}, and validate compares with it"
        if not sys.stdin.isatty():
            raise EdgeKitError(reason, fix="pass --yes to remove it anyway")
        say(reason)
        if not typer.confirm("Remove it?", err=True):
            raise typer.Exit(1)
    freed = remove_runs(chosen)
    say(f"removed {', '.join(str(run.path) for run in chosen)}: {freed / 1e6:.2f} MB freed")
