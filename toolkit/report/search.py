"""A search for the best model of each device: its page, its tables for the terminal, its files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from rich.console import RenderableType

from ...deploy.files import write_file
from ...deploy.visible import visible_json
from ..analysis.forecast import forecast_line
from ..analysis.search_schema import CandidateEntry, DeviceSearch, Search, SpeedEntry
from ..analysis.wording import megabytes, milliseconds
from ..console import styled
from . import charts
from .charts import Row
from .elements import cards, cell, folded, notes, paragraph, section
from .files import device_slug
from .html import page
from .terminal import VERDICT_COLOURS, Fitting, stacked, text_table

# Rows of a table in the terminal; the page has all.
_MOST_ROWS = 12
SEARCH_FILE, PAGE_FILE = "optimize.json", "optimize.html"


def write_search(search: Search, folder: Path) -> list[Path]:
    """Write optimize.json and optimize.html into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((SEARCH_FILE, visible_json(search)), (PAGE_FILE, render_search(search))):
        write_file(folder / name, content)
    return [folder / SEARCH_FILE, folder / PAGE_FILE]


def search_table(search: Search) -> Iterator[RenderableType]:
    """For each device the choice in the first line, then the candidates; the exit code's reason last."""
    for found in search["devices"]:
        if len(search["devices"]) > 1:
            yield styled(found["name"], "bold")
        yield styled(found["sentence"], "bold")
        table = text_table("model", "speed-up", "time", "points lost", "changed", "size", "memory", "result")
        measured = [entry for entry in found["candidates"] if entry["status"] != "failed"]
        for entry in measured[:_MOST_ROWS]:
            figures = _figures(entry)
            table.add_row(entry["name"], stacked(figures[0]), *figures[1:], entry["status"])
        yield Fitting(table)
        if len(measured) > _MOST_ROWS:
            yield f"{len(measured) - _MOST_ROWS} more candidates are on the page"
        if failures := list(_failures(found)):
            yield f"not measured: {len(failures)}; the page and --json have the reasons"
        yield from _lines(found, found["report"])
    for entry in search["not_made"]:
        yield f"not made: {entry['name']}: {entry['reason']}"
    for failure in search["failed"]:
        yield styled(f"{failure['device']} failed: {failure['error']}", "red")
    if (line := shared_line(search)) is not None:
        yield line
    for found in search["devices"]:
        yield styled(_outcome(found, alone=len(search["devices"]) == 1), VERDICT_COLOURS[found["verdict"]])


def shared_line(search: Search) -> str | None:
    """The single file for all devices, in words."""
    if (shared := search["shared"]) is None:
        return None
    slower = "; ".join(
        f"{shared['candidates'][name]} takes {ratio:.2f}x the best time on {name}"
        for name, ratio in shared["slower"].items()
    )
    return f"of the files raced on all devices, {shared['bundle']} is the best: {slower}"


def _figures(entry: CandidateEntry) -> list[str]:
    """Speed-up, time, loss, changed answers, size and memory, as text."""
    time = milliseconds(entry["time_ms"])
    if entry["images_per_s"] is not None:
        time = f"{entry['images_per_s']:.3g} images/s"
    lost, changed = entry["points_lost"], entry["changed"]
    return [
        ratio_text(entry["speedup"]), time, "-" if lost is None else f"{lost:+.2f}",
        "-" if changed is None else f"{100 * changed:.1f} %", megabytes(entry["size_bytes"]),
        megabytes(entry["peak_rss_bytes"]),
    ]  # fmt: skip


def ratio_text(speedup: SpeedEntry | None) -> str:
    """A ratio with its interval if it has one."""
    if speedup is None:
        return "-"
    if speedup["low"] is None:
        return f"{speedup['ratio']:.2f}x"
    return f"{speedup['ratio']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _failures(found: DeviceSearch) -> Iterator[str]:
    for entry in found["candidates"]:
        if entry["status"] == "failed":
            yield f"{entry['name']}: {entry['detail']}"


def _lines(found: DeviceSearch, report: str | None) -> Iterator[str]:
    """Remarks on a device's table; `report` is the folder of its confirmation, as the reader finds it."""
    if (line := forecast_line(found)) is not None:
        yield line
    if found["headline"] is not None:
        yield f"confirmed on test images: {found['headline']}"
    if found["use"] is not None:
        yield f"to validate it again: {found['use']}"
    if report is not None:
        yield f"report: {report}/report.html"


def _outcome(found: DeviceSearch, *, alone: bool) -> str:
    """The verdict of one device."""
    return f"{found['verdict']}: {found['reason']}" + ("" if alone else f" ({found['name']})")


def render_search(search: Search) -> str:
    """The search as one self-contained HTML page."""
    lead = "; ".join(
        f"{found['name']}: {found['sentence']}" if len(search["devices"]) > 1 else found["sentence"]
        for found in search["devices"]
    )
    verdict = search["verdict"]
    return page(f"EdgeKit: {verdict}: {lead}", _content(search, verdict, lead))


def _content(search: Search, verdict: str, lead: str) -> Iterator[Element]:
    header = Element("header")
    header.append(paragraph(f"search for the best model, by {search['objective']}", "subject"))
    heading = SubElement(header, "h1")
    mark = SubElement(heading, "span", {"class": f"verdict {verdict}"})
    mark.text, mark.tail = verdict, f" {lead}"
    if (line := shared_line(search)) is not None:
        header.append(paragraph(line, "reason"))
    yield header
    for failure in search["failed"]:
        yield paragraph(f"{failure['device']} failed: {failure['error']}", "reason")
    for found in search["devices"]:
        title = "Candidates" if len(search["devices"]) == 1 else f"Candidates on {found['name']}"
        report = found["report"] and device_slug(found["name"])
        lines = [f"{found['verdict']}: {found['reason']}", *_lines(found, report)]
        yield section(title, [*_chart(found), _cards(found), *notes(line[0].upper() + line[1:] for line in lines)])
        if failures := list(_failures(found)):
            yield folded("Candidates that were not measured", notes(failures))
    if search["not_made"]:
        yield folded(
            "Files that were not made", notes(f"{entry['name']}: {entry['reason']}" for entry in search["not_made"])
        )
    yield paragraph(
        "Speed-ups are over the fastest candidate that computes in float32, from the race; a candidate is dropped from "
        "the race once it is certainly slower, so a row without brackets was measured in one process. Points lost and "
        f"changed answers are on {search['images']} selection images. The confirmation, on test images, is in each "
        "device's report.",
        "note",
    )


def _chart(found: DeviceSearch) -> Iterator[Element]:
    rows = []
    for entry in found["candidates"]:
        speedup, time = entry["speedup"], entry["time_ms"]
        if speedup is None or time is None:
            continue
        low, high = (speedup[key] or speedup["ratio"] for key in ("low", "high"))
        text = f"{milliseconds(time)}, {ratio_text(speedup)}"
        name = f"{entry['name']}{' ★' if entry['status'] == 'chosen' else ''}"
        rows.append(Row(name, text, time, time * speedup["ratio"] / high, time * speedup["ratio"] / max(low, 1e-9)))
    if rows:
        yield charts.intervals(rows)


def _cards(found: DeviceSearch) -> Element:
    header = ["model", "speed-up", "forecast", "time", "points lost", "changed", "size", "memory", "result"]
    rows: list[Sequence[Element]] = []
    for entry in (entry for entry in found["candidates"] if entry["status"] != "failed"):
        speedup, *others = _figures(entry)
        value, _, bounds = speedup.partition(" ")
        expected, _, expected_bounds = ratio_text(entry["forecast_speedup"]).partition(" ")
        detail = entry["detail"] if entry["status"] not in ("failed", "slower") else ""
        rows.append(
            [
                cell(entry["name"], "Pareto front" if entry["pareto"] else ""), cell(value, bounds),
                cell(expected, expected_bounds), *map(cell, others), cell(entry["status"], detail),
            ]
        )  # fmt: skip
    return cards(header, rows)
