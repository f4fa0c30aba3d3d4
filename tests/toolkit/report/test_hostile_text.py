"""Names, labels, paths and answers of boards may hold anything: nothing of them acts where it is shown."""

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

# Cc, Cs and the separators; the bidirectional controls by their own property
ACTING = {"Cc", "Cs", "Zl", "Zp"}
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

signs = st.characters(codec="utf-8") | st.sampled_from("[]/\x1b\x9b\u202e\u200f\r\n\t\0=+-@#|<>&*_`!:$~\\'\";. 1\udcff")
hostile = st.text(signs, min_size=1, max_size=30) | st.sampled_from(
    ["[/red]", "[bold]x", "[link=http://a.b]c[/link]", "\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\u202etxt.exe",
     "<img src=x onerror=alert(1)>", "![x](http://a.b/c.png)", "[x](javascript:alert(1))", "a | b", "]]>", "x\n| y |",
     "http://evil.example/x", "www.evil.example", "@everyone", "#1", "- x", "1. x", "===", "+ x", "&lt;b&gt;", "`a`",
     ":smile:", "a\r\nb", "\ufffe", "http:\\\\evil", "\\", "a\\|b", "   ", "__b__", "~~s~~", "$$x$$", "*", "\u2028"]
)  # fmt: skip
SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Judge = Callable[..., Any]


def _acts(text: str) -> list[str]:
    return [one for one in text if unicodedata.category(one) in ACTING or unicodedata.bidirectional(one) in BIDI]


def _shown(parts: Iterable[Any], width: int = 2000) -> str:
    """What a terminal gets."""
    terminal = console.PlainConsole(file=io.StringIO(), width=width, highlight=False)
    for part in parts:
        terminal.print(part)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def _check_terminal(parts: Iterable[Any], text: str, width: int = 2000) -> None:
    """Nothing acts, and the text is there, if not at its ends, which a table may trim."""
    shown = _shown(parts, width)
    assert _acts(shown.replace("\n", "")) == []
    if width == 2000:
        assert visible(text).strip() in shown


@given(hostile)
def test_visible_text_acts_no_more(text: str) -> None:
    """And what is plain stays as it is."""
    assert _acts(visible(text)) == []
    if text.isprintable():
        assert visible(text) == text


def test_writing_that_needs_joiners_stays() -> None:
    """Persian, Hindi, a family."""
    for text in ("می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧", "日本語　", "Ärger"):
        assert visible(text) == text


@given(st.dictionaries(hostile, hostile | st.lists(hostile, max_size=3), max_size=3))
def test_json_reads_as_the_same(value: dict[str, Any]) -> None:
    """And nothing in it acts on the terminal that it is printed to."""
    text = visible_json(value)
    assert json.loads(text) == value
    assert _acts(text) == []


@settings(SEVERAL, max_examples=20)
@given(text=hostile, width=st.sampled_from([40, 2000]))
def test_every_table_shows_it_as_it_is(text: str, width: int, judged: Judge) -> None:
    """Of an image, a label, a node, a model, a device, a board."""
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
    """A report in which everything from outside holds the text."""
    if not _made:  # it is made once: hypothesis asks for it many times
        _made.update(json.loads(json.dumps(judged(second=3.0, lost=3, min_speedup=1.2).report)))
    host = {"images": 3, "logits_max_abs": 0.1, "differ": [
        {"id": text, "truth": text, "host": text, "device": text, "gap": 0.1}]}  # fmt: skip
    models = [
        {**one, "name": text, "bundle": text, "warnings": [text], "host": host,
         "session": {"runtime": text, "placement": {text: 3}}} for one in _made["models"]
    ]  # fmt: skip
    noise = [{"name": text, "detail": text}]
    device = {**_made["device"], "board": text, "cpu": text, text: text, "name": text}
    return {**_made, "models": models, "noise": noise, "device": device, "headline": text, "reason": text,
            "ids": [text, *_made["ids"][1:]], "labels": [text, *_made["labels"][1:]]}  # fmt: skip


@SEVERAL
@given(text=hostile)
def test_junit_stays_xml(text: str, judged: Judge) -> None:
    """Well-formed, with as many cases, and the text in it."""
    suite = ElementTree.fromstring(junit(_report(judged, text)))
    assert len(suite.findall("testcase")) == len(_made["models"][1]["judgements"])
    for case in suite.findall("testcase"):
        assert visible(text).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd") in case.attrib["classname"]


@SEVERAL
@given(text=hostile)
def test_markdown_holds_text_alone(text: str, judged: Judge) -> None:
    """One table, of its own size, and no link, image, code, emphasis, list or HTML that was not there before."""
    document = markdown(_report(judged, text))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(document)
    assert sum(token.type == "tr_open" for token in tokens) == 3
    assert sum(token.type == "td_open" for token in tokens) == 10
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert {token.content.strip() for token in tokens if token.type == "html_block"} == {
        "<details><summary>noise</summary>", "</details>"}  # fmt: skip
    assert not [one for one in tokens if one.type in ("hr", "code_block", "fence", "ordered_list_open")]
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "text_special", "softbreak"}
    told = "".join(child.content for child in inline).replace("\u200b", "")
    assert " ".join(visible(text).split()) in told
    for line in document.splitlines():
        assert "://" not in line
        assert "www." not in line.lower()


@SEVERAL
@given(text=hostile)
def test_the_page_holds_text_alone(text: str, judged: Judge) -> None:
    """It is written, nothing in it acts, and no tag came with the text."""
    page = render(_report(judged, text), None)
    page.encode()
    plain = render(_report(judged, "x"), None)
    assert _acts(page.partition("</style>")[2].replace("\n", "")) == []
    for tag in ("<script", "<img", "<a ", "<b>"):
        assert page.count(tag) == plain.count(tag) == 0


@SEVERAL
@given(text=hostile, label=hostile)
def test_csv_is_no_formula_and_reads_back(text: str, label: str, tmp_path: Path) -> None:
    """A program removes one apostrophe from the front; an ordinary name has none."""
    write_csv([Prediction(text, (label,), (1.0,), None)], tmp_path / "x.csv")
    content = (tmp_path / "x.csv").read_bytes().decode(errors="surrogateescape")
    _, row = csv.reader(io.StringIO(content, newline=""))
    assert [cell.removeprefix("'") for cell in row] == [text, label]
    assert not any(cell.startswith(tuple("=+-@\t\r\n＝＋－＠")) for cell in row)


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """One line and its fix."""
    with pytest.raises(SystemExit):
        cli._fail(EdgeKitError("no \x1b[31m[/red]\nhere \udcff", fix="try [bold]\x9b"))
    assert capsys.readouterr().err == "error: no \\x1b[31m[/red]\\nhere \\udcff\nfix: try [bold]\\x9b\n"


def test_what_is_said_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences, and the descriptions of bars."""
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


def test_endless_stages_are_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """A device that says another one each time."""
    with console.progress_bar("x") as show:
        for number in range(1000):
            show(f"stage {number}", 0.5)
    assert len(capsys.readouterr().err.splitlines()) == 100


def test_a_packed_model_prints_as_it_is(judged: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    """Where rich need not be there."""
    on_device._print(_report(judged, "\x1b[31m[/red]\u202e\udcff"))
    shown = capsys.readouterr().out
    assert _acts(shown.replace("\n", "")) == []
    assert "\\x1b[31m[/red]\\u202e\\udcff" in shown


@pytest.mark.parametrize("label", ["$\\frac$", "$$", "a\x1b[31m", "\ud800", "{}"])
def test_a_grid_is_drawn_whatever_a_label_holds(label: str, fp32: Bundle, tmp_path: Path) -> None:
    """Matplotlib reads dollars as mathematics."""
    from edgekit.deploy.images import ImageSet
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    images = ImageSet((label, "b"), ("a.png",), np.asarray([0]), [tmp_path / "a.png"])
    draw_grid(images, [Prediction("a.png", (label,), (1.0,), label)], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0
