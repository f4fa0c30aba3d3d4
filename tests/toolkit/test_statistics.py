"""Intervals against references, and their coverage."""

import math

import numpy as np
import pytest
from edgekit.toolkit.statistics import (
    images_needed,
    mcnemar,
    paired_difference,
    percentile,
    ratio_of_medians,
    wilson,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson(count: int, share: float, confidence: float) -> None:
    """Equals statsmodels'."""
    successes = round(share * count)
    low, high = proportion_confint(successes, count, 1 - confidence, method="wilson")
    ours = wilson(successes, count, confidence)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(first: int, second: int) -> None:
    """Equals statsmodels' exact test."""
    expected = reference_mcnemar([[5, first], [second, 5]], exact=True).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, expected), abs=1e-9)


@pytest.mark.parametrize(("drop", "discordant", "count"), [(0.0, 0.02, 300), (0.01, 0.06, 1000), (0.03, 0.05, 200)])
def test_paired_difference_covers(drop: float, discordant: float, count: int) -> None:
    """Nominal 95 % holds the true drop in 93 % and more of 4,000 seeded experiments."""
    generator = np.random.default_rng(0)
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2
    draws = generator.multinomial(count, [lost, gained, 1 - discordant], size=4000)
    intervals = [paired_difference(int(a), int(b), count) for a, b, _ in draws]
    covered = np.mean([one.low <= drop <= one.high for one in intervals])
    assert covered >= 0.93


def test_paired_difference_is_honest_without_discordant_images() -> None:
    """No flip among 100 images proves little: the interval is not a point."""
    interval = paired_difference(0, 0, 100)
    assert interval.low < -0.01 < 0.01 < interval.high
    assert interval.value == 0


def test_images_needed_decides() -> None:
    """With about that many more images and the same shares, the interval's bound clears the limit."""
    lost, gained, count, limit = 9, 5, 400, 0.015
    assert paired_difference(lost, gained, count).high > limit
    total = count + images_needed(lost, gained, count, limit)
    scale = total / count
    assert paired_difference(round(lost * scale), round(gained * scale), total).high == pytest.approx(limit, abs=0.003)


def _rounds(generator: np.random.Generator, ratio: float, rounds: int, drift: float = 0.0) -> tuple[list, list]:
    """Blocks of two models, with noise of each block and of each process, and a drift of the machine."""
    own = generator.normal(0, 0.01, (2, 3))
    sides: list[list[tuple[int, float]]] = [[], []]
    for number in range(rounds):
        process, machine = (number // 2) % 3, 1 + drift * number / rounds
        for side, factor in ((0, ratio), (1, 1.0)):
            noise = math.exp(own[side, process] + generator.normal(0, 0.02))
            sides[side].append((process, factor * machine * noise))
    return sides[0], sides[1]


def test_ratio_is_not_biased_by_drift() -> None:
    """A machine that slows down by 20 % over the run weighs on both models alike."""
    generator = np.random.default_rng(0)
    found = [ratio_of_medians(*_rounds(generator, 1.5, 18, drift=0.2)).value for _ in range(200)]
    assert np.mean(found) == pytest.approx(1.5, rel=0.005)


def test_ratio_interval_covers() -> None:
    """The two-stage bootstrap holds the true ratio most of the time, with three processes and their variance.

    A bootstrap over three processes is known to be too narrow; the issue that deepens the statistics tightens it to
    93 % and more. Until then this pins that it is not misleading.
    """
    generator = np.random.default_rng(1)
    intervals = [ratio_of_medians(*_rounds(generator, 1.5, 18)) for _ in range(200)]
    assert np.mean([one.low <= 1.5 <= one.high for one in intervals]) >= 0.8


def test_percentiles_need_their_samples() -> None:
    """p99 of a hundred calls is no figure."""
    values = np.arange(100.0)
    assert percentile(values, 50) == pytest.approx(stats.scoreatpercentile(values, 50))
    assert percentile(values, 90) is not None
    assert percentile(values, 99) is None
    assert percentile(values[:10], 50) is None
