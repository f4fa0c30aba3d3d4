"""Sessions: a loaded model that turns tensors into logits, whatever its runtime."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .bundle import Bundle
from .errors import BundleError
from .registry import choose, resolve


class Session(Protocol):
    """A loaded model.

    Attributes:
        facts: what was really set up (runtime, version, provider, threads), for the record.
    """

    facts: Mapping[str, Any]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k], for any n from 1."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


# format -> what opens a session, taking (bundle, threads). torch's needs the network's code, so it lives above; the
# last two are what measuring is tested with.
RUNTIMES: dict[str, str] = {
    "onnx": ".runtimes.ort:OrtSession",
    "torchscript": ".runtimes.torchscript:open_session",
    "exported-program": ".runtimes.exported_program:open_session",
    "torch": "..export.eager:open_session",
    "null": ".runtimes.null:NullSession",
    "slowed": ".runtimes.slowed:SlowedSession",
}

# format -> the package that its runtime is; None for Python alone
PACKAGES: dict[str, str | None] = {
    "onnx": "onnxruntime",
    "torchscript": "torch",
    "exported-program": "torch",
    "torch": "torch",
    "null": None,
    "slowed": None,
}


def open_session(bundle: Bundle, threads: int | None = None) -> Session:
    """Load a bundle's model.

    Args:
        threads: threads for one inference; None leaves the runtime's own choice.

    Raises:
        BundleError: the bundle's format has no runtime here, or its model file cannot be loaded.
        MissingPackageError: the runtime is not installed.
    """
    return opener(bundle)(bundle, threads)


def opener(bundle: Bundle) -> Callable[[Bundle, int | None], Session]:
    """What opens a session of a bundle; asking for it imports the runtime.

    Raises:
        BundleError: the bundle's format has no runtime.
        MissingPackageError: the runtime is not installed.
    """
    return resolve(choose(RUNTIMES, bundle.manifest.format, "bundle format", BundleError), __package__ or "")


def load(path: Path | str, threads: int | None = None) -> Session:
    """Open the bundle at `path`, hashes checked, and load its model."""
    return open_session(Bundle.open(path), threads)


def in_batches_of(size: int | None, batch: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Feed a model that takes exactly `size` images at once (None: any); a last short batch is filled up and cut."""
    if size is None or size == len(batch):
        return run(batch)
    parts = []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]) if len(part) < size else part
        parts.append(run(filled)[: len(part)])
    return np.concatenate(parts)
