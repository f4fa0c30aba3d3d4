"""edgekit pack."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .completion import complete_bundles
from .options import (
    IMAGES,
    MODEL,
    OUTPUT,
    AllowFallback,
    Confidence,
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
)


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Optimised bundles (default: the newest in runs/); with --verify, a packed file.",
            autocompletion=complete_bundles,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output file; with --verify, a folder for the bundles in the packed file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Compare with this bundle. Default: the fp32 ONNX bundle.",
            rich_help_panel=MODEL,
            autocompletion=complete_bundles,
        ),
    ] = None,
    images: Images = None,
    limit: Annotated[
        int, typer.Option(help="Number of test images to include, drawn by class.", min=1, rich_help_panel=IMAGES)
    ] = 200,
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
    sign: Annotated[
        Path | None, typer.Option(help="Sign the packed file with this ed25519 private key.", rich_help_panel=OUTPUT)
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Check that a packed file is signed by the owner of this public key.", rich_help_panel=MODEL),
    ] = None,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    """Pack a model into one file: `python3 FILE` validates it on a board and writes result.json."""
    from ...deploy.bundle import Bundle
    from ..analysis.contract import Contract
    from ..console import say, stdout
    from ..packing.pack import PackOptions, pack, unpack, verify_packed
    from ..workspace import newest
    from .parsing import plan_of

    if verify:
        if sign or len(bundles or []) != 1:
            raise EdgeKitError(
                "--verify takes one packed file, and no --sign", fix="edgekit pack --verify key.pub model.pyz"
            )
        packed = verify_packed((bundles or [])[0], verify)
        say(f"signed by the owner of {verify}, and unchanged")
        for path in unpack(packed, out) if out else []:
            stdout.print(str(path))
        return
    chosen = [Bundle.open(path) for path in bundles or []] or [
        newest(lambda m: m.format == "onnx" and bool(m.lineage), "ONNX bundle", "edgekit quantize")
    ]
    plan = plan_of(
        seconds=seconds, threads=threads, scenario=scenario, fps=fps, sustained=sustained, provider=provider,
        allow_fallback=allow_fallback,
    )  # fmt: skip
    path = pack(
        chosen, PackOptions(runtimes=runtime or (), sign=sign, skip_corrupt=skip_corrupt), out=out,
        baseline=Bundle.open(baseline) if baseline else None, images=images, limit=limit,
        contract=Contract(max_drop, min_speedup, confidence), plan=plan,
    )  # fmt: skip
    say(f"{path.stat().st_size / 1e6:.2f} MB; on the board: python3 {path.name}, then here: edgekit report result.json")
    stdout.print(str(path))
