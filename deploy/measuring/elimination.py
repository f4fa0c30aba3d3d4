"""Which candidates of a race go on: after each process, those that have certainly lost are out.

O. Maron and A. Moore, "Hoeffding Races" (1993), with Student's t instead of Hoeffding's bound.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median

import numpy as np

from ..images import UNLABELLED
from .measurement import Block, Throughput
from .student import student_critical

# The chance, per race, to drop the candidate that is really the fastest.
ERROR_RATE = 0.05
# A race ends once its best candidate is, with a chance of STOP_ERROR to be wrong, not slower than the next by more than
# this factor. To be more certain about near ties would take more processes than to measure all candidates to the end.
REGRET, STOP_ERROR = 1.02, 0.1
# Candidates within this factor of each other count as equally fast, and files as equally large.
INDIFFERENCE = 1.01
# The standard deviation of the logarithm of a model's time from process to process, which one process does not show:
# more than the 0.6 to 2 % measured (docs/decisions/measuring.md, 15).
_BETWEEN_PROCESSES = 0.03
# The least standard deviation of the noise (of logarithms), because few processes may agree by chance.
_LEAST_DEVIATION = 0.005
# The factor by which a candidate must be slower after one process if that has a single value, which shows no noise.
_BLIND_MARGIN = 1.5

# candidate -> for each process, the logarithms of its time relative to the reference's in each round
Logs = Mapping[str, Sequence[Sequence[float]]]


def survivors(logs: Logs, looks: int) -> list[str]:
    """The candidates that may still be the fastest.

    A process counts by the median of its rounds. After several processes, the logarithm of a time is modelled as the
    candidate's + the process's turn's + noise, whose variance is pooled over the candidates. After one, the noise is
    that of the rounds, and an assumed variation between processes. Each candidate is compared with the best by
    Student's t, the error rate divided by the number of comparisons in the race (Bonferroni).

    Args:
        logs: of equally many processes of each candidate, in the same turns.
        looks: how often the race is looked at, this time included.

    Returns:
        The keys that go on, the fastest first; one alone has won.
    """
    means, limit = _compared(logs, ERROR_RATE / (max(1, len(logs) - 1) * looks))
    order = sorted(means, key=lambda key: means[key])
    return [key for key in order if means[key] - means[order[0]] <= limit]


def decided(logs: Logs) -> bool:
    """Whether the race is over: the best candidate is alone, or not slower than the next by more than REGRET."""
    if len(logs) == 1:
        return True
    means, limit = _compared(logs, STOP_ERROR)
    first, second, *_ = sorted(means.values())
    return limit - (second - first) <= math.log(REGRET)


def _compared(logs: Logs, error: float) -> tuple[dict[str, float], float]:
    """The mean of each candidate, and the difference of two means that noise alone exceeds with this probability."""
    medians = {key: [median(rounds) for rounds in processes] for key, processes in logs.items()}
    means = {key: mean(values) for key, values in medians.items()}
    if len(logs) == 1:
        return means, 0.0
    confidence = 1 - 2 * error
    table = np.asarray(list(medians.values()))
    if table.shape[1] == 1:
        return means, _first_limit([processes[0] for processes in logs.values()], confidence)
    return means, _limit(table, confidence)


def _first_limit(rounds: Sequence[Sequence[float]], confidence: float) -> float:
    """The limit after one process, for the logarithms of each candidate's rounds."""
    least = min(len(values) for values in rounds)
    if least < 2:
        return math.log(_BLIND_MARGIN)
    freedom = sum(len(values) - 1 for values in rounds)
    pooled = sum((len(values) - 1) * float(np.var(values, ddof=1)) for values in rounds) / freedom
    # the variance of a median of normal values is pi / 2 times that of their mean
    error = math.sqrt(math.pi / 2 * pooled / least + _BETWEEN_PROCESSES**2)
    return student_critical(confidence, freedom) * error * math.sqrt(2)


def _limit(table: np.ndarray, confidence: float) -> float:
    """The limit after several processes, for logarithms [candidate, turn]."""
    count, turns = table.shape
    noise = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    freedom = (count - 1) * (turns - 1)
    deviation = max(math.sqrt(float((noise**2).sum()) / freedom), _LEAST_DEVIATION)
    return student_critical(confidence, freedom) * deviation * math.sqrt(2 / turns)


def relative_logs(blocks: Sequence[Block], reference: Sequence[Block], process: int) -> list[float]:
    """The logarithms of a model's time relative to the reference's, in each round that both have in a process."""
    own = {block.round: block.ms for block in blocks if block.process == process}
    shared = {block.round: block.ms for block in reference if block.round in own}
    return [math.log(own[number] / shared[number]) for number in own]


def relative_batch_log(batches: Sequence[Throughput], reference: Sequence[Throughput], process: int) -> float:
    """The logarithm of a model's time per image in its best batch of a process, relative to the reference's in its."""
    first, second = (
        min(median(entry.ns) / entry.batch for entry in entries if entry.process == process)
        for entries in (batches, reference)
    )
    return math.log(first / second)


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
