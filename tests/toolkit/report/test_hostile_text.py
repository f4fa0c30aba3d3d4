"""Names, labels, paths and boards' answers may contain anything; shown anywhere, none of it has an effect."""

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.visible import visible, visible_json
from edgekit.toolkit import cli, console
from edgekit.toolkit.analysis.compare import compare_reports
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.diagnosis import PackageStatus
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.building.plan_table import build_plan_table
from edgekit.toolkit.packing import on_device
from edgekit.toolkit.predict import Prediction, draw_grid, write_csv
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import (
    board_table,
    comparison_table,
    devices_table,
    facts_table,
    prediction_table,
    validation_table,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

# categories Cc, Cs and the separators; bidirectional controls have their own property
CONTROL = {"Cc", "Cs", "Zl", "Zp"}
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

chars = st.characters(codec="utf-8") | st.sampled_from("[]/\x1b\x9b\u202e\u200f\r\n\t\0=+-@#|<>&*_`!:$~\\'\";. 1\udcff")
hostile = st.text(chars, min_size=1, max_size=30) | st.sampled_from(
    ["[/red]", "[bold]x", "[link=http://a.b]c[/link]", "\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\u202etxt.exe",
     "<img src=x onerror=alert(1)>", "![x](http://a.b/c.png)", "[x](javascript:alert(1))", "a | b", "]]>", "x\n| y |",
     "http://evil.example/x", "www.evil.example", "@everyone", "#1", "- x", "1. x", "===", "+ x", "&lt;b&gt;", "`a`",
     ":smile:", "a\r\nb", "\ufffe", "http:\\\\evil", "\\", "a\\|b", "   ", "__b__", "~~s~~", "$$x$$", "*", "\u2028"]
)  # fmt: skip
SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Judge = Callable[..., Any]


def _controls(text: str) -> list[str]:
    """The characters that would act on a terminal or reorder text."""
    return [sign for sign in text if unicodedata.category(sign) in CONTROL or unicodedata.bidirectional(sign) in BIDI]


def _shown(parts: Iterable[Any], width: int = 2000) -> str:
    """The terminal's output."""
    terminal = console.PlainConsole(file=io.StringIO(), width=width, highlight=False)
    for part in parts:
        terminal.print(part)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def _check_terminal(parts: Iterable[Any], text: str, width: int = 2000) -> None:
    """The output has no control characters and contains the text, stripped: a table may trim its ends."""
    shown = _shown(parts, width)
    assert _controls(shown.replace("\n", "")) == []
    if width == 2000:
        assert visible(text).strip() in shown


@given(hostile)
def test_visible_text_has_no_control_characters(text: str) -> None:
    """Printable text is unchanged."""
    assert _controls(visible(text)) == []
    if text.isprintable():
        assert visible(text) == text


def test_scripts_that_need_joiners_are_unchanged() -> None:
    """Persian, Hindi, a family emoji, and other writing."""
    for text in ("می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧", "日本語　", "Ärger"):
        assert visible(text) == text


@given(st.dictionaries(hostile, hostile | st.lists(hostile, max_size=3), max_size=3))
def test_visible_json_round_trips(value: dict[str, Any]) -> None:
    """It contains no control characters."""
    text = visible_json(value)
    assert json.loads(text) == value
    assert _controls(text) == []


@settings(SEVERAL, max_examples=20)
@given(text=hostile, width=st.sampled_from([40, 2000]))
def test_every_table_shows_hostile_text_literally(text: str, width: int, judged: Judge) -> None:
    """Text from an image, a label, a node, a model, a device or a board."""
    _check_terminal(prediction_table([Prediction(text, (text,), (1.0,), text)]), text)
    _check_terminal(facts_table({text: {text: [text]}, "x": {}}), text)
    finding = {"severity": "error", "rule": "x", "fix": text, "node": text, "message": text, "releases": []}
    plan = _Plan(text, [finding], {"10.3": text})
    _check_terminal(build_plan_table(plan), text)
    report = _report(judged, text)
    _check_terminal(validation_table(report), text, width)
    another = {**report, "device": {**report["device"], "name": "the other board"}}
    _check_terminal(devices_table(join_reports([report, another])), text)
    compared = compare_reports([{**report, "source": text}, {**report, "source": "b"}], Contract())
    _check_terminal(comparison_table(compared), text, width)
    facts = {"python": [3, 11, 2], "executable": text, "cache": text, "cache_bytes": 1, "free_bytes": 1, "rsync": True,
             "machine": text, "system": text}  # fmt: skip
    machine = {"machine": text, text: text}
    packages = [
        PackageStatus("x", text, "y", "pip install 'x[y]'"),
        PackageStatus("x", None, "y", "pip install 'x[y]'"),
    ]
    board = {"python": facts, "machine": machine, "state": {text: text}, "packages": packages, "remarks": [text]}
    _check_terminal(board_table(board), text)


class _Plan(NamedTuple):
    bundle: str
    findings: list[dict[str, Any]]
    commands: dict[str, str]


_made: dict[str, Any] = {}


def _report(judged: Judge, text: str) -> dict[str, Any]:
    """A report in which every foreign entry is the text."""
    if not _made:  # made once, because hypothesis calls this many times
        _made.update(json.loads(json.dumps(judged(second=3.0, lost=3, min_speedup=1.2).report)))
    host = {"images": 3, "logits_max_abs": 0.1, "differ": [
        {"id": text, "truth": text, "host": text, "device": text, "gap": 0.1}]}  # fmt: skip
    models = [
        {**model, "name": text, "bundle": text, "warnings": [text], "host": host,
         "session": {"runtime": text, "placement": {text: 3}}} for model in _made["models"]
    ]  # fmt: skip
    noise = [{"name": text, "detail": text}]
    device = {**_made["device"], "board": text, "cpu": text, text: text, "name": text}
    return {**_made, "models": models, "noise": noise, "device": device, "headline": text, "reason": text,
            "ids": [text, *_made["ids"][1:]], "labels": [text, *_made["labels"][1:]]}  # fmt: skip


@SEVERAL
@given(text=hostile)
def test_junit_stays_xml(text: str, judged: Judge) -> None:
    """It is well-formed, has one case per judgement, and contains the text."""
    suite = ElementTree.fromstring(junit(_report(judged, text)))
    assert len(suite.findall("testcase")) == len(_made["models"][1]["judgements"])
    for case in suite.findall("testcase"):
        assert visible(text).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd") in case.attrib["classname"]


@SEVERAL
@given(text=hostile)
def test_markdown_contains_only_text(text: str, judged: Judge) -> None:
    """The table keeps its size, and the text adds no link, image, code, emphasis, list or HTML."""
    document = markdown(_report(judged, text))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(document)
    assert sum(token.type == "tr_open" for token in tokens) == 3
    assert sum(token.type == "td_open" for token in tokens) == 10
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert {token.content.strip() for token in tokens if token.type == "html_block"} == {
        "<details><summary>noise</summary>", "</details>"}  # fmt: skip
    assert not [token for token in tokens if token.type in ("hr", "code_block", "fence", "ordered_list_open")]
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "text_special", "softbreak"}
    content = "".join(child.content for child in inline).replace("\u200b", "")
    assert " ".join(visible(text).split()) in content
    for line in document.splitlines():
        assert "://" not in line
        assert "www." not in line.lower()


@SEVERAL
@given(text=hostile)
def test_the_page_contains_only_text(text: str, judged: Judge) -> None:
    """It can be encoded, has no control characters, and the text adds no tags."""
    page = render(_report(judged, text), None)
    page.encode()
    plain = render(_report(judged, "x"), None)
    assert _controls(page.partition("</style>")[2].replace("\n", "")) == []
    for tag in ("<script", "<img", "<a ", "<b>"):
        assert page.count(tag) == plain.count(tag) == 0


@SEVERAL
@given(text=hostile, label=hostile)
def test_csv_has_no_formulas_and_round_trips(text: str, label: str, tmp_path: Path) -> None:
    """A reader has to remove one leading apostrophe; ordinary names have none."""
    write_csv([Prediction(text, (label,), (1.0,), None)], tmp_path / "x.csv")
    content = (tmp_path / "x.csv").read_bytes().decode(errors="surrogateescape")
    _, row = csv.reader(io.StringIO(content, newline=""))
    assert [cell.removeprefix("'") for cell in row] == [text, label]
    assert not any(cell.startswith(tuple("=+-@\t\r\n＝＋－＠")) for cell in row)


def test_an_error_is_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one line and its fix."""
    with pytest.raises(SystemExit):
        cli._fail(EdgeKitError("no \x1b[31m[/red]\nhere \udcff", fix="try [bold]\x9b"))
    assert capsys.readouterr().err == "error: no \\x1b[31m[/red]\\nhere \\udcff\nfix: try [bold]\\x9b\n"


def test_messages_are_shown_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages and the descriptions of progress bars."""
    terminal = console.PlainConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(console, "stderr", terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console.say("a [/red] \x1b]0;x\x07 :smile:")
    with console.progress_bar("on \x9b1m[/b]") as show:
        show("[/red]\x1b[2J\u202e", 0.5)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "a [/red] \\x1b]0;x\\x07 :smile:" in shown
    assert "on \\x9b1m[/b]: [/red]\\x1b[2J\\u202e" in shown
    assert "\x9b" not in shown
    assert "\x1b]" not in shown


def test_only_the_first_hundred_stages_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """A device reports a new stage every time."""
    with console.progress_bar("x") as show:
        for number in range(1000):
            show(f"stage {number}", 0.5)
    assert len(capsys.readouterr().err.splitlines()) == 100


def test_a_packed_model_prints_literally(judged: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints without rich, which may not be installed."""
    on_device._print(_report(judged, "\x1b[31m[/red]\u202e\udcff"))
    shown = capsys.readouterr().out
    assert _controls(shown.replace("\n", "")) == []
    assert "\\x1b[31m[/red]\\u202e\\udcff" in shown


@pytest.mark.parametrize("label", ["$\\frac$", "$$", "a\x1b[31m", "\ud800", "{}"])
def test_a_grid_is_drawn_for_any_label(label: str, fp32: Bundle, tmp_path: Path) -> None:
    """Matplotlib interprets dollar signs as mathematics."""
    from edgekit.deploy.images import ImageSet
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    images = ImageSet((label, "b"), ("a.png",), np.asarray([0]), [tmp_path / "a.png"])
    draw_grid(images, [Prediction("a.png", (label,), (1.0,), label)], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0
