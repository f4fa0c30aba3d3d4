"""Sessions: a loaded model that turns tensors into logits, whatever its runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .bundle import Bundle
from .errors import BundleError
from .registry import choose, resolve

# How a model is called on -> ONNX Runtime's own name of it.
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}

# The parts of a run on a GPU that it times by itself.
STAGES = ("host_to_device", "inference", "device_to_host")


@dataclass(frozen=True)
class SessionOptions:
    """How a model is loaded; what does not concern a runtime is none of its business.

    Attributes:
        threads: for one inference on the CPU; None leaves the runtime's own choice.
        provider: a key of PROVIDERS, for ONNX models.
        allow_fallback: with another provider than the CPU's, operators that it does not take may run on the CPU.
        cuda_graph: an engine's run is recorded once and launched as a whole.
    """

    threads: int | None = None
    provider: str = "cpu"
    allow_fallback: bool = False
    cuda_graph: bool = False


class Session(Protocol):
    """A loaded model.

    Attributes:
        facts: what was really set up (runtime, version, provider, threads), for the record.
    """

    facts: Mapping[str, Any]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] in the manifest's Preprocess.dtype -> float32 logits [n, k], for any n from 1."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class StagedSession(Protocol):
    """A session whose device times the stages of a run apart."""

    def staged(self, batch: np.ndarray) -> dict[str, int]:
        """Nanoseconds of each of STAGES, for one run of float32 [n, c, h, w]."""
        ...


# format -> what opens a session, taking (bundle, options). torch's needs the network's code, so it lives above.
RUNTIMES: dict[str, str] = {
    "onnx": ".runtimes.ort:OrtSession",
    "torchscript": ".runtimes.torchscript:open_session",
    "exported-program": ".runtimes.exported_program:open_session",
    "torch": "..export.eager:open_session",
    "tensorrt": ".runtimes.trt:TrtSession",
}

# What measuring itself is tested with: opened only where the caller says that it planted these models.
PLANTED: dict[str, str] = {
    "null": ".runtimes.null:NullSession",
    "slowed": ".runtimes.slowed:SlowedSession",
}

# format -> the packages that its runtime may be, any of them
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "torchscript": ("torch",),
    "exported-program": ("torch",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
}


def open_session(bundle: Bundle, options: SessionOptions | None = None, *, planted: bool = False) -> Session:
    """Load a bundle's model.

    Args:
        planted: the formats of PLANTED open too.

    Raises:
        BundleError: the bundle's format has no runtime here, or its model file cannot be loaded.
        MissingPackageError: the runtime is not installed.
    """
    return opener(bundle, planted=planted)(bundle, options or SessionOptions())


def opener(bundle: Bundle, *, planted: bool = False) -> Callable[[Bundle, SessionOptions], Session]:
    """What opens a session of a bundle; asking for it imports the runtime.

    Raises:
        BundleError: the bundle's format has no runtime.
        MissingPackageError: the runtime is not installed.
    """
    runtimes = {**RUNTIMES, **PLANTED} if planted else RUNTIMES
    return resolve(choose(runtimes, bundle.manifest.format, "bundle format", BundleError), __package__ or "")


def load(path: Path | str, options: SessionOptions | None = None) -> Session:
    """Open the bundle at `path`, hashes checked, and load its model."""
    return open_session(Bundle.open(path), options)


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
