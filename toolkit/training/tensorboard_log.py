"""The rows of metrics.csv as TensorBoard events."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ...deploy.errors import RecipeError
from .recipe import Recipe

EVENTS = "events"


def check_tensorboard() -> None:
    """Check that the package is installed, before a training begins.

    Raises:
        RecipeError: it is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            "train.tensorboard needs the package tensorboard", fix="pip install 'edgekit-vision[tensorboard]'"
        ) from error


@contextlib.contextmanager
def tensorboard_log(
    recipe: Recipe, work: Path, first: int, *, wanted: bool
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Writes an epoch's row of metrics into the run's folder `work`, under the names of the columns of metrics.csv.

    Args:
        first: number of the first epoch, from 1; events of it and of later ones, which an interrupted run wrote, are
            hidden.
        wanted: whether this process writes anything.
    """
    if not wanted:
        yield lambda row: None  # noqa: ARG005
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(work / EVENTS, purge_step=first if first > 1 else None) as writer:
        writer.add_text("recipe", f"```json\n{json.dumps(recipe.to_dict(), indent=1)}\n```", first)

        def add(row: dict[str, float]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["epoch"]))
            writer.flush()

        yield add
