"""One model in one fresh process: `python -m edgekit.deploy.measuring.worker`, driven over its pipes.

Each line on standard input is a JSON request `{"do": name, ...}`, each line on standard output its JSON answer, or
`{"progress": done}` before it. The worker only times; it knows nothing about other models.
"""

import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import numpy as np
from PIL import Image

from ..bundle import Bundle, Golden
from ..environment import state
from ..errors import EdgeKitError, missing_package
from ..images import UNLABELLED, ImageSet
from ..parity import replay
from ..postprocess import probabilities, ranked
from ..preprocess import decode
from ..runtimes.runtime import Opener, OptionValue, Runtime, Session, StagedSession
from ..session import runtime_for
from ..signals import ended_by_signals
from .answers import (
    Calls,
    Failure,
    GoldenAnswer,
    Memory,
    Opened,
    PredictionsAnswer,
    Prepared,
    Second,
    Started,
    Timed,
    WarmUpAnswer,
)
from .rules import RULES

if TYPE_CHECKING:  # not on Windows
    import resource

_PROGRESS_EVERY_S = 0.2

# A run at a fixed rate stops once an image is late by this multiple of the time planned for all images.
_MAX_LATENESS = 2.0


class Worker:
    """The model and the inputs that it is timed on."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._bundle: Bundle | None = None
        self._runtime: Runtime | None = None
        self._opener: Opener | None = None
        self._session: Session | None = None
        self._golden: Golden | None = None
        self._images: ImageSet | None = None
        self._chosen: list[int] = []
        self._inputs: list[np.ndarray] = []
        self._next = 0
        self._due: int | None = None

    def start(
        self, bundle: str, images: str | None, runtime: str | None = None, *, planted: bool = False
    ) -> Started:  # fmt: skip
        """Check the bundle and import its runtime, which is not timed as loading (`planted`: see runtime.PLANTED)."""
        self._bundle = Bundle.open(bundle)
        self._golden = self._bundle.golden()
        self._images = ImageSet.load(Path(images)) if images else None
        self._runtime = runtime_for(self._bundle, runtime, planted=planted)
        self._opener = self._runtime.opener(self._bundle.manifest.format)
        return {}

    def open(self, cores: list[int] | None = None, **options: OptionValue) -> Opened:
        """Read the file, load the model with these runtime options, run it once; each step is timed separately.

        The model's threads are pinned to `cores`.
        """
        if cores is not None:
            os.sched_setaffinity(0, cores)
        assert self._bundle is not None  # noqa: S101 # the caller starts before it opens
        assert self._golden is not None  # noqa: S101 # as above
        assert self._opener is not None  # noqa: S101 # as above
        assert self._runtime is not None  # noqa: S101 # as above
        settings = self._runtime.read_options(options)
        if self._session is not None:  # some runtimes share their threads between the sessions of a process
            self._session.close()
        first_input = self._golden.tensors[:1]
        start = time.perf_counter_ns()
        for path in self._bundle.model_files:
            _read_from_disk(path)
        read = time.perf_counter_ns()
        self._session = self._opener(self._bundle, settings)
        loaded = time.perf_counter_ns()
        self._session.run(first_input)
        ran = time.perf_counter_ns()
        return {
            "session": dict(self._session.facts), "file_ms": (read - start) / 1e6, "load_ms": (loaded - read) / 1e6,
            "first_ms": (ran - loaded) / 1e6,
        }  # fmt: skip

    def golden(self) -> GoldenAnswer:
        """Replay the golden samples; their logits are returned exactly."""
        bundle, session = self._opened()
        answers: list[np.ndarray] = []

        def run(tensors: np.ndarray) -> np.ndarray:
            answers.append(session.run(tensors))
            return answers[0]

        parity = asdict(replay(bundle, run))
        return {"parity": parity, "logits": answers[0].tolist()}

    def predict(self) -> PredictionsAnswer:
        """Classify every test image, one at a time, as a device would."""
        _, session = self._opened()
        assert self._images is not None  # noqa: S101 # the caller has passed images
        classes, confidences, in_top5 = [], [], []
        for target, tensor in self._tensors(self._images):
            logits = session.run(tensor)[0]
            best = int(logits.argmax())
            classes.append(best)
            confidence = float(probabilities(logits)[best])
            confidences.append(round(confidence, 6) if math.isfinite(confidence) else 0.0)
            if target != UNLABELLED:
                in_top5.append(bool((logits > logits[target]).sum() < 5))
        return {
            "classes": classes,
            "confidences": confidences,
            "in_top5": in_top5 if self._images.labelled else None,
        }

    def prepare(self, inputs: int = RULES.inputs, warm_up_cap_s: float = RULES.warm_up_cap_s) -> Prepared:
        """Preprocess that many inputs, warm up and postprocess, each timed; also returns the time of one call."""
        bundle, session = self._opened()
        self._inputs, preprocess_ns = [], []
        for position in range(self._choose(inputs)):
            start = time.perf_counter_ns()
            tensor = bundle.manifest.preprocess(self._picture(position))[None]
            preprocess_ns.append(time.perf_counter_ns() - start)
            self._inputs.append(tensor)
        warm_up, call_ns = self._warm_up(warm_up_cap_s)
        postprocess_ns = []
        stages: dict[str, list[int]] = {}
        for tensor in self._inputs:
            logits = session.run(tensor)[0]
            start = time.perf_counter_ns()
            self._answer(logits)
            postprocess_ns.append(time.perf_counter_ns() - start)
            if self._runtime is not None and "stages" in self._runtime.reports:
                for stage, ns in cast(StagedSession, session).staged(tensor).items():
                    stages.setdefault(stage, []).append(ns)
        return {
            "preprocess_ns": preprocess_ns, "postprocess_ns": postprocess_ns, "stages": stages, "warm_up": warm_up,
            "call_ns": call_ns,
        }  # fmt: skip

    def time(self, samples: int, calls: int) -> Timed:
        """Time a block of inference alone: `samples` samples of `calls` calls.

        Also returns the last call's input and class, for comparison with the accuracy run.
        """
        _, session = self._opened()
        run, clock = session.run, time.perf_counter_ns
        # other models have used the caches meanwhile, so a block with enough calls does not time its first ones
        for _ in range(max(1, samples // RULES.untimed_every) * calls if samples >= RULES.untimed_from else 0):
            run(self._following(1)[0])
        ns, logits = [0] * samples, None
        switches = _switches()
        for sample in range(samples):
            tensors = self._following(calls)
            start = clock()
            for tensor in tensors:
                logits = run(tensor)
            ns[sample] = clock() - start
        after = _switches()
        assert logits is not None  # noqa: S101 # a block has at least one call
        return {
            "ns": ns,
            "switches": None if switches is None or after is None else after - switches,
            "input": self._chosen[(self._next - 1) % len(self._inputs)],
            "class": int(logits[0].argmax()),
        }

    def throughput(self, batch: int, seconds: float) -> Calls:
        """Time calls of `batch` images for `seconds`, but at least three of them, after an untimed one."""
        _, session = self._opened()
        session.run(np.concatenate(self._following(batch)))
        return {"ns": self._run_for(seconds, 3, batch)}

    def serve(self, fps: float, frames: int) -> Calls:
        """Answer images that are due at a fixed rate, whether or not the previous one is done.

        Each time starts when the image was due, not when the model reached it, and covers all steps from image file to
        answer. So a stall counts for every image that it delayed ("coordinated omission", G. Tene).
        """
        bundle, session = self._opened()
        interval, ns = 1e9 / fps, []
        start = time.perf_counter_ns() + 1_000_000
        for frame in range(frames):
            due = start + round(frame * interval)
            _wait_until(due)
            picture = self._picture(frame % len(self._inputs))
            self._answer(session.run(bundle.manifest.preprocess(picture)[None])[0])
            ns.append(time.perf_counter_ns() - due)
            if ns[-1] > _MAX_LATENESS * frames * interval:  # later images would be even later, and are missed too
                break
        return {"ns": ns}

    def sustain(self, with_state: bool, fps: float | None = None) -> Second:
        """Run for a second, without a pause or at `fps` images per second; `with_state` adds the machine's state."""
        machine_state = state() if with_state else None
        if fps is not None:
            return self._keep_up(fps, machine_state)
        return {"call_ns": int(np.median(self._run_for(1.0, 1))), "state": machine_state}

    def _keep_up(self, fps: float, machine_state: Mapping[str, object] | None) -> Second:
        """Answer the images of the next second, continuing the schedule of the previous call.

        As with a camera, an image is dropped if its successor is due before the model reaches it. A dropped image
        counts as offered and missed. An image answered after its successor was due counts as missed. Times start when
        an image was due, and cover all steps from image file to answer.
        """
        bundle, session = self._opened()
        interval, start = round(1e9 / fps), time.perf_counter_ns()
        due = start if self._due is None else self._due
        ns: list[int] = []
        dropped = 0
        while not ns or due < start + 1_000_000_000:
            overdue = max(0, (time.perf_counter_ns() - due) // interval)
            dropped, due = dropped + overdue, due + overdue * interval
            _wait_until(due)
            picture = self._picture(self._next % len(self._inputs))
            self._next += 1
            self._answer(session.run(bundle.manifest.preprocess(picture)[None])[0])
            ns.append(time.perf_counter_ns() - due)
            due += interval
        self._due = due
        late = sum(value > interval for value in ns)
        return {
            "call_ns": int(np.median(ns)), "state": machine_state, "offered": len(ns) + dropped,
            "missed": late + dropped, "dropped": dropped,
        }  # fmt: skip

    def memory(self) -> Memory:
        """Largest resident memory of this process so far."""
        usage = _usage()
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
        return {"peak_rss_bytes": None if usage is None else usage.ru_maxrss * unit}

    def _opened(self) -> tuple[Bundle, Session]:
        if self._bundle is None or self._session is None:
            raise RuntimeError("the first requests must be start and open")
        return self._bundle, self._session

    def _choose(self, most: int) -> int:
        """Spread the inputs over the test images, or take all golden ones; returns their number."""
        count = len(self._images) if self._images is not None else len(self._golden_images())
        self._chosen = sorted({int(index) for index in np.linspace(0, count - 1, min(most, count))})
        return len(self._chosen)

    def _picture(self, position: int) -> Image.Image:
        """Decode the input at this position."""
        index = self._chosen[position]
        return self._images[index].image if self._images is not None else decode(self._golden_images()[index])

    def _golden_images(self) -> list[bytes]:
        assert self._golden is not None  # noqa: S101 # the caller starts before anything else
        return self._golden.images

    def _following(self, count: int) -> list[np.ndarray]:
        """The next `count` inputs, cycling through all of them."""
        start, self._next = self._next, self._next + count
        return [self._inputs[position % len(self._inputs)] for position in range(start, self._next)]

    def _run_for(self, seconds: float, least: int, batch: int = 1) -> list[int]:
        """Run for `seconds` and at least `least` calls, within the warm-up's time limit; returns ns per call."""
        _, session = self._opened()
        ns: list[int] = []
        begin = time.monotonic()
        while (
            not ns or (spent := time.monotonic() - begin) < seconds or (len(ns) < least and spent < RULES.warm_up_cap_s)
        ):
            tensor = np.concatenate(self._following(batch))
            start = time.perf_counter_ns()
            session.run(tensor)
            ns.append(time.perf_counter_ns() - start)
        return ns

    def _warm_up(self, cap_s: float) -> tuple[WarmUpAnswer, int]:
        """Run until the times settle; returns the outcome, and the last window's median in ns per call."""
        medians, calls, begin = [], 0, time.monotonic()
        settled = False
        while not settled and time.monotonic() - begin < cap_s:
            ns = self._run_for(RULES.window_s, RULES.window_calls)
            calls += len(ns)
            medians.append(float(np.median(ns)))
            settled = (
                calls >= RULES.warm_up_calls
                and len(medians) > 1  # a single window can outlast the minimum time if a call stalls
                and time.monotonic() - begin >= RULES.warm_up_s
                and abs(medians[-1] / medians[-2] - 1) < RULES.settled
            )
        outcome: WarmUpAnswer = {"ms": 1e3 * (time.monotonic() - begin), "calls": calls, "settled": settled}
        return outcome, max(1, round(medians[-1]))

    def _answer(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Postprocess: the five best classes with their probabilities."""
        best = ranked(logits, 5)
        return best, probabilities(logits)[best]

    def _tensors(self, images: ImageSet) -> Iterator[tuple[int, np.ndarray]]:
        bundle, _ = self._opened()
        reported = time.monotonic()
        for done, sample in enumerate(images):
            if time.monotonic() - reported > _PROGRESS_EVERY_S:
                reported = time.monotonic()
                _send(self._answers, {"progress": done})
            yield sample.label, bundle.manifest.preprocess(sample.image)[None]


def _read_from_disk(path: Path) -> None:
    """Read a file after asking the system to drop its cached copy."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass


def _wait_until(due: int) -> None:
    """Sleep, then spin for the last half millisecond, which is beyond the precision of sleep."""
    remaining = due - time.perf_counter_ns()
    if remaining > 1_000_000:
        time.sleep((remaining - 500_000) / 1e9)
    while time.perf_counter_ns() < due:
        pass


def _usage() -> "resource.struct_rusage | None":
    """getrusage(2) of this process; None if the system lacks it."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF)


def _switches() -> int | None:
    """Involuntary context switches of all threads so far."""
    usage = _usage()
    return None if usage is None else usage.ru_nivcsw


def _send(stream: TextIO, message: Mapping[str, object]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _answer(worker: Worker, line: str) -> Mapping[str, object]:
    request = json.loads(line)
    try:
        return getattr(worker, request.pop("do"))(**request)
    except EdgeKitError as error:
        return Failure(error=str(error), fix=error.fix)
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        return Failure(error=str(missing), fix=missing.fix)
    except Exception:
        traceback.print_exc()
        raise


def main() -> None:
    """Answer requests until standard input ends."""
    # Libraries may print to standard output, so the answers use a separate pipe.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # if memory runs out, this process is killed first, and the agent reports it
        Path("/proc/self/oom_score_adj").write_text("1000")
    worker = Worker(answers)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            _send(answers, _answer(worker, line))


if __name__ == "__main__":
    with ended_by_signals():
        main()
