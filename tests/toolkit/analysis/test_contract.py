"""The contract is judged by the bounds of intervals, and the exit code follows."""

import numpy as np
import pytest
from edgekit.deploy.errors import RecipeError
from edgekit.toolkit.analysis.contract import Contract, Judgement, compare_accuracy, judge_drop, judge_speedup, overall
from edgekit.toolkit.analysis.statistics import Interval


def _drop(lost: int, gained: int, count: int):
    targets = np.zeros(count, np.int64)
    baseline, candidate = targets.copy(), targets.copy()
    candidate[:lost] = 1
    baseline[lost : lost + gained] = 1
    return compare_accuracy(targets, baseline, candidate)


@pytest.mark.parametrize(
    ("lost", "gained", "count", "limit", "outcome", "code"),
    [
        (0, 0, 1000, None, "pass", 0),
        (0, 0, 1000, 1.0, "pass", 0),
        (0, 0, 20, None, "inconclusive", 0),
        (0, 0, 20, 1.0, "inconclusive", 4),
        (60, 0, 1000, None, "fail", 3),
        (60, 0, 1000, 5.0, "inconclusive", 4),
        (60, 0, 1000, 10.0, "pass", 0),
        (0, 60, 1000, 0.0, "pass", 0),
    ],
)
def test_drop(lost: int, gained: int, count: int, limit: float | None, outcome: str, code: int) -> None:
    """A clear miss is 3 with or without the user's limit; an undecided one is 4 only with the user's limit."""
    judgement = judge_drop(_drop(lost, gained, count), limit)
    assert (judgement.outcome, judgement.exit_code) == (outcome, code)
    assert ("images are needed" in judgement.sentence) == (outcome == "inconclusive" and count > 20)


def test_what_is_missing_for_a_proof() -> None:
    """Too few images even for an equal model, or a limit that no equal model can be proved to be within."""
    assert "even without a changed answer this takes 276 images" in judge_drop(_drop(0, 0, 20), 1.0).sentence
    assert judge_drop(_drop(0, 0, 276), 1.0).outcome == "pass"
    assert judge_drop(_drop(0, 0, 275), 1.0).outcome == "inconclusive"
    impossible = judge_drop(_drop(0, 0, 10_000), 0.0)
    assert (impossible.outcome, impossible.exit_code) == ("inconclusive", 4)
    assert "--max-drop 0.5" in impossible.sentence


def test_drop_counts_flips_separately_from_losses() -> None:
    """An image that both models get wrong in different ways is a flip but not a loss."""
    drop = compare_accuracy(np.array([0, 0, 0, 0]), np.array([0, 1, 1, 0]), np.array([0, 2, 0, 1]))
    assert drop is not None
    assert (drop.lost, drop.gained, drop.flips) == (1, 1, 3)


def test_no_labels_no_drop() -> None:
    """One image without a label is enough: the accuracy of the other images is not that of the set."""
    assert compare_accuracy(np.array([0, -1]), np.array([0, 0]), np.array([0, 0])) is None
    assert compare_accuracy(np.empty(0, int), np.empty(0, int), np.empty(0, int)) is None


@pytest.mark.parametrize(
    ("low", "high", "outcome", "code"), [(1.3, 1.5, "pass", 0), (1.0, 1.1, "fail", 3), (1.1, 1.3, "inconclusive", 4)]
)
def test_speedup(low: float, high: float, outcome: str, code: int) -> None:
    """The lower bound must reach the required speed-up."""
    judgement = judge_speedup(Interval((low + high) / 2, low, high), 1.2)
    assert (judgement.outcome, judgement.exit_code) == (outcome, code)


def test_the_worst_judgement_is_the_verdict() -> None:
    """Failed, then undecided with a limit, then undecided, then passed."""
    passed, undecided = Judgement("a", "pass", ""), Judgement("a", "inconclusive", "")
    strict, failed = Judgement("a", "inconclusive", "", strict=True), Judgement("a", "fail", "")
    assert overall([passed, undecided]) is undecided
    assert overall([undecided, strict, passed]) is strict
    assert overall([strict, failed, undecided]) is failed


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_speed_up_is_a_positive_ratio(ratio: float) -> None:
    """Any model meets another limit, or none does."""
    with pytest.raises(RecipeError, match="is not a ratio"):
        Contract(min_speedup=ratio)


def test_a_speedup_that_was_not_measured_is_not_proved() -> None:
    """A limit is never left out."""
    judged = Contract(max_drop=1.0, min_speedup=1.2).judge(_drop(0, 0, 1000), None, "fp32")
    assert [(entry.rule, entry.outcome) for entry in judged] == [("max_drop", "pass"), ("min_speedup", "inconclusive")]
    assert overall(judged).exit_code == 4
