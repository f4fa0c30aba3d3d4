"""The report's charts, as inline SVG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ..analysis.wording import milliseconds, model_names, percent

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 56, 20, 20
_COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")


def latency(report: Any) -> Element:
    """A strip a model: every block's average call as a dot, the typical one with its interval over them."""
    models, names = report["models"], model_names(report)
    values = [np.asarray([block["ms"] for block in model["blocks"]]) for model in models]
    edges = [(model["time_ms"]["low"], model["time_ms"]["high"]) for model in models]
    low = min(min(v.min() for v in values), min(edge for edge, _ in edges))
    high = max(max(v.max() for v in values), max(edge for _, edge in edges))
    axis = _Axis(low, high, _LEFT, _WIDTH - _RIGHT)
    chart = _chart(_ROW * len(models) + 30, "Latency of each block, by model, with the interval of the typical one")
    _ticks(chart, axis, _ROW * len(models) + 4)
    for row, (model, blocks) in enumerate(zip(models, values, strict=True)):
        middle, colour = row * _ROW + 36, _COLOURS[row % len(_COLOURS)]
        time = model["time_ms"]
        interval = f"[{milliseconds(time['low'])}, {milliseconds(time['high'])}]"
        _text(chart, _LEFT, middle - 20, f"{names[model['id']]}, {milliseconds(time['value'])} {interval}")
        # the dots are spread over the row by their order in time, so that a drift shows as a slope
        for place, value in enumerate(blocks):
            up = middle + 18 * (place / max(1, len(blocks) - 1) - 0.5)
            SubElement(chart, "circle", cx=f"{axis(value):.1f}", cy=f"{up:.1f}", r="3", fill=colour, opacity="0.45")
        _error_bar(chart, (axis(time["low"]), middle), (axis(time["high"]), middle))
        _line(chart, (axis(time["value"]), middle - 11), (axis(time["value"]), middle + 11), "var(--text)", 2)
    return chart


def plane(report: Any) -> Element:
    """Top-1 accuracy against latency (logarithmic), each with its interval; up and to the left is better."""
    models, names, height = report["models"], model_names(report), 260
    times = [model["time_ms"] for model in models]
    left, right = min(time["low"] for time in times), max(time["high"] for time in times)
    across = _Axis(left / 1.3, right * 1.3, 70, _WIDTH - _RIGHT)
    lows, highs = zip(*(model["top1_interval"] for model in models), strict=True)
    low, high = min(lows), max(highs)
    margin = max(0.15 * (high - low), 0.005)
    low, high = max(0.0, low - margin), min(1.0, high + margin)

    def up(share: float) -> float:
        return height - 40 - (share - low) / (high - low) * (height - 60)

    chart = _chart(height, "Accuracy against latency, with intervals")
    _ticks(chart, across, height - 30)
    for share in np.linspace(low, high, 5):
        _text(chart, 4, up(share) + 4, percent(float(share)))
        _grid(chart, (70, up(share)), (_WIDTH - _RIGHT, up(share)))
    for row, (model, time) in enumerate(zip(models, times, strict=True)):
        x, y, colour = across(time["value"]), up(model["top1"]), _COLOURS[row % len(_COLOURS)]
        bottom, top = model["top1_interval"]
        _error_bar(chart, (x, up(bottom)), (x, up(top)), colour)
        _error_bar(chart, (across(time["low"]), y), (across(time["high"]), y), colour)
        SubElement(chart, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="5", fill=colour)
    return _with_legend(chart, [names[model["id"]] for model in models])


def sustained(report: Any) -> Element:
    """Median latency by minute of each model's long run, and where it is heading as a broken line."""
    models = [model for model in report["models"] if model["sustained"]]
    names, height = model_names(report), 220
    values = [
        value
        for model in models
        for value in (*(m["p50_ms"] for m in model["sustained"]["minutes"]), model["sustained"]["steady_ms"])
    ]
    scale = _Axis(min(values) / 1.05, max(values) * 1.05, height - 40, 10)
    count = max(len(model["sustained"]["minutes"]) for model in models)
    chart = _chart(height, "Median latency by minute of a run without a pause")
    step = (_WIDTH - _RIGHT - 90) / max(1, count)
    for value in scale.ticks():
        _text(chart, 4, scale(value) + 4, milliseconds(value))
        _grid(chart, (70, scale(value)), (_WIDTH - _RIGHT, scale(value)))
    for minute in range(0, count, -(-count // 10)):
        _text(chart, 80 + step * minute, height - 14, f"minute {minute + 1}")
    for row, model in enumerate(models):
        colour, run = _COLOURS[row % len(_COLOURS)], model["sustained"]
        points = [(80 + step * (m["minute"] - 1), scale(m["p50_ms"])) for m in run["minutes"]]
        for first, second in pairwise(points):
            _line(chart, first, second, colour, 2)
        for x, y in points:
            SubElement(chart, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4", fill=colour)
        end = scale(run["steady_ms"])
        _line(chart, (points[-1][0], end), (_WIDTH - _RIGHT, end), colour, 2, {"stroke-dasharray": "6 4"})
    return _with_legend(chart, [names[model["id"]] for model in models])


class _Axis:
    """A logarithmic axis from pixel `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        low, high = (low / 1.1, high * 1.1) if high / low < 1.2 else (low, high)
        self.low, self.high = low, high
        self._scale = (end - start) / np.log(high / low)
        self._start = start

    def __call__(self, value: float) -> float:
        return self._start + float(np.log(value / self.low)) * self._scale

    def ticks(self) -> list[float]:
        """Round values (1, 2, 5 times a power of ten; finer where that leaves fewer than three)."""
        for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), tuple(np.arange(1, 10, 0.1).round(1))):
            powers = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
            found = [step * 10.0**power for power in powers for step in steps]
            inside = [value for value in found if self.low <= value <= self.high]
            if len(inside) >= 3:
                break
        return inside[:: -(-len(inside) // 8)]


def _chart(height: float, label: str) -> Element:
    return Element(
        "svg", {"viewBox": f"0 0 {_WIDTH} {height}", "role": "img", "aria-label": label,
                "xmlns": "http://www.w3.org/2000/svg"},
    )  # fmt: skip


def _ticks(chart: Element, axis: _Axis, bottom: float) -> None:
    for value in axis.ticks():
        _grid(chart, (axis(value), 8), (axis(value), bottom))
        _text(chart, axis(value), bottom + 16, milliseconds(value), "middle")


def _grid(chart: Element, start: tuple[float, float], end: tuple[float, float]) -> None:
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    SubElement(chart, "line", {"class": "grid", **{name: f"{value:.1f}" for name, value in ends.items()}})


def _line(
    chart: Element, start: tuple[float, float], end: tuple[float, float], colour: str, width: float,
    style: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    look = {"stroke": colour, "stroke-width": f"{width:g}", **(style or {})}
    SubElement(chart, "line", {**{name: f"{value:.1f}" for name, value in ends.items()}, **look})


def _error_bar(
    chart: Element, start: tuple[float, float], end: tuple[float, float], colour: str = "var(--text)"
) -> None:
    """An interval: a line with a cap at either end."""
    _line(chart, start, end, colour, 2)
    level = start[1] == end[1]
    for x, y in (start, end):
        _line(chart, (x, y - 5) if level else (x - 5, y), (x, y + 5) if level else (x + 5, y), colour, 2)


def _text(chart: Element, x: float, y: float, content: str, anchor: str = "start") -> None:
    SubElement(chart, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}).text = content


def _with_legend(chart: Element, names: Sequence[str]) -> Element:
    figure = Element("figure", {"class": "chart"})
    figure.append(chart)
    caption = SubElement(figure, "figcaption")
    for place, name in enumerate(names):
        item = SubElement(caption, "span", {"class": "key", "style": f"--key: {_COLOURS[place % len(_COLOURS)]}"})
        item.text = name
    return figure
