"""A validation's files: report.json, report.html, junit.xml, summary.md."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ...deploy.errors import EdgeKitError
from ...deploy.files import write_file
from ...deploy.images import ImageSet
from ...deploy.measuring.result import Result
from ...deploy.visible import visible, visible_json
from ..analysis.report_schema import ComparisonRow, Document, JoinedReport, Model, Report
from ..analysis.wording import (
    DEVICE_COLUMNS,
    against_lines,
    agreement_lines,
    device_rows,
    drop_cell,
    drop_text,
    headline_of,
    host_lines,
    mean_text,
    milliseconds,
    model_name,
    model_names,
    noise_details,
    noise_summary,
    percent,
    ratio_lines,
    recommendation_lines,
    scenario_lines,
    speedup_cell,
    speedup_text,
    speedups,
    subject,
    thread_lines,
    warning_lines,
)
from ..workspace import locked
from .html import render

# Inline markup of GitHub's Markdown; what makes a list, a heading or a rule at the start of a line; and what becomes a
# link or a mention without any markup, if a space of no width does not stand after it.
_MARKUP = re.compile(r"[\\`*_\[\]<>|!&~$]")
_BLOCK = re.compile(r"^(\d*)([-+=#.])")
_LINK = re.compile(r"[@#](?=\w)|:(?=//)|www(?=\.)", re.IGNORECASE)


# What a summary says below its table.
_TOLD = (thread_lines, ratio_lines, speedups, recommendation_lines, against_lines, scenario_lines, host_lines)


def write_reports(report: Report | JoinedReport, images: ImageSet | None, folder: Path) -> list[Path]:
    """Write the four files into `folder`, over those of an earlier validation of the same model."""
    contents = {
        "report.json": visible_json(report),
        "junit.xml": junit(report),
        "summary.md": markdown(report),
        "report.html": render(report, images),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # of two validations at once, all four files are of one
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


def write_page(report: Document, path: Path) -> None:
    """Write a report's page; without the test images at hand it has no pictures of them."""
    if "rows" in report:
        raise EdgeKitError("a comparison has no page", fix="leave out --html; --markdown and --junit work")
    write_file(path, render(report, None))


def write_junit(document: Document, path: Path) -> None:
    """Write the judgements of a report, or of reports compared, as JUnit XML."""
    write_file(path, junit(document))


def write_markdown(document: Document, path: Path) -> None:
    """Write the summary of a report, or of reports compared."""
    write_file(path, markdown(document))


def junit(document: Document) -> str:
    """JUnit XML: the headline, a test case for each judgement of each candidate, and what made the run noisy."""
    suite = ElementTree.Element("testsuite", name="edgekit validate")
    cases = 0
    failed = 0
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="headline", value=_xml(headline_of(document)))
    for model in _models(document):
        for judgement in model.get("judgements", []):
            cases += 1
            named = {"classname": _xml(model_name(model)), "name": _xml(judgement["rule"])}
            case = ElementTree.SubElement(suite, "testcase", named)
            sentence = _xml(judgement["sentence"])
            if judgement["outcome"] == "fail" or judgement["exit_code"]:
                failed += 1
                ElementTree.SubElement(case, "failure", message=sentence)
            elif judgement["outcome"] == "inconclusive":
                ElementTree.SubElement(case, "skipped", message=sentence)
            else:
                ElementTree.SubElement(case, "system-out").text = sentence
    suite.set("tests", str(cases))
    suite.set("failures", str(failed))
    if document["noise"]:
        ElementTree.SubElement(suite, "system-err").text = "\n".join(map(_xml, noise_summary(document)))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def markdown(document: Document) -> str:
    """A summary for a pull request's comment: the verdict, the models or changes as a table, the warnings."""
    icon = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}[document["verdict"]]
    said = headline_of(document)
    lines = [f"### {icon} EdgeKit: {document['verdict']}: {_escaped(said)}", "", _line(document["reason"]), ""]
    if "models" in document:
        names = model_names(document)
        rows = [
            [names[model["id"]], percent(model["top1"]), drop_cell(model, document), mean_text(model),
             speedup_cell(model)]
            for model in document["models"]
        ]  # fmt: skip
        lines += _table(("model", "top-1", "drop, points", "mean latency", "speed-up"), rows)
        lines += [
            "",
            *(f"- {_line(line)}" for tell in _TOLD for line in tell(document)),
            _line(subject(document)),
        ]
        warnings = warning_lines(document)
    elif "devices" in document:
        lines += _table(DEVICE_COLUMNS, device_rows(document))
        said_of_all = (*agreement_lines(document), *recommendation_lines(document))
        lines += ["", *(f"- {_line(line)}" for line in said_of_all)]
        warnings = []
    else:
        rows = [
            [model_name(row), row["against"]["report"], drop_text(row["against"]["drop"]), mean_text(row),
             milliseconds(row["against"].get("time_ms")),
             f"{speedup_text(row['against']['speedup'])} {row['against']['outcome']}"]
            for row in document["rows"]
        ]  # fmt: skip
        lines += _table(("model", "against", "drop, points", "mean latency", "before", "speed-up"), rows)
        lines += [
            "",
            *(f"- compared {_line(how)}" for how in dict.fromkeys(row["against"]["how"] for row in document["rows"])),
        ]
        warnings = []
    lines += ["", *(f"- ⚠️ {_escaped(warning)}" for warning in warnings), *map(_line, noise_summary(document))]
    if document["noise"]:
        lines += ["", "<details><summary>noise</summary>", ""]
        lines += [*(f"- {_line(detail)}" for detail in noise_details(document)), "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def _models(document: Document) -> Sequence[Model | ComparisonRow]:
    """What was judged; of several devices each with the device before its name."""
    if "devices" in document:
        return [
            {**model, "name": f"{report['device']['name']} {model['name']}"}
            for report in document["devices"]
            for model in report["models"]
        ]
    return document["models"] if "models" in document else document["rows"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_escaped, row))} |" for row in (header, ["---"] * len(header), *rows)]


def _line(text: str) -> str:
    """Text that is no markup at the start of a line either."""
    return _BLOCK.sub(r"\1\\\2", _escaped(text))


def _escaped(text: str) -> str:
    """Text that is no markup, no link, no mention of a user or an issue: a label or a file name may hold anything."""
    text = _MARKUP.sub(r"\\\g<0>", " ".join(visible(text).split()))
    return _LINK.sub("\\g<0>\N{ZERO WIDTH SPACE}", text)


def _xml(text: str) -> str:
    """Text that XML 1.0 can hold (production 2): besides what `visible` shows, two characters have no form in it."""
    return re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", visible(text))
