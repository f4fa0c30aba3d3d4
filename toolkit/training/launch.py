"""Several processes under torchrun: which interrupted run they continue, and what the loss of one of them means."""

import contextlib
import json
import os
import socket
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ...deploy.errors import TrainingError
from ...deploy.files import write_file
from .recipe import Recipe

RECIPE = "recipe.json"
# In a run's folder: the launch that trains in it.
_LAUNCH = "launch.txt"


def launch_id() -> str:
    """What tells this launch of torchrun from others, and what elastic restarts keep; empty without torchrun.

    It is the rendezvous id if the user gave one (https://docs.pytorch.org/docs/stable/elastic/run.html), else the
    process that started this one.
    """
    rendezvous = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if rendezvous != "none":
        return rendezvous
    agent, started = os.getppid(), ""
    with contextlib.suppress(OSError):  # field 22 of proc_pid_stat(5): pids are used again, start times are not
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {agent} {started}"


def describe(work: Path, recipe: Recipe) -> None:
    """Write a run's recipe and launch into its folder."""
    write_file(work / RECIPE, json.dumps(recipe.to_dict(), indent=1))
    write_file(work / _LAUNCH, launch_id())


def begun_by_this_launch(work: Path, recipe: Recipe, found: Collection[str] = ()) -> bool:
    """Whether this launch of torchrun trained this recipe in a folder before it restarted its processes.

    Args:
        found: names of settings of the section train that the training finds (see train.train).
    """
    launch, file = launch_id(), work / _LAUNCH
    if not launch or not file.is_file() or file.read_text() != launch:
        return False
    recorded = Recipe.from_dict(json.loads((work / RECIPE).read_text()))
    asked = {name: getattr(recipe.train, name) for name in found}
    return replace(recorded, train=replace(recorded.train, **asked)) == recipe


@contextlib.contextmanager
def losses_explained(work: Path) -> Iterator[None]:
    """Raise what a process notices of another one's end as a TrainingError.

    Raises:
        TrainingError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which name its source files
        if not isinstance(error, torch.distributed.DistError) and "gloo/" not in str(error):
            raise
        # at once, since torchrun is about to end this process too
        raise TrainingError(
            f"another process of this training ended; the complete epochs are kept in {work}",
            fix="see its own message, then start torchrun again with: -m edgekit train --resume",
        ) from error
