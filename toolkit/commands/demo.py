"""edgekit demo."""

import typer

from .output import show, write_report


def command() -> None:
    """Train a small CNN on the included digits, export, quantize and validate it, and write the report."""
    from ...export.export_bundle import export_bundle
    from ..console import progress_bar, say
    from ..quantize.quantize import quantize
    from ..report.terminal import document_table
    from ..training.recipe import Recipe
    from ..training.train import train
    from ..validation.validate import validate
    from ..workspace import RUNS, new_path

    say("1/4 train")
    with progress_bar("train", announced=False) as bar:
        trained = train(Recipe.load("digits"), progress=bar)
    say("2/4 export to ONNX")
    exported = export_bundle(trained, "onnx", new_path("digits-onnx-fp32"))
    say("3/4 quantize to int8")
    with progress_bar("quantize") as bar:
        quantized = quantize(exported, progress=bar)
    for sentence in quantized.sentences:
        say(sentence)
    say("4/4 validate on this machine")
    with progress_bar("validate on local") as bar:
        result = validate([quantized.bundle], progress=bar)
    write_report(result, RUNS / f"{quantized.bundle.path.name}.report")
    show(result.report, document_table, as_json=False)
    raise typer.Exit(result.exit_code)
