"""Shapes, axes and labels of the charts, as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from unicodedata import east_asian_width
from xml.etree.ElementTree import Element, SubElement

import numpy as np

Point = tuple[float, float]

FONT = 13  # in units of the viewBox; report.css draws charts at 0.85 of their size or more
COLOURS = tuple(f"var(--c{number})" for number in range(6))

# Latencies that span more than this are drawn on a logarithmic axis.
_LOG_SPAN = 10.0


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two boxes overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: "Box") -> bool:
        """Whether the box lies within another."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


class Axis:
    """Maps values to pixels from `start` to `end`, linearly or by their logarithm.

    Args:
        low, high: the range; both are positive on a logarithmic axis.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        """The pixel of a value; values out of range are clamped to the axis."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = float(np.log(value / self.low) / np.log(self.high / self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """At most `count` round values."""
        return _log_ticks(self.low, self.high, count) if self.log else _even_ticks(self.low, self.high, count)

    def decimals(self, count: int) -> int:
        """Number of decimals that the ticks of a linear axis need."""
        ticks = self.ticks(count)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        return next((digits for digits in range(6) if abs(round(step, digits) - step) < step / 100), 6)


def latency_axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis of positive times with a margin at both ends; logarithmic if they span more than a factor of ten."""
    if high / low > _LOG_SPAN:
        room = (high / low) ** 0.06
        return Axis(low / room, high * room, start, end, log=True)
    room = max(0.1 * (high - low), 0.02 * high)
    return Axis(low - min(room, 0.9 * low), high + room, start, end)


def _even_ticks(low: float, high: float, count: int) -> list[float]:
    power = 10.0 ** np.floor(np.log10((high - low) / count))
    step = next(power * times for times in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * times) <= count)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [step * number for number in range(first, last + 1)][: count + 1]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in ticks if low <= value <= high]
        if len(inside) <= count:
            return inside
    return inside[:: -(-len(inside) // count)]


def chart(width: float, height: float, label: str) -> Element:
    """An empty chart with its text for screen readers."""
    return Element(
        "svg",
        {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label,
         "xmlns": "http://www.w3.org/2000/svg"},
    )  # fmt: skip


def text(
    parent: Element, at: Point, content: str, anchor: str = "start", kind: str = "", *, upright: bool = True
) -> None:
    """A line of text, rotated by 90° unless `upright`."""
    place = {"x": f"{at[0]:.1f}", "y": f"{at[1]:.1f}"}
    rotation = {} if upright else {"transform": f"rotate(-90 {at[0]:.1f} {at[1]:.1f})"}
    SubElement(
        parent, "text", {**place, "text-anchor": anchor, **({"class": kind} if kind else {}), **rotation}
    ).text = content


def line(parent: Element, start: Point, end: Point, style: Mapping[str, str]) -> None:
    """A line with these attributes."""
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    SubElement(parent, "line", {**{name: f"{value:.1f}" for name, value in ends.items()}, **style})


def circle(parent: Element, at: Point, radius: float, style: Mapping[str, str]) -> None:
    """A disc with these attributes."""
    SubElement(parent, "circle", {"cx": f"{at[0]:.1f}", "cy": f"{at[1]:.1f}", "r": f"{radius:g}", **style})


def error_bar(parent: Element, start: Point, end: Point, colour: str) -> None:
    """An interval: a horizontal or vertical line with a cap at each end."""
    style = {"stroke": colour, "stroke-width": "1.5"}
    line(parent, start, end, style)
    across = (0, 4) if start[1] == end[1] else (4, 0)
    for x, y in (start, end):
        line(parent, (x - across[0], y - across[1]), (x + across[0], y + across[1]), style)


def text_width(content: str) -> float:
    """Approximate width of a text; an overestimate, because the reader's font is unknown."""
    ems = {"W": 1.05, "F": 1.05}
    return FONT * sum(
        1.1
        if character in "MWmw%@"  # of a bold font
        else ems.get(east_asian_width(character), 0.78 if character.isupper() else 0.62)
        for character in content
    )


def shortened(content: str, width: float) -> str:
    """The text, shortened with an ellipsis if it is wider."""
    if text_width(content) <= width:
        return content
    while content and text_width(content + "…") > width:
        content = content[:-1]
    return content + "…"


def place_labels(points: Sequence[Point], widths: Sequence[float], bars: Sequence[Box], area: Box) -> list[Box | None]:
    """Place each point's label so that it covers no other label, point or edge.

    Args:
        points: the places of the points.
        widths: of the labels, which are one line high.
        bars: interval bars, which labels avoid if possible.
        area: where labels may lie.

    Returns:
        A box per label; None if no place is free.
    """
    dots = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    placed: list[Box | None] = []
    for point, width in zip(points, widths, strict=True):
        occupied = [*dots, *(box for box in placed if box is not None)]
        best, least = None, float("inf")
        for distance, box in _places(point, width):
            cost = distance + 30 * sum(box.overlaps(bar) for bar in bars)
            if cost < least and box.inside(area) and not any(box.overlaps(obstacle) for obstacle in occupied):
                best, least = box, cost
        placed.append(best)
    return placed


def _places(point: Point, width: float) -> list[tuple[float, Box]]:
    """Boxes around a point in circles of growing radius, each with its distance."""
    places, height = [], FONT + 4
    for distance in (8, 14, 22, 34, 50, 70, 95, 125, 160):
        for angle in np.arange(0, 2 * np.pi, np.pi / 8):
            across, up = float(np.cos(angle)), float(np.sin(angle))
            x, y = point[0] + across * (distance + width / 2), point[1] - up * (distance + height / 2)
            places.append((distance, Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
    return places
