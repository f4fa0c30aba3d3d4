"""How to quantize."""

from dataclasses import dataclass

from .methods import AUTO

# Draws the calibration and selection images.
SEED = 0


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        precision: int8 or fp16.
        target: a key of TARGETS; None for this machine.
        calibration: the method that sets the ranges of activations: a key of METHODS, or AUTO.
        calibration_images: number of calibration images, drawn by class from the training part.
        allow_few: allow fewer than 8 calibration images.
        selection_images: judge on at most this many selection images, drawn by class; None for all.
        skip_corrupt: leave out images that cannot be decoded.
        float_layers: if the contract is not fulfilled, search for layers to keep float.
        memory_limit: resident memory in bytes that calibration keeps to (see memory.py); None for no limit.
    """

    precision: str = "int8"
    target: str | None = None
    calibration: str = AUTO
    calibration_images: int = 512
    allow_few: bool = False
    selection_images: int | None = None
    skip_corrupt: bool = False
    float_layers: bool = True
    memory_limit: int | None = None
