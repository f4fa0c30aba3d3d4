"""A validation's files: report.json, report.html, junit.xml, summary.md."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..deploy.files import write_file
from ..deploy.images import ImageSet
from ..deploy.result import Result
from .display import (
    DEVICE_COLUMNS,
    against_lines,
    agreement_lines,
    device_rows,
    drop_text,
    host_lines,
    milliseconds,
    model_name,
    model_names,
    noise_lines,
    percent,
    scenario_lines,
    speedup_text,
    subject,
)
from .report import render


def write_reports(report: Mapping[str, Any], images: ImageSet | None, folder: Path) -> list[Path]:
    """Write the four files into `folder`, over those of an earlier validation of the same model."""
    contents = {
        "report.json": json.dumps(report, ensure_ascii=False),
        "junit.xml": junit(report),
        "summary.md": markdown(report),
        "report.html": render(report, images),
    }
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]


def device_slug(device: str) -> str:
    """A device's name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", device.partition("://")[2] or device)


def write_result(result: Result, folder: Path) -> Path:
    """Write result.json into `folder`: what `report` makes a report from."""
    path = folder / "result.json"
    write_file(path, json.dumps(result.to_json()))
    return path


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write a report's page; without the test images at hand it has no pictures of them."""
    write_file(path, render(report, None))


def write_junit(document: Mapping[str, Any], path: Path) -> None:
    """Write the judgements of a report, or of reports compared, as JUnit XML."""
    write_file(path, junit(document))


def write_markdown(document: Mapping[str, Any], path: Path) -> None:
    """Write the summary of a report, or of reports compared."""
    write_file(path, markdown(document))


def junit(document: Mapping[str, Any]) -> str:
    """JUnit XML: a test case for each judgement of each candidate; what made the run noisy as its output."""
    suite = ElementTree.Element("testsuite", name="edgekit validate")
    failed = 0
    for model in _models(document):
        for judgement in model.get("judgements", []):
            case = ElementTree.SubElement(suite, "testcase", classname=model_name(model), name=judgement["rule"])
            if judgement["outcome"] == "fail" or judgement["exit_code"]:
                failed += 1
                ElementTree.SubElement(case, "failure", message=judgement["sentence"])
            elif judgement["outcome"] == "inconclusive":
                ElementTree.SubElement(case, "skipped", message=judgement["sentence"])
            else:
                ElementTree.SubElement(case, "system-out").text = judgement["sentence"]
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failed))
    if document["noise"]:
        ElementTree.SubElement(suite, "system-err").text = "\n".join(noise_lines(document))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def markdown(document: Mapping[str, Any]) -> str:
    """A summary for a pull request's comment: the verdict, the models or changes as a table, the warnings."""
    icon = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}[document["verdict"]]
    lines = [f"### {icon} EdgeKit: {document['verdict']}", "", _escaped(document["reason"]), ""]
    if "models" in document:
        names = model_names(document)
        rows = [
            [names[model["id"]], percent(model["top1"]), _or_baseline(drop_text(model["drop"]), model, document),
             milliseconds(model["latency_ms"]["p50"]), _or_baseline(speedup_text(model["speedup"]), model, document)]
            for model in document["models"]
        ]  # fmt: skip
        lines += _table(("model", "top-1", "drop, points", "latency", "speed-up"), rows)
        lines += [
            "",
            *(
                f"- {_escaped(line)}"
                for line in [*against_lines(document), *scenario_lines(document), *host_lines(document)]
            ),
            _escaped(subject(document)),
        ]
        warnings = [f"{names[model['id']]}: {warning}" for model in document["models"] for warning in model["warnings"]]
    elif "devices" in document:
        lines += _table(DEVICE_COLUMNS, device_rows(document))
        lines += ["", *(f"- {_escaped(line)}" for line in agreement_lines(document))]
        warnings = []
    else:
        rows = [
            [model_name(row), row["against"]["report"], drop_text(row["against"]["drop"]),
             f"{speedup_text(row['against']['speedup'])} {row['against']['outcome']}"]
            for row in document["rows"]
        ]  # fmt: skip
        lines += _table(("model", "against", "drop, points", "speed-up"), rows)
        warnings = []
    lines += ["", *(f"- ⚠️ {_escaped(warning)}" for warning in (*noise_lines(document), *warnings))]
    return "\n".join(lines).rstrip() + "\n"


def _models(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What was judged; of several devices each with the device before its name."""
    if "devices" in document:
        return [
            {**model, "name": f"{report['device']['name']} {model['name']}"}
            for report in document["devices"]
            for model in report["models"]
        ]
    return document.get("models") or document["rows"]


def _or_baseline(text: str, model: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    return "baseline" if model["id"] == document["baseline"] else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_escaped, row))} |" for row in (header, ["---"] * len(header), *rows)]


def _escaped(text: str) -> str:
    """Text that is no markup: a label or a file name may hold anything."""
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
