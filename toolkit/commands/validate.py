"""edgekit validate."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AcrossHardware, AsJson, Confidence, Devices, Images, MaxDrop, MinSpeedup, SkipCorrupt, Verify
from .output import show, write_report


def command(
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
    from ..analysis.compare import read_report
    from ..analysis.contract import Contract
    from ..console import progress_bars
    from ..report.terminal import devices_table, validation_table
    from ..validation.validate import validate
    from ..workspace import RUNS, newest
    from .parsing import plan_of

    plan = plan_of(
        seconds, threads, scenario, fps, sustained, provider=provider, allow_fallback=allow_fallback,
        cuda_graph=cuda_graph,
    )  # fmt: skip
    stored = read_report(baseline) if baseline and baseline.is_file() else None
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format != "torch" and bool(m.lineage), "optimised bundle", "edgekit quantize")
    ]
    folder, devices = out or RUNS / f"{chosen[-1].path.name}.report", device or ["local"]
    with progress_bars([f"validate on {name}" for name in devices]) as bars:
        result = validate(
            chosen, baseline=Bundle.open(baseline) if baseline and stored is None else None, stored=stored,
            images=images, limit=limit, contract=Contract(max_drop, min_speedup, confidence), plan=plan,
            devices=devices, skip_corrupt=skip_corrupt, across_hardware=across_hardware, keep=folder, ort_web=ort_web,
            verify=verify, progress=dict(zip(devices, bars, strict=True)),
        )  # fmt: skip
    write_report(result, folder)
    show(result.report, validation_table if len(devices) == 1 else devices_table, as_json)
    raise typer.Exit(result.exit_code)
