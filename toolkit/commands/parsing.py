"""Parse the short forms of the command line: 3x224x224, 0.485,0.456,0.406, 10m."""

import re
from typing import Literal

from ...deploy.engine.build import Options
from ...deploy.errors import RecipeError
from ...deploy.measuring.plan import Plan
from ...deploy.preprocess import Preprocess
from ...deploy.registry import choose
from ...deploy.runtimes.runtime import OptionValue

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def shape_of(text: str) -> tuple[int, int, int]:
    """(channels, height, width) of "3x224x224".

    Raises:
        RecipeError: the text has another form, or the images are neither grey nor RGB.
    """
    sides = _sides(text, "--input")
    if len(sides) != 3:
        raise RecipeError(f"--input {text} is not channels x height x width", fix="e.g. --input 3x224x224 (or 1x28x28)")
    if sides[0] not in (1, 3):
        last = f": --input {sides[2]}x{sides[0]}x{sides[1]}" if sides[2] in (1, 3) else ""
        raise RecipeError(
            f"--input {text} has {sides[0]} channels; EdgeKit takes images of 1 channel (grey) or 3 (RGB)",
            fix=f"channels come first{last or ', e.g. --input 3x224x224 (or 1x28x28)'}",
        )
    return sides[0], sides[1], sides[2]


def seconds_of(text: str, option: str) -> float:
    """Seconds of "90s", "10m", "1h" or plain seconds.

    Raises:
        RecipeError: the text has another form.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    try:
        seconds = float(number) * _SECONDS[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"{option} {text} is not a time", fix=f"e.g. {option} 90s, {option} 10m, {option} 1h")
    return seconds


def bytes_of(text: str, option: str) -> int:
    """Bytes of "4MB", "512kB", "1GB" (powers of 1000, as sizes are shown) or plain bytes.

    Raises:
        RecipeError: the text has another form.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?(|B|kB|KB|MB|GB)", text.strip())
    size = round(float(match[1]) * _BYTES[match[2].upper()]) if match else 0
    if size < 1:
        raise RecipeError(f"{option} {text} is not a size", fix=f"e.g. {option} 4MB, {option} 512kB")
    return size


def plan_of(
    *, seconds: float, threads: int | None, scenario: str, fps: float | None, sustained: str | None,
    **options: OptionValue | None,
) -> Plan:  # fmt: skip
    """Make a plan from the measuring options.

    Args:
        options: of the runtimes that have them; None and False mean that an option was not passed.

    Raises:
        RecipeError: an unknown scenario, or a value out of range.
    """
    choose({"single_stream": None, "offline": None}, scenario, "scenario")
    return Plan(
        seconds=seconds, threads=threads, offline=scenario == "offline", fps=fps,
        sustained_s=seconds_of(sustained, "--sustained") if sustained else None,
        options={name: value for name, value in options.items() if value is not None and value is not False},
    )  # fmt: skip


def build_options(
    batch: str | None, workspace: int | None, opt_level: int | None, compute_capability: str | None, **flags: bool
) -> Options:
    """Make build options from those of the command line.

    Raises:
        RecipeError: an option cannot be parsed, or is out of range.
    """
    sizes: tuple[int, int, int] | None = None
    if batch is not None:
        parts = batch.split(",")
        if len(parts) not in (1, 3) or not all(part.strip().isdigit() for part in parts):
            raise RecipeError(
                f"--batch {batch} is not one or three numbers", fix="smallest, usual, largest: --batch 1,8,32"
            )
        sizes = int(parts[0]), int(parts[len(parts) // 2]), int(parts[-1])
    capabilities = tuple(part.strip() for part in compute_capability.split(",")) if compute_capability else ()
    return Options(
        batch=sizes, workspace_mb=workspace, optimization_level=opt_level, compute_capabilities=capabilities, **flags
    )


def preprocess_of(
    shape: tuple[int, int, int], resize: str | None, crop: int | None, mean: str | None, std: str | None,
    interpolation: str, dtype: Literal["float32", "uint8"] = "float32",
) -> Preprocess:  # fmt: skip
    """Make the preprocessing from the options of import. Mean and std are required, because no file records them.

    A network that takes uint8 pixels normalizes them itself, so it has no mean and std.

    Raises:
        RecipeError: an option is missing or does not fit the input.
    """
    channels, height, width = shape
    if dtype == "uint8":
        if (mean, std) != (None, None):
            raise RecipeError(
                "the model takes uint8 pixels, 0 to 255, and normalizes them itself", fix="leave out --mean and --std"
            )
        mean, std = "0", "1"
    if mean is None or std is None:
        raise RecipeError(
            "the model's mean and std are unknown",
            fix="pass what it was trained with: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 (0 and 1 for none)",
        )
    if crop and (crop, crop) != (height, width):
        raise RecipeError(
            f"--crop {crop} makes {crop}x{crop} images, but --input is {height}x{width}", fix="make them agree"
        )
    sides = _sides(resize, "--resize") if resize else [min(height, width)]
    if len(sides) > 2:
        raise RecipeError(f"--resize {resize} has more than two sides", fix="e.g. --resize 256, or --resize 224x224")
    return Preprocess(
        mode="RGB" if channels == 3 else "L",
        resize=(sides[0], sides[1]) if len(sides) == 2 else sides[0],
        crop=(height, width),
        interpolation=interpolation,
        mean=_values(mean, "--mean", channels),
        std=_values(std, "--std", channels),
        dtype=dtype,
    )


def _sides(text: str, option: str) -> list[int]:
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = [0]
    if min(sides) < 1:
        raise RecipeError(f"{option} {text} is not a size", fix=f"pixels joined by x, e.g. {option} 3x224x224")
    return sides


def _values(text: str, option: str, channels: int) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise RecipeError(f"{option} {text} is not a list of numbers", fix=f"e.g. {option} 0.485,0.456,0.406") from None
    return values * channels if len(values) == 1 else values
