"""The page: self-contained, and what a browser makes of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.measuring.measurement import Measurement, Sustained, Throughput
from edgekit.toolkit.analysis.compare import read_report
from edgekit.toolkit.report.html import render


class _Page(HTMLParser):
    """Counts tags, and finds whatever would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.text += data


def _with_scenarios(measured: list[Measurement]) -> list[Measurement]:
    return [
        replace(
            one,
            throughput=tuple(Throughput(p, b, (1_000_000 * b + p,) * 3) for p in range(3) for b in (1, 2, 4)),
            sustained=tuple(Sustained(float(at), 1_000_000 + 1000 * at, None) for at in range(0, 300, 5)),
        )
        for one in measured
    ]


@pytest.fixture
def page(judged: Callable[..., Any]) -> str:
    """The page of a report with everything in it, and hostile labels."""
    report, test = judged(lost=30, change=_with_scenarios, environment={"cores_got": 1.2})
    return render({**report, "labels": ["<script>alert(1)</script>", *report["labels"][1:]]}, test)


def test_page_is_self_contained_and_escapes(page: str) -> None:
    """No script, nothing loaded, a label's or a CPU's name is text and never markup."""
    found = _Page()
    found.feed(page)
    assert found.loads == []
    assert "script" not in found.tags
    assert "a <b>CPU</b> & more" in found.text
    assert found.tags.count("img") == 24, "a gallery of the images that changed"
    assert found.tags.count("svg") == 3
    assert found.text.index("fail") < found.text.index("noisy run (load)") < found.text.index("Models")


def test_page_shows_what_changed_in_the_machine(page: str) -> None:
    """The temperature before and after."""
    found = _Page()
    found.feed(page)
    assert "temperature_c" in found.text
    assert "51.5" in found.text


def test_page_of_a_report_without_images(judged: Callable[..., Any], tmp_path: Path) -> None:
    """A report read again from its file has no pictures, and everything else."""
    (tmp_path / "report.json").write_text(json.dumps(judged().report))
    assert "<svg" in render(read_report(tmp_path / "report.json"), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(page: str, browser: Any, tmp_path: Path, scheme: Any, width: int) -> None:
    """No console line, no request but the page's own, no sideways scrolling, readable in light and dark."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    view = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    console: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: console.append(message.text))
    view.on("pageerror", lambda error: console.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    address = (tmp_path / "report.html").as_uri()
    view.goto(address)
    assert console == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert view.inner_text("h1").lower() == "fail"
    style = view.evaluate(
        "(() => { const body = getComputedStyle(document.body); return [body.color, body.backgroundColor]; })()"
    )
    ink, paper = (sum(map(int, colour.strip("rgb()").split(", "))) for colour in style)
    assert abs(ink - paper) > 400
    assert (paper < ink) == (scheme == "dark")
    for number in range(view.locator("svg").count()):
        box = view.locator("svg").nth(number).bounding_box()
        assert box is not None
        assert box["height"] > 80
    view.close()
