"""A worker's answer to each request (see worker.py), as JSON objects."""

from collections.abc import Mapping, Sequence
from typing import TypedDict


class Started(TypedDict):
    """To "start": an empty object, once it is done."""


class Steps(TypedDict):
    """Milliseconds of opening a model: reading the file, creating the session, the first inference."""

    file_ms: float
    load_ms: float
    first_ms: float


class Opened(Steps):
    """To "open": the facts of the session, and its times."""

    session: Mapping[str, object]


class GoldenAnswer(TypedDict):
    """To "golden": the parity (see deploy.parity.Parity), and the logits of each sample."""

    parity: Mapping[str, float]
    logits: Sequence[Sequence[float]]


class PredictionsAnswer(TypedDict):
    """To "predict": see measurement.Predictions."""

    classes: Sequence[int]
    confidences: Sequence[float]
    in_top5: Sequence[bool] | None


class WarmUpAnswer(TypedDict):
    """Part of the answer to "prepare": see measurement.WarmUp."""

    ms: float
    calls: int
    settled: bool


class PreparedInputs(TypedDict):
    """Nanoseconds per input, and how the warm-up went."""

    preprocess_ns: Sequence[int]
    postprocess_ns: Sequence[int]
    warm_up: WarmUpAnswer


class Prepared(PreparedInputs):
    """To "prepare": also nanoseconds of one call, and of each stage per input if the runtime reports stages."""

    stages: Mapping[str, Sequence[int]]
    call_ns: int


# To "time": nanoseconds per sample, involuntary context switches (null if the system does not count them), the index
# of the last call's input and its class.
Timed = TypedDict("Timed", {"ns": Sequence[int], "switches": int | None, "input": int, "class": int})


class Calls(TypedDict):
    """To "throughput" and "serve": nanoseconds per call or per image."""

    ns: Sequence[int]


class _RateCounts(TypedDict, total=False):
    offered: int
    missed: int
    dropped: int


class Second(_RateCounts):
    """To "sustain": see measurement.Sustained; only a run at a fixed rate has the counts."""

    call_ns: int
    state: Mapping[str, object] | None


class Memory(TypedDict):
    """To "memory": the largest resident memory; null if the system does not report it."""

    peak_rss_bytes: int | None


class Failure(TypedDict):
    """To any request that failed, and to a job (see agent.py): the error, and how to fix it."""

    error: str
    fix: str
