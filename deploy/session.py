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
        runtime: a key of RUNTIMES; None is the default of the bundle's format.
        planted: the runtimes of PLANTED open too.
        options: of the runtime.

    Raises:
        BundleError: the runtime does not open the bundle's format, or its model file cannot be loaded.
        MissingPackageError: the runtime is not installed.
        RecipeError: an unknown runtime or option, or a value out of range.
    """
    chosen = runtime_for(bundle, runtime, planted=planted)
    settings = chosen.read_options(options)
    return chosen.opener(bundle.manifest.format)(bundle, settings)


def runtime_for(bundle: Bundle, name: str | None = None, *, planted: bool = False) -> Runtime:
    """The runtime of this name, or the default of the bundle's format.

    Raises:
        BundleError: no runtime opens the bundle's format.
        RecipeError: there is no runtime of this name.
    """
    return default_runtime(bundle.manifest.format, planted=planted) if name is None else runtime_named(name)


def load(path: Path | str, runtime: str | None = None, **options: OptionValue) -> Session:
    """Open the bundle at `path`, hashes checked, and load its model (see `open_session`)."""
    return open_session(Bundle.open(path), runtime, planted=False, **options)


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
