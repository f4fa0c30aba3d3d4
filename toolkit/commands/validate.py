"""edgekit validate."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ...deploy.errors import EdgeKitError
from .completion import complete_bundles
from .options import (
    DEVICE,
    IMAGES,
    MEASURING,
    MODEL,
    OUTPUT,
    AcrossHardware,
    AllowFallback,
    AsJson,
    Confidence,
    Devices,
    Fps,
    Images,
    MaxDrop,
    MinSpeedup,
    Provider,
    Runtimes,
    Scenario,
    Seconds,
    SkipCorrupt,
    Sustained,
    Threads,
    Verify,
)
from .output import show, write_report

# Options that may accompany --reproduce; all others come from the report.
_WITH_REPRODUCE = {"reproduce", "out", "as_json", "ort_web", "verify", "across_hardware"}


def command(
    ctx: typer.Context,
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Optimised bundles. Default: the newest in runs/.", autocompletion=complete_bundles),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Compare with this bundle, or with an earlier report.json. Default: the source model.",
            rich_help_panel=MODEL,
            autocompletion=complete_bundles,
        ),
    ] = None,
    images: Images = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Use at most this many test images, drawn by class.", min=1, rich_help_panel=IMAGES),
    ] = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    seconds: Seconds = 8.0,
    threads: Threads = None,
    scenario: Scenario = "single_stream",
    fps: Fps = None,
    sustained: Sustained = None,
    runtime: Runtimes = None,
    provider: Provider = None,
    allow_fallback: AllowFallback = False,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph", help="Launch each inference of an engine as one CUDA graph.", rich_help_panel=MEASURING
        ),
    ] = False,
    across_hardware: AcrossHardware = False,
    skip_corrupt: SkipCorrupt = False,
    verify: Verify = None,
    device: Devices = None,
    ort_web: Annotated[
        Path | None,
        typer.Option(help="With --device browser: folder with the files of onnxruntime-web.", rich_help_panel=DEVICE),
    ] = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(
            help="Repeat the validation of this report.json, and compare the results.", rich_help_panel=MEASURING
        ),
    ] = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.json, report.html, junit.xml and summary.md. Default: in runs/.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Compare original and optimised models on a device: accuracy, latency and a verdict."""
    from ...deploy.bundle import Bundle
    from ..analysis.compare import read_report
    from ..analysis.contract import Contract
    from ..console import progress_bars
    from ..report.files import check_folder
    from ..report.terminal import document_table
    from ..validation.validate import ValidateOptions, validate
    from ..workspace import RUNS, newest
    from .parsing import plan_of

    if reproduce is not None:
        _reproduce(ctx, reproduce, out, ort_web, verify, as_json=as_json, across_hardware=across_hardware)
    plan = plan_of(
        seconds=seconds, threads=threads, scenario=scenario, fps=fps, sustained=sustained, provider=provider,
        allow_fallback=allow_fallback, cuda_graph=cuda_graph,
    )  # fmt: skip
    is_report = baseline is not None and (baseline.is_file() or baseline.suffix == ".json")
    compared = baseline and (read_report(baseline) if is_report else Bundle.open(baseline))
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format != "torch" and bool(m.lineage), "optimised bundle", "edgekit quantize")
    ]
    folder, devices = out or RUNS / f"{chosen[-1].path.name}.report", device or ["local"]
    check_folder(folder)
    options = ValidateOptions(
        devices=devices, runtimes=runtime or (), skip_corrupt=skip_corrupt, across_hardware=across_hardware,
        verify=verify, keep=folder, ort_web=ort_web, command=sys.argv[1:],
    )  # fmt: skip
    with progress_bars([f"validate on {name}" for name in devices]) as bars:
        result = validate(
            chosen, options, baseline=compared, images=images, limit=limit,
            contract=Contract(max_drop, min_speedup, confidence), plan=plan,
            progress=dict(zip(devices, bars, strict=True)),
        )  # fmt: skip
    write_report(result, folder)
    show(result.report, document_table, as_json)
    raise typer.Exit(result.exit_code)


def _reproduce(
    ctx: typer.Context, path: Path, out: Path | None, ort_web: Path | None, verify: Path | None,
    *, as_json: bool, across_hardware: bool,
) -> NoReturn:  # fmt: skip
    """Repeat a report's validation, and print today's figures next to the report's."""
    from ..analysis.compare import compare_reports, read_report
    from ..analysis.contract import Contract
    from ..console import progress_bars
    from ..report.files import check_folder
    from ..report.terminal import comparison_table
    from ..validation.reproduce import recorded, warn_of_versions
    from ..validation.validate import ValidateOptions, validate

    typed = [name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    if refused := sorted({*typed} - _WITH_REPRODUCE):
        option = "BUNDLES" if refused[0] == "bundles" else f"--{refused[0].replace('_', '-')}"
        raise EdgeKitError(f"--reproduce takes {option} from the report", fix=f"leave out {option}")
    again = recorded(path, across_hardware=across_hardware)
    provenance, device = again.provenance, again.report["device"]["name"]
    folder = out or path.parent / "reproduced"
    check_folder(folder)
    options = ValidateOptions(
        devices=[device], runtimes=provenance.get("runtimes", ()), skip_corrupt=provenance["skip_corrupt"],
        verify=verify, keep=folder, ort_web=ort_web, command=sys.argv[1:], reproduces=provenance,
    )  # fmt: skip
    with progress_bars([f"validate on {device}"]) as bars:
        result = validate(
            again.bundles, options, baseline=again.baseline, images=provenance["images"], limit=provenance["limit"],
            contract=again.contract, plan=again.plan, progress=bars[0],
        )  # fmt: skip
    write_report(result, folder)
    now = read_report(folder / "report.json")
    warn_of_versions(again.report, now)
    confidence = Contract(confidence=again.contract.confidence)
    comparison = compare_reports([again.report, now], confidence, across_hardware=True)
    show(comparison, comparison_table, as_json)
    raise typer.Exit(comparison["exit_code"])
