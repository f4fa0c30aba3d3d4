"""A forecast as a table for the terminal."""

from collections.abc import Iterator

from rich.console import RenderableType

from ..analysis.forecast import Forecast
from ..analysis.wording import milliseconds
from ..console import styled
from .search import ratio_text
from .terminal import Fitting, stacked, text_table


def forecast_table(forecast: Forecast) -> Iterator[RenderableType]:
    """The result in words, the candidates with their times, and those that were not timed, with the reason."""
    yield styled(forecast["sentence"], "bold")
    table = text_table("model", "speed-up", "time")
    for entry in forecast["candidates"]:
        if (time := entry["time"]) is not None:
            table.add_row(entry["name"], stacked(ratio_text(entry["speedup"])), milliseconds(time["ms"]))
    yield Fitting(table)
    reasons: dict[str, list[str]] = {}
    for entry in forecast["candidates"]:
        if entry["reason"]:
            reasons.setdefault(entry["reason"], []).append(entry["name"])
    for reason, names in reasons.items():
        yield f"{', '.join(names)}: {reason}"
    yield f"in {forecast['seconds']:.0f} s; edgekit optimize makes these files, and proves their speed and accuracy"
