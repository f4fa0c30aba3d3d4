"""How to quantize."""

from dataclasses import dataclass

from ...deploy.errors import RecipeError
from .methods import AUTO

# int8 weights and activations; float16 ones; int8 weights for float32 arithmetic.
PRECISIONS = ("int8", "fp16", "int8-weights")
# Draws the calibration and selection images.
SEED = 0


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        precision: one of PRECISIONS.
        target: a key of TARGETS; None for this machine.
        calibration: the method that sets the ranges of activations: a key of METHODS, or AUTO.
        calibration_images: number of calibration images, drawn by class from the training part.
        allow_few: allow fewer than 8 calibration images.
        selection_images: judge on at most this many selection images, drawn by class; None for all.
        skip_corrupt: leave out images that cannot be decoded.
        memory_limit: resident memory in bytes that calibration keeps to (see memory.py); None for no limit.
        float_layers: if the contract is not fulfilled, search for layers to keep float.
        budget_s: seconds for this search, whose last trial may end later; None for no limit.
        sensitivity: record where the noise comes from, even if there is no search.

    Raises:
        RecipeError: the budget is not positive.
    """

    precision: str = "int8"
    target: str | None = None
    calibration: str = AUTO
    calibration_images: int = 512
    allow_few: bool = False
    selection_images: int | None = None
    skip_corrupt: bool = False
    memory_limit: int | None = None
    float_layers: bool = True
    budget_s: float | None = None
    sensitivity: bool = False

    def __post_init__(self) -> None:
        if self.budget_s is not None and not self.budget_s > 0:
            raise RecipeError(f"--budget {self.budget_s:g} is not positive", fix="leave it out, or e.g. --budget 10m")
