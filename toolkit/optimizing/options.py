"""The options of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ...deploy.errors import RecipeError
from ...deploy.measuring.plan import Objective
from ...deploy.registry import choose

# Draws the selection images, and orders the blocks of a race.
SEED = 0


@dataclass(frozen=True)
class OptimizeOptions:
    """How to search.

    Attributes:
        devices: "local", or addresses (see deploy.devices.open_device); several are searched at the same time.
        runtimes: names of the runtimes that take part; empty for space.SEARCHED.
        threads: numbers of threads to try; empty for the powers of two up to a device's cores, and all cores.
        objective: see plan.Race.
        size_bytes, memory_bytes: the largest file, and the largest resident memory; None for no limit.
        budget_s: seconds for the whole search. A few candidates are raced, and the choice is confirmed, even if that
            takes longer.
        images: source of all images; None for the bundle's own.
        calibration_images, selection_images: their numbers, drawn by class.
        limit: number of test images; None for all that the budget allows.
        skip_corrupt: leave out images that cannot be decoded.
        command: the arguments as typed, for the report.

    Raises:
        RecipeError: a device or runtime is named twice, the objective is unknown, or a number is not positive.
    """

    devices: Sequence[str] = ("local",)
    runtimes: Sequence[str] = ()
    threads: Sequence[int] = ()
    objective: Objective = "latency"
    size_bytes: int | None = None
    memory_bytes: int | None = None
    budget_s: float = 600.0
    images: str | None = None
    calibration_images: int = 512
    selection_images: int = 500
    limit: int | None = None
    skip_corrupt: bool = False
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        for kind, names in (("device", self.devices), ("runtime", self.runtimes)):
            if len(set(names)) < len(names):
                raise RecipeError(f"a {kind} is named twice", fix=f"name each --{kind} once")
        choose(dict.fromkeys(get_args(Objective)), self.objective, "objective")
        numbers = {
            "threads": min(self.threads, default=1), "size": self.size_bytes, "memory": self.memory_bytes,
            "budget": self.budget_s, "calibration-images": self.calibration_images,
            "selection-images": self.selection_images, "limit": self.limit,
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None and not value > 0:
                raise RecipeError(f"--{name} {value:g} is not positive", fix="leave it out, or pass a larger number")

    @property
    def streams(self) -> bool:
        """Whether batches matter."""
        return self.objective == "throughput"
