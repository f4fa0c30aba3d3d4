"""A one-second trial of whether a quantized model is faster than its source here; validate measures properly."""

import time
from collections.abc import Callable

import numpy as np

from ...deploy.session import Session

_SECONDS = 1.0
_BLOCK_SECONDS = 0.02
# In a block of at least so many calls, the first one is not timed: the other session has used the caches meanwhile.
_UNTIMED_FROM = 5


def speedup(first: Session, second: Session, tensor: np.ndarray, seconds: float = _SECONDS) -> tuple[float, float]:
    """(median, upper quartile) of the speed-up of the second session over the first, from interleaved blocks.

    Args:
        tensor: float32 [n, c, h, w], an input for both.
        seconds: approximate duration.
    """
    ratios = [before / after for before, after in interleaved(first, second, tensor, seconds)]
    median, upper = np.quantile(ratios, [0.5, 0.75])
    return float(median), float(upper)


def interleaved(
    first: Session, second: Session, tensor: np.ndarray, seconds: float, *, least: int = 3,
    block_s: float = _BLOCK_SECONDS, clock: Callable[[], float] | None = None,
) -> list[tuple[float, float]]:  # fmt: skip
    """Seconds per call of both sessions, in blocks that take turns.

    Args:
        tensor: float32 [n, c, h, w], an input for both.
        seconds: approximate duration.
        least: number of pairs of blocks, even if they take longer.
        block_s: about the length of a block.
        clock: times the calls; None for the elapsed time.
    """
    clock = clock or time.perf_counter
    calls = [max(1, int(block_s / _call_seconds(session, tensor, 1, clock))) for session in (first, second)]
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < least or time.perf_counter() < end:
        before, after = (
            _call_seconds(session, tensor, count, clock) for session, count in zip((first, second), calls, strict=True)
        )
        pairs.append((before, after))
    return pairs


def _call_seconds(session: Session, tensor: np.ndarray, calls: int, clock: Callable[[], float]) -> float:
    if calls >= _UNTIMED_FROM:
        session.run(tensor)
    start = clock()
    for _ in range(calls):
        session.run(tensor)
    return (clock() - start) / calls
