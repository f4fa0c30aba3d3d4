"""Intervals and paired tests; numpy only, since they also run on the device."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

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
    # at 0 and at all successes the bound is the share itself; rounding must not put it beyond
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def paired_difference(only_first: int, only_second: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """(proportion right by the first) - (by the second) on the same images.

    The adjusted Wald interval of D. G. Bonett and R. M. Price (2012), "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data": one is added to each discordant count, two to the total.

    Args:
        only_first, only_second: images that only the one, or only the other, gets right.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = first - second
    half = critical(confidence) * math.sqrt(max(0.0, first + second - centre**2) / (count + 2))
    return Interval((only_first - only_second) / count, max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: are the discordant images evenly split?"""
    total = only_first + only_second
    if total == 0:
        return 1.0
    fewer = min(only_first, only_second)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - total * math.log(2)) for value in logs))


def images_needed(only_first: int, only_second: int, count: int, limit: float, confidence: float = CONFIDENCE) -> int:
    """About how many more images decide whether the true difference is below `limit`, if it is what was seen.

    The half-width shrinks with the square root of the number of images; it has to fit between estimate and limit. The
    counts are adjusted as in `paired_difference`.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    room = abs(limit - (only_first - only_second) / count)
    variance = first + second - (first - second) ** 2
    needed = critical(confidence) ** 2 * variance / max(room, 1e-4) ** 2
    return max(1, math.ceil(needed) - count)


def ratio_of_medians(
    baseline: list[tuple[int, float]], candidate: list[tuple[int, float]], confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """How many times faster the candidate is: geometric mean over rounds of (baseline's median / candidate's).

    The two of one round were timed within a moment of each other, so what slowed the machine for both cancels. The
    interval is a bootstrap in two stages, of processes and of rounds within them, on the logarithm.

    Args:
        baseline, candidate: (process, median of the block) a round, in the same rounds.
    """
    logs = np.log([value for _, value in baseline]) - np.log([value for _, value in candidate])
    processes = np.asarray([process for process, _ in baseline])
    groups = [logs[processes == process] for process in np.unique(processes)]
    generator = np.random.default_rng(seed)
    means = np.empty(2000)
    for sample in range(len(means)):
        chosen = generator.integers(len(groups), size=len(groups))
        drawn = [generator.choice(groups[group], len(groups[group])) for group in chosen]
        means[sample] = np.concatenate(drawn).mean()
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)))


def percentile(values: np.ndarray, which: int) -> float | None:
    """A percentile, None when there are too few values to support it."""
    return float(np.percentile(values, which)) if len(values) >= PERCENTILE_SAMPLES[which] else None
