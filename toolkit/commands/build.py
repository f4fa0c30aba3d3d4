"""edgekit build."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.devices.device import addresses, open_device
from ...deploy.errors import EdgeKitError
from .completion import complete_bundles, complete_devices
from .options import DEVICE, MODEL, OUTPUT, Out
from .output import report_new_bundle, show


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="An ONNX bundle. Default: the newest in runs/.", autocompletion=complete_bundles),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, int8, or auto: all three, from an fp32 bundle. Default: the bundle's own.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help=f"The machine that will run the engine: {addresses('build')}.",
            rich_help_panel=DEVICE,
            autocompletion=complete_devices,
        ),
    ] = "local",
    batch: Annotated[
        str | None,
        typer.Option(
            help="For a model with a free batch size: the smallest, usual and largest, e.g. 1,8,32.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Maximum scratch memory per layer, in MiB.", rich_help_panel=MODEL)
    ] = None,
    opt_level: Annotated[
        int | None,
        typer.Option(help="0 (fast to build) to 5 (fast to run). TensorRT's default is 3.", rich_help_panel=MODEL),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Let newer versions of TensorRT load the engine.", rich_help_panel=MODEL
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible", help="Let the engine run on any GPU from Ampere on.", rich_help_panel=MODEL
        ),
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Allow the engine's weights to be replaced later.", rich_help_panel=MODEL)
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            help="Store no weights; they are read from the ONNX file at load time.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    compute_capability: Annotated[
        str | None,
        typer.Option(help="Build for GPUs of other machines, e.g. 8.6,8.9 (TensorRT for RTX).", rich_help_panel=DEVICE),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Build nothing: report problems in the graph and print equivalent trtexec command lines.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="Sign the engines with this ed25519 private key.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --plan: print the result as JSON.", rich_help_panel=OUTPUT)
    ] = False,
    out: Out = None,
) -> None:
    """Build a TensorRT engine on the device that will run it."""
    from ..building.build import build, plan_build
    from ..building.plan_table import build_plan_table
    from ..console import progress_bar, say
    from ..workspace import given_or_newest
    from .parsing import build_options

    accepted = {"auto": ("fp32",)}.get(precision or "", ("fp32", precision) if precision else ("fp32", "fp16", "int8"))
    source = given_or_newest(
        bundle, lambda m: m.format == "onnx" and m.precision in accepted, "ONNX bundle", "edgekit export --format onnx"
    )
    options = build_options(
        batch, workspace, opt_level, compute_capability, version_compatible=version_compatible,
        hardware_compatible=hardware_compatible, refit=refit, strip_weights=strip_weights,
    )  # fmt: skip
    if plan:
        build_plan = plan_build(source, options)
        show(build_plan, build_plan_table, as_json)
        raise typer.Exit(1 if any(finding["severity"] == "error" for finding in build_plan.findings) else 0)
    if as_json:
        raise EdgeKitError(
            "--json requires --plan", fix="leave out --json; the folders of the engines are printed one per line"
        )
    with progress_bar() as bar:
        engines = build(source, precision=precision, options=options, device=device, sign=sign, out=out, progress=bar)
    for engine in engines:
        report_new_bundle(engine)
    option = "" if open_device(device).here else f" --device {device}"
    say(f"next: edgekit validate {' '.join(str(engine.path) for engine in engines)}{option}")
