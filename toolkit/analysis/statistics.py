"""Intervals and paired tests, in numpy only, because they also run on the device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ...deploy.measuring.student import student_critical

CONFIDENCE = 0.95

# Fewest samples that support a percentile: MLPerf LoadGen's early stopping at 99 % confidence with one over-latency
# sample allowed.
PERCENTILE_SAMPLES = {50: 11, 90: 64, 95: 130, 99: 662}


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def critical(confidence: float) -> float:
    """The two-sided critical value of the normal distribution (1.96 for 0.95)."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927)."""
    z = critical(confidence)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # if none or all succeed, the bound is the share itself, and rounding must not exceed it
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def paired_difference(only_first: int, only_second: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """(proportion right by the first) - (by the second) on the same images.

    The adjusted Wald interval of D. G. Bonett and R. M. Price (2012), "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data": each discordant count is raised by one, the total by two.

    Args:
        only_first, only_second: images that only the first, or only the second, gets right.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = first - second
    half = critical(confidence) * math.sqrt(max(0.0, first + second - centre**2) / (count + 2))
    return Interval((only_first - only_second) / count, max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p value of McNemar's exact test of whether discordant images are evenly split."""
    total = only_first + only_second
    if total == 0:
        return 1.0
    fewer = min(only_first, only_second)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - total * math.log(2)) for value in logs))


def images_needed(only_first: int, only_second: int, count: int, limit: float, confidence: float = CONFIDENCE) -> int:
    """Approximate number of additional images that decide whether the true difference is below `limit`.

    This assumes that the observed difference is the true one. The interval's half-width, which
    shrinks with the square root of the number of images, must fit between the observed difference and the limit. The
    counts are adjusted as in `paired_difference`.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    room = abs(limit - (only_first - only_second) / count)
    variance = first + second - (first - second) ** 2
    needed = critical(confidence) ** 2 * variance / max(room, 1e-4) ** 2
    return max(1, math.ceil(needed) - count)


def images_without_loss(limit: float, confidence: float = CONFIDENCE) -> int:
    """The smallest number of images on which two models that answer alike are proved to be within `limit` (> 0).

    The upper bound of paired_difference(0, 0, count) is z * sqrt(2) / (count + 2).
    """
    return max(1, math.ceil(critical(confidence) * math.sqrt(2) / limit - 2))


def unpaired_difference(
    first_right: int, first_count: int, second_right: int, second_count: int, confidence: float = CONFIDENCE
) -> Interval:
    """(proportion right in the first set) - (in the second), each with its own images.

    R. G. Newcombe's hybrid of two score intervals (1998, "Interval estimation for the difference between independent
    proportions", method 10).
    """
    first, second = wilson(first_right, first_count, confidence), wilson(second_right, second_count, confidence)
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, max(-1.0, low), min(1.0, high))


@dataclass(frozen=True)
class BlockTime:
    """A block for the statistics: its round, its process, the time of its average call (any unit)."""

    round: int
    process: int
    value: float


def ratio_of_times(
    baseline: Sequence[BlockTime], candidate: Sequence[BlockTime], confidence: float = CONFIDENCE
) -> Interval:
    """The candidate's speed-up: the ratio of typical blocks in the rounds that both models share.

    Both blocks of a round are timed in quick succession, and each pair of rounds has both orders. Common slow-downs and
    steady drift therefore cancel. Within a process, Hodges and Lehmann's estimator averages the logarithms of the
    pairs; a few disturbed rounds do not move it. The remaining variation is between processes (mostly memory layout),
    and more rounds do not reduce it. The interval is therefore Student's over the processes. The coverage of
    a bootstrap over so few values is too low (see tests/toolkit/analysis/test_statistics.py).

    Args:
        baseline, candidate: blocks of the same rounds, at least two rounds in each of at least two processes.
    """
    return exponential(student_mean(process_speedups(baseline, candidate), confidence))


def process_speedups(baseline: Sequence[BlockTime], candidate: Sequence[BlockTime]) -> list[float]:
    """The logarithm of the speed-up in each process, from shared rounds (see ratio_of_times)."""
    values = {block.round: block.value for block in baseline}
    shared = [block for block in candidate if block.round in values]
    logs = np.log([values[block.round] for block in shared]) - np.log([block.value for block in shared])
    processes = np.asarray([block.process for block in shared])
    return [hodges_lehmann(_pairs(logs[processes == process])) for process in np.unique(processes)]


def process_times(blocks: Sequence[BlockTime]) -> list[float]:
    """The logarithm of a model's time in each process."""
    values: dict[int, list[float]] = {}
    for block in blocks:
        values.setdefault(block.process, []).append(math.log(block.value))
    return [hodges_lehmann(logs) for logs in values.values()]


def welch_difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of the first - mean of the second, at least two values each, with unequal variances (B. L. Welch, 1947)."""
    errors = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    total, value = sum(errors), float(np.mean(first) - np.mean(second))
    if total == 0:
        return Interval(value, value, value)
    freedom = total**2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, (first, second), strict=True))
    half = student_critical(confidence, freedom) * math.sqrt(total)
    return Interval(value, value - half, value + half)


def typical_time(blocks: Sequence[BlockTime], confidence: float = CONFIDENCE) -> Interval:
    """A model's typical block: the geometric mean of its processes' times, with its interval."""
    return exponential(student_mean(process_times(blocks), confidence))


def exponential(logarithms: Interval) -> Interval:
    """The interval of a ratio from that of its logarithm."""
    return Interval(math.exp(logarithms.value), math.exp(logarithms.low), math.exp(logarithms.high))


def student_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of at least two values, with Student's interval."""
    mean = float(np.mean(values))
    half = student_critical(confidence, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def hodges_lehmann(values: Sequence[float] | np.ndarray) -> float:
    """The median of the averages of all pairs, including each value with itself.

    J. L. Hodges and E. L. Lehmann, 1963.
    """
    array = np.asarray(values, float)
    rows, columns = np.triu_indices(len(array))
    return float(np.median((array[rows] + array[columns]) / 2))


def _pairs(values: np.ndarray) -> np.ndarray:
    """The averages of adjacent pairs; an unpaired last value is kept."""
    even = len(values) // 2 * 2
    return np.append(values[:even].reshape(-1, 2).mean(axis=1), values[even:])


@dataclass(frozen=True)
class Percentile:
    """A percentile of a sample, and an upper bound of the true one at 99 % confidence."""

    value: float
    upper: float


def percentile(values: np.ndarray, percent: int) -> Percentile | None:
    """A percentile with its bound; None for too few values.

    The bound is MLPerf's early stopping estimate (MLPerf Inference rules): the smallest order statistic that the true
    percentile exceeds with a probability of at most 1 %.
    """
    count = len(values)
    if count < PERCENTILE_SAMPLES[percent]:
        return None
    above = _allowed_above(count, 1 - percent / 100)
    return Percentile(float(np.percentile(values, percent)), float(np.sort(values)[count - 1 - above]))


def _allowed_above(count: int, share: float, doubt: float = 0.01) -> int:
    """The largest t with P(Binomial(count, share) <= t) <= doubt."""
    total, above = 0.0, -1
    log_share, log_rest = math.log(share), math.log1p(-share)
    while above < count:
        k = above + 1
        log_ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(log_ways + k * log_share + (count - k) * log_rest)
        if total > doubt:
            break
        above = k
    return above


def outliers(values: np.ndarray) -> np.ndarray:
    """bool [n]: values beyond J. W. Tukey's fences (1977), 1.5 interquartile ranges outside the quartiles."""
    first, third = np.percentile(values, [25, 75])
    reach = 1.5 * (third - first)
    return (values < first - reach) | (values > third + reach)


def mann_kendall(*series: Sequence[float]) -> float:
    """Two-sided p value of the test of H. B. Mann (1945) and M. G. Kendall for a monotone trend, corrected for ties.

    The scores and variances of several series are added, as in the seasonal test of R. M. Hirsch and others
    (1982). Steps between series therefore do not count as a trend.
    """
    score, variance = 0, 0.0
    for values in series:
        array, count = np.asarray(values, float), len(values)
        score += int(np.sign(array[None, :] - array[:, None])[np.triu_indices(count, 1)].sum())
        _, ties = np.unique(array, return_counts=True)
        variance += (count * (count - 1) * (2 * count + 5) - int((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance) if score else 0.0
    return min(1.0, 2 * (1 - NormalDist().cdf(z)))


def theil_sen(times: Sequence[float], values: Sequence[float]) -> float:
    """The slope of values over times: the median of the slopes of all pairs (H. Theil, 1950; P. K. Sen, 1968).

    Pairs at the same time have no slope. Without any other pair, as of a single value, the slope is 0.
    """
    across, up = np.asarray(times, float), np.asarray(values, float)
    rows, columns = np.triu_indices(len(across), 1)
    runs, rises = across[columns] - across[rows], up[columns] - up[rows]
    return float(np.median(rises[runs != 0] / runs[runs != 0])) if runs.any() else 0.0


def steady_state(times: Sequence[float], values: Sequence[float]) -> float:
    """The limit of values that approach it exponentially, as on a warming device.

    Fitted by least squares to `limit + size * exp(-time / constant)`, for constants from a tenth to three times the
    observed time. Without a significant trend it is the median of the second half.
    """
    if len(values) < 4 or mann_kendall(values) > 0.05:
        return float(np.median(values[len(values) // 2 :]))
    since, levels, fits = np.asarray(times, float) - times[0], np.asarray(values, float), []
    for constant in np.geomspace(0.1, 3, 40) * since[-1]:
        design = np.stack([np.ones_like(since), np.exp(-since / constant)], axis=1)
        solution, *_ = np.linalg.lstsq(design, levels, rcond=None)
        fits.append((float(((design @ solution - levels) ** 2).sum()), float(solution[0])))
    return min(fits)[1]


def calibration_error(confidences: Sequence[float], right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (M. P. Naeini and others, 2015; C. Guo and others, 2017): the gap between confidence
    and accuracy in bins of equal width, weighted by the images in each.

    Args:
        confidences: the confidence in each image's best class, 0 to 1.
        right: bool [n], whether that class is the label.
    """
    shares = np.asarray(confidences, float)
    bin_of = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, right - shares, bins)
    return float(np.abs(gaps).sum() / len(shares))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values of several tests, adjusted to keep the chance of a false alarm at the nominal level (S. Holm, 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
