"""edgekit demo."""

import typer

from .output import show, write_report


def command() -> None:
    """Train a small CNN on embedded digits, export, quantize, validate, and write the report."""
    from ..demo import demo
    from ..report.terminal import validation_table
    from ..workspace import RUNS

    quantized, result = demo()
    write_report(result, RUNS / f"{quantized.bundle.path.name}.report")
    show(result.report, validation_table, as_json=False)
    raise typer.Exit(result.exit_code)
