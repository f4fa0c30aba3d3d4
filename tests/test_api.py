"""The library as Python code uses it: complete, quiet, and as its docstring shows it."""

import html
import json
import logging
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import edgekit
import pytest
from edgekit.deploy.bundle import Bundle

from .conftest import DATA
from .toolkit.conftest import judged  # noqa: F401 # a fixture

QUICK = "Plan(seconds=0.2, processes=3, rounds=2, block_ms=5, threads=1)"


@pytest.mark.slow
def test_the_example_runs_and_prints_only_its_own_output() -> None:
    """The example in the package's docstring, with fewer epochs and a shorter measurement."""
    example = textwrap.dedent(edgekit.__doc__.partition("::\n")[2].partition("\nNothing is printed")[0])
    quick = example.replace('load("digits")', 'load("digits", ["train.epochs=1"])').replace("Plan(seconds=4)", QUICK)
    assert quick.count("epochs=1") == quick.count("block_ms") == 1
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, check=True)
    assert re.fullmatch(r".+ [034]\n", done.stdout)
    assert done.stderr == ""


def test_a_device_install_is_quiet() -> None:
    """Loading, predicting, validating and packing write nothing to standard output or error."""
    code = f"""
        import edgekit
        fp32, int8 = (edgekit.Bundle.open(r"{DATA}/" + name) for name in ("lenet-fp32", "lenet-int8"))
        edgekit.load(fp32.path).close()
        assert len(edgekit.predict(int8, "digits")) == 359
        result = edgekit.validate([int8], plan=edgekit.{QUICK}, limit=20)
        paths = result.write("report")
        assert edgekit.read_report(paths[0]).report["headline"] == result.report["headline"]
        assert edgekit.pack([int8], limit=5).stat().st_size > 1000
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_messages_and_progress_are_available_on_request(
    int8: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages go to the logger "edgekit"; a callback receives the stage and a share from 0 to 1."""
    caplog.set_level(logging.INFO, "edgekit")
    updates: list[tuple[str, float]] = []
    monkeypatch.setattr("edgekit.toolkit.validation.validate.part_of", lambda *_, **__: None)
    plan = edgekit.Plan(seconds=0.1, processes=3, rounds=2, block_ms=5, threads=1)
    edgekit.validate([int8], baseline=int8, plan=plan, progress=lambda stage, share: updates.append((stage, share)))
    assert "no test images are known" in caplog.text
    assert {"loading", "warm-up", "latency"} <= {stage for stage, _ in updates}
    assert all(0 <= share <= 1 for _, share in updates)


def test_a_validation_shows_itself(judged: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """As text from `show`; in a notebook as an escaped page in a frame that runs no scripts."""
    made = judged()
    validation = edgekit.Validation(made.report, made.test)
    validation.show()
    assert made.report["verdict"] in capsys.readouterr().out
    shown = validation._repr_html_()
    page = html.unescape(re.fullmatch(r'<iframe sandbox [^>]*srcdoc="([^"]*)"[^>]*></iframe>', shown)[1])  # type: ignore[index]
    assert page.startswith("<!DOCTYPE html>")
    assert "<b>CPU</b>" not in page
    assert capsys.readouterr().out == ""


def test_a_validation_as_a_data_frame(judged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One row per model, nested figures under dotted names; without pandas the error says what to install."""
    validation = edgekit.Validation(judged().report)
    frames: list[list[dict[str, Any]]] = []
    pandas = ModuleType("pandas")
    pandas.DataFrame = type("DataFrame", (), {"from_records": staticmethod(frames.append)})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", pandas)
        validation.to_dataframe()
    (rows,) = frames
    assert [row["precision"] for row in rows] == ["fp32", "int8"]
    assert rows[1]["speedup.ratio"] == pytest.approx(2.0, rel=0.1)
    assert {"device", "top1", "drop.points", "time_ms.value", "latency_ms.p50"} <= rows[1].keys()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(edgekit.EdgeKitError, match="pandas is not installed") as caught:
        validation.to_dataframe()
    assert caught.value.fix == "pip install pandas"


def test_read_report(judged: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    """A report is read from its file; it contains a verdict, so it cannot be judged by another contract."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(judged().report))
    assert edgekit.read_report(path).exit_code == 0
    with pytest.raises(edgekit.EdgeKitError, match="already contains a verdict"):
        edgekit.read_report(path, edgekit.Contract(min_speedup=50.0))


def test_the_package_is_typed() -> None:
    """A type checker reads the annotations of the installed package."""
    assert (Path(edgekit.__file__).parent / "py.typed").is_file()
