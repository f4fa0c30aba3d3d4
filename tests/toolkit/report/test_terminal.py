"""Tables fit terminals of any width, and every model's name can be read."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from edgekit.toolkit.analysis.compare import compare_reports
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.console import PlainConsole, broken, print_parts
from edgekit.toolkit.packing.on_device import _print as show_packed
from edgekit.toolkit.predict import Prediction
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import (
    comparison_table,
    devices_table,
    prediction_table,
    self_test_table,
    validation_table,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

LONG = "efficientnet_lite0.ra_in1k-finetuned_on_products-pruned_2024"


def _shown(parts: Any, width: int | None) -> str:
    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None)
    print_parts(parts, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _named(report: dict[str, Any], device: str = "local") -> dict[str, Any]:
    names = ("mobilenet_v3_small", LONG)
    models = [{**model, "name": name} for model, name in zip(report["models"], names, strict=True)]
    return {
        **report,
        "models": models,
        "source": f"{device}/report.json",
        "device": {**report["device"], "name": device},
    }


@pytest.fixture
def parts(judged: Callable[..., Any]) -> dict[str, list[Any]]:
    """The tables of a validation, two devices, two reports and a self-test."""
    report = judged(lost=2).report
    first, second = _named(report), _named(report, "ssh://pi@raspberrypi.local")
    ratio = {"ratio": 1.0, "low": 0.99, "high": 1.01, "outcome": "no difference"}
    tested = {"model": LONG, "call_ms": 1.0, "seconds": 5.0, "same": ratio, "slowed": {**ratio, "planted": 0.97},
             "resolves": 0.01, "noise": []}  # fmt: skip
    return {
        "validation": list(validation_table(first)),
        "devices": list(devices_table(join_reports([first, second]))),
        "comparison": list(comparison_table(compare_reports([first, second], Contract()))),
        "self-test": list(self_test_table(tested)),
    }


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("kind", ["validation", "devices", "comparison", "self-test"])
def test_every_name_can_be_read(parts: dict[str, list[Any]], kind: str, width: int) -> None:
    """A name is on one line, or broken after one of - _ . / if it is too long; no line exceeds the width."""
    text = _shown(parts[kind], width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for name in ("mobilenet_v3_small", LONG) if kind in ("validation", "devices") else (LONG,):
        pieces = re.split(r"(?<=[-_./])", name)
        assert re.search(r"\s*".join(map(re.escape, filter(None, pieces))), text)
        if len(name) < width - 20:
            assert name in text


@pytest.mark.parametrize("kind", ["validation", "devices", "comparison", "self-test"])
def test_a_pipe_has_no_width(parts: dict[str, list[Any]], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken or truncated in a file or log."""
    monkeypatch.delenv("COLUMNS", raising=False)
    text = _shown(parts[kind], None)
    assert LONG in text
    assert "…" not in text
    assert any(len(line) > 80 for line in text.splitlines()) or kind == "self-test"


def test_the_table_of_two_short_names_fits_80_columns(judged: Callable[..., Any]) -> None:
    """As a table, with the latencies behind the speed-up."""
    text = _shown(validation_table(judged().report), 80)
    assert re.search(r"model +size +top-1 +points +latency +p50 +speed-up", text)
    assert re.search(r"int8 +[\d.]+ MB .* 1 ms .* 2.00x", text)


def test_a_slower_model_is_called_slower_for_devices_and_packed_models(
    judged: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first line, followed by the figures and the model to keep."""
    report = judged(second=3.0).report
    slower = "int8 made up is slower than fp32 made up here: 0.67x"
    show_packed(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(slower)
    assert any(line.startswith("keep fp32 made up") for line in lines)
    assert any("2 ms" in line and "reference" in line for line in lines)
    both = join_reports([report, {**report, "device": {**report["device"], "name": "ssh://pi"}}])
    for text in (_shown(devices_table(both), None), markdown(both), render(both, None)):
        assert (
            0
            <= text.find(f"local: {slower}")
            < text.find("local: keep fp32 made up: no candidate is shown to be faster")
        )


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=200), st.integers(10, 60))
def test_broken_lines_lose_nothing(text: str, width: int) -> None:
    """Except the spaces at the breaks."""
    pieces = [piece.plain for piece in broken(Text(text), width)]
    assert max(map(len, pieces)) <= width
    assert "".join("".join(pieces).split()) == "".join(text.split())


def _printed(predictions: list[Prediction]) -> str:
    stream = io.StringIO()
    print_parts(prediction_table(predictions), PlainConsole(file=stream, width=100))
    return stream.getvalue()


def test_predictions_with_labels_have_an_accuracy() -> None:
    """Right and wrong answers are counted, the most frequent error first; images without a label do not count."""
    answers = [("cat", "cat")] * 6 + [("cat", "dog")] * 2 + [("[b]fox", "dog")] + [(None, "dog")]
    predictions = [Prediction(f"{n}.png", (found,), (1.0,), truth) for n, (truth, found) in enumerate(answers)]
    text = _printed(predictions)
    assert re.search(r"top-1 accuracy 66\.7% \[\d+\.\d%, \d+\.\d%\]: 6 of 9 labelled images", text)
    rows = [line.split() for line in text.splitlines()]
    assert rows.index(["cat", "dog", "2", "25%"]) < rows.index(["[b]fox", "dog", "1", "100%"])
    assert "accuracy" not in _printed([Prediction("a.png", ("cat",), (1.0,), None)])
    assert "frequent" not in _printed([Prediction("a.png", ("cat",), (1.0,), "cat")])
