"""Validation finds the right baseline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.local import LocalDevice
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.measuring.plan import Plan
from edgekit.toolkit.analysis.compare import read_report
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.report.files import write_reports
from edgekit.toolkit.validation.validate import ValidateOptions, validate

QUICK = Plan(seconds=0.1, rounds=6, processes=3, block_ms=5, threads=1)


def test_validation_finds_the_baseline_by_lineage(int8: Bundle, fp32: Bundle) -> None:
    """The fp32 ONNX bundle beside it if the torch model is missing; on a sample of the test part."""
    result = validate([int8], limit=50, plan=QUICK)
    assert [model["id"] for model in result.report["models"]] == [fp32.id, int8.id]
    assert result.report["images"] == 50
    assert result.report["models"][0]["top1"] > 0.8


def test_models_of_other_classes_are_not_compared(int8: Bundle) -> None:
    """A baseline with other labels is a mistake."""
    import dataclasses

    other = dataclasses.replace(int8, manifest=dataclasses.replace(int8.manifest, labels=("a", "b")))
    with pytest.raises(BundleError, match="different labels"):
        validate([int8], baseline=other)


@pytest.mark.slow
def test_a_damaged_neighbour_does_no_harm(int8: Bundle, fp32: Bundle, tmp_path: Path) -> None:
    """Searching beside a bundle opens only its baseline; a baseline passed by the user is the only one."""
    import shutil

    for name in ("lenet-fp32", "lenet-int8"):
        shutil.copytree(int8.path.parent / name, tmp_path / "all" / name)
    shutil.copytree(fp32.path, tmp_path / "all" / "a-damaged")
    (tmp_path / "all" / "a-damaged" / "model.onnx").write_bytes(b"x")
    manifest = json.loads((fp32.path / "manifest.json").read_text())
    (tmp_path / "all" / "a-damaged" / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    candidate = Bundle.open(tmp_path / "all" / "lenet-int8")
    assert len(validate([candidate], limit=5, plan=QUICK).report["models"]) == 2
    alone = validate([candidate], baseline=candidate, limit=5, plan=QUICK)
    assert len(alone.report["models"]) == 1


@pytest.mark.slow
def test_an_earlier_report_is_the_baseline(int8: Bundle, fp32: Bundle, tmp_path: Path) -> None:
    """A gate for a change compares the model with its earlier measurement on the same images."""
    before = validate([int8], limit=100, plan=QUICK)
    path = write_reports(before.report, before.images, tmp_path / "before")[0]
    stored = read_report(path)
    now = validate([int8], baseline=stored, limit=100, plan=QUICK, contract=Contract(max_drop=5.0, min_speedup=0.05))
    candidate = now.report["models"][-1]
    assert candidate["against"]["report"] == str(path)
    assert candidate["against"]["paired"]
    assert candidate["against"]["drop"]["points"] == 0
    assert [judgement["rule"] for judgement in candidate["judgements"]] == ["max_drop", "min_speedup"]
    assert now.exit_code == 0, "it reaches a twentieth of its earlier speed"
    assert str(path) in now.report["reason"]
    stored["models"] = [model for model in stored["models"] if model["id"] == fp32.id]
    with pytest.raises(EdgeKitError, match="has no lenet onnx int8"):
        validate([int8], baseline=stored, limit=10, plan=QUICK)


def test_a_report_of_another_machine_is_refused_before_measuring(
    int8: Bundle, judged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No minutes are wasted on measuring first; --across-hardware allows it."""
    stored = {**judged().report, "source": "report.json"}
    measured: list[str] = []

    def measure(device: Any, *arguments: Any) -> None:
        measured.append(device.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalDevice, "measure", measure)
    with pytest.raises(EdgeKitError, match="different machines: .*cpu"):
        validate([int8], baseline=stored, limit=10, plan=QUICK)
    assert measured == []
    with pytest.raises(KeyboardInterrupt):
        validate([int8], ValidateOptions(across_hardware=True), baseline=stored, limit=10, plan=QUICK)
