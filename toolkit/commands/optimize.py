"""edgekit optimize."""

import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from ...deploy.measuring.plan import Objective
from .completion import complete_bundles
from .options import (
    CONTRACT,
    DEVICE,
    IMAGES,
    MEASURING,
    OUTPUT,
    AsJson,
    Devices,
    Images,
    MaxDrop,
    MinSpeedup,
    SkipCorrupt,
)


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="The fp32 ONNX bundle, or the one that train or import made. Default: the newest in runs/.",
            autocompletion=complete_bundles,
        ),
    ] = None,
    device: Devices = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help="Search only this runtime. Repeatable. Default: each that the device has, except torch and tensorrt.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads",
            help="Number of threads to try. Repeatable. Default: 1, 2, 4, … and all cores.",
            min=1,
            rich_help_panel=MEASURING,
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help=f"What the best model has most of: {', '.join(get_args(Objective))}.", rich_help_panel=CONTRACT
        ),
    ] = "latency",
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    size: Annotated[
        str | None, typer.Option(help="The largest file, e.g. 4MB.", metavar="SIZE", rich_help_panel=CONTRACT)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="The largest resident memory, e.g. 64MB.", metavar="SIZE", rich_help_panel=CONTRACT),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Time for the whole search, e.g. 90s, 10m, 1h.", rich_help_panel=MEASURING)
    ] = "10m",
    images: Images = None,
    calibration_images: Annotated[
        int, typer.Option(help="Number of calibration images for int8.", min=1, rich_help_panel=IMAGES)
    ] = 512,
    selection_images: Annotated[
        int,
        typer.Option(
            help="Number of images from the validation part that judge all candidates.", min=1, rich_help_panel=IMAGES
        ),
    ] = 500,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Number of test images for the confirmation. Default: all that the budget allows.",
            min=1,
            rich_help_panel=IMAGES,
        ),
    ] = None,
    skip_corrupt: SkipCorrupt = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="List the candidates and the expected time, and measure nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for optimize.json, optimize.html and the reports. Default: in runs/.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Find the runtime, precision and threads that are fastest on a device and still right, and prove it there."""
    from ..analysis.contract import Contract
    from ..console import progress_bars, say
    from ..optimizing.optimize import optimize
    from ..optimizing.options import OptimizeOptions
    from ..optimizing.planning import plan_table, plan_to_json
    from ..optimizing.variants import is_source
    from ..report.search import PAGE_FILE, search_table
    from ..workspace import given_or_newest
    from .output import show
    from .parsing import bytes_of, seconds_of

    source = given_or_newest(bundle, is_source, "original model (fp32 ONNX, or from train or import)", "edgekit train")
    options = OptimizeOptions(
        devices=device or ["local"], runtimes=runtime or (), threads=threads or (),
        objective=cast("Objective", objective),
        size_bytes=bytes_of(size, "--size") if size else None,
        memory_bytes=bytes_of(memory, "--memory") if memory else None,
        budget_s=seconds_of(budget, "--budget"), images=images, calibration_images=calibration_images,
        selection_images=selection_images, limit=limit, skip_corrupt=skip_corrupt, command=sys.argv[1:],
    )  # fmt: skip
    contract = Contract(max_drop, min_speedup)
    if plan:
        show(plan_to_json(source, options), plan_table, as_json)
        return
    with progress_bars([f"optimize on {name}" for name in options.devices]) as bars:
        result = optimize(
            source, options, contract=contract, folder=out,
            progress=dict(zip(options.devices, bars, strict=True)),
        )  # fmt: skip
    say(f"wrote {result.folder / PAGE_FILE}")
    show(result.search, search_table, as_json)
    raise typer.Exit(result.exit_code)
