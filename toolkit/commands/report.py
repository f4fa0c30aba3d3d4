"""edgekit report."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.errors import EdgeKitError
from .options import OUTPUT, AcrossHardware, AsJson, Confidence, MaxDrop, MinSpeedup
from .output import show


def command(
    reports: Annotated[
        list[Path] | None,
        typer.Argument(
            help="report.json or result.json files; with several, the last is compared with each earlier one."
        ),
    ] = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    confidence: Confidence = 0.95,
    across_hardware: AcrossHardware = False,
    join: Annotated[
        bool, typer.Option("--join", help="Show reports of several devices side by side.", rich_help_panel=OUTPUT)
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as an HTML page.", rich_help_panel=OUTPUT)] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdict as JUnit XML.", rich_help_panel=OUTPUT)] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a Markdown summary for a pull request.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: AsJson = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of report.json.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show a report, or compare it with earlier ones, without measuring."""
    if schema:
        from ...deploy.visible import visible_json
        from ..analysis.json_schema import report_schema

        if reports:
            raise EdgeKitError("--schema takes no report", fix="leave out the reports or --schema")
        print(visible_json(report_schema()))
        return
    if not reports:
        raise EdgeKitError("no report given", fix="edgekit report runs/….report/report.json")
    from ..analysis.compare import compare_reports, read_document, read_report
    from ..analysis.contract import Contract
    from ..analysis.join import join_reports
    from ..report.files import write_junit, write_markdown, write_page
    from ..report.terminal import document_table

    contract = Contract(max_drop, min_speedup, confidence)
    if join:
        document = join_reports([read_report(path) for path in reports])
    elif len(reports) == 1:
        document = read_document(reports[0], contract if contract != Contract() else None)
    else:
        read = [read_report(path) for path in reports]
        document = compare_reports(read, contract, across_hardware=across_hardware)
    for path, write in ((html, write_page), (junit, write_junit), (markdown, write_markdown)):
        if path:
            write(document, path)
    show(document, document_table, as_json)
    raise typer.Exit(document["exit_code"])
