"""Printing the results of commands."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # --help loads neither
    from collections.abc import Callable, Iterable

    from rich.console import RenderableType

    from ...deploy.bundle import Bundle
    from ..validation.validation import Validation

T = TypeVar("T")


def report_new_bundle(bundle: "Bundle", remark: str = "") -> None:
    """Report a new bundle: its folder on standard output, the details on standard error."""
    from ..console import say, stdout

    manifest = bundle.manifest
    say(f"{manifest.format} {manifest.precision}, {bundle.size_bytes / 1e6:.2f} MB" + (f", {remark}" if remark else ""))
    stdout.print(str(bundle.path))


def write_report(result: "Validation", folder: Path) -> None:
    """Write the report's files and log their paths."""
    from ..console import say
    from ..report.files import write_reports

    for path in write_reports(result.report, result.images, folder):
        say(f"wrote {path}")


def show(result: T, table: "Callable[[T], Iterable[RenderableType]]", as_json: bool) -> None:
    """Print a result as JSON for programs, or as a table for people."""
    from ...deploy.visible import visible_json
    from ..console import print_parts

    if as_json:
        print(visible_json(result))
    else:
        print_parts(table(result))
