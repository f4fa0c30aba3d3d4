"""A one-second trial of whether a quantized model is faster than its source here; validate measures properly."""

import time

import numpy as np

from ...deploy.session import Session

_SECONDS = 1.0
_BLOCK_SECONDS = 0.02


def speedup(first: Session, second: Session, tensor: np.ndarray, seconds: float = _SECONDS) -> tuple[float, float]:
    """(median, upper quartile) of the speed-up of the second session over the first, from interleaved blocks.

    Args:
        tensor: float32 [n, c, h, w], an input for both.
        seconds: approximate duration.
    """
    calls = [max(1, int(_BLOCK_SECONDS / _call_seconds(session, tensor, 1))) for session in (first, second)]
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < 3 or time.perf_counter() < end:
        times = [_call_seconds(session, tensor, n) for session, n in zip((first, second), calls, strict=True)]
        ratios.append(times[0] / times[1])
    median, upper = np.quantile(ratios, [0.5, 0.75])
    return float(median), float(upper)


def _call_seconds(session: Session, tensor: np.ndarray, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        session.run(tensor)
    return (time.perf_counter() - start) / calls
