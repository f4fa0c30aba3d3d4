"""Which candidates of a race go on: after each process, those that have certainly lost are out.

O. Maron and A. Moore, "Hoeffding Races" (1993), with Student's t instead of Hoeffding's bound.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from ..images import UNLABELLED
from .measurement import Block, Throughput
from .student import student_critical

# The chance, per race, to drop the candidate that is really the fastest.
ERROR_RATE = 0.05
# One process shows no variation between processes, so only candidates that are slower by this factor are dropped then.
FIRST_MARGIN = 1.5
# Candidates within this factor of each other count as equally fast, and files as equally large.
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


def relative_time(blocks: Sequence[Block], reference: Sequence[Block], process: int) -> float:
    """A model's typical time in one process, relative to the reference's in the same rounds."""
    own = {block.round: block.ms for block in blocks if block.process == process}
    shared = {block.round: block.ms for block in reference if block.round in own}
    return math.exp(median(math.log(own[number] / shared[number]) for number in own))


def relative_batch_time(batches: Sequence[Throughput], reference: Sequence[Throughput], process: int) -> float:
    """A model's time per image in its best batch of one process, relative to the reference's in its own best."""
    first, second = (
        min(median(entry.ns) / entry.batch for entry in entries if entry.process == process)
        for entries in (batches, reference)
    )
    return first / second


def points_lost(targets: Sequence[int], reference: Sequence[int], classes: Sequence[int]) -> float:
    """Percentage points of top-1 that the classes lose against the reference's.

    For images without labels, each changed answer counts as a loss, because it may be one.
    """
    if not targets:
        return 0.0
    if UNLABELLED in targets:
        lost = sum(first != second for first, second in zip(reference, classes, strict=True))
    else:
        right = [
            sum(target == answer for target, answer in zip(targets, answers, strict=True))
            for answers in (reference, classes)
        ]
        lost = right[0] - right[1]
    return 100 * lost / len(targets)
