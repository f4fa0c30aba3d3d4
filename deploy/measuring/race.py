"""Racing: after each process of a measurement, drop the candidates that are certainly slower than the fastest.

A validation measures every candidate to the end. A search for the fastest need not (O. Maron and A. Moore, "Hoeffding
Races", 1993).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .student import student_critical

# The chance, per race, to drop the candidate that is really the fastest.
ERROR_RATE = 0.05
# One process shows no variation between processes, so only candidates that are slower by this factor are dropped then.
FIRST_MARGIN = 1.5
# Candidates within this factor of each other count as equally fast.
INDIFFERENCE = 1.02
# The least standard deviation of the noise (of logarithms), because few processes may agree by chance.
_LEAST_DEVIATION = 0.005


def survivors(times: Mapping[str, Sequence[float]], looks: int) -> list[str]:
    """The candidates that may still be the fastest.

    The logarithm of a time is modelled as the candidate's + the process's turn's + noise, whose variance is pooled over
    the candidates. Each is compared with the best by Student's t, the error rate divided by the number of
    comparisons in the race (Bonferroni).

    Args:
        times: candidate -> its typical time in each process so far, in the same turns: equally many of each.
        looks: how often the race is looked at, this time included.

    Returns:
        The keys that go on, the fastest first; one alone has won.
    """
    keys = list(times)
    if len(keys) == 1:
        return keys
    logs = np.log(np.asarray(list(times.values()), float))
    means = logs.mean(axis=1)
    order = [int(index) for index in np.argsort(means, kind="stable")]
    limit = math.log(FIRST_MARGIN) if logs.shape[1] == 1 else _limit(logs, looks)
    return [keys[index] for index in order if means[index] - means[order[0]] <= limit]


def decided(times: Mapping[str, Sequence[float]], looks: int) -> bool:
    """Whether the race is over: one candidate is left, or those left are shown to be equally fast."""
    if len(times) == 1:
        return True
    logs = np.log(np.asarray(list(times.values()), float))
    if logs.shape[1] < 2:
        return False
    means = logs.mean(axis=1)
    return float(means.max() - means.min()) + _limit(logs, looks) <= math.log(INDIFFERENCE)


def _limit(logs: np.ndarray, looks: int) -> float:
    """The largest difference of two means that noise alone explains, for logarithms [candidate, turn]."""
    count, turns = logs.shape
    noise = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0, keepdims=True) + logs.mean()
    freedom = (count - 1) * (turns - 1)
    deviation = max(math.sqrt(float((noise**2).sum()) / freedom), _LEAST_DEVIATION)
    confidence = 1 - 2 * ERROR_RATE / ((count - 1) * looks)
    return student_critical(confidence, freedom) * deviation * math.sqrt(2 / turns)
