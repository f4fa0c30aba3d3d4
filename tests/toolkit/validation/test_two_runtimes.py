"""One validation on two runtimes: models are compared across runtimes, and rows name runtime and options."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.measuring.result import Result
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.analysis.recommend import recommend
from edgekit.toolkit.analysis.report_schema import Report
from edgekit.toolkit.console import PlainConsole
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import validation_table
from edgekit.toolkit.validation.candidates import candidates_of
from edgekit.toolkit.validation.validate import ValidateOptions, validate

from tests.toolkit.conftest import ENVIRONMENT, measurement

CHOICES = (Choice("onnxruntime", {"threads": 1}), Choice("openvino", {"threads": 2}))
NAMES = [
    "fp32 onnxruntime threads=1",
    "fp32 openvino threads=2",
    "int8 onnxruntime threads=1",
    "int8 openvino threads=2",
]


@pytest.fixture
def on_two(fp32: Bundle, int8: Bundle) -> Any:
    """Make a report on synthetic times in ms: fp32 and int8, each on both runtimes; int8 is judged."""
    test = part_of(fp32, "test")
    assert test is not None

    def run(*times: float, **contract: float | None) -> Report:
        judged = candidates_of([int8], {int8.id}, CHOICES, {"onnxruntime", "openvino"}, "local")
        planned = candidates_of([fp32, int8], {int8.id}, CHOICES, {"onnxruntime", "openvino"}, "local")
        measured = [
            replace(
                measurement(fp32 if candidate.bundle == fp32.id else int8, ms, test.targets),
                bundle=candidate.key, session={"runtime": candidate.choice and candidate.choice.name},
            )
            for candidate, ms in zip(planned, times, strict=True)
        ]  # fmt: skip
        return make_report(
            Result(
                "local",
                [fp32, int8],
                [candidate.key for candidate in judged],
                Plan(processes=3, candidates=planned),
                asdict(Contract(**contract)),
                test.ids,
                test.targets,
                ENVIRONMENT,
                measured,
            )
        )

    return run


def _key(bundle: Bundle, choice: Choice) -> str:
    return Candidate(bundle.id, choice).key


@pytest.mark.parametrize(
    ("times", "fastest", "recommended", "outcomes"),
    [
        ((4.0, 2.0, 1.0, 1.5), 1, 2, ["faster", "faster"]),
        ((2.0, 4.0, 3.0, 1.0), 0, 3, ["slower", "faster"]),
        ((2.0, 1.0, 3.0, 4.0), 1, 1, ["slower", "slower"]),
    ],
)
def test_the_baseline_is_the_fastest_unoptimised_model_of_all_runtimes(
    on_two: Any,
    fp32: Bundle,
    int8: Bundle,
    times: tuple[float, ...],
    fastest: int,
    recommended: int,
    outcomes: list[str],
) -> None:
    """It may use another runtime: int8 on a slow runtime is not a gain over fp32 on a fast one."""
    report = on_two(*times, min_speedup=1.0)
    keys = [_key(bundle, choice) for bundle in (fp32, int8) for choice in CHOICES]
    assert [model["id"] for model in report["models"]] == keys
    assert report["speed_baseline"] == keys[fastest]
    assert report["baseline"] == keys[0], "accuracy is compared with the source"
    models = report["models"]
    assert [model["speed_baseline"] for model in models[2:]] == [keys[fastest]] * 2
    assert [model["outcome"] for model in models[2:]] == outcomes
    for model, ms in zip(models, times, strict=True):
        if model["speedup"]:
            assert model["speedup"]["ratio"] == pytest.approx(times[fastest] / ms, rel=0.05)
    assert report["recommendation"]["id"] == keys[recommended]
    assert report["verdict"] == ("fail" if "slower" in outcomes else "pass")
    assert ["judgements" in model for model in models] == [False, False, True, True]
    assert recommend(models, keys[2:]) == report["recommendation"]


def test_every_row_names_its_runtime_and_options(on_two: Any, tmp_path: Path) -> None:
    """In report.json, the terminal, the page, the summary and the JUnit file."""
    report = on_two(4.0, 2.0, 1.0, 1.5)
    rows = [(model["runtime"], model["runtime_options"]) for model in report["models"]]
    assert rows == [("onnxruntime", {"threads": 1}), ("openvino", {"threads": 2})] * 2
    with (tmp_path / "shown").open("w") as file:
        console = PlainConsole(width=200, record=True, file=file)
        for part in validation_table(report):
            console.print(part)
    shown = console.export_text()
    page, summary = render(report, None), markdown(report).replace("\\", "")
    for name in NAMES:
        assert name in shown
        assert name in page
        assert name in summary
    cases = junit(report)
    assert "(openvino threads=2)" in cases
    assert "(onnxruntime threads=1)" in cases
    assert "int8 onnxruntime threads=1 is faster than fp32 openvino threads=2 here" in report["headline"]


@pytest.mark.slow
def test_two_runtimes_in_one_validation(fp32: Bundle, int8: Bundle) -> None:
    """It has four rows, each loaded with its options, and only int8 is judged."""
    plan = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5)
    report: Any = validate(
        [int8], ValidateOptions(runtimes=[str(choice) for choice in CHOICES]), baseline=fp32, limit=50, plan=plan
    ).report
    assert [(model["session"]["runtime"], model["session"]["threads"]) for model in report["models"]] == [
        ("onnxruntime", 1), ("openvino", 2),
    ] * 2  # fmt: skip
    unoptimised = report["models"][:2]
    fastest = min(unoptimised, key=lambda model: model["time_ms"]["value"])
    assert report["speed_baseline"] == fastest["id"]
    assert all(model["speed_baseline"] == fastest["id"] for model in report["models"][2:])
    assert ["judgements" in model for model in report["models"]] == [False, False, True, True]
    assert all(model["top1"] > 0.8 for model in report["models"])
