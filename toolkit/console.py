"""Talking to the person: standard output is for results, standard error for everything else."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person."""
    err.print(message, markup=False)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, a line for each new stage elsewhere; yields `show(stage, share from 0 to 1)`."""
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def announce(stage: str, share: float) -> None:
            del share
            if stage not in stages:
                stages.add(stage)
                say(f"{title}: {stage}")

        yield announce
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        seen = [""]

        def show(stage: str, share: float) -> None:
            if stage != seen[0]:
                seen[0] = stage
                bar.reset(task, description=f"{title}: {stage}")
            bar.update(task, completed=share)

        yield show
