"""A validation's files: report.json, report.html, junit.xml, summary.md."""

import json
import re
from pathlib import Path

from ...deploy.errors import EdgeKitError
from ...deploy.files import write_file
from ...deploy.images import ImageSet
from ...deploy.manifest import MANIFEST
from ...deploy.measuring.result import Result
from ...deploy.visible import visible_json
from ..analysis.report_schema import Document, JoinedReport, Report
from ..workspace import locked
from .html import render
from .junit import junit
from .markdown import markdown


def write_reports(report: Report | JoinedReport, images: ImageSet | None, folder: Path) -> list[Path]:
    """Write the four files into `folder`, replacing those of an earlier validation of the same model."""
    contents = {
        "report.json": visible_json(report),
        "junit.xml": junit(report),
        "summary.md": markdown(report),
        "report.html": render(report, images),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # two simultaneous validations must not mix their files
        for name, content in contents.items():
            write_file(folder / name, content)
    return [folder / name for name in contents]


def check_folder(folder: Path) -> None:
    """Refuse a bundle's folder for reports, because another file in it would make the bundle unreadable.

    Raises:
        EdgeKitError: the folder is a bundle.
    """
    if (folder / MANIFEST).exists():
        raise EdgeKitError(f"{folder} is a bundle, which a report would damage", fix=f"e.g. --out {folder}.report")


def device_slug(device: str) -> str:
    """A device's name as a folder name."""
    return re.sub(r"[^\w.-]+", "-", device.partition("://")[2] or device)


def write_result(result: Result, folder: Path) -> Path:
    """Write result.json, the input of `report`, into `folder`."""
    path = folder / "result.json"
    write_file(path, json.dumps(result.to_json()))
    return path


def write_page(report: Document, path: Path) -> None:
    """Write a report's page, without pictures of the test images."""
    write_file(path, render(report, None))


def write_junit(document: Document, path: Path) -> None:
    """Write the judgements of a report or a comparison as JUnit XML."""
    write_file(path, junit(document))


def write_markdown(document: Document, path: Path) -> None:
    """Write the summary of a report or a comparison."""
    write_file(path, markdown(document))
