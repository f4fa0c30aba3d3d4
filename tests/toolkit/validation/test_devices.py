"""Reports of boards on synthetic measurements: several joined, answers compared with the host's, a board's wheels."""

import importlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.board.probe import Facts
from edgekit.deploy.devices.device import Device
from edgekit.deploy.errors import DeviceError, EdgeKitError
from edgekit.deploy.measuring.agent import Measured
from edgekit.deploy.measuring.plan import Plan
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.console import PlainConsole
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.doctor.provision import platform_tags
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import devices_table
from edgekit.toolkit.validation.validate import ValidateOptions

from tests.toolkit.conftest import ENVIRONMENT, measurement

validate_module = importlib.import_module("edgekit.toolkit.validation.validate")

Judge = Callable[..., Any]


def _named(report: dict[str, Any], name: str) -> dict[str, Any]:
    return {**report, "device": {**report["device"], "name": name}}


def _text(document: dict[str, Any]) -> str:
    console = PlainConsole(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for part in devices_table(document):
        console.print(part)
    console.file.close()
    return console.export_text()


def test_devices_side_by_side(judged: Judge) -> None:
    """The worst verdict counts; images on which the devices differ are listed."""
    fast, slow = judged(min_speedup=1.5), judged(second=1.9, lost=2, min_speedup=1.5)
    document = join_reports([_named(fast.report, "pi5"), _named(slow.report, "pi3<b>")])
    assert (document["verdict"], document["exit_code"]) == ("fail", 3)
    assert document["reason"].startswith("pi3<b>: ")
    assert "pi5" not in document["reason"]
    differing = {entry["precision"]: len(entry["differ"]) for entry in document["agreement"]}
    assert differing == {"fp32": 0, "int8": 2}
    assert "2.00x" in _text(document)
    assert "pi3<b>" in _text(document)
    page = render(document, None)
    assert page.count("<details>") == 2
    assert "pi3&lt;b&gt;" in page
    assert "357 of 359 answers are the same on all devices" in page
    assert "<b>" not in page
    assert 'classname="pi3&lt;b&gt; lenet int8' in junit(document)
    assert "pi5" in markdown(document)
    json.dumps(document, allow_nan=False)


def test_a_joined_report_is_read_back(judged: Judge, edgekit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """It is shown like any other report; comparing or joining it is refused."""
    document = join_reports([_named(judged().report, "pi5"), _named(judged().report, "pi3")])
    Path("joined.json").write_text(json.dumps(document))
    assert "pi3" in edgekit("report", "joined.json", "--html", "page.html").stdout
    assert Path("page.html").read_text().count("<details>") == 2
    for arguments in (["joined.json", "joined.json"], ["joined.json", "--join"]):
        assert "covers several devices" in edgekit("report", *arguments, code=1).stderr
    Path("joined.json").write_text(json.dumps({**document, "schema": 5}))
    assert "has schema 5; this EdgeKit reads 4" in edgekit("report", "joined.json", code=1).stderr
    Path("joined.json").write_text(json.dumps({**document, "agreement": None}))
    assert "agreement: expected a list, got None" in edgekit("report", "joined.json", code=1).stderr


def test_a_device_that_failed_fails_the_command(judged: Judge) -> None:
    """The error names the device and the fix."""
    failed = [{"device": "ssh://x", "error": "does not answer", "fix": "switch it on"}]
    document = join_reports([_named(judged().report, "pi5")], failed)
    assert document["exit_code"] == 1
    assert "ssh://x gave no report: does not answer (switch it on)" in _text(document)


@pytest.mark.parametrize("lost", ["ssh://a", "ssh://b"])
def test_progress_is_reported_for_the_device_that_answered(
    fp32: Bundle, int8: Bundle, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of two devices fails, the host's answers advance only the other device's bar; the failure is reported."""
    test = part_of(fp32, "test")
    assert test is not None

    class Board(Device):
        def __init__(self, name: str) -> None:
            self.name = name

        def runtimes(self) -> set[str]:
            return {"onnxruntime"}

        def measure(self, bundles: Any, plan: Any, images: Any, progress: Any) -> Measured:
            if self.name == lost:
                raise DeviceError(f"{self.name} does not answer", fix="switch it on")
            measurements = [
                replace(measurement(bundle, 1.0, test.targets), golden_logits=bundle.golden().logits.tolist())
                for bundle in (fp32, int8)
            ]
            return Measured(ENVIRONMENT, measurements)  # pyright: ignore[reportArgumentType] # fewer facts than a board's

    monkeypatch.setattr(validate_module, "open_device", lambda name, **_: Board(name))
    stages: dict[str, set[str]] = {"ssh://a": set(), "ssh://b": set()}
    progress = {name: lambda stage, share, name=name: stages[name].add(stage) for name in stages}
    validation = validate_module.validate(
        [int8], ValidateOptions(devices=list(stages)), baseline=fp32, plan=Plan(processes=3), progress=progress
    )
    assert [failed["device"] for failed in validation.report["failed"]] == [lost]
    (answered,) = stages.keys() - {lost}
    assert "the host's answers" in stages[answered]
    assert stages[lost] == set()


def test_reports_that_cannot_be_joined(judged: Judge) -> None:
    """Two reports for the same device, and reports without a common model."""
    report = judged().report
    with pytest.raises(EdgeKitError, match="two reports are for the device local"):
        join_reports([report, report])
    other = _named({**report, "models": [{**model, "id": f"x{model['id']}"} for model in report["models"]]}, "pi5")
    with pytest.raises(EdgeKitError, match="no model in common"):
        join_reports([report, other])


@pytest.mark.parametrize(("gap", "explained"), [(0.3, True), (0.5, False)])
def test_an_answer_that_differs_from_the_hosts_is_explained_or_warned_about(
    judged: Judge, int8: Bundle, gap: float, explained: bool
) -> None:
    """If no logit differs by more than d, only classes within 2 d may change places."""
    entry = {"id": "7.png", "truth": "7", "host": "7", "device": "<i>1", "gap": gap}
    host = {int8.id: {"images": 359, "logits_max_abs": 0.2, "differ": [entry]}}
    report = judged(host=host).report
    warned = any("more than the kernels' difference" in warning for warning in report["models"][1]["warnings"])
    assert warned != explained
    page = render(report, None)
    assert ("<td>near tie</td>" in page) == explained
    assert "1 of 359 answers differ from the host's" in page
    assert "<i>" not in page


def test_a_run_that_was_cut_short(judged: Judge) -> None:
    """Two of three processes give a report with a warning; one process is too few and is refused."""

    def only(count: int) -> Any:
        return lambda measured: [
            replace(model, blocks=tuple(block for block in model.blocks if block.process < count)) for model in measured
        ]

    report = judged(change=only(2)).report
    assert any("cut short: 2 of 3 processes" in warning for warning in report["models"][1]["warnings"])
    with pytest.raises(EdgeKitError, match="lost in the first of its 3 processes"):
        judged(change=only(1))


def test_wheels_for_a_board() -> None:
    """Tags for every glibc up to the board's, including the names from before PEP 600; musl is refused."""
    facts = Facts((3, 11, 2), "/p", "/p", "aarch64", ("glibc", "2.31"), "Linux", "/c", True, 1e9)
    tags = platform_tags(facts)
    assert tags[0] == "manylinux_2_31_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert "manylinux_2_34_aarch64" not in tags
    with pytest.raises(DeviceError, match="instead of glibc"):
        platform_tags(facts._replace(libc=("", "")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "local", "--device", "ssh://x", "--baseline", "report.json"], "one device"),
        (["--device", "local", "--device", "local"], "named twice"),
        (["--ort-web", "x"], "--ort-web requires --device browser"),
        (["--device", "serial://x"], "unknown device 'serial'"),
        (["--device", "ssh://"], "is not an ssh address"),
    ],
)
def test_wrong_devices(
    arguments: list[str],
    message: str,
    int8: Bundle,
    edgekit: Callable[..., subprocess.CompletedProcess[str]],
    judged: Judge,
) -> None:
    """Each is refused in one line before measuring."""
    Path("report.json").write_text(json.dumps(judged().report))
    assert message in edgekit("validate", int8.path, *arguments, code=1).stderr
