"""A model that only spins for a given time, to measure the cost of the harness itself."""

import json
import time

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from .runtime import Runtime, ThreadOptions

RUNTIME = Runtime(name="null", formats={"null": ".null:NullSession"})


class NullSession:
    """Returns zeros after spinning.

    Its model file is JSON, `{"ns", "waiting_ns"}`: nanoseconds per call with one thread, and with several threads that
    wait for one another.
    """

    def __init__(self, bundle: Bundle, options: ThreadOptions) -> None:
        try:
            settings = json.loads(bundle.model_path.read_text())
            self._ns = int(settings["ns" if options.threads in (None, 1) else "waiting_ns"])
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{bundle.model_path} is not a null model: {error}", fix="recreate the bundle") from error
        self._classes = len(bundle.manifest.labels)
        self.facts = {"runtime": "null", "version": "1", "threads": options.threads}

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> zeros, float32 [n, k]."""
        if self._ns:
            end = time.perf_counter_ns() + self._ns
            while time.perf_counter_ns() < end:
                pass
        return np.zeros((len(batch), self._classes), np.float32)

    def close(self) -> None:
        """Nothing to free."""
