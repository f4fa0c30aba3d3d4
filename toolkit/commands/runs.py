"""edgekit runs."""

from .options import AsJson
from .output import show


def command(as_json: AsJson = False) -> None:
    """List the bundles in runs/ with their size, date, last verdict and source."""
    from ..report.terminal import runs_table
    from ..runs import list_runs

    runs = [run.to_json() for run in list_runs()]
    show(runs, runs_table, as_json)
