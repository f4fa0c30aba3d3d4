"""The report's charts, each drawn for a wide page and for a phone."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ..analysis.model_schema import Model
from ..analysis.recommend import pareto_front
from ..analysis.report_schema import Comparison, JoinedReport, Report
from ..analysis.scenario_schema import Milli, SustainedEntry
from ..analysis.sentence import short_names
from ..analysis.wording import milliseconds, model_names
from . import svg
from .svg import COLOURS, FONT, Axis, Box, Point

WIDE, NARROW = 880, 350

# Most points in a scatter chart, and most rows in a bar chart; the table lists all models.
MOST = 40
ROW = 44
GRID = {"class": "grid"}


class Row(NamedTuple):
    """A value with its interval, to be drawn as a bar or a point."""

    name: str
    text: str
    value: float
    low: float
    high: float


class Spot(NamedTuple):
    """A model in the chart of accuracy over latency; accuracies in percent."""

    name: str
    time: Milli
    top1: float
    low: float
    high: float


def plane(report: Report) -> Element:
    """Top-1 accuracy over latency, both with intervals; the Pareto front marked; up and to the left is better."""
    names, spots = short_names(report), []
    for model in report["models"][:MOST]:
        if model["top1"] is not None and model["top1_interval"] is not None:
            low, high = model["top1_interval"]
            spots.append(Spot(names[model["id"]], model["time_ms"], 100 * model["top1"], 100 * low, 100 * high))
    front = set(pareto_front([(spot.time["value"], spot.top1) for spot in spots]))
    figure = wide_and_narrow(lambda width: _plane(spots, front, width))
    caption = SubElement(figure, "figcaption")
    for kind, content in (
        ("front", "Pareto front: no other model is as fast and as accurate"),
        ("beaten", "another model is at least as fast and as accurate"),
        ("bar", "interval"),
    ):
        if kind != "beaten" or len(front) < len(spots):
            SubElement(caption, "span", {"class": f"key {kind}"}).text = content
    number_names(figure, [spot.name for spot in spots])
    if len(report["models"]) > MOST:
        SubElement(caption, "span").text = f"the first {MOST} of {len(report['models'])} models"
    return figure


def _plane(spots: Sequence[Spot], front: set[int], width: float) -> Element:
    height = 360 if width == WIDE else 340
    area = Box(64, 12, width - 16, height - 52)
    low, high = min(spot.time["low"] for spot in spots), max(spot.time["high"] for spot in spots)
    across, up = svg.latency_axis(low, high, area.left, area.right), _share_axis(spots, area)
    chart = svg.chart(width, height, "Top-1 accuracy over mean latency of each model, with intervals")
    _latency_scale(chart, across, area, "mean latency")
    for value in (tick for tick in up.ticks(6) if tick <= 100):
        svg.line(chart, (area.left, up(value)), (area.right, up(value)), GRID)
        svg.text(chart, (area.left - 8, up(value) + 4), f"{value:.{up.decimals(6)}f}", "end")
    svg.text(chart, (14, (area.top + area.bottom) / 2), "top-1 accuracy, %", "middle", "title", upright=False)
    points = [(across(spot.time["value"]), up(spot.top1)) for spot in spots]
    bars = front_line(chart, [points[index] for index in sorted(front, key=lambda index: points[index])], area)
    for index, (spot, (x, y)) in enumerate(zip(spots, points, strict=True)):
        colour = "var(--c0)" if index in front else "var(--soft)"
        left, right, bottom, top = across(spot.time["low"]), across(spot.time["high"]), up(spot.low), up(spot.high)
        svg.error_bar(chart, (x, bottom), (x, top), colour)
        svg.error_bar(chart, (left, y), (right, y), colour)
        bars += [Box(x - 4, top, x + 4, bottom), Box(left, y - 4, right, y + 4)]
    for index, (point, spot) in enumerate(zip(points, spots, strict=True)):
        fill, stroke = ("var(--c0)", "var(--c0)") if index in front else ("var(--back)", "var(--soft)")
        svg.circle(chart, point, 6, {"fill": fill, "stroke": stroke, "stroke-width": "2"})
        SubElement(chart[-1], "title").text = spot.name
    place_names(chart, points, [spot.name for spot in spots], bars, area)
    return chart


def _share_axis(spots: Sequence[Spot], area: Box) -> Axis:
    """An axis of percentages with room around the intervals."""
    low, high = min(spot.low for spot in spots), max(spot.high for spot in spots)
    room = max(0.12 * (high - low), 0.2)
    return Axis(max(0.0, low - room), min(100.0 + room / 2, high + room), area.bottom, area.top)


def front_line(chart: Element, front: Sequence[Point], area: Box) -> list[Box]:
    """The outline of the area that the front dominates (slower and less accurate), and the boxes of its lines."""
    corners = [(front[0][0], area.bottom), front[0]]
    for before, point in pairwise(front):
        corners += [(point[0], before[1]), point]
    corners.append((area.right, front[-1][1]))
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    SubElement(chart, "polygon", {"class": "beaten", "points": f"{places} {area.right:.1f},{area.bottom:.1f}"})
    SubElement(chart, "polyline", {"class": "front", "points": places})
    return [Box(min(x, u) - 2, min(y, v) - 2, max(x, u) + 2, max(y, v) + 2) for (x, y), (u, v) in pairwise(corners)]


def place_names(chart: Element, points: Sequence[Point], names: Sequence[str], bars: Sequence[Box], area: Box) -> None:
    """Label the points with their names, or with numbers if the names do not fit (see `number_names`)."""
    boxes = svg.place_labels(points, [svg.text_width(name) for name in names], bars, area)
    shown = list(names)
    if None in boxes:
        chart.set("class", "numbered")
        shown = [str(number + 1) for number in range(len(names))]
        boxes = svg.place_labels(points, [svg.text_width(name) for name in shown], bars, area)
    for (x, y), box, name in zip(points, boxes, shown, strict=True):
        if box is None:
            continue
        nearest = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if np.hypot(nearest[0] - x, nearest[1] - y) > 20:
            svg.line(chart, (x, y), nearest, {"stroke": "var(--soft)", "stroke-width": "1"})
        svg.text(chart, ((box.left + box.right) / 2, box.bottom - 5), name, "middle", "label")


def number_names(figure: Element, names: Sequence[str]) -> None:
    """Add the key of a chart with numbered points, shown with that chart."""
    for chart in list(figure):
        if "numbered" in chart.get("class", ""):
            key = SubElement(figure, "ol", {"class": f"names {chart.get('class', '').split()[-1]}"})
            for name in names:
                SubElement(key, "li").text = name


def latencies(report: Report) -> Element:
    """A bar per model: mean latency with its interval."""
    names = model_names(report)
    return intervals([_latency_row(names[model["id"]], model) for model in report["models"]])


def device_latencies(document: JoinedReport) -> Element:
    """A bar per device and model."""
    return intervals(
        [
            _latency_row(f"{report['device']['name']}: {short_names(report)[model['id']]}", model)
            for report in document["devices"]
            for model in report["models"]
        ]
    )


def _latency_row(name: str, model: Model) -> Row:
    time = model["time_ms"]
    text = f"{milliseconds(time['value'])} [{time['low']:.3g}, {time['high']:.3g}]"
    return Row(name, text, time["value"], time["low"], time["high"])


def intervals(rows: Sequence[Row]) -> Element:
    """Bars of mean latencies from zero, or points on a logarithmic axis if some bars would be invisible."""
    shown = rows[:MOST]
    low, high = min(row.low for row in shown), max(row.high for row in shown)
    log = svg.latency_axis(low, high, 0, 1).log

    def draw(width: float) -> Element:
        bottom = ROW * len(shown) + 8
        area = Box(10, 4, width - 14, bottom)
        across = (
            svg.latency_axis(low, high, area.left, area.right) if log else Axis(0, 1.04 * high, area.left, area.right)
        )
        chart = svg.chart(width, bottom + 46, "Mean latency, with intervals")
        _latency_scale(chart, across, area, "mean latency")
        for number, row in enumerate(shown):
            middle = ROW * number + 34
            if not log:
                size = {"x": f"{area.left:.1f}", "y": f"{middle - 6}", "width": f"{across(row.value) - area.left:.1f}"}
                SubElement(chart, "rect", {**size, "height": "12", "fill": COLOURS[0], "opacity": "0.55", "rx": "2"})
            row_text(chart, row, middle - 13, area)
            svg.error_bar(chart, (across(row.low), middle), (across(row.high), middle), "var(--text)")
            if log:
                svg.circle(chart, (across(row.value), middle), 5, {"fill": COLOURS[0]})
        return chart

    return wide_and_narrow(draw)


def changes(document: Comparison) -> Element:
    """Speed-ups over each earlier report, with intervals, and a line at 1×."""
    rows = []
    for entry in document["rows"][:MOST]:
        ratio = entry["against"]["speedup"]
        text = f"{ratio['ratio']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        name = f"{entry['name']} {entry['precision']}, {entry['against']['report']}"
        rows.append(Row(name, text, ratio["ratio"], ratio["low"], ratio["high"]))
    values = [1.0, *(row.value for row in rows)]
    # an interval may reach zero or infinity: it is drawn to the edge
    low, high = min(values) / 3, max(values) * 3
    low = max(low, min(1.0, *(row.low for row in rows)) / 1.1)
    high = min(high, max(1.0, *(row.high for row in rows)) * 1.1)

    def draw(width: float) -> Element:
        bottom = ROW * len(rows) + 8
        area = Box(10, 4, width - 14, bottom)
        across = Axis(low, high, area.left, area.right, log=bool(high / low > 10))
        chart = svg.chart(width, bottom + 46, "Speed compared with the earlier report, with intervals")
        for value in across.ticks(5 if width == NARROW else 8):
            svg.line(chart, (across(value), area.top), (across(value), area.bottom), GRID)
            svg.text(chart, (across(value), area.bottom + 16), f"{value:.3g}×", "middle")
        svg.text(chart, ((area.left + area.right) / 2, area.bottom + 38),
                 "times as fast as before (above 1× is faster)", "middle", "title")  # fmt: skip
        svg.line(chart, (across(1), area.top), (across(1), area.bottom), {"class": "unity"})
        for number, row in enumerate(rows):
            middle = ROW * number + 34
            row_text(chart, row, middle - 13, area)
            svg.error_bar(chart, (across(row.low), middle), (across(row.high), middle), "var(--c0)")
            svg.circle(chart, (across(row.value), middle), 5, {"fill": COLOURS[0]})
        return chart

    return wide_and_narrow(draw)


def row_text(chart: Element, row: Row, y: float, area: Box) -> None:
    """The name and the figures above a bar."""
    # on a phone, only the bar shows the interval
    figures = row.text if area.right > NARROW else row.text.partition(" [")[0]
    room = area.right - area.left - svg.text_width(figures) - 16
    svg.text(chart, (area.left, y), f"{svg.shortened(row.name, room)}  {figures}", kind="label")


def blocks(report: Report) -> Element:
    """A strip per model: the average call of each block as a dot, ordered by time, below the interval of the mean."""
    models, names = report["models"][:MOST], model_names(report)
    values = [np.asarray([block["ms"] for block in model["blocks"]]) for model in models]
    low = min(*(v.min() for v in values), *(model["time_ms"]["low"] for model in models))
    high = max(*(v.max() for v in values), *(model["time_ms"]["high"] for model in models))

    def draw(width: float) -> Element:
        height = 56
        area = Box(14, 4, width - 14, height * len(models) + 8)
        across = svg.latency_axis(low, high, area.left, area.right)
        chart = svg.chart(width, area.bottom + 46, "Latency of each block of calls, by model")
        _latency_scale(chart, across, area, "latency of each block of calls")
        for row, (model, ms) in enumerate(zip(models, values, strict=True)):
            middle, colour, time = row * height + 38, COLOURS[row % len(COLOURS)], model["time_ms"]
            row_text(chart, _latency_row(names[model["id"]], model), middle - 20, area)
            # spread over the row by time, so that a drift appears as a slope
            for number, value in enumerate(ms):
                y = middle + 20 * (number / max(1, len(ms) - 1) - 0.5)
                svg.circle(chart, (across(value), y), 3, {"fill": colour, "opacity": "0.45"})
            svg.error_bar(chart, (across(time["low"]), middle), (across(time["high"]), middle), "var(--text)")
            svg.line(chart, (across(time["value"]), middle - 11), (across(time["value"]), middle + 11),
                     {"stroke": "var(--text)", "stroke-width": "2"})  # fmt: skip
        return chart

    return wide_and_narrow(draw)


def sustained(report: Report) -> Element:
    """Median latency per minute of each model's long run; a dashed line marks the latency it approaches."""
    names = model_names(report)
    runs = [(names[model["id"]], run) for model in report["models"] if (run := model["sustained"])][:MOST]
    figure = wide_and_narrow(lambda width: _sustained([run for _, run in runs], width))
    caption = SubElement(figure, "figcaption")
    for place, (name, _) in enumerate(runs):
        style = {"class": "key", "style": f"--key: {COLOURS[place % len(COLOURS)]}"}
        SubElement(caption, "span", style).text = name
    SubElement(caption, "span").text = "dashed line: the latency that the run approaches"
    return figure


def _sustained(runs: Sequence[SustainedEntry], width: float) -> Element:
    values = [value for run in runs for value in (*(m["p50_ms"] for m in run["minutes"]), run["steady_ms"])]
    height, count = 260, max(len(run["minutes"]) for run in runs)
    area = Box(64, 12, width - 14, height - 50)
    scale = svg.latency_axis(min(values), max(values), area.bottom, area.top)
    chart = svg.chart(width, height, "Median latency per minute of a run without a pause")
    for value in scale.ticks(6):
        svg.text(chart, (area.left - 8, scale(value) + 4), f"{value:.3g}", "end")
        svg.line(chart, (area.left, scale(value)), (area.right, scale(value)), GRID)
    svg.text(chart, (14, (area.top + area.bottom) / 2), f"median latency, ms{_logarithmic(scale)}", "middle", "title",
             upright=False)  # fmt: skip
    step = (area.right - area.left - 40) / max(1, count)
    for minute in range(0, count, -(-count // (5 if width == NARROW else 10))):
        svg.text(chart, (area.left + 10 + step * minute, area.bottom + 16), f"{minute + 1}", "middle")
    svg.text(chart, ((area.left + area.right) / 2, area.bottom + 38), "minute of the run", "middle", "title")
    for row, run in enumerate(runs):
        style = {"stroke": COLOURS[row % len(COLOURS)], "stroke-width": "2"}
        points = [(area.left + 10 + step * place, scale(m["p50_ms"])) for place, m in enumerate(run["minutes"])]
        for first, second in pairwise(points):
            svg.line(chart, first, second, style)
        for point in points:
            svg.circle(chart, point, 4, {"fill": COLOURS[row % len(COLOURS)]})
        end = scale(run["steady_ms"])
        svg.line(chart, (points[-1][0], end), (area.right, end), {**style, "stroke-dasharray": "6 4"})
    return chart


def _latency_scale(chart: Element, across: Axis, area: Box, title: str) -> None:
    """Grid, values and title of a horizontal axis in milliseconds."""
    for value in across.ticks(int((area.right - area.left) / 65)):
        svg.line(chart, (across(value), area.top), (across(value), area.bottom), GRID)
        svg.text(chart, (across(value), area.bottom + 16), f"{value:.3g}", "middle")
    title = f"{title}, ms{_logarithmic(across)}"
    svg.text(chart, ((area.left + area.right) / 2, area.bottom + FONT + 25), title, "middle", "title")


def _logarithmic(axis: Axis) -> str:
    return " (log scale)" if axis.log else ""


def wide_and_narrow(draw: Callable[[float], Element]) -> Element:
    """A figure with the chart for a wide page and for a phone; the style sheet shows one of them."""
    figure = Element("figure", {"class": "chart"})
    for width, kind in ((WIDE, "wide"), (NARROW, "narrow")):
        chart = draw(width)
        chart.set("class", f"{chart.get('class', '')} {kind}".strip())
        figure.append(chart)
    return figure
