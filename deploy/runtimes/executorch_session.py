"""An ExecuTorch program (.pte) as a session: XNNPACK computes, and what it leaves to other kernels is reported."""

import contextlib
import io
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, DeviceError, MissingPackageError
from ..session import in_batches_of
from .executorch_program import read_steps
from .runtime import ThreadOptions

try:
    import torch
except ModuleNotFoundError as error:  # pip does not install it with executorch
    raise MissingPackageError(
        "executorch needs the package torch, which is not installed", fix="pip install torch, where executorch is"
    ) from error
try:
    # Not executorch.runtime, which also imports the exporter: 1900 more modules, and three times as long as torch.
    from executorch.extension.pybindings import _C
except ModuleNotFoundError:
    raise
except ImportError as error:  # its libraries are linked to those of one release of torch
    raise DeviceError(
        f"executorch is installed but cannot be loaded with torch {torch.__version__}: {error}",
        fix="pip install --force-reinstall 'edgekit-vision[executorch]'",
    ) from error

_METHOD = "forward"
# A ScalarType (executorch/schema/scalar_type.fbs).
_FLOAT = 6
# Every line of ExecuTorch's log begins with its place in the source. Lines from here are about the name of the CPU.
_SOURCE, _NOISE = re.compile(r"^\[\w+\.\w+:\d+\] "), "[cpuinfo_utils.cpp:"
# The most characters of a reason in an error.
_REASON = 300

# A process has one pool of threads. Loaded programs point to it: replacing it while one is loaded crashes the process.
_loaded: "WeakSet[ExecuTorchSession]" = WeakSet()


class ExecuTorchSession:
    """A program on ExecuTorch.

    Raises:
        BundleError: the program cannot be loaded, does not take what its manifest says, or leaves convolutions or
            matrix products to ExecuTorch's own kernels.
        DeviceError: another session of this process uses another number of threads.
    """

    def __init__(self, bundle: Bundle, options: ThreadOptions) -> None:
        path, release = bundle.model_path, version("executorch")
        self._path, self._content = path, path.read_bytes()  # the loaded program points into the bytes
        try:
            steps = read_steps(self._content)
        except ValueError as error:
            raise BundleError(f"ExecuTorch cannot load {path}: {error}", fix="export it again") from error
        if steps.undelegated:
            raise BundleError(
                f"XNNPACK leaves {_counted(steps.undelegated)} of {path} to ExecuTorch's own, slow kernels",
                fix="export the network to another --format, such as onnx",
            )
        threads = _set_threads(options.threads)
        log = io.StringIO()
        try:
            with contextlib.redirect_stderr(log):
                self._program = _C._load_program_from_buffer(
                    self._content, program_verification=_C.Verification.InternalConsistency
                )
                _check_shapes(self._program.method_meta(_METHOD), bundle)
                self._method = self._program.load_method(_METHOD)
        except (RuntimeError, IndexError) as error:
            raise BundleError(
                f"ExecuTorch {release} cannot load {path}: {reason_of(error, log.getvalue())}",
                fix="export it again with this version of ExecuTorch",
            ) from error
        _loaded.add(self)
        self._batch = bundle.manifest.input.batch
        self.facts: Mapping[str, Any] = {
            "runtime": "executorch",
            "version": release,
            "threads": threads,
            "placement": steps.placement,
            "kernels": dict(steps.kernels),
        }

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            return self._method([torch.from_numpy(np.ascontiguousarray(batch))])[0].numpy()
        except RuntimeError as error:
            raise BundleError(f"ExecuTorch cannot run {self._path}: {error}", fix="export it again") from error

    def close(self) -> None:
        """Free the program."""
        _loaded.discard(self)
        del self._method, self._program


def _check_shapes(method: Any, bundle: Bundle) -> None:
    """Refuse a method that does not turn the manifest's images into logits."""
    manifest = bundle.manifest
    batch = manifest.input.batch
    wanted = [(batch, *manifest.input.shape)], [(batch, len(manifest.labels))]
    taken = [method.input_tensor_meta(index) for index in range(method.num_inputs())]
    made = [method.output_tensor_meta(index) for index in range(method.num_outputs())]
    shapes = [tuple(one.sizes()) for one in taken], [tuple(one.sizes()) for one in made]
    if shapes != wanted or {one.dtype() for one in (*taken, *made)} != {_FLOAT}:
        raise BundleError(
            f"{bundle.model_path} turns {shapes[0]} into {shapes[1]}; its manifest says float32 {wanted[0]} into "
            f"{wanted[1]}",
            fix="export it again",
        )


@cache
def _own_choice() -> int:
    """The number of threads that ExecuTorch chooses, asked before it is first changed."""
    with _quiet():
        return _C._threadpool_get_thread_count()


def _set_threads(threads: int | None) -> int:
    """Set the number of threads of this process; None is ExecuTorch's own choice.

    Returns:
        The number that ExecuTorch reports.
    """
    own_choice = _own_choice()
    wanted = own_choice if threads is None else threads
    used = _C._threadpool_get_thread_count()
    if wanted == used:
        return used
    if _loaded:
        raise DeviceError(
            f"another session of this process runs ExecuTorch with {used} threads, which cannot be changed to {wanted}",
            fix=f"close that session first, or pass threads={used}",
        )
    with _quiet():
        _C._unsafe_reset_threadpool(wanted)
    if (used := _C._threadpool_get_thread_count()) != wanted:
        raise DeviceError(f"ExecuTorch uses {used} threads here, not {wanted}", fix=f"pass threads={used}")
    return used


def _quiet() -> contextlib.redirect_stderr[io.StringIO]:
    """Without ExecuTorch's log, which it writes to Python's stderr."""
    return contextlib.redirect_stderr(io.StringIO())


def reason_of(error: Exception, log: str) -> str:
    """ExecuTorch's message in one line, and what it logged, which has the reason."""
    lines = [line for line in log.splitlines() if not line.startswith(_NOISE)]
    logged = "; ".join(_SOURCE.sub("", line) for line in lines)
    return " ".join(f"{error} ({logged})".split())[:_REASON] if logged else str(error)[:_REASON]


def _counted(kernels: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in kernels.items())
