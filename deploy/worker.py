"""One model in one fresh process: `python -m edgekit.deploy.worker`, driven over its pipes.

Each line on standard input is a JSON request `{"do": name, ...}`, each line on standard output its JSON answer, or
`{"progress": done}` before it. The worker times; it does not know what it is compared with.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .bundle import Bundle
from .errors import EdgeKitError, missing_package
from .images import UNLABELLED, ImageSet
from .parity import replay
from .session import Session, open_session, opener

# Timed calls cycle through this many different real inputs, so that no cache learns one of them by heart.
_INPUTS = 64
_PROGRESS_EVERY_S = 0.2


class Worker:
    """The model and the inputs that it is timed on."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._bundle: Bundle | None = None
        self._session: Session | None = None
        self._images: ImageSet | None = None
        self._inputs: list[np.ndarray] = []
        self._next = 0

    def start(self, bundle: str, images: str | None) -> dict[str, Any]:
        """Check the bundle and import its runtime, which is no part of loading a model."""
        self._bundle = Bundle.open(bundle)
        self._images = ImageSet.load(Path(images)) if images else None
        opener(self._bundle)
        return {}

    def open(self, threads: int) -> dict[str, Any]:
        """Load the model and run it once, timing both apart."""
        assert self._bundle is not None  # noqa: S101 # the caller starts before it opens
        first_input = self._bundle.golden().tensors[:1]
        start = time.perf_counter_ns()
        self._session = open_session(self._bundle, threads)
        loaded = time.perf_counter_ns()
        self._session.run(first_input)
        ran = time.perf_counter_ns()
        return {
            "session": dict(self._session.facts),
            "load_ms": (loaded - start) / 1e6,
            "first_ms": (ran - loaded) / 1e6,
        }

    def golden(self) -> dict[str, Any]:
        """Replay the golden samples."""
        bundle, session = self._opened()
        return asdict(replay(bundle, session.run))

    def predict(self) -> dict[str, Any]:
        """Answer every test image, one at a time, as the device would."""
        _, session = self._opened()
        assert self._images is not None  # noqa: S101 # the caller asks only when it gave images
        classes, confidences, in_top5 = [], [], []
        for target, tensor in self._tensors(self._images):
            logits = session.run(tensor)[0]
            best = int(logits.argmax())
            shifted = np.exp(logits - logits[best], dtype=np.float64)
            classes.append(best)
            confidences.append(round(float(1 / shifted.sum()), 6))
            if target != UNLABELLED:
                in_top5.append(bool((logits > logits[target]).sum() < 5))
        return {
            "classes": classes,
            "confidences": confidences,
            "in_top5": in_top5 if self._images.labelled else None,
        }

    def prepare(self) -> dict[str, Any]:
        """Preprocess the inputs to be timed on (each timed), then warm up; says how long one call takes."""
        bundle, session = self._opened()
        preprocess_ns = []
        if self._images is not None:
            for index in range(min(_INPUTS, len(self._images))):
                start = time.perf_counter_ns()
                tensor = bundle.manifest.preprocess(self._images[index].image)[None]
                preprocess_ns.append(time.perf_counter_ns() - start)
                self._inputs.append(tensor)
        else:
            self._inputs = [tensor[None] for tensor in bundle.golden().tensors]
        calls: list[int] = []
        begin = time.perf_counter_ns()
        # At least 10 calls and 0.3 s: caches, lazy allocations and clock frequencies settle.
        while len(calls) < 10 or time.perf_counter_ns() - begin < 300_000_000:
            start = time.perf_counter_ns()
            session.run(self._inputs[len(calls) % len(self._inputs)])
            calls.append(time.perf_counter_ns() - start)
            if time.perf_counter_ns() - begin > 20_000_000_000:  # a very slow model has nothing left to settle
                break
        return {"preprocess_ns": preprocess_ns, "call_ns": int(np.median(calls[len(calls) // 2 :]))}

    def time(self, calls: int) -> dict[str, Any]:
        """Time a block of calls of inference alone."""
        _, session = self._opened()
        inputs, clock, count = self._inputs, time.perf_counter_ns, len(self._inputs)
        ns = [0] * calls
        for call in range(calls):
            tensor = inputs[(self._next + call) % count]
            start = clock()
            session.run(tensor)
            ns[call] = clock() - start
        self._next = (self._next + calls) % count
        return {"ns": ns}

    def memory(self) -> dict[str, Any]:
        """Largest resident memory of this process so far."""
        try:
            import resource
        except ImportError:
            return {"peak_rss_bytes": None}
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
        return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    def _opened(self) -> tuple[Bundle, Session]:
        if self._bundle is None or self._session is None:
            raise RuntimeError("the first requests must be start and open")
        return self._bundle, self._session

    def _tensors(self, images: ImageSet) -> Iterator[tuple[int, np.ndarray]]:
        bundle, _ = self._opened()
        said = time.monotonic()
        for done, sample in enumerate(images):
            if time.monotonic() - said > _PROGRESS_EVERY_S:
                said = time.monotonic()
                _say(self._answers, {"progress": done})
            yield sample.label, bundle.manifest.preprocess(sample.image)[None]


def _say(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _answer(worker: Worker, line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        return getattr(worker, request.pop("do"))(**request)
    except EdgeKitError as error:
        return {"error": str(error), "fix": error.fix}
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        return {"error": str(missing), "fix": missing.fix}
    except Exception:
        traceback.print_exc()
        raise


def main() -> None:
    """Answer requests until standard input ends."""
    # Libraries print what they like to standard output; the answers get a pipe of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(answers)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            _say(answers, _answer(worker, line))


if __name__ == "__main__":
    main()
