"""Intervals agree with references, and nominal 95 % covers the true value in 93 to 97 % of 2,000 experiments."""

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
    images_without_loss,
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
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@given(st.floats(0.5, 0.999), st.floats(1.0, 500.0))
def test_student_critical(confidence: float, freedom: float) -> None:
    """Equals scipy's quantile."""
    assert student_critical(confidence, freedom) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, freedom), rel=1e-6)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson(count: int, share: float, confidence: float) -> None:
    """Equals statsmodels' interval."""
    successes = round(share * count)
    low, high = proportion_confint(successes, count, 1 - confidence, method="wilson")
    ours = wilson(successes, count, confidence)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("share", "count"), [(0.72, 1000), (0.9113, 10_000), (0.3, 359)])
def test_wilson_covers(share: float, count: int) -> None:
    """At realistic accuracies and image counts."""
    assert 0.93 <= _coverage(share, lambda g: wilson(int(g.binomial(count, share)), count)) <= 0.97


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(first: int, second: int) -> None:
    """Equals statsmodels' exact test."""
    expected = reference_mcnemar([[5, first], [second, 5]], exact=True).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, expected), abs=1e-9)


@pytest.mark.parametrize(("drop", "discordant", "count"), [(0.0, 0.06, 1000), (0.01, 0.06, 1000), (0.01, 0.03, 5000)])
def test_paired_difference_covers(drop: float, discordant: float, count: int) -> None:
    """The interval of the drop on the same images."""
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2

    def experiment(generator: np.random.Generator) -> Interval:
        first, second, _ = generator.multinomial(count, [lost, gained, 1 - discordant])
        return paired_difference(int(first), int(second), count)

    assert 0.93 <= _coverage(drop, experiment) <= 0.97


@pytest.mark.parametrize(("drop", "discordant", "count"), [(0.0, 0.02, 300), (0.03, 0.05, 200)])
def test_paired_difference_is_not_too_narrow_with_few_discordant_images(
    drop: float, discordant: float, count: int
) -> None:
    """With six discordant images no interval covers exactly; this one is too wide rather than too narrow."""
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2

    def experiment(generator: np.random.Generator) -> Interval:
        first, second, _ = generator.multinomial(count, [lost, gained, 1 - discordant])
        return paired_difference(int(first), int(second), count)

    assert _coverage(drop, experiment) >= 0.93


def test_paired_difference_is_uncertain_without_discordant_images() -> None:
    """No flip among 100 images proves little: the interval has a width."""
    interval = paired_difference(0, 0, 100)
    assert interval.low < -0.01 < 0.01 < interval.high
    assert interval.value == 0


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_unpaired_difference(count: int, other: int, share: float, after: float) -> None:
    """Equals statsmodels' interval by Newcombe's method."""
    right, right_after = round(share * count), round(after * other)
    low, high = confint_proportions_2indep(right, count, right_after, other, method="newcomb", compare="diff")
    ours = unpaired_difference(right, count, right_after, other)
    assert (ours.low, ours.high) == pytest.approx((max(-1, low), min(1, high)), abs=1e-9)


def test_unpaired_difference_covers() -> None:
    """The difference between two reports on different images."""

    def experiment(generator: np.random.Generator) -> Interval:
        return unpaired_difference(int(generator.binomial(800, 0.9)), 800, int(generator.binomial(600, 0.87)), 600)

    assert 0.93 <= _coverage(0.03, experiment) <= 0.97


def test_images_needed_are_enough() -> None:
    """With about that many more images and the same shares, the interval's bound reaches the limit."""
    lost, gained, count, limit = 9, 5, 400, 0.015
    assert paired_difference(lost, gained, count).high > limit
    total = count + images_needed(lost, gained, count, limit)
    scale = total / count
    assert paired_difference(round(lost * scale), round(gained * scale), total).high == pytest.approx(limit, abs=0.003)


def _rounds(
    generator: np.random.Generator, ratio: float, process_sd: float = 0.01, processes: int = 5, each: int = 6,
    drift: float = 0.0, bursts: float = 0.0,
) -> tuple[list[BlockTime], list[BlockTime]]:  # fmt: skip
    """Blocks of two models: block noise, process noise (`process_sd`), drift of the machine, disturbed rounds."""
    total = processes * each
    offsets = generator.normal(0, process_sd, (2, processes))
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
    ("process_sd", "processes", "each", "drift", "bursts"),
    [(0.01, 3, 4, 0, 0), (0.01, 5, 6, 0, 0), (0.0, 5, 6, 0, 0), (0.03, 5, 2, 0, 0), (0.01, 5, 10, 0.2, 0),
     (0.01, 5, 10, 0, 0.05), (0.01, 12, 4, 0, 0)],
)  # fmt: skip
def test_ratio_covers(process_sd: float, processes: int, each: int, drift: float, bursts: float) -> None:
    """With few and many processes, equal and unequal ones, a drift, and one disturbed block in twenty."""

    def experiment(generator: np.random.Generator) -> Interval:
        return ratio_of_times(*_rounds(generator, 1.5, process_sd, processes, each, drift, bursts))

    assert 0.93 <= _coverage(1.5, experiment) <= 0.97


def test_a_bootstrap_over_five_processes_would_not_cover() -> None:
    """Why the interval is Student's: resampling processes and their rounds covers far less than 95 %."""

    def experiment(generator: np.random.Generator) -> Interval:
        base, candidate = _rounds(generator, 1.5, process_sd=0.03)
        logs = np.log([block.value for block in base]) - np.log([block.value for block in candidate])
        groups = logs.reshape(5, 6)
        chosen = groups[generator.integers(5, size=(200, 5))]
        means = np.take_along_axis(chosen, generator.integers(6, size=(200, 5, 6)), axis=2).mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        return exponential(Interval(float(logs.mean()), float(low), float(high)))

    assert _coverage(1.5, experiment) < 0.9


def test_ratio_is_not_biased_by_drift() -> None:
    """A machine that slows down by 20 % over the run affects both models equally."""
    generator = np.random.default_rng(0)
    ratios = [ratio_of_times(*_rounds(generator, 1.5, drift=0.2)).value for _ in range(200)]
    assert np.mean(ratios) == pytest.approx(1.5, rel=0.002)


def test_typical_time_covers() -> None:
    """The typical time of one model's blocks when its processes differ."""
    truth = 2.0

    def experiment(generator: np.random.Generator) -> Interval:
        base, _ = _rounds(generator, truth, process_sd=0.02)
        return typical_time(base)

    assert 0.93 <= _coverage(truth, experiment) <= 0.97


def test_the_ratio_of_two_runs_covers() -> None:
    """Two reports share a baseline, and the machine was 30 % slower for the second."""

    def experiment(generator: np.random.Generator) -> Interval:
        first = process_speedups(*_rounds(generator, 1.5))
        base, candidate = _rounds(generator, 1.6, processes=4)
        slow = [[BlockTime(b.round, b.process, 1.3 * b.value) for b in side] for side in (base, candidate)]
        return exponential(welch_difference(process_speedups(slow[0], slow[1]), first))

    assert 0.93 <= _coverage(1.6 / 1.5, experiment) <= 0.97


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9, unique=True), st.integers(-50, 50))
@example([15, 0], 0)
def test_student_and_welch(values: list[int], shift: int) -> None:
    """Both equal scipy's intervals."""
    ours = student_mean(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    other = [2 * value + shift for value in values[:-1]] + [shift + 30]
    ours = welch_difference(values, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns if one side has no variance; its result is right
        expected = stats.ttest_ind(values, other, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), rel=1e-5, abs=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_hodges_lehmann(values: list[float]) -> None:
    """Equals the median of all pairwise means."""
    pairs = [(values[i] + values[j]) / 2 for i in range(len(values)) for j in range(i, len(values))]
    assert hodges_lehmann(values) == pytest.approx(float(np.median(pairs)))


@pytest.mark.parametrize("which", PERCENTILE_SAMPLES)
def test_percentiles_need_their_samples(which: int) -> None:
    """As many samples as in MLPerf's table, with one above the bound; one sample fewer gives no result."""
    count = PERCENTILE_SAMPLES[which]
    values = np.random.default_rng(0).permutation(np.arange(float(count)))
    result = percentile(values, which)
    assert result is not None
    assert result.value == pytest.approx(np.percentile(values, which))
    assert result.upper == count - 2, "one sample above it"
    assert stats.binom.cdf(1, count, 1 - which / 100) <= 0.01 < stats.binom.cdf(1, count - 1, 1 - which / 100)
    assert percentile(values[:-1], which) is None


@pytest.mark.parametrize(("which", "count"), [(50, 200), (90, 664), (99, 3000)])
def test_the_upper_bound_of_a_percentile_holds(which: int, count: int) -> None:
    """In at least 99 % of experiments, and not because it is the largest value."""
    generator = np.random.default_rng(0)
    truth = stats.lognorm.ppf(which / 100, 0.5)
    covered, top = 0, 0
    for _ in range(SIMULATIONS):
        values = generator.lognormal(0, 0.5, count)
        result = percentile(values, which)
        assert result is not None
        covered += result.upper >= truth
        top += result.upper == values.max()
    assert covered >= 0.985 * SIMULATIONS
    assert top == 0


@given(st.lists(st.floats(0, 100), min_size=4, max_size=60))
def test_outliers(values: list[float]) -> None:
    """Values beyond Tukey's fences, computed from scipy's quartiles."""
    first, third = stats.scoreatpercentile(values, [25, 75])
    reach = 1.5 * (third - first)
    expected = [not first - reach <= value <= third + reach for value in values]
    assert outliers(np.asarray(values)).tolist() == expected


@given(st.lists(st.integers(0, 8), min_size=5, max_size=40))
def test_mann_kendall(values: list[int]) -> None:
    """Equals the definition, including ties, and the sign of S is that of scipy's tau."""
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
    """As in R. O. Gilbert's example: S = 10 for five rising values has p = 2 (1 - Phi(9 / sqrt(50 / 3)))."""
    assert mann_kendall([1, 2, 3, 4, 5]) == pytest.approx(2 * (1 - stats.norm.cdf(9 / math.sqrt(50 / 3))))
    assert mann_kendall([3, 3, 3, 3]) == 1.0


def test_mann_kendall_of_several_series() -> None:
    """Steps between processes are not a trend; a small rise within each of them is."""
    generator = np.random.default_rng(0)
    steps = [level + generator.normal(0, 0.01, 10) for level in (1.0, 1.1, 1.2, 1.3, 1.4)]
    assert mann_kendall(np.concatenate(steps).tolist()) < 1e-9
    assert mann_kendall(*steps) > 0.05
    assert mann_kendall(*(step + np.linspace(0, 0.03, 10) for step in steps)) < 0.001


def test_mann_kendall_rarely_sees_a_trend_in_noise() -> None:
    """About 5 % of noise series have p below 0.05."""
    generator = np.random.default_rng(0)
    share = np.mean([mann_kendall(generator.normal(size=40)) < 0.05 for _ in range(SIMULATIONS)])
    assert 0.03 <= share <= 0.07


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-10, 10)), min_size=1, max_size=30))
def test_theil_sen(points: list[tuple[int, float]]) -> None:
    """Equals scipy's slope, also if some times are equal; if all are, there is no slope."""
    times, values = zip(*points, strict=True)
    if len(set(times)) == 1:
        assert theil_sen(times, values) == 0.0
    else:
        with np.errstate(invalid="ignore"):  # scipy's interval, which may not exist for few points
            expected = stats.theilslopes(values, times).slope
        assert theil_sen(times, values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("constant", [60, 150, 400])
def test_the_steady_state_of_a_device_that_warms_up(constant: float) -> None:
    """5 ms cold, 8 ms warm, measured for ten minutes: the result is the limit, not the last value."""
    times = np.arange(600.0)
    values = 8 - 3 * np.exp(-times / constant) + np.random.default_rng(0).normal(0, 0.05, 600)
    assert steady_state(times, values) == pytest.approx(8, rel=0.03)


def test_the_steady_state_of_a_stable_device() -> None:
    """It is the median."""
    values = np.random.default_rng(0).normal(5, 0.1, 300)
    assert steady_state(np.arange(300.0), values) == pytest.approx(5, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_error(answers: list[tuple[float, bool]]) -> None:
    """Equals the definition, bin by bin."""
    shares, right = np.asarray([share for share, _ in answers]), np.asarray([correct for _, correct in answers])
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
    """Equals closed testing, of which it is a shortcut: Bonferroni's bound for every subset of the tests."""
    subsets = [set(names) for size in range(1, len(p_values) + 1) for names in itertools.combinations(p_values, size)]
    bounds = [(subset, min(1.0, len(subset) * min(p_values[name] for name in subset))) for subset in subsets]
    expected = {name: max(bound for subset, bound in bounds if name in subset) for name in p_values}
    assert holm(p_values) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0.001, 0.2), st.floats(0.8, 0.99))
def test_images_without_loss(limit: float, confidence: float) -> None:
    """The smallest number of images on which two models with the same answers are proved to be within a limit."""
    count = images_without_loss(limit, confidence)
    assert paired_difference(0, 0, count, confidence).high <= limit
    assert count == 1 or paired_difference(0, 0, count - 1, confidence).high > limit
