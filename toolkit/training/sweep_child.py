"""The process that trains a point of a sweep: `python -m edgekit.toolkit.training.sweep_child`.

Standard input is a Task in JSON. Standard output is an Outcome in JSON, unless the process ends early.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TypedDict

from ...deploy.errors import EdgeKitError
from ...deploy.signals import ended_by_signals
from ..console import progress_bar
from ..logs import logged_to_stderr
from ..runs import TRAINING
from .recipe import Recipe
from .train import copy_training, is_training, resume_training, train


class Task(TypedDict):
    """What to train.

    Attributes:
        title: of the progress bar.
        recipe: as Recipe.from_dict reads it.
        out: the folder of the new bundle. The folder of an interrupted training beside it is continued.
        shorter: the folder of a finished training that differs only in having fewer epochs: it is continued in a copy.
        download: fetch a named data set that is not on this machine.
    """

    title: str
    recipe: dict[str, Any]
    out: str
    shorter: str | None
    download: bool


class Outcome(TypedDict):
    """How it ended.

    Attributes:
        error: why there is no bundle; null if there is one.
    """

    error: str | None


def run(task: Task) -> Outcome:
    """Train the point."""
    recipe, out = Recipe.from_dict(task["recipe"]), Path(task["out"])
    work = out.with_name(out.name + TRAINING)
    try:
        with progress_bar(task["title"], announced=False) as show:
            with contextlib.suppress(OSError):
                work.rmdir()  # a training that was killed before it wrote its first file
            if task["shorter"] and not work.exists():
                copy_training(Path(task["shorter"]), out, recipe)
            if is_training(work):
                resume_training(work, show)
            else:
                train(recipe, out=out, download=task["download"], progress=show)
    except EdgeKitError as error:
        return Outcome(error=f"{error} (fix: {error.fix})")
    return Outcome(error=None)


def main() -> None:
    """Read the task, and print the outcome."""
    # libraries may print to standard output, so the outcome uses a separate pipe
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with logged_to_stderr():
        outcome = run(json.load(sys.stdin))
    stream.write(json.dumps(outcome))
    stream.close()


if __name__ == "__main__":
    with ended_by_signals():
        main()
