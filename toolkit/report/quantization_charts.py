"""The charts of a quantized bundle's page: where its noise comes from, and the models with float layers."""

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

from ..analysis.quantization_record import LayerNoise
from . import svg
from .charts import GRID, ROW, WIDE, front_line, number_names, place_names, wide_and_narrow
from .svg import Axis, Box

# Most layers in a chart; the table lists more.
MOST_LAYERS = 15
_RESULT, _WEIGHTS = "var(--c0)", "var(--c2)"


class Choice(NamedTuple):
    """A model in the chart of what float layers bring.

    Attributes:
        name: next to its point.
        across: the speed-up over fp32, or the number of layers in int8; more is better.
        up: percentage points of top-1, or answers, that are not lost: at most 0 without a gain.
        low, high: the interval of `up`.
    """

    name: str
    across: float
    up: float
    low: float
    high: float


class Axes(NamedTuple):
    """Titles of a chart's axes, and its limits.

    Attributes:
        label: for screen readers.
        across_limit, up_limit: of the contract; None for no limit.
        across_whole, up_whole: whether the values are whole numbers.
    """

    label: str
    across: str
    up: str
    across_limit: float | None
    up_limit: float | None
    across_whole: bool
    up_whole: bool


def noise_bars(layers: Sequence[LayerNoise], float_layers: Container[str]) -> Element:
    """A bar per layer: its share of the noise, by rounding what it writes and its weights."""
    shown = layers[:MOST_LAYERS]
    most = max(layer["result"] + layer["weights"] for layer in shown) or 1.0

    def draw(width: float) -> Element:
        bottom = ROW * len(shown) + 4
        area = Box(10, 4, width - 14, bottom)
        across = Axis(0, 1.04 * most, area.left, area.right)
        chart = svg.chart(width, bottom + 42, "Share of the noise that each layer causes")
        for value in across.ticks(5 if width < WIDE else 8):
            svg.line(chart, (across(value), area.top), (across(value), area.bottom), GRID)
            svg.text(chart, (across(value), area.bottom + 16), f"{100 * value:.3g}", "middle")
        svg.text(chart, ((area.left + area.right) / 2, area.bottom + 36), "share of the noise, %", "middle", "title")
        for row, layer in enumerate(shown):
            _noise_bar(chart, across, ROW * row + 34, layer, "float" if layer["name"] in float_layers else "")
        return chart

    figure = wide_and_narrow(draw)
    caption = SubElement(figure, "figcaption")
    for colour, content in ((_RESULT, "its result, or the input, is rounded"), (_WEIGHTS, "its weights are rounded")):
        SubElement(caption, "span", {"class": "key", "style": f"--key: {colour}"}).text = content
    return figure


def _noise_bar(chart: Element, across: Axis, middle: float, layer: LayerNoise, remark: str) -> None:
    total = layer["result"] + layer["weights"]
    figures = f"{100 * total:.1f} %{f', {remark}' if remark else ''}"
    room = across.end - across.start - svg.text_width(figures) - 16
    svg.text(chart, (across.start, middle - 13), f"{svg.shortened(layer['name'], room)}  {figures}", kind="label")
    start = across.start
    for share, colour in ((layer["result"], _RESULT), (layer["weights"], _WEIGHTS)):
        length = across(share) - across.start
        size = {"x": f"{start:.1f}", "y": f"{middle - 6:.1f}", "width": f"{length:.1f}", "height": "12"}
        SubElement(chart, "rect", {**size, "fill": colour, "opacity": "0.75", "rx": "2"})
        start += length


def choices(models: Sequence[Choice], front: set[int], chosen: int | None, axes: Axes) -> Element:
    """Models with float layers, of which up and to the right is better; the Pareto front and the chosen one marked."""
    figure = wide_and_narrow(lambda width: _choices(models, front, chosen, axes, width))
    caption = SubElement(figure, "figcaption")
    keys = {
        "chosen": "chosen" if chosen is not None else "",
        "front": "Pareto front: no other model is as fast and loses as little",
        "beaten": "another model is at least as fast and loses at most as much" if len(front) < len(models) else "",
        "bar": "interval" if any(model.low < model.high for model in models) else "",
        "limit": "limit of the contract" if axes.up_limit is not None or axes.across_limit is not None else "",
    }
    for kind, content in keys.items():
        if content:
            SubElement(caption, "span", {"class": f"key {kind}"}).text = content
    number_names(figure, [model.name for model in models])
    return figure


def _choices(models: Sequence[Choice], front: set[int], chosen: int | None, axes: Axes, width: float) -> Element:
    height = 360 if width == WIDE else 340
    area = Box(64, 12, width - 16, height - 52)
    across = _axis([model.across for model in models], axes.across_limit, area.left, area.right)
    ends = [value for model in models for value in (model.low, model.high)]
    up = _axis(ends, axes.up_limit, area.bottom, area.top)
    chart = svg.chart(width, height, axes.label)
    _scales(chart, across, up, axes, area)
    points = [(across(model.across), up(model.up)) for model in models]
    # unlike over a latency, the better models are on the right
    ordered = sorted((points[index] for index in front), key=lambda point: (-point[0], -point[1]))
    bars = front_line(chart, ordered, area._replace(right=area.left))
    for index, (model, (x, _)) in enumerate(zip(models, points, strict=True)):
        if model.low < model.high:
            colour = "var(--c0)" if index in front else "var(--soft)"
            svg.error_bar(chart, (x, up(model.low)), (x, up(model.high)), colour)
            bars.append(Box(x - 4, up(model.high), x + 4, up(model.low)))
    for index, (point, model) in enumerate(zip(points, models, strict=True)):
        svg.circle(chart, point, 6, _style(index in front))
        SubElement(chart[-1], "title").text = model.name
        if index == chosen:
            svg.circle(chart, point, 11, {"fill": "none", "stroke": "var(--good)", "stroke-width": "2.5"})
    place_names(chart, points, [model.name for model in models], bars, area)
    return chart


def _style(on_front: bool) -> Mapping[str, str]:
    fill, stroke = ("var(--c0)", "var(--c0)") if on_front else ("var(--back)", "var(--soft)")
    return {"fill": fill, "stroke": stroke, "stroke-width": "2"}


def _axis(values: Sequence[float], limit: float | None, start: float, end: float) -> Axis:
    """An axis with room around the values and the limit."""
    shown = [*values, *([] if limit is None else [limit])]
    low, high = min(shown), max(shown)
    room = max(0.12 * (high - low), 0.02 * abs(high), 1e-3)
    return Axis(low - room, high + room, start, end)


def _ticks(axis: Axis, count: int, whole: bool) -> list[float]:
    """Round values with at most nine decimals, so that 0 is 0."""
    return [round(value, 9) for value in axis.ticks(count) if not whole or round(value, 9).is_integer()]


def _scales(chart: Element, across: Axis, up: Axis, axes: Axes, area: Box) -> None:
    """Grid, values, titles and limits of both axes."""
    for value in _ticks(across, int((area.right - area.left) / 80), axes.across_whole):
        svg.line(chart, (across(value), area.top), (across(value), area.bottom), GRID)
        svg.text(chart, (across(value), area.bottom + 16), f"{abs(value):.4g}", "middle")
    for value in _ticks(up, 6, axes.up_whole):
        svg.line(chart, (area.left, up(value)), (area.right, up(value)), GRID)
        svg.text(chart, (area.left - 8, up(value) + 4), f"{0.0 - value:.6g}", "end")
    svg.text(chart, ((area.left + area.right) / 2, area.bottom + 38), axes.across, "middle", "title")
    svg.text(chart, (14, (area.top + area.bottom) / 2), axes.up, "middle", "title", upright=False)
    if axes.across_limit is not None:
        x = across(axes.across_limit)
        svg.line(chart, (x, area.top), (x, area.bottom), {"class": "limit"})
    if axes.up_limit is not None:
        svg.line(chart, (area.left, up(axes.up_limit)), (area.right, up(axes.up_limit)), {"class": "limit"})
