"""A report records how it was made; `validate --reproduce` repeats it or says in one line why it cannot."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgekit import __version__
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.deploy.errors import EdgeKitError
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.report.files import write_reports
from edgekit.toolkit.validation.reproduce import check_images, recorded
from edgekit.toolkit.validation.validate import ValidateOptions, validate

from tests.toolkit.validation.test_validate import QUICK

Edgekit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def written(judged: Callable[..., Any], fp32: Bundle, int8: Bundle, tmp_path: Path) -> Callable[..., Path]:
    """Write a report.json of this machine, with changed entries of its provenance or of the report."""
    report = json.loads(json.dumps(judged().report))
    report["device"] |= {key: describe()[key] for key in ("machine", "cpu", "cores_allowed")}
    for model, bundle in zip(report["models"], (fp32, int8), strict=True):
        model["bundle"] = str(bundle.path)
    test = part_of(fp32, "test")
    assert test is not None

    def write(change: dict[str, Any] | None = None, **entries: Any) -> Path:
        provenance = {
            "command": ["validate"], "edgekit": __version__, "candidates": [int8.id], "baseline": None, "images": None,
            "images_sha256": test.sha256(), "limit": None, "skip_corrupt": False,
        } | (change or {})  # fmt: skip
        path = tmp_path / "report.json"
        path.write_text(json.dumps({**report, "provenance": provenance, **entries}))
        return path

    return write


def test_a_recorded_validation_is_restored(written: Callable[..., Path], fp32: Bundle, int8: Bundle) -> None:
    """Its bundles by id, and its plan."""
    again = recorded(written({"baseline": fp32.id}))
    assert [bundle.id for bundle in again.bundles] == [int8.id]
    assert again.baseline is not None
    assert again.baseline.id == fp32.id
    assert (again.plan.processes, again.plan.threads) == (3, 1)
    check_images(again.provenance, part_of(fp32, "test"))


def test_missing_or_different_parts_are_named(written: Callable[..., Path], fp32: Bundle, tmp_path: Path) -> None:
    """Each is refused before measuring."""
    with pytest.raises(EdgeKitError, match="does not record how it was made"):
        recorded(written(provenance=None))
    with pytest.raises(EdgeKitError, match="does not measure: plan: unknown entry 'later'"):
        recorded(written(plan={"later": 1}))
    with pytest.raises(EdgeKitError, match="names models that it does not contain"):
        recorded(written({"candidates": ["0123456789abcdef"]}))
    with pytest.raises(EdgeKitError, match="different machines"):
        recorded(written(device={"name": "local", "cpu": "another"}))
    assert recorded(written(device={"name": "local", "cpu": "another"}), across_hardware=True).bundles
    again = recorded(written({"images_sha256": "0" * 64, "images": "photos"}))
    with pytest.raises(EdgeKitError, match="the test images of photos are not those of the report"):
        check_images(again.provenance, part_of(fp32, "test"))
    report = json.loads(written().read_text())
    report["models"][1]["bundle"] = str(tmp_path / "moved")
    report["models"][1]["id"] = report["provenance"]["candidates"][0] = "0123456789abcdef"
    report["models"][0]["speedup_over"] = {}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(EdgeKitError, match=r"the bundle 0123456789abcdef \(lenet onnx int8\) was not found"):
        recorded(tmp_path / "report.json")


def test_another_version_gives_a_warning(written: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """It is not refused."""
    recorded(written({"edgekit": "0.0.1"}))
    assert "the report is from EdgeKit 0.0.1" in caplog.text


def test_other_options_are_refused(written: Callable[..., Path], edgekit: Edgekit) -> None:
    """They come from the report."""
    path = written()
    assert (
        "--reproduce takes --limit from the report"
        in edgekit("validate", "--reproduce", str(path), "--limit", "5", code=1).stderr
    )
    assert (
        "--reproduce takes BUNDLES from the report" in edgekit("validate", "x", "--reproduce", str(path), code=1).stderr
    )


@pytest.mark.slow
def test_a_validation_is_measured_again(int8: Bundle, tmp_path: Path, edgekit: Edgekit) -> None:
    """On the same images; new figures are shown beside the report's."""
    first = validate([int8], ValidateOptions(command=["validate", "x"]), limit=20, plan=QUICK)
    path = write_reports(first.report, first.images, tmp_path / "first")[0]
    assert json.loads(path.read_text())["provenance"]["command"] == ["validate", "x"]
    output = edgekit("validate", "--reproduce", str(path), "--json").stdout
    (row,) = json.loads(output)["rows"]
    assert row["against"]["report"] == str(path)
    assert row["against"]["drop"]["points"] == 0
    assert "through the same baseline" in row["against"]["how"]
    again = json.loads((tmp_path / "first/reproduced/report.json").read_text())
    assert again["provenance"]["images_sha256"] == json.loads(path.read_text())["provenance"]["images_sha256"]
