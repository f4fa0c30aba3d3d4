"""Reports are compared offline, and a change is compared with an earlier report."""

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.measuring.measurement import Block, Measurement
from edgekit.toolkit.analysis.compare import compare_reports, read_document, read_report
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.analysis.wording import headline_of
from edgekit.toolkit.console import PlainConsole, print_parts
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import comparison_table


@pytest.fixture
def written(judged: Callable[..., Any], tmp_path: Path) -> Callable[..., dict]:
    """Write a report on synthetic measurements and read it back."""

    def run(name: str, device: dict | None = None, **settings: Any) -> dict:
        report = judged(**settings).report
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**report, "device": {**report["device"], **(device or {})}}))
        return read_report(path)

    return run


def test_a_change_is_found_through_the_shared_baseline(written: Callable[..., dict]) -> None:
    """If the machine is half as fast and the model became 10 % slower, 10 % is reported."""
    before, after = written("a", first=2.0, second=1.0), written("b", first=4.0, second=2.2)
    comparison = compare_reports([before, after], Contract(min_speedup=0.95))
    (row,) = comparison["rows"]
    assert row["against"]["speedup"]["ratio"] == pytest.approx(1 / 1.1, rel=0.02)
    assert row["against"]["outcome"] == "slower"
    assert "same baseline" in row["against"]["how"]
    assert (comparison["verdict"], comparison["exit_code"]) == ("fail", 3)
    assert before["source"] in comparison["reason"]
    failure = ElementTree.fromstring(junit(comparison)).find(".//failure")
    assert failure is not None
    assert "less than the 0.95" in failure.attrib["message"]
    assert "❌" in markdown(comparison)


def test_without_a_shared_baseline_the_times_are_compared(written: Callable[..., dict]) -> None:
    """The comparison states that it includes the machine's state."""
    before, after = written("a", second=1.0), written("b", second=1.0)
    after["models"][0] = {**after["models"][0], "id": "another"}
    comparison = compare_reports([before, after], Contract())
    against = comparison["rows"][0]["against"]
    assert "machine's state on each day" in against["how"]
    assert against["speedup"]["ratio"] == pytest.approx(1.0, rel=0.02)
    assert against["outcome"] == "no difference"
    assert comparison["exit_code"] == 0


DATA = Path(__file__).parents[2] / "data" / "reports"


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_reports_of_earlier_schemas_are_read(schema: int, tmp_path: Path) -> None:
    """Reports written by earlier versions are shown, joined and compared, judged by the current rules."""
    path = DATA / f"schema-{schema}.json"
    written = json.loads(path.read_text())
    assert written["schema"] == schema
    report = read_report(path)
    assert report["schema"] == 4
    int8 = report["models"][-1]
    assert int8["speed_baseline"] == report["models"][-2]["id"]
    assert "int8 onnxruntime is slower than fp32 onnxruntime here" in report["headline"]
    assert report["recommendation"]["id"] == int8["speed_baseline"]
    assert int8["top1"] == written["models"][-1]["top1"]
    page = render(report, None)
    assert "is slower than" in page
    assert report["headline"] in junit(report)
    joined = join_reports([report, {**report, "device": {**report["device"], "name": "other"}}])
    assert "is slower than" in markdown(joined)
    comparison = compare_reports([report, report], Contract())
    assert comparison["rows"][0]["against"]["speedup"]["ratio"] == pytest.approx(1.0)


def test_a_joined_report_of_schema_3_is_read(tmp_path: Path) -> None:
    """Its devices' reports are migrated to the current schema and joined again."""
    report = json.loads((DATA / "schema-3.json").read_text())
    other = {**report, "device": {**report["device"], "name": "other"}}
    document = {"schema": 3, "verdict": "pass", "reason": "", "exit_code": 0, "noise": [], "failed": [],
                "devices": [report, other], "agreement": []}  # fmt: skip
    (tmp_path / "joined.json").write_text(json.dumps(document))
    read = read_document(tmp_path / "joined.json")
    assert [entry["schema"] for entry in read["devices"]] == [4, 4]
    assert read["agreement"][0]["images"] == 20


def test_other_hardware_is_refused_unless_requested(written: Callable[..., dict]) -> None:
    """The error names the difference."""
    first, second = written("a"), written("b", device={"cpu": "two"})
    with pytest.raises(EdgeKitError, match=r"different machines.*'two'") as caught:
        compare_reports([first, second], Contract())
    assert "--across-hardware" in caught.value.fix
    assert len(compare_reports([first, second], Contract(), across_hardware=True)["rows"]) == 1


def test_accuracy_is_paired_on_the_same_images_only(written: Callable[..., dict]) -> None:
    """On different images the interval is that of two independent counts."""
    before, after = written("a", lost=0), written("b", lost=9)
    paired = compare_reports([before, after], Contract())["rows"][0]["against"]
    assert paired["paired"]
    assert paired["drop"]["points"] == pytest.approx(100 * 9 / 359)
    after["ids"] = [f"other-{name}" for name in after["ids"]]
    unpaired = compare_reports([before, after], Contract())["rows"][0]["against"]
    assert not unpaired["paired"]
    assert unpaired["drop"]["points"] == pytest.approx(paired["drop"]["points"])


def test_a_noisy_earlier_run_is_reported(written: Callable[..., dict]) -> None:
    """The comparison includes the noise of both runs."""

    def drifts(measured: list[Measurement]) -> list[Measurement]:
        def slower(block: Block) -> Block:
            return replace(block, ns=tuple(int(ns * (1 + block.round / 100)) for ns in block.ns))

        return [replace(measurement, blocks=tuple(map(slower, measurement.blocks))) for measurement in measured]

    comparison = compare_reports([written("a", change=drifts), written("b")], Contract(min_speedup=0.9))
    assert "trend" in {signal["name"] for signal in comparison["noise"]}
    assert "noisy" in comparison["reason"] or "noisy" in str(comparison["rows"][0]["judgements"])


def test_a_report_of_another_model_is_not_a_baseline(written: Callable[..., dict]) -> None:
    """The fix lists the models that it contains."""
    before, after = written("a"), written("b")
    for model in before["models"]:
        model |= {"name": "other", "id": f"other-{model['id']}"}
    with pytest.raises(EdgeKitError, match="has no lenet onnx int8") as caught:
        compare_reports([before, after], Contract())
    assert "other" in caught.value.fix


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"schema": 2}', '{"schema": 5}', '{"schema": 3}', '{"schema": 4, "models": [{}]}',
     '{"schema": 3, "models": [{}]}',
     '{"schema": 1}', '{"schema": 4}', '{"schema": 4, "models": 3}',
     '{"result": 1}', '{"result": 2}', '{"result": 1, "bundles": [{}]}'],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EdgeKitError, match=r"x\.json"):
        read_report(tmp_path / "x.json")


def test_a_slower_model_is_called_slower_beside_an_earlier_report_too(written: Callable[..., dict]) -> None:
    """Even if it is as fast as before: the first line of the terminal, Markdown and JUnit says so."""
    first, second = (written(name, second=3.0) for name in ("a.json", "b.json"))
    document = compare_reports([first, second], Contract(min_speedup=0.5))
    assert document["exit_code"] == 0
    slower = "int8 made up is slower than fp32 made up here: 0.67x"
    assert headline_of(document).startswith(slower)
    first_line = markdown(document).splitlines()[0]
    assert "it is slower than the unoptimised model" in first_line
    assert slower in markdown(document)
    assert slower in ElementTree.fromstring(junit(document))[0][0].attrib["value"]
    lines = io.StringIO()
    print_parts(comparison_table(document), PlainConsole(file=lines, width=100, force_terminal=True, color_system=None))
    assert lines.getvalue().startswith(slower)
    faster = [written(name) for name in ("c.json", "d.json")]
    assert headline_of(compare_reports(faster, Contract())).startswith("lenet")
