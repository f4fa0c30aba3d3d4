"""Intervals against references, and their coverage: nominal 95 % holds the truth in 93 to 97 % of 2,000 experiments."""

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from edgekit.toolkit.analysis.statistics import (
    PERCENTILE_SAMPLES,
    BlockTime,
    Interval,
    calibration_error,
    exponential,
    hodges_lehmann,
    holm,
    images_needed,
    mann_kendall,
    mcnemar,
    outliers,
    paired_difference,
    percentile,
    process_speedups,
    ratio_of_times,
    steady_state,
    student_critical,
    student_mean,
    theil_sen,
    typical_time,
    unpaired_difference,
    welch_difference,
    wilson,
)
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

SIMULATIONS = 2000


def _coverage(truth: float, experiment: Callable[[np.random.Generator], Interval], seed: int = 0) -> float:
    generator = np.random.default_rng(seed)
    intervals = [experiment(generator) for _ in range(SIMULATIONS)]
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


@given(st.floats(0.5, 0.999), st.floats(1.0, 500.0))
def test_student_critical(confidence: float, freedom: float) -> None:
    """Equals scipy's quantile."""
    assert student_critical(confidence, freedom) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, freedom), rel=1e-6)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson(count: int, share: float, confidence: float) -> None:
    """Equals statsmodels'."""
    successes = round(share * count)
    low, high = proportion_confint(successes, count, 1 - confidence, method="wilson")
    ours = wilson(successes, count, confidence)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("share", "count"), [(0.72, 1000), (0.9113, 10_000), (0.3, 359)])
def test_wilson_covers(share: float, count: int) -> None:
    """At accuracies and image counts that are met."""
    assert 0.93 <= _coverage(share, lambda g: wilson(int(g.binomial(count, share)), count)) <= 0.97


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(first: int, second: int) -> None:
    """Equals statsmodels' exact test."""
    expected = reference_mcnemar([[5, first], [second, 5]], exact=True).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, expected), abs=1e-9)


@pytest.mark.parametrize(("drop", "discordant", "count"), [(0.0, 0.06, 1000), (0.01, 0.06, 1000), (0.01, 0.03, 5000)])
def test_paired_difference_covers(drop: float, discordant: float, count: int) -> None:
    """Of the drop on the same images."""
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2

    def experiment(generator: np.random.Generator) -> Interval:
        first, second, _ = generator.multinomial(count, [lost, gained, 1 - discordant])
        return paired_difference(int(first), int(second), count)

    assert 0.93 <= _coverage(drop, experiment) <= 0.97


@pytest.mark.parametrize(("drop", "discordant", "count"), [(0.0, 0.02, 300), (0.03, 0.05, 200)])
def test_paired_difference_is_not_too_narrow_with_few_discordant_images(
    drop: float, discordant: float, count: int
) -> None:
    """With six discordant images nothing covers exactly; it errs to the wide side."""
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2

    def experiment(generator: np.random.Generator) -> Interval:
        first, second, _ = generator.multinomial(count, [lost, gained, 1 - discordant])
        return paired_difference(int(first), int(second), count)

    assert _coverage(drop, experiment) >= 0.93


def test_paired_difference_is_honest_without_discordant_images() -> None:
    """No flip among 100 images proves little: the interval is not a point."""
    interval = paired_difference(0, 0, 100)
    assert interval.low < -0.01 < 0.01 < interval.high
    assert interval.value == 0


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_unpaired_difference(count: int, other: int, share: float, after: float) -> None:
    """Equals statsmodels' by Newcombe."""
    right, still = round(share * count), round(after * other)
    low, high = confint_proportions_2indep(right, count, still, other, method="newcomb", compare="diff")
    ours = unpaired_difference(right, count, still, other)
    assert (ours.low, ours.high) == pytest.approx((max(-1, low), min(1, high)), abs=1e-9)


def test_unpaired_difference_covers() -> None:
    """Of two reports on other images."""

    def experiment(generator: np.random.Generator) -> Interval:
        return unpaired_difference(int(generator.binomial(800, 0.9)), 800, int(generator.binomial(600, 0.87)), 600)

    assert 0.93 <= _coverage(0.03, experiment) <= 0.97


def test_images_needed_decides() -> None:
    """With about that many more images and the same shares, the interval's bound clears the limit."""
    lost, gained, count, limit = 9, 5, 400, 0.015
    assert paired_difference(lost, gained, count).high > limit
    total = count + images_needed(lost, gained, count, limit)
    scale = total / count
    assert paired_difference(round(lost * scale), round(gained * scale), total).high == pytest.approx(limit, abs=0.003)


def _rounds(
    generator: np.random.Generator, ratio: float, own: float = 0.01, processes: int = 5, each: int = 6,
    drift: float = 0.0, bursts: float = 0.0,
) -> tuple[list[BlockTime], list[BlockTime]]:  # fmt: skip
    """Blocks of two models: noise of each block, of each process (`own`), a drift of the machine, rounds disturbed."""
    total = processes * each
    offsets = generator.normal(0, own, (2, processes))
    sides: tuple[list[BlockTime], list[BlockTime]] = ([], [])
    for number in range(total):
        process = number // each
        machine = 1 + drift * number / total
        order = (0, 1) if number % 2 else (1, 0)
        for place, side in enumerate(order):
            moment = machine * (1 + drift * place / 2 / total)
            burst = 1.5 if generator.random() < bursts else 1.0
            noise = math.exp(offsets[side, process] + generator.normal(0, 0.02))
            sides[side].append(BlockTime(number, process, (ratio, 1.0)[side] * moment * burst * noise))
    return sides


@pytest.mark.parametrize(
    ("own", "processes", "each", "drift", "bursts"),
    [(0.01, 3, 4, 0, 0), (0.01, 5, 6, 0, 0), (0.0, 5, 6, 0, 0), (0.03, 5, 2, 0, 0), (0.01, 5, 10, 0.2, 0),
     (0.01, 5, 10, 0, 0.05), (0.01, 12, 4, 0, 0)],
)  # fmt: skip
def test_ratio_covers(own: float, processes: int, each: int, drift: float, bursts: float) -> None:
    """With few processes and many, equal and unequal ones, a drift, and one block in twenty disturbed."""

    def experiment(generator: np.random.Generator) -> Interval:
        return ratio_of_times(*_rounds(generator, 1.5, own, processes, each, drift, bursts))

    assert 0.93 <= _coverage(1.5, experiment) <= 0.97


def test_a_bootstrap_over_five_processes_would_not_cover() -> None:
    """Why the interval is Student's: drawing processes, and rounds within them, covers far less than it says."""

    def experiment(generator: np.random.Generator) -> Interval:
        base, candidate = _rounds(generator, 1.5, own=0.03)
        logs = np.log([one.value for one in base]) - np.log([one.value for one in candidate])
        groups = logs.reshape(5, 6)
        chosen = groups[generator.integers(5, size=(200, 5))]
        means = np.take_along_axis(chosen, generator.integers(6, size=(200, 5, 6)), axis=2).mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        return exponential(Interval(float(logs.mean()), float(low), float(high)))

    assert _coverage(1.5, experiment) < 0.9


def test_ratio_is_not_biased_by_drift() -> None:
    """A machine that slows down by 20 % over the run weighs on both models alike."""
    generator = np.random.default_rng(0)
    found = [ratio_of_times(*_rounds(generator, 1.5, drift=0.2)).value for _ in range(200)]
    assert np.mean(found) == pytest.approx(1.5, rel=0.002)


def test_typical_time_covers() -> None:
    """The typical block of one model, whose processes differ."""
    truth = 2.0

    def experiment(generator: np.random.Generator) -> Interval:
        base, _ = _rounds(generator, truth, own=0.02)
        return typical_time(base)

    assert 0.93 <= _coverage(truth, experiment) <= 0.97


def test_the_ratio_of_two_runs_covers() -> None:
    """Two reports through the same baseline, the second on a machine that is 30 % slower that day."""

    def experiment(generator: np.random.Generator) -> Interval:
        first = process_speedups(*_rounds(generator, 1.5))
        base, candidate = _rounds(generator, 1.6, processes=4)
        slow = [[BlockTime(b.round, b.process, 1.3 * b.value) for b in side] for side in (base, candidate)]
        return exponential(welch_difference(process_speedups(slow[0], slow[1]), first))

    assert 0.93 <= _coverage(1.6 / 1.5, experiment) <= 0.97


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9, unique=True), st.integers(-50, 50))
@example([15, 0], 0)
def test_student_and_welch(values: list[int], shift: int) -> None:
    """Equal scipy's."""
    ours = student_mean(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    other = [2 * value + shift for value in values[:-1]] + [shift + 30]
    ours = welch_difference(values, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of one side without variance; its answer is right
        expected = stats.ttest_ind(values, other, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), rel=1e-5, abs=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_hodges_lehmann(values: list[float]) -> None:
    """By the definition, and within the values."""
    pairs = [(values[i] + values[j]) / 2 for i in range(len(values)) for j in range(i, len(values))]
    assert hodges_lehmann(values) == pytest.approx(float(np.median(pairs)))


@pytest.mark.parametrize("which", PERCENTILE_SAMPLES)
def test_percentiles_need_their_samples(which: int) -> None:
    """As many as MLPerf's table says, with one sample above the bound; one fewer is no figure."""
    count = PERCENTILE_SAMPLES[which]
    values = np.random.default_rng(0).permutation(np.arange(float(count)))
    found = percentile(values, which)
    assert found is not None
    assert found.value == pytest.approx(np.percentile(values, which))
    assert found.upper == count - 2, "one sample above it"
    assert stats.binom.cdf(1, count, 1 - which / 100) <= 0.01 < stats.binom.cdf(1, count - 1, 1 - which / 100)
    assert percentile(values[:-1], which) is None


@pytest.mark.parametrize(("which", "count"), [(50, 200), (90, 664), (99, 3000)])
def test_the_upper_bound_of_a_percentile_holds(which: int, count: int) -> None:
    """In 99 % of experiments and more, and not by being the largest value seen."""
    generator = np.random.default_rng(0)
    truth = stats.lognorm.ppf(which / 100, 0.5)
    held, top = 0, 0
    for _ in range(SIMULATIONS):
        values = generator.lognormal(0, 0.5, count)
        found = percentile(values, which)
        assert found is not None
        held += found.upper >= truth
        top += found.upper == values.max()
    assert held >= 0.985 * SIMULATIONS
    assert top == 0


@given(st.lists(st.floats(0, 100), min_size=4, max_size=60))
def test_outliers(values: list[float]) -> None:
    """Beyond Tukey's fences, by scipy's quartiles."""
    first, third = stats.scoreatpercentile(values, [25, 75])
    reach = 1.5 * (third - first)
    expected = [not first - reach <= value <= third + reach for value in values]
    assert outliers(np.asarray(values)).tolist() == expected


@given(st.lists(st.integers(0, 8), min_size=5, max_size=40))
def test_mann_kendall(values: list[int]) -> None:
    """By the definition, ties and all, and Kendall's S by scipy's tau."""
    later = [(values[i], values[j]) for i in range(len(values)) for j in range(i + 1, len(values))]
    score = sum((b > a) - (b < a) for a, b in later)
    ties = [values.count(value) for value in set(values)]
    count = len(values)
    variance = (count * (count - 1) * (2 * count + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    z = (abs(score) - 1) / math.sqrt(variance) if score else 0.0
    assert mann_kendall(values) == pytest.approx(min(1.0, 2 * stats.norm.sf(z)))
    if score:
        assert math.copysign(1, stats.kendalltau(range(count), values).statistic) == math.copysign(1, score)


def test_mann_kendall_by_hand() -> None:
    """R. O. Gilbert's example form: S = 10 of five rising values has p = 2 (1 - Phi(9 / sqrt(50 / 3)))."""
    assert mann_kendall([1, 2, 3, 4, 5]) == pytest.approx(2 * (1 - stats.norm.cdf(9 / math.sqrt(50 / 3))))
    assert mann_kendall([3, 3, 3, 3]) == 1.0


def test_mann_kendall_of_several_series() -> None:
    """Steps between processes are no trend; the same small rise within each of them is."""
    generator = np.random.default_rng(0)
    steps = [level + generator.normal(0, 0.01, 10) for level in (1.0, 1.1, 1.2, 1.3, 1.4)]
    assert mann_kendall(np.concatenate(steps).tolist()) < 1e-9
    assert mann_kendall(*steps) > 0.05
    assert mann_kendall(*(step + np.linspace(0, 0.03, 10) for step in steps)) < 0.001


def test_mann_kendall_rarely_sees_a_trend_in_noise() -> None:
    """5 % of noise has p below 0.05."""
    generator = np.random.default_rng(0)
    seen = np.mean([mann_kendall(generator.normal(size=40)) < 0.05 for _ in range(SIMULATIONS)])
    assert 0.03 <= seen <= 0.07


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=30))
def test_theil_sen(values: list[float]) -> None:
    """Equals scipy's."""
    times = np.arange(len(values)) * 1.5
    assert theil_sen(times, values) == pytest.approx(stats.theilslopes(values, times).slope, abs=1e-9)


@pytest.mark.parametrize("constant", [60, 150, 400])
def test_the_steady_state_of_a_device_that_warms_up(constant: float) -> None:
    """5 ms cold, 8 ms warm, seen for ten minutes: the limit is found, not the last value."""
    times = np.arange(600.0)
    values = 8 - 3 * np.exp(-times / constant) + np.random.default_rng(0).normal(0, 0.05, 600)
    assert steady_state(times, values) == pytest.approx(8, rel=0.03)


def test_the_steady_state_of_a_device_that_does_not() -> None:
    """Is the median."""
    values = np.random.default_rng(0).normal(5, 0.1, 300)
    assert steady_state(np.arange(300.0), values) == pytest.approx(5, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_error(answers: list[tuple[float, bool]]) -> None:
    """By the definition, bin by bin."""
    shares, right = np.asarray([a for a, _ in answers]), np.asarray([b for _, b in answers])
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (shares > low) & (shares <= high) if number else shares <= high
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - shares[inside].mean())
    # a share at the edge of two bins may round into either
    if not np.isclose(shares * 15, np.round(shares * 15)).any():
        assert calibration_error(shares.tolist(), right) == pytest.approx(expected)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), min_size=1))
def test_holm(p_values: dict[str, float]) -> None:
    """Equals what it is a short cut for: closed testing, every subset of the tests held to Bonferroni's bound."""
    subsets = [set(few) for size in range(1, len(p_values) + 1) for few in itertools.combinations(p_values, size)]
    bounds = [(few, min(1.0, len(few) * min(p_values[name] for name in few))) for few in subsets]
    expected = {name: max(bound for few, bound in bounds if name in few) for name in p_values}
    assert holm(p_values) == pytest.approx(expected, abs=1e-12)
