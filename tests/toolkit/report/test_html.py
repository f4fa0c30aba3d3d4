"""The page: self-contained, and readable in a browser."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.measuring.measurement import Measurement, Sustained, Throughput
from edgekit.toolkit.analysis.compare import compare_reports, read_report
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.analysis.verdict import judge_report
from edgekit.toolkit.report import charts, svg
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.quantization import render_quantization
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import open_browser
from tests.toolkit.report.quantized import searched, with_details

LONG = "efficientnet_lite0.ra_in1k-finetuned_on_products-pruned_2024"
HOSTILE = ("<script>alert(1)</script>", "W" * 90, "模型" * 20, "a\u202eb", LONG, "x y " * 30)
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")


class _Page(HTMLParser):
    """Collects tags, text, and URLs that would be loaded."""

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
            measurement,
            throughput=tuple(Throughput(p, b, (1_000_000 * b + p,) * 3) for p in range(3) for b in (1, 2, 4)),
            sustained=tuple(Sustained(float(at), 1_000_000 + 1000 * at, None) for at in range(0, 300, 5)),
        )
        for measurement in measured
    ]


@pytest.fixture
def page(judged: Callable[..., Any]) -> str:
    """The page of a report with every scenario and a hostile label."""
    report, test = judged(lost=30, change=_with_scenarios, environment={"cores_got": 1.2})
    return render({**report, "labels": ["<script>alert(1)</script>", *report["labels"][1:]]}, test)


def test_page_is_self_contained_and_escapes(page: str) -> None:
    """No scripts, nothing loaded, and names of labels and CPUs are text rather than markup."""
    parsed = _Page()
    parsed.feed(page)
    assert parsed.loads == []
    assert "script" not in parsed.tags
    assert "a <b>CPU</b> & more" in parsed.text
    assert parsed.tags.count("img") == 24, "a gallery of the images that changed"
    assert parsed.tags.count("svg") == 6, "three charts, each for a wide page and for a phone"
    assert parsed.text.index("fail") < parsed.text.index("noisy run (load)") < parsed.text.index("Models")


def test_page_shows_what_changed_in_the_machine(page: str) -> None:
    """It contains the temperature before and after."""
    parsed = _Page()
    parsed.feed(page)
    assert "temperature_c" in parsed.text
    assert "51.5" in parsed.text


def test_page_of_a_report_without_images(judged: Callable[..., Any], tmp_path: Path) -> None:
    """A report read back from its file has charts but no pictures."""
    (tmp_path / "report.json").write_text(json.dumps(judged().report))
    assert "<svg" in render(read_report(tmp_path / "report.json"), None)


def _many(report: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The report with one model per name, with different latencies and accuracies."""
    models = []
    for number, name in enumerate(names):
        source = report["models"][number % 2]
        factor = 1.4**number
        blocks = [{**block, "ms": block["ms"] * factor, "ns": []} for block in source["blocks"][::3]]
        time = {key: value * factor for key, value in source["time_ms"].items()}
        top1 = 0.99 - 0.7 * ((7 * number) % len(names)) / len(names) / 10
        accuracy = {"top1": top1, "top1_interval": [top1 - 0.02, min(1.0, top1 + 0.01)]}
        changed = {"id": f"id-{number}", "name": name, "blocks": blocks, "time_ms": time, **accuracy}
        models.append({key: value for key, value in source.items() if key != "judgements"} | changed)
    candidates = [model["id"] for model in models if model["precision"] == "int8"]
    return judge_report({**report, "baseline": "id-0"}, models, candidates, Contract())


def _labels(report: dict[str, Any], count: int) -> dict[str, Any]:
    """The report with `count` classes."""
    labels = [f"class {number} <b> {'of the thousand' * (number % 3)}" for number in range(count)]
    models = [{**model, "per_class": dict.fromkeys(labels, 0.5)} for model in report["models"]]
    return {**report, "labels": labels, "models": models}


@pytest.fixture(scope="module")
def opened(chromium: str) -> Iterator[Any]:
    """One browser for this module."""
    with open_browser(chromium) as browser:
        yield browser


@pytest.fixture
def kinds(judged: Callable[..., Any], page: str, fp32: Bundle) -> dict[str, str]:
    """A page of each kind of report, and of a quantized bundle."""
    passed, test = judged()
    noisy, _ = judged(environment={"cores_got": 1.0}, threads=2)
    unlabelled = {**passed, "models": [{**model, "top1": None, "top1_interval": None} for model in passed["models"]]}
    named = [{**passed, "device": {**passed["device"], "name": name}} for name in ("local", f"ssh://{LONG}.local")]
    compared = [{**passed, "source": f"{name}/{LONG}/report.json"} for name in ("a", "b")]
    first, *_ = passed["models"]
    ten = _many(passed, [f"network-{number}_v2" for number in range(10)])
    documents = {
        "passed": passed, "noisy": noisy, "unlabelled": unlabelled,
        "alone": judge_report({**passed, "models": [first]}, [first], [first["id"]], Contract()),
        "ten": ten, "ten unlabelled": {**ten, "models": [{**model, "top1": None, "top1_interval": None, "drop": None}
                                                         for model in ten["models"]]},
        "hostile": _many(passed, list(HOSTILE)), "classes": _labels(passed, 1000),
        "joined": join_reports(named), "compared": compare_reports(compared, Contract()),
    }  # fmt: skip
    quantized = {
        "quantized": searched(), "quantized elsewhere": searched(timed=False),
        "quantized unlabelled": searched(labels=False),
        **{f"quantized {name[:20]}": searched(name=name) for name in HOSTILE},
    }  # fmt: skip
    return {
        "everything": page, **{kind: render(document, test) for kind, document in documents.items()},
        **{kind: render_quantization(with_details(fp32, details)) for kind, details in quantized.items()},
    }  # fmt: skip


def _show(view: Any, page: str, path: Path) -> None:
    path.write_text(page, encoding="utf-8")
    view.goto(path.as_uri())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_page_in_a_browser(page: str, opened: Any, tmp_path: Path, scheme: Any, width: int) -> None:
    """It logs nothing to the console, loads nothing but itself, and is readable in light and dark mode."""
    view = opened.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    console: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: console.append(message.text))
    view.on("pageerror", lambda error: console.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    _show(view, page, tmp_path / "report.html")
    assert console == []
    assert [url for url in requests if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert view.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert view.inner_text("h1 .verdict").lower() == "fail"
    assert view.inner_text("h1").lower().startswith("fail int8 is 2.00× faster")
    for chart in view.locator("svg:visible").all():
        assert chart.bounding_box()["height"] > 80
    view.close()


# the faults of every element that directly contains text
_FAULTS = """() => {
  document.querySelectorAll('details').forEach(element => element.open = true);
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} wide`);
  for (const table of document.querySelectorAll('table.cards'))
    if (table.scrollWidth > table.clientWidth + 1 || table.getBoundingClientRect().right > root.clientWidth)
      faults.push('the table is cut off');
  const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) return null;  // a shaded cell of the confusion matrix
    }
  };
  for (const element of document.body.querySelectorAll('*')) {
    const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!hasText || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), drawn = element.ownerSVGElement;
    const scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 11) faults.push(`${element.textContent.slice(0, 20)}: ${size} px`);
    const paper = behind(element);
    if (!paper || element.tagName === 'title') continue;
    const pair = [light(parse(drawn ? style.fill : style.color)), light(paper)].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) faults.push(`${element.textContent.slice(0, 20)}: contrast ${contrast}`);
  }
  return [...new Set(faults)].slice(0, 10);
}"""

# points' labels that overlap another label or leave their chart
_OVERLAPS = """() => [...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility()).flatMap(chart => {
  const all = [...chart.querySelectorAll('.label')].map(label => [label.textContent, label.getBoundingClientRect()]);
  const edge = chart.getBoundingClientRect();
  const outside = all.filter(([, box]) => box.left < edge.left || box.right > edge.right);
  const over = all.filter(([, a], at) => all.slice(at + 1).some(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3));
  return [...outside, ...over].map(([text]) => text);
})"""


@pytest.mark.parametrize("width", WIDTHS)
def test_every_kind_of_page_can_be_read(kinds: dict[str, str], opened: Any, tmp_path: Path, width: int) -> None:
    """No page scrolls sideways, no table is cut off, no text is small or faint, and no labels overlap."""
    for scheme in SCHEMES:
        view = opened.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        for kind, page in kinds.items():
            _show(view, page, tmp_path / "report.html")
            assert view.evaluate(_OVERLAPS) == [], kind
            assert view.evaluate(_FAULTS) == [], (kind, scheme)
        view.close()


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_a_report_prints_on_one_page(kinds: dict[str, str], opened: Any, tmp_path: Path, paper: str) -> None:
    """Black on white even in dark mode, without the folded parts."""
    view = opened.new_page(color_scheme="dark")
    for kind in ("everything", "passed", "noisy", "unlabelled", "alone", "joined", "compared"):
        _show(view, kinds[kind], tmp_path / "report.html")
        printed = view.pdf(format=paper)
        assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) == 1, kind
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    view.close()


def test_every_point_is_labelled(judged: Callable[..., Any]) -> None:
    """With its name, or with a number explained below the chart."""
    report = judged().report
    few = charts.plane(report)
    for chart in few.iter("svg"):
        assert {text.text for text in chart.iter("text")} >= {"fp32", "int8"}
    assert few.find("ol") is None
    many = charts.plane(_many(report, [f"{LONG}-{number}" for number in range(12)]))
    keys = many.findall("ol")
    assert keys
    for key, kind in zip(keys, ("wide", "narrow")[-len(keys) :], strict=True):
        (chart,) = (chart for chart in many.iter("svg") if chart.get("class", "").endswith(kind))
        assert {text.text for text in chart.iter("text")} >= {str(number + 1) for number in range(12)}
        assert len(key) == 12


@given(
    st.lists(st.tuples(st.floats(0, 800), st.floats(0, 300)), max_size=12),
    st.lists(st.floats(5, 150), min_size=12, max_size=12),
)
def test_labels_do_not_overlap(points: list[tuple[float, float]], widths: list[float]) -> None:
    """They cover no other label and no point, and stay inside the chart."""
    area = svg.Box(0, 0, 800, 300)
    boxes = svg.place_labels(points, widths[: len(points)], [], area)
    placed = [box for box in boxes if box is not None]
    for number, box in enumerate(placed):
        assert box.inside(area)
        assert not any(box.overlaps(other) for other in placed[number + 1 :])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)


@given(st.floats(1e-9, 1e9), st.floats(1.0, 1e12))
def test_latency_axes_have_ticks_in_their_range(low: float, span: float) -> None:
    """They are logarithmic if the span is more than tenfold; every value lies between the ends."""
    high = low * span
    axis = svg.latency_axis(low, high, 0, 700)
    assert axis.log == (high / low > 10)
    ticks = axis.ticks(8)
    assert ticks
    assert all(0 <= axis(value) <= 700 for value in (low, high, *ticks))
    assert ticks == sorted(ticks)
