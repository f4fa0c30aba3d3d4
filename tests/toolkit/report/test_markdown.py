"""The summary for a pull request comment."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.measuring.result import Result
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.markdown import markdown

from tests.toolkit.conftest import ENVIRONMENT, measurement

COUNT = 12


@pytest.fixture
def many(fp32: Bundle, int8: Bundle) -> Any:
    """A report on one baseline and twelve candidates, each a little faster than the previous one."""
    test = part_of(fp32, "test")
    assert test is not None
    choices = [Candidate(int8.id, Choice("onnxruntime", {"threads": 100 + number})) for number in range(COUNT)]
    candidates = (Candidate(fp32.id), *choices)
    measured = [
        replace(
            measurement(fp32 if candidate.bundle == fp32.id else int8, 4.0 / (1 + number / 4), test.targets),
            bundle=candidate.key,
        )
        for number, candidate in enumerate(candidates)
    ]
    plan = Plan(processes=3, candidates=candidates)
    judged = [candidate.key for candidate in choices]
    return make_report(
        Result(
            "local", [fp32, int8], judged, plan, asdict(Contract(min_speedup=1.0)), test.ids, test.targets, ENVIRONMENT,
            measured,
        )
    )  # fmt: skip


def test_each_of_many_models_is_compared_only_with_its_baseline(many: Any) -> None:
    """One row per model and one recommendation; comparisons of pairs are in report.json and folded on the page."""
    summary = markdown(many).replace("\\", "")
    names = [f"int8 made up threads={100 + number}" for number in range(COUNT)]
    rows = [line for line in summary.splitlines() if line.startswith("| int8")]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
    after_table = summary[summary.index(rows[-1]) + len(rows[-1]) :]
    assert len(max(summary.partition("<details>")[0].splitlines(), key=len)) <= 310
    assert many["reason"] in summary
    assert f"take {names[-1]}, the fastest that meets the contract\n" in after_table
    assert not any(name in after_table.partition("<details>")[0] for name in names[:-1])
    assert len(many["models"][-1]["speedup_over"]) == COUNT
    assert names[0] in many["recommendation"]["sentence"]
    assert f"as fast as {names[0]}" in render(many, None)


def test_the_recommendation_of_each_device_is_short(many: Any) -> None:
    """In the summary, and in the summary line of each folded section on the page."""
    other = {**many, "device": {**many["device"], "name": "ssh://board"}}
    document = join_reports([many, other])
    name = f"int8 made up threads={99 + COUNT}"
    for text in (markdown(document).replace("\\", "").replace("\N{ZERO WIDTH SPACE}", ""), render(document, None)):
        for device in ("local", "ssh://board"):
            assert f"{device}: take {name}, the fastest that meets the contract" in text
    assert "as fast as int8" not in markdown(document)


def test_a_long_reason_is_folded(many: Any) -> None:
    """It stays in the summary, below the table."""
    reason = "; ".join([many["reason"]] * 3)
    shown, _, folded = markdown({**many, "reason": reason}).replace("\\", "").partition("<summary>why</summary>")
    assert reason not in shown
    assert reason in folded
