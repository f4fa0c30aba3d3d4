"""The report's charts, as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from .display import milliseconds, model_names, percent

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 56, 20, 20
_COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")


def latency(report: Mapping[str, Any]) -> Element:
    """A strip a model: the median of every block as a dot, the median over all as a line, on a logarithmic scale."""
    models, names = report["models"], model_names(report)
    values = [np.asarray([block["p50"] for block in model["blocks_ms"]]) for model in models]
    axis = _Axis(min(v.min() for v in values), max(v.max() for v in values), _LEFT, _WIDTH - _RIGHT)
    chart = _chart(_ROW * len(models) + 30, "Latency of each block, by model")
    _ticks(chart, axis, _ROW * len(models) + 4)
    for row, (model, blocks) in enumerate(zip(models, values, strict=True)):
        middle = row * _ROW + 34
        colour = _COLOURS[row % len(_COLOURS)]
        _text(chart, _LEFT, middle - 18, f"{names[model['id']]}, median {milliseconds(float(np.median(blocks)))}")
        # the dots are spread over the row by their order in time, so that a drift shows as a slope
        for place, value in enumerate(blocks):
            offset = 16 * (place / max(1, len(blocks) - 1) - 0.5)
            SubElement(
                chart, "circle", cx=f"{axis(value):.1f}", cy=f"{middle + offset:.1f}", r="3", fill=colour, opacity="0.6"
            )
        x = f"{axis(float(np.median(blocks))):.1f}"
        SubElement(
            chart, "line", {"x1": x, "x2": x, "y1": str(middle - 12), "y2": str(middle + 12), "stroke": colour,
                            "stroke-width": "2"},
        )  # fmt: skip
    return chart


def plane(report: Mapping[str, Any]) -> Element:
    """Top-1 accuracy with its interval against median latency (logarithmic); up and to the left is better."""
    models, names, height = report["models"], model_names(report), 260
    points = [(model, float(np.median([block["p50"] for block in model["blocks_ms"]]))) for model in models]
    across = _Axis(min(x for _, x in points) / 1.3, max(x for _, x in points) * 1.3, 70, _WIDTH - _RIGHT)
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
        SubElement(chart, "line", {"x1": "70", "x2": str(_WIDTH - _RIGHT), "y1": f"{up(share):.1f}",
                                   "y2": f"{up(share):.1f}", "class": "grid"})  # fmt: skip
    for row, (model, milliseconds_) in enumerate(points):
        x, colour = f"{across(milliseconds_):.1f}", _COLOURS[row % len(_COLOURS)]
        bottom, top = (f"{up(bound):.1f}" for bound in model["top1_interval"])
        SubElement(chart, "line", {"x1": x, "x2": x, "y1": bottom, "y2": top, "stroke": colour, "stroke-width": "2"})
        SubElement(chart, "circle", cx=x, cy=f"{up(model['top1']):.1f}", r="6", fill=colour)
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
        x = f"{axis(value):.1f}"
        SubElement(chart, "line", {"x1": x, "x2": x, "y1": "8", "y2": str(bottom), "class": "grid"})
        _text(chart, axis(value), bottom + 16, milliseconds(value), "middle")


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
