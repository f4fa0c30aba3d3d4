"""Elements of a page."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement

# Characters of the longest cell that never wraps.
_UNBROKEN = 26


def paragraph(text: str, kind: str = "") -> Element:
    """A paragraph of the class `kind`."""
    line = Element("p", {"class": kind} if kind else {})
    line.text = text
    return line


def notes(lines: Iterable[str], kind: str = "") -> list[Element]:
    """A list of sentences; empty lists are omitted."""
    items = Element("ul", {"class": f"notes {kind}".strip()})
    for line in lines:
        SubElement(items, "li").text = line
    return [items] if len(items) else []


def table(header: Sequence[str], rows: Sequence[Sequence[str | Element]]) -> Element:
    """A table that scrolls sideways on a narrow screen."""
    return scrolling(_table(header, rows))


def cards(header: Sequence[str], rows: Sequence[Sequence[Element]]) -> Element:
    """A table shown as one card per row on a phone; each cell has the title of its column."""
    for row in rows:
        for title, cell in zip(header, row, strict=True):
            cell.set("data-title", title)
    element = _table(header, rows)
    element.set("class", "cards")
    return element


def cell(value: str, detail: str = "") -> Element:
    """A cell with a figure, and its interval or a remark below it."""
    element = Element("td")
    SubElement(element, "span", {"class": "value"}).text = value
    if detail:
        SubElement(element, "span", {"class": "detail long" if len(detail) > _UNBROKEN else "detail"}).text = detail
    return element


def folded(title: str, content: Iterable[Element], kind: str = "more") -> Element:
    """Content that the reader unfolds."""
    element = Element("details", {"class": kind} if kind else {})
    SubElement(element, "summary").text = title
    element.extend(content)
    return element


def section(title: str, content: Iterable[Element]) -> Element:
    """Content under a heading."""
    element = Element("section")
    SubElement(element, "h2").text = title
    element.extend(content)
    return element


def scrolling(content: Element) -> Element:
    """Content that scrolls sideways on a narrow screen."""
    frame = Element("div", {"class": "scroll"})
    frame.append(content)
    return frame


def _table(header: Sequence[str], rows: Sequence[Sequence[str | Element]]) -> Element:
    table = Element("table")
    line = SubElement(SubElement(table, "thead"), "tr")
    for name in header:
        SubElement(line, "th").text = name
    body = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        for entry in row:
            if isinstance(entry, str):
                SubElement(line, "td", {"class": "long"} if len(entry) > _UNBROKEN else {}).text = entry
            else:
                line.append(entry)
    return table
