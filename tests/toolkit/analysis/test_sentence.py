"""Every case of the verdict's sentence, and the Pareto front."""

from collections.abc import Callable
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.analysis.compare import compare_reports, judge_against
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.analysis.recommend import pareto_front
from edgekit.toolkit.analysis.sentence import verdict_sentence
from edgekit.toolkit.analysis.verdict import judge_report
from edgekit.toolkit.report.markdown import markdown
from hypothesis import given
from hypothesis import strategies as st

Judge = Callable[..., Any]
QUIET = {"cpu": "AMD EPYC"}


def _sentence(judged: Judge, **settings: Any) -> str:
    return verdict_sentence(judged(environment=QUIET, **settings).report)


EQUAL, WORSE = "(0.0 points [−0.8, +0.8], 359 images)", "(−8.4 points [−11.3, −5.4], 359 images)"
UNSURE = "(−0.8 points [−2.0, +0.4], 359 images)"
FASTER, SLOWER = "2.00× faster [1.98, 2.02] than fp32", "1.49× slower [1.49, 1.50] than fp32"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, f"{FASTER} and as accurate {EQUAL}"),
        ({"lost": 30}, f"{FASTER} but less accurate than allowed {WORSE}"),
        ({"lost": 3}, f"{FASTER} but not shown to be as accurate {UNSURE}"),
        ({"lost": 30, "max_drop": 20}, f"{FASTER} but less accurate, within the limit {WORSE}"),
        ({"lost": 3, "max_drop": 5}, f"{FASTER} and within the limit on accuracy {UNSURE}"),
        ({"second": 3.0}, f"{SLOWER} but as accurate {EQUAL}"),
        ({"second": 3.0, "lost": 30}, f"{SLOWER} and less accurate than allowed {WORSE}"),
        ({"min_speedup": 3}, f"{FASTER} (less than required) and as accurate {EQUAL}"),
        ({"min_speedup": 2}, f"{FASTER} (not shown to be as much as required) and as accurate {EQUAL}"),
    ],
)
def test_a_sentence_says_speed_and_accuracy(judged: Judge, settings: dict[str, Any], expected: str) -> None:
    """With intervals; "as accurate" only if a loss of more than one point is excluded."""
    assert _sentence(judged, **settings) == f"int8 is {expected} on AMD EPYC"


def test_no_difference_and_no_certainty(judged: Judge) -> None:
    """Neither result is called faster."""
    assert "int8 is as fast as fp32 (" in _sentence(judged, second=1.998)
    report = judged(environment=QUIET).report
    report["models"][1] |= {"outcome": "inconclusive", "speedup": {"ratio": 1.1, "low": 0.9, "high": 1.3}}
    assert "int8 is not shown to be faster than fp32 (1.10× [0.90, 1.30]) but as accurate" in verdict_sentence(report)
    report["models"][1]["speedup"]["one_thread"] = 0.5
    assert "than fp32 (1.10× [0.90, 1.30], but 0.50× with one thread)" in verdict_sentence(report)


def test_a_more_accurate_model(judged: Judge) -> None:
    """The interval excludes "no change"."""
    report = judged(environment=QUIET).report
    report["models"][1]["drop"] = {"points": -1.5, "low": -2.0, "high": -1.0}
    assert "and more accurate (+1.5 points [+1.0, +2.0], 359 images)" in verdict_sentence(report)


@pytest.mark.parametrize(
    ("flips", "expected"),
    [(0, "unknown without labels (all 359 answers stayed the same)"), (7, "unknown without labels (7 of 359 answers "
     "changed)"), (None, "; its accuracy was not measured on AMD EPYC")],
)  # fmt: skip
def test_without_labels_no_accuracy_is_claimed(judged: Judge, flips: int | None, expected: str) -> None:
    """The sentence only gives how many answers changed, if there were images."""
    report = judged(environment=QUIET).report
    models = [{**model, "top1": None, "drop": None, "flips": flips} for model in report["models"]]
    sentence = verdict_sentence({**report, "models": models})
    assert expected in sentence
    assert "as accurate" not in sentence


def test_a_model_alone(judged: Judge) -> None:
    """Its latency and accuracy are given."""
    report = judged(environment=QUIET).report
    first = report["models"][0]
    alone = judge_report(report, [first], [first["id"]], Contract())
    assert verdict_sentence(alone).startswith("fp32, measured alone, takes 2 ms [")
    assert verdict_sentence(alone).endswith("per image and is right on 100.00 % of 359 images on AMD EPYC")


def test_a_noisy_machine_is_named(judged: Judge) -> None:
    """At the end of the sentence."""
    assert _sentence(judged, threads=2).endswith(" on AMD EPYC")
    noisy = judged(threads=2, environment={**QUIET, "cores_got": 1.0}).report
    assert verdict_sentence(noisy).endswith(" on AMD EPYC (noisy machine)")


def _several(judged: Judge, *candidates: tuple[str, float, int]) -> str:
    """The sentence of a report on candidates: (name, share of the baseline's time, images lost of 359)."""
    report = judged(environment=QUIET).report
    models = [report["models"][0]]
    for name, share, lost in candidates:
        source = report["models"][1]
        blocks = [{**block, "ms": 2 * share * block["ms"]} for block in source["blocks"]]
        answers = [(target + (at < lost)) % 10 for at, target in enumerate(report["targets"])]
        time = {key: 2 * share * value for key, value in source["time_ms"].items()}
        points = 100 * lost / 359
        drop = {"points": points, "low": points, "high": points}
        models.append({**source, "id": name, "precision": name, "predictions": answers, "blocks": blocks,
                       "time_ms": time, "drop": drop, "judgements": []})  # fmt: skip
    return verdict_sentence(judge_report(report, models, [name for name, *_ in candidates], Contract()))


def test_the_candidate_to_take_is_named(judged: Judge) -> None:
    """The fastest that meets the contract; otherwise the sentence says that none does or none is faster."""
    taken = _several(judged, ("int8", 0.5, 0), ("fp16", 0.7, 0), ("w4", 0.3, 200))
    assert taken.startswith("int8, the fastest of 3 candidates that meets the contract, is 2.00× faster [")
    refused = _several(judged, ("int8", 0.5, 100), ("fp16", 0.7, 150))
    assert refused.startswith("none of 2 candidates is shown to meet the contract: the fastest, int8, is 2.00× faster")
    assert "but less accurate than allowed" in refused
    slower = _several(judged, ("int8", 1.5, 0), ("fp16", 1.8, 0))
    assert slower.startswith("none of 2 candidates is shown to be faster: int8 is 1.50× slower")
    other = _several(judged, ("int8", 0.5, 100), ("fp16", 1.5, 0))
    assert other.startswith("no candidate that meets the contract is shown to be faster: fp16 is 1.50× slower")


def _on(report: dict[str, Any], name: str) -> dict[str, Any]:
    return {**report, "device": {**report["device"], "name": name, "board": "Raspberry Pi 5"}}


def test_several_devices(judged: Judge) -> None:
    """One claim if it holds on all devices, otherwise one per device; a device without a report is named first."""
    fast, slow = judged(environment=QUIET).report, judged(environment=QUIET, second=3.0).report
    faster = judged(environment=QUIET, second=0.5).report
    both = join_reports([_on(fast, "local"), _on(faster, "ssh://pi")])
    assert verdict_sentence(both) == "int8 is 2.00× to 4.01× faster than fp32 and as accurate on both devices"
    mixed = verdict_sentence(join_reports([_on(fast, "local"), _on(slow, "ssh://pi")]))
    assert mixed.startswith(
        "int8 is 2.00× faster [1.98, 2.02] than fp32 and as accurate on local; int8 is 1.49× slower"
    )
    assert mixed.endswith("than fp32 but as accurate on ssh://pi")
    failed = [{"device": "ssh://x", "error": "does not answer", "fix": "switch it on"}]
    assert verdict_sentence(join_reports([_on(fast, "local")], failed)).startswith("ssh://x gave no report; int8 is 2.")
    assert verdict_sentence(_on(fast, "ssh://pi")).endswith("on ssh://pi (Raspberry Pi 5)")


def test_compared_with_an_earlier_report(judged: Judge, int8: Bundle) -> None:
    """The sentence states the change, and whether the model is still slower than the unoptimised one."""
    before, after = ({**judged(second=ms, environment=QUIET).report, "source": name}
                     for ms, name in ((1.0, "main.json"), (1.2, "branch.json")))  # fmt: skip
    compared = compare_reports([before, after], Contract(min_speedup=0.95))
    sentence = verdict_sentence(compared)
    assert "lenet int8 (made up) is 1.20× slower [" in sentence
    assert "] than in main.json (less than required) but as accurate (0.0 points [" in sentence
    assert sentence in markdown(compared).replace("\\", "").splitlines()[0]
    validated = judge_against(before, after, [int8.id], Contract())
    assert verdict_sentence(validated).startswith("int8 is 1.20× slower [")
    assert "than in main.json but as accurate" in verdict_sentence(validated)
    slow = {**judged(second=3.0, environment=QUIET).report, "source": "slow.json"}
    again = verdict_sentence(compare_reports([slow, slow], Contract()))
    assert again.endswith("; it is slower than the unoptimised model")


@given(st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float)), min_size=1, max_size=12))
def test_the_pareto_front_contains_the_unbeaten_models(points: list[tuple[float, float]]) -> None:
    """By definition, compared in pairs; equal models are all on it."""
    unbeaten = [
        index
        for index, (time, right) in enumerate(points)
        if not any(
            other_time <= time and other_right >= right and (other_time, other_right) != (time, right)
            for other_time, other_right in points
        )
    ]
    assert sorted(pareto_front(points)) == unbeaten
