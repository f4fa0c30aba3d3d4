"""Sessions: a loaded model that turns tensors into logits, whatever its runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .runtimes.runtime import OptionValue, Runtime, Session, default_runtime, runtime_named


def open_session(
    bundle: Bundle, runtime: str | None = None, *, planted: bool = False, **options: OptionValue
) -> Session:  # fmt: skip
    """Load a bundle's model.

    Args:
        runtime: a key of RUNTIMES; None selects the default for the bundle's format.
        planted: also accept the runtimes in PLANTED, which are for tests of measuring.
        options: the options of the runtime.

    Raises:
        BundleError: the runtime does not open the bundle's format, or its model file cannot be loaded.
        MissingPackageError: the runtime is not installed.
        RecipeError: an unknown runtime or option, or a value out of range.
    """
    chosen = runtime_for(bundle, runtime, planted=planted)
    settings = chosen.read_options(options)
    return chosen.opener(bundle.manifest.format)(bundle, settings)


def runtime_for(bundle: Bundle, name: str | None = None, *, planted: bool = False) -> Runtime:
    """The runtime called `name`, or the default for the bundle's format.

    Raises:
        BundleError: no runtime opens the bundle's format.
        RecipeError: no runtime has this name.
    """
    return default_runtime(bundle.manifest.format, planted=planted) if name is None else runtime_named(name)


def load(path: Path | str, runtime: str | None = None, **options: OptionValue) -> Session:
    """Open the bundle at `path`, check its hashes, and load its model (see `open_session`)."""
    return open_session(Bundle.open(path), runtime, planted=False, **options)


def in_batches_of(size: int | None, batch: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Feed a model that takes exactly `size` images at once (None: any number), padding a last short batch."""
    if size is None or size == len(batch):
        return run(batch)
    parts = []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]) if len(part) < size else part
        parts.append(run(padded)[: len(part)])
    return np.concatenate(parts)
