"""The contract is judged on bounds, and the exit code says which way."""

import numpy as np
import pytest
from edgekit.toolkit.analysis.contract import Judgement, compare_accuracy, judge_drop, judge_speedup, overall
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
    """A certain miss is 3 with or without a limit of one's own; what is not proved is 4 only where it was asked for."""
    judgement = judge_drop(_drop(lost, gained, count), limit)
    assert (judgement.outcome, judgement.exit_code) == (outcome, code)
    assert ("more images" in judgement.sentence) == (outcome == "inconclusive")


def test_drop_counts_flips_apart_from_losses() -> None:
    """An image that both get wrong in different ways is a flip and no loss."""
    drop = compare_accuracy(np.array([0, 0, 0, 0]), np.array([0, 1, 1, 0]), np.array([0, 2, 0, 1]))
    assert drop is not None
    assert (drop.lost, drop.gained, drop.flips) == (1, 1, 3)


def test_no_labels_no_drop() -> None:
    """One image without a label is enough: the accuracy of the rest is not that of the set."""
    assert compare_accuracy(np.array([0, -1]), np.array([0, 0]), np.array([0, 0])) is None
    assert compare_accuracy(np.empty(0, int), np.empty(0, int), np.empty(0, int)) is None


@pytest.mark.parametrize(
    ("low", "high", "outcome", "code"), [(1.3, 1.5, "pass", 0), (1.0, 1.1, "fail", 3), (1.1, 1.3, "inconclusive", 4)]
)
def test_speedup(low: float, high: float, outcome: str, code: int) -> None:
    """The lower bound has to reach what was asked for."""
    judgement = judge_speedup(Interval((low + high) / 2, low, high), 1.2)
    assert (judgement.outcome, judgement.exit_code) == (outcome, code)


def test_the_worst_judgement_is_the_verdict() -> None:
    """Failed before undecided-and-asked-for before undecided before passed."""
    passed, open_ = Judgement("a", "pass", ""), Judgement("a", "inconclusive", "")
    asked, failed = Judgement("a", "inconclusive", "", strict=True), Judgement("a", "fail", "")
    assert overall([passed, open_]) is open_
    assert overall([open_, asked, passed]) is asked
    assert overall([asked, failed, open_]) is failed
