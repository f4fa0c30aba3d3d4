"""Short trials of how fast a quantized model is here; validate measures for longer, and on any device."""

import time
from collections.abc import Callable

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.files import scratch_folder
from ...deploy.session import Session, open_session
from ..analysis.statistics import BlockTime, Interval, ratio_of_times

_SECONDS = 1.0
# Number of times that both models are opened for an interval, which is Student's of so many values, and the seconds for
# each.
_OPENINGS, _OPENING_SECONDS = 5, 0.6
_BLOCK_SECONDS = 0.02
# In a block of at least so many calls, the first one is not timed: the other session has used the caches meanwhile.
_UNTIMED_FROM = 5


def open_model(bundle: Bundle, content: bytes, runtime: str, threads: int | None = None) -> Session:
    """A session on the content of a file, in the place of the model of a bundle; None for the default of threads."""
    with scratch_folder() as folder:
        (folder / bundle.manifest.model).write_bytes(content)
        opened = Bundle(folder, bundle.manifest, id="")
        return open_session(opened, runtime) if threads is None else open_session(opened, runtime, threads=threads)


def speedup_interval(first: Callable[[], Session], second: Callable[[], Session], tensor: np.ndarray) -> Interval:
    """The speed-up of the second session over the first, with its interval.

    Both are opened several times, since the place of a model in memory changes its time more than repeated calls show
    (see statistics.ratio_of_times).

    Args:
        first, second: open a session.
        tensor: float32 [n, c, h, w], an input for both.
    """
    before, after = list[BlockTime](), list[BlockTime]()
    for opening in range(_OPENINGS):
        for seconds in interleaved(first(), second(), tensor, _OPENING_SECONDS, least=4):
            for blocks, value in zip((before, after), seconds, strict=True):
                blocks.append(BlockTime(len(blocks), opening, value))
    return ratio_of_times(before, after)


def speedup(first: Session, second: Session, tensor: np.ndarray) -> float:
    """The median speed-up of the second session over the first, from interleaved blocks of about a second.

    Args:
        tensor: float32 [n, c, h, w], an input for both.
    """
    return float(np.median([before / after for before, after in interleaved(first, second, tensor, _SECONDS)]))


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
