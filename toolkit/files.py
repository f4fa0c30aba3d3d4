"""A validation's files: report.json, report.html, junit.xml."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..deploy.files import write_file
from .display import model_name
from .report import render
from .validate import Validation


def write_reports(result: Validation, folder: Path) -> list[Path]:
    """Write the three files into `folder`, over those of an earlier validation of the same model."""
    contents = {
        "report.json": json.dumps(result.report, ensure_ascii=False),
        "junit.xml": junit(result.report),
        "report.html": render(result.report, result.images),
    }
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write a report's page; without the test images at hand it has no pictures of them."""
    write_file(path, render(report, None))


def junit(report: Mapping[str, Any]) -> str:
    """JUnit XML: a test case for each judgement of each candidate."""
    suite = ElementTree.Element("testsuite", name="edgekit validate")
    failed = 0
    for model in report["models"]:
        for judgement in model.get("judgements", []):
            case = ElementTree.SubElement(suite, "testcase", classname=model_name(model), name=judgement["rule"])
            if judgement["outcome"] == "fail" or judgement["exit_code"]:
                failed += 1
                ElementTree.SubElement(case, "failure", message=judgement["sentence"])
            elif judgement["outcome"] == "inconclusive":
                ElementTree.SubElement(case, "skipped", message=judgement["sentence"])
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failed))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
