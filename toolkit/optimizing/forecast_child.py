"""The process that times the candidates of a forecast: `python -m edgekit.toolkit.optimizing.forecast_child`.

Standard input is a Job in JSON. Each line of standard output is an Answer in JSON; the last one of a process that ends
early says which candidate it was at.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypedDict

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.errors import EdgeKitError
from ...deploy.runtimes.runtime import OptionValue, Session
from ...deploy.session import open_session, runtime_for
from ...deploy.signals import ended_by_signals
from ..quantize.trial import interleaved

# Pairs of blocks for each candidate, even if the time is over.
_LEAST = 3
# Seconds of a block, as in a race: int8 of ResNet-18 needs eight calls (20 ms) until its weights are in the caches.
_BLOCK_S = 0.05
# Calls before the first block: the first one allocates memory, the second one still fills caches.
_WARM_UP = 2
# Seconds; Windows counts the time of a process in steps of 16 ms, which is too coarse for a block.
_FINE = 1e-4


class Entry(TypedDict):
    """A candidate.

    Attributes:
        file: path of its bundle.
        runtime: its name.
        options: of the runtime.
        seconds: for timing it, after it was opened.
    """

    file: str
    runtime: str
    options: Mapping[str, OptionValue]
    seconds: float


class Job(TypedDict):
    """What to time.

    Attributes:
        entries: all candidates, the reference first.
        todo: indices of those to time.
    """

    entries: list[Entry]
    todo: list[int]


class Answer(TypedDict):
    """A candidate that was begun, timed, or that failed.

    Attributes:
        index: of the candidate.
        pairs: (seconds per call of the reference, of the candidate) for each pair of blocks; null if it was not timed.
        error: why it cannot be opened or run; null if it can, or was only begun.
    """

    index: int
    pairs: list[tuple[float, float]] | None
    error: str | None


def answers(job: Job) -> Iterator[Answer]:
    """Time the candidates one after the other, each in turns with the reference."""
    reference = job["entries"][0]
    yield Answer(index=0, pairs=None, error=None)
    try:
        tensor = Bundle.open(reference["file"]).golden().tensors[:1]
        first = _opened(reference, tensor)
    except EdgeKitError as error:
        yield Answer(index=0, pairs=None, error=str(error))
        return
    for index in job["todo"]:
        yield Answer(index=index, pairs=None, error=None)
        try:
            pairs = _timed(first, reference, job["entries"][index], tensor)
        except Exception as error:  # whatever a runtime raises about its model must not end the forecast
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            yield Answer(index=index, pairs=None, error=reason)
            continue
        yield Answer(index=index, pairs=pairs, error=None)


def _timed(first: Session, reference: Entry, entry: Entry, tensor: np.ndarray) -> list[tuple[float, float]]:
    """The blocks of the reference, whose session is open, and of a candidate."""
    session = _opened(entry, tensor)
    try:
        return interleaved(
            first, session, tensor, entry["seconds"], least=_LEAST, block_s=_BLOCK_S, clock=_clock(reference, entry)
        )
    finally:  # some runtimes share their threads between the sessions of a process
        session.close()


def _clock(reference: Entry, entry: Entry) -> Callable[[], float]:
    """If both have one thread, the time that the processor gave to this process, which other processes change less.

    At a load of 11 on two cores, the ratio of a candidate had a standard deviation between processes of 7 %, and of
    13 % by the elapsed time. Several threads, which wait for one another, spend processor's time on waiting.
    """
    fine = time.get_clock_info("process_time").resolution < _FINE
    alone = all(each["options"].get("threads") == 1 for each in (reference, entry))
    return time.process_time if fine and alone else time.perf_counter


def _opened(entry: Entry, tensor: np.ndarray) -> Session:
    bundle = Bundle.open(entry["file"])
    runtime = runtime_for(bundle, entry["runtime"])
    if runtime.check is not None:
        runtime.check(bundle, None)
    session = open_session(bundle, entry["runtime"], planted=False, **entry["options"])
    for _ in range(_WARM_UP):
        session.run(tensor)
    return session


def main() -> None:
    """Read the job, and print the answers as they come."""
    # libraries may print to standard output, so the answers use a separate pipe
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for answer in answers(json.load(sys.stdin)):
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


if __name__ == "__main__":
    with ended_by_signals():
        main()
