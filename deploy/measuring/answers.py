"""What a worker answers to each request (see worker.py), as JSON objects."""

from collections.abc import Mapping, Sequence
from typing import TypedDict


class Started(TypedDict):
    """To "start": nothing but that it is done."""


class Steps(TypedDict):
    """Milliseconds of opening a model: reading the file, making the session, the first inference."""

    file_ms: float
    load_ms: float
    first_ms: float


class Opened(Steps):
    """To "open": what the session reports of itself, and its times."""

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
    """To "prepare": also nanoseconds of each stage per input, where the runtime reports stages, and of one call."""

    stages: Mapping[str, Sequence[int]]
    call_ns: int


# To "time": nanoseconds per sample, involuntary context switches (null where the system does not count them), the index
# of the last call's input and its class.
Timed = TypedDict("Timed", {"ns": Sequence[int], "switches": int | None, "input": int, "class": int})


class Calls(TypedDict):
    """To "throughput" and "serve": nanoseconds of each call, or image."""

    ns: Sequence[int]


class _KeptUp(TypedDict, total=False):
    offered: int
    missed: int
    dropped: int


class Second(_KeptUp):
    """To "sustain": see measurement.Sustained; the counts are of a run at a fixed rate."""

    call_ns: int
    state: Mapping[str, object] | None


class Memory(TypedDict):
    """To "memory": the largest resident memory; null where the system does not report it."""

    peak_rss_bytes: int | None


class Failure(TypedDict):
    """To any request that failed, and to a job (see agent.py): what went wrong, and what to do."""

    error: str
    fix: str
