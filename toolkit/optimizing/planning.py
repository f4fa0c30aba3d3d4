"""What a search would do: its candidates, and about how long they take."""

import time
from collections.abc import Iterator, Mapping
from typing import TypedDict

from rich.console import RenderableType
from rich.table import Table

from ...deploy.bundle import Bundle
from ...deploy.session import open_session
from ..quantize.options import PRECISIONS
from .optimize import plan_search
from .options import OptimizeOptions
from .space import SOURCE, Variant

# Seconds to start, load and warm up a process, and to time its blocks; processes per candidate of a race, on average.
_PROCESS_S, _RACE_PROCESSES = 2.5, 2.0
# The confirmation: candidates and processes.
_CONFIRMED, _CONFIRM_PROCESSES = 3, 7
# Observing the ranges of an image, and judging a selection image, in units of a float inference.
_OBSERVED, _JUDGED = 4.0, 2.5
# Milliseconds to decode and preprocess an image.
_IMAGE_MS = 3.0


class PlannedFile(TypedDict):
    """A file of a search; `seconds` to make it, about."""

    name: str
    seconds: float


class PlannedSearch(TypedDict):
    """The candidates of a search.

    Attributes:
        source: path of the bundle.
        files: in the order in which they are made.
        candidates: device -> names of its candidates, the reference first.
        making_s, racing_s, confirming_s: expected seconds on a device as fast as this machine.
    """

    source: str
    files: list[PlannedFile]
    candidates: Mapping[str, list[str]]
    making_s: float
    racing_s: float
    confirming_s: float


def plan_to_json(bundle: Bundle, options: OptimizeOptions) -> PlannedSearch:
    """List the candidates, and estimate the time from a few inferences here.

    Raises:
        DeviceError: a device cannot be reached or searched.
    """
    planned = plan_search(options)
    seconds = _inference_s(bundle)
    files: list[PlannedFile] = [
        {"name": variant.name, "seconds": round(_making_s(variant, seconds, options), 1)}
        for variant in planned.variants
    ]
    candidates = {name: [entry.name for entry in own] for name, own in planned.contenders.items()}
    most = max(len(own) for own in candidates.values())
    judged = len(planned.variants) * 1.5 * options.selection_images * (seconds + _IMAGE_MS / 1e3)
    return {
        "source": str(bundle.path), "files": files, "candidates": candidates,
        "making_s": round(sum(entry["seconds"] for entry in files), 1),
        "racing_s": round(most * _RACE_PROCESSES * _PROCESS_S + judged, 1),
        "confirming_s": round(
            _CONFIRMED * (_CONFIRM_PROCESSES * _PROCESS_S + (options.limit or 1000) * (seconds + _IMAGE_MS / 1e3)), 1
        ),
    }  # fmt: skip


def _inference_s(bundle: Bundle) -> float:
    """Seconds of a float inference here, with one thread."""
    tensor = bundle.golden().tensors[: bundle.manifest.input.batch or 1]
    session = open_session(bundle, threads=1)
    session.run(tensor)
    start = time.perf_counter()
    for _ in range(3):
        session.run(tensor)
    return (time.perf_counter() - start) / 3 / len(tensor)


def _making_s(variant: Variant, inference_s: float, options: OptimizeOptions) -> float:
    if variant == SOURCE:
        return 0.0
    image_s = _IMAGE_MS / 1e3
    judging = options.selection_images * (_JUDGED * inference_s + image_s)
    if variant.precision == "int8":
        return options.calibration_images * (_OBSERVED * inference_s + image_s) + judging
    return judging if variant.precision in PRECISIONS else 30.0


def plan_table(plan: PlannedSearch) -> Iterator[RenderableType]:
    """The files with their expected times, and the candidates of each device."""
    table = Table()
    for column in ("file", "to make"):
        table.add_column(column)
    for entry in plan["files"]:
        table.add_row(entry["name"], f"about {entry['seconds']:.0f} s" if entry["seconds"] else "the source")
    yield table
    for device, names in plan["candidates"].items():
        table = Table()
        table.add_column(f"{len(names)} candidates on {device}")
        for name in names:
            table.add_row(name)
        yield table
    total = plan["making_s"] + plan["racing_s"] + plan["confirming_s"]
    yield (
        f"about {total / 60:.0f} min on a device as fast as this machine: files {plan['making_s']:.0f} s, race "
        f"{plan['racing_s']:.0f} s, confirmation {plan['confirming_s']:.0f} s; files that exist are not made again"
    )
