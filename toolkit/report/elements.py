"""Elements of a page."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement


def paragraph(text: str, kind: str = "") -> Element:
    """A paragraph of this class."""
    line = Element("p", {"class": kind} if kind else {})
    line.text = text
    return line


def table(header: Sequence[str], rows: Sequence[Sequence[str | Element]]) -> Element:
    """A table that scrolls sideways where the screen is narrow."""
    table = Element("table")
    line = SubElement(SubElement(table, "thead"), "tr")
    for name in header:
        SubElement(line, "th").text = name
    body = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        for cell in row:
            if isinstance(cell, str):
                SubElement(line, "td").text = cell
            else:
                line.append(cell)
    return scrolling(table)


def scrolling(content: Element) -> Element:
    """Content that scrolls sideways where the screen is narrow."""
    frame = Element("div", {"class": "scroll"})
    frame.append(content)
    return frame
