"""Commands that measure, and show what was measured: validate, report, demo."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AcrossHardware, AsJson, Confidence, Devices, Images, MaxDrop, MinSpeedup, SkipCorrupt, Verify
from .show import show, write_report


def validate(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Optimised bundles. Default: the newest in runs/.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare with this bundle, or with an earlier report.json. Default: the source model."),
    ] = None,
    images: Images = None,
    limit: Annotated[int | None, typer.Option(help="Take this many test images, drawn by class.", min=1)] = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    seconds: Annotated[
        float, typer.Option(help="Least time for the latency blocks; three times this at most.", min=0)
    ] = 8.0,
    threads: Annotated[
        int | None, typer.Option(help="Threads for one inference. Default: the cores allowed.", min=1)
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="single_stream, or offline: that and throughput by batch size.")
    ] = "single_stream",
    fps: Annotated[
        float | None, typer.Option(help="Also offer this many images a second; counts the deadlines missed.")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(help="Also run each model this long without a pause: 90s, 10m, 1h.")
    ] = None,
    provider: Annotated[
        str,
        typer.Option(help="ONNX Runtime's: cpu, cuda, tensorrt, tensorrt-rtx. It must leave nothing to the CPU."),
    ] = "cpu",
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Operators that the provider leaves may run on the CPU.")
    ] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Launch an engine's whole run as one CUDA graph.")
    ] = False,
    across_hardware: AcrossHardware = False,
    skip_corrupt: SkipCorrupt = False,
    verify: Verify = None,
    device: Devices = None,
    ort_web: Annotated[
        Path | None, typer.Option(help="With --device browser: folder of onnxruntime-web's files.")
    ] = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, .html, junit.xml, summary.md; default: in runs/.")
    ] = None,
) -> None:
    """Compare original and optimised models on this machine or another: accuracy, latency, a verdict."""
    from ...deploy.bundle import Bundle
    from ..arguments import plan_of
    from ..comparison import read_report
    from ..contract import Contract
    from ..tables import devices_table, validation_table
    from ..validate import validate as validate_bundles
    from ..workspace import RUNS, newest

    plan = plan_of(
        seconds, threads, scenario, fps, sustained, provider=provider, allow_fallback=allow_fallback,
        cuda_graph=cuda_graph,
    )  # fmt: skip
    stored = read_report(baseline) if baseline and baseline.is_file() else None
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format != "torch" and bool(m.lineage), "optimised bundle", "edgekit quantize")
    ]
    folder, devices = out or RUNS / f"{chosen[-1].path.name}.report", device or ["local"]
    result = validate_bundles(
        chosen, baseline=Bundle.open(baseline) if baseline and stored is None else None, stored=stored, images=images,
        limit=limit, contract=Contract(max_drop, min_speedup, confidence), plan=plan, devices=devices,
        skip_corrupt=skip_corrupt, across_hardware=across_hardware, keep=folder, ort_web=ort_web, verify=verify,
    )  # fmt: skip
    write_report(result, folder)
    show(result.report, validation_table if len(devices) == 1 else devices_table, as_json)
    raise typer.Exit(result.exit_code)


def report(
    reports: Annotated[
        list[Path],
        typer.Argument(help="report.json or result.json files; of several, the last is held against each before it."),
    ],
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    across_hardware: AcrossHardware = False,
    join: Annotated[bool, typer.Option("--join", help="Show reports of several devices side by side.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the page of a single report, or of joined ones, here.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a report again, or hold one against earlier ones, without measuring."""
    from ..comparison import compare_reports, read_document, read_report
    from ..contract import Contract
    from ..files import write_junit, write_markdown, write_page
    from ..joined import join_reports
    from ..tables import comparison_table, devices_table, validation_table

    contract = Contract(max_drop, min_speedup, confidence)
    if join:
        document, table = join_reports([read_report(path) for path in reports]), devices_table
    elif len(reports) == 1:
        document = read_document(reports[0], contract if contract != Contract() else None)
        table = devices_table if "devices" in document else validation_table
    else:
        read = [read_report(path) for path in reports]
        document, table = compare_reports(read, contract, across_hardware=across_hardware), comparison_table
    for path, write in ((html, write_page), (junit, write_junit), (markdown, write_markdown)):
        if path:
            write(document, path)
    show(document, table, as_json)
    raise typer.Exit(document["exit_code"])


def demo() -> None:
    """Train a small CNN on embedded digits, export, quantize, validate, and write the report."""
    from ..demo import demo as run_demo
    from ..tables import validation_table
    from ..workspace import RUNS

    quantized, result = run_demo()
    write_report(result, RUNS / f"{quantized.bundle.path.name}.report")
    show(result.report, validation_table, as_json=False)
    raise typer.Exit(result.exit_code)
