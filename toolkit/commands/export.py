"""edgekit export."""

from pathlib import Path
from typing import Annotated

import typer

from ...export.formats import FORMATS
from .completion import complete_bundles, complete_formats
from .options import MODEL, Out
from .output import report_new_bundle


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="A torch bundle. Default: the newest in runs/.", autocompletion=complete_bundles),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(FORMATS)}; torchscript is deprecated by PyTorch.",
            rich_help_panel=MODEL,
            autocompletion=complete_formats,
        ),
    ] = "onnx",
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Accept any batch size.", rich_help_panel=MODEL)
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set. Default: the lowest sufficient one.", rich_help_panel=MODEL)
    ] = None,
    cross_check: Annotated[
        bool,
        typer.Option(
            "--cross-check", help="Export with both of torch's ONNX exporters and compare them.", rich_help_panel=MODEL
        ),
    ] = False,
    uint8_input: Annotated[
        bool,
        typer.Option("--uint8-input", help="Take uint8 pixels and normalize them in the model.", rich_help_panel=MODEL),
    ] = False,
    out: Out = None,
) -> None:
    """Export a network, and check on real images that it answers as the original does."""
    from ...export.eager import TORCH_FORMATS
    from ...export.export_bundle import Options, export_bundle
    from ..workspace import given_or_newest, new_path

    source = given_or_newest(bundle, lambda m: m.format in TORCH_FORMATS, "torch bundle", "edgekit train")
    path = out or new_path(f"{source.manifest.name}-{format}-fp32")
    exported = export_bundle(source, format, path, Options(dynamic_batch, opset, cross_check, uint8_input))
    parity = exported.manifest.details["parity"]
    report_new_bundle(exported, f"logits within {parity['logits_max_abs']:.2g} of the original at batch 1 and 3")
