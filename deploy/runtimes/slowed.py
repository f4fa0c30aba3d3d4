"""Another session, slowed down by a known factor that a measurement has to find."""

import dataclasses
import json
import time

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from ..session import runtime_for
from .runtime import Runtime, ThreadOptions

RUNTIME = Runtime(name="slowed", formats={"slowed": ".slowed:SlowedSession"})


class SlowedSession:
    """Spins after each call of another session.

    Its model file is JSON: `{"format", "model", "factor", "drift_per_s", "since"}`; `model` is another file of the same
    bundle. After a call, the session spins for factor * (1 + drift_per_s * (seconds since `since`)) times its duration.
    """

    def __init__(self, bundle: Bundle, options: ThreadOptions) -> None:
        try:
            settings = json.loads(bundle.model_path.read_text())
            self._factor, self._drift = float(settings["factor"]), float(settings["drift_per_s"])
            self._since = float(settings["since"])
            manifest = dataclasses.replace(
                bundle.manifest, format=str(settings["format"]), model=str(settings["model"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{bundle.model_path} is not a slowed model: {error}", fix="recreate the bundle"
            ) from error
        if manifest.model not in manifest.files or manifest.format == bundle.manifest.format:
            raise BundleError(f"{bundle.model_path} does not name a model of its own bundle", fix="recreate the bundle")
        inner = dataclasses.replace(bundle, manifest=manifest)
        runtime = runtime_for(inner, planted=True)
        threads = {} if options.threads is None else {"threads": options.threads}
        self._session = runtime.opener(manifest.format)(inner, runtime.read_options({}, threads))
        self.facts = self._session.facts

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k], delayed."""
        start = time.perf_counter_ns()
        logits = self._session.run(batch)
        factor = self._factor * (1 + self._drift * (time.time() - self._since))
        end = start + (time.perf_counter_ns() - start) * factor
        while time.perf_counter_ns() < end:
            pass
        return logits

    def close(self) -> None:
        """Free the other session."""
        self._session.close()
