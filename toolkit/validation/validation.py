"""The result of a validation, for Python code and notebooks."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...deploy.errors import MissingPackageError
from ...deploy.images import ImageSet
from ..analysis.compare import read_document
from ..analysis.contract import Contract
from ..analysis.report_schema import JoinedReport, Report
from ..report.files import write_reports
from ..report.html import render

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports, reportMissingModuleSource] # not a dependency

# Height of the page in a notebook's cell, in pixels: the verdict, the first picture and the table.
_HEIGHT = 900


@dataclass(frozen=True)
class Validation:
    """What validate measured and concluded.

    Attributes:
        report: the content of report.json; for several devices, that of analysis.join.join_reports.
        images: the test images, for the report's pictures; None if there are none.
    """

    report: Report | JoinedReport
    images: ImageSet | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 if the contract is not met, 4 if it is not proved, 1 if a device returned no report."""
        return self.report["exit_code"]

    def show(self) -> None:
        """Print the verdict and the table of models to standard output."""
        from ..console import print_parts
        from ..report.terminal import document_table

        print_parts(document_table(self.report))

    def write(self, folder: Path | str) -> list[Path]:
        """Write report.json, report.html, junit.xml and summary.md into `folder`; returns their paths."""
        return write_reports(self.report, self.images, Path(folder))

    def to_dataframe(self) -> "pandas.DataFrame":
        """A pandas DataFrame with a row per model; columns are numbers or strings, nested ones like "drop.points".

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        except ModuleNotFoundError as error:
            raise MissingPackageError("the package pandas is not installed", fix="pip install pandas") from error
        return pandas.DataFrame.from_records([dict(row) for row in self._rows()])

    def _rows(self) -> Iterator[dict[str, object]]:
        document = self.report
        for report in document["devices"] if "devices" in document else [document]:  # noqa: SIM401 # typed
            for model in report["models"]:
                yield {"device": report["device"]["name"], **dict(_scalars(model))}

    def _repr_html_(self) -> str:
        """The report's page in an iframe, so that its styles and names do not affect the notebook."""
        page = html.escape(render(self.report, self.images), quote=True)
        return (
            f'<iframe sandbox title="EdgeKit report" srcdoc="{page}" '
            f'style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'
        )


def read_report(path: Path | str, contract: Contract | None = None) -> Validation:
    """Read a report.json, or make the report of a result.json.

    Args:
        contract: judge a result.json by this contract instead of its own; a report.json already contains a verdict.

    Raises:
        EdgeKitError: the file is neither, or is damaged.
    """
    return Validation(read_document(Path(path), contract))


def _scalars(entry: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The numbers and strings of a document's entry and of the mappings in it; lists are left out."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | int | float):
            yield f"{prefix}{name}", value
