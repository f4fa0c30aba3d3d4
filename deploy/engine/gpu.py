"""This machine's NVIDIA GPU, through CUDA's driver API: memory, streams, events, graphs.

The driver API is used because bindings of a major version work with any driver of that version or newer.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DISTRIBUTION, DeviceError, MissingPackageError

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: the driver's name for it.
        compute_capability: e.g. "8.7" (a Jetson Orin), "8.9" (Ada).
        memory_bytes: total memory; a Jetson shares it with the CPU.
        cuda: the newest CUDA that the driver supports, e.g. "12.6".
        driver: the kernel driver's version, or "unavailable".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str
    driver: str


def find_gpu() -> Gpu | None:
    """Return the first GPU; None without a GPU or without cuda-bindings."""
    if not (find_spec("cuda") and find_spec("cuda.bindings")):
        return None
    import cuda.bindings.driver as driver  # the form in which its types are found

    try:
        _call(driver.cuInit, 0)
        device = _call(driver.cuDeviceGet, 0)
        attribute = driver.CUdevice_attribute
        major = _call(
            driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device
        )  # fmt: skip
        minor = _call(
            driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device
        )  # fmt: skip
        name = _call(driver.cuDeviceGetName, 128, device)
        memory = _call(driver.cuDeviceTotalMem, device)
        version = _call(driver.cuDriverGetVersion)
    except (DeviceError, RuntimeError):  # cuda-bindings raises RuntimeError if there is no driver to load
        return None
    return Gpu(
        name.decode(errors="replace").rstrip("\0"),
        f"{major}.{minor}",
        int(memory),
        f"{version // 1000}.{version % 1000 // 10}",
        _kernel_driver(),
    )


def _kernel_driver() -> str:
    """The version in the line "NVRM version: NVIDIA UNIX … Kernel Module  580.65.06  Release Build"."""
    try:
        words = _DRIVER_VERSION.read_text(errors="replace").split()
    except OSError:
        return "unavailable"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unavailable")


class Stream:
    """A stream of work on the first GPU, in its primary context, which TensorRT and torch use too.

    Raises:
        MissingPackageError: cuda-bindings is not installed.
        DeviceError: there is no GPU, or cuda-bindings cannot use its driver.
    """

    def __init__(self) -> None:
        self._driver = _driver()
        self._device = _call(self._driver.cuDeviceGet, 0)
        self._context = _call(self._driver.cuDevicePrimaryCtxRetain, self._device)
        _call(self._driver.cuCtxSetCurrent, self._context)
        self._stream = _call(self._driver.cuStreamCreate, self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._events: list[Any] = []

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    def memory(self, size: int) -> int:
        """Allocate `size` bytes on the GPU and return their address."""
        address = int(_call(self._driver.cuMemAlloc, size))
        self._memory.append(address)
        return address

    def pinned(self, shape: Sequence[int]) -> np.ndarray:
        """Allocate a float32 array in pinned memory, which the GPU reads and writes directly."""
        count = int(np.prod(shape))
        address = int(_call(self._driver.cuMemHostAlloc, 4 * count, 0))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)

    def to_gpu(self, address: int, source: np.ndarray) -> None:
        """Copy a pinned array to the GPU, asynchronously."""
        _call(self._driver.cuMemcpyHtoDAsync, address, source.ctypes.data, source.nbytes, self._stream)

    def from_gpu(self, target: np.ndarray, address: int) -> None:
        """Copy from the GPU to a pinned array, asynchronously."""
        _call(self._driver.cuMemcpyDtoHAsync, target.ctypes.data, address, target.nbytes, self._stream)

    def wait(self) -> None:
        """Wait until all work is done."""
        _call(self._driver.cuStreamSynchronize, self._stream)

    def graph(self, work: Callable[[], None]) -> Any:
        """Record the work that `work` puts on the stream as one CUDA graph, for `launch`."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(self._driver.cuStreamBeginCapture, self._stream, mode)
        try:
            work()
        finally:
            recorded = _call(self._driver.cuStreamEndCapture, self._stream)
        executable = _call(self._driver.cuGraphInstantiate, recorded, 0)
        _call(self._driver.cuGraphDestroy, recorded)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: object) -> None:
        """Run a recorded graph, asynchronously."""
        _call(self._driver.cuGraphLaunch, graph, self._stream)

    def timed(self, stages: Sequence[Callable[[], None]]) -> list[int]:
        """Run stages of work on the stream and return the nanoseconds that each took, by the GPU's clock."""
        while len(self._events) <= len(stages):
            self._events.append(_call(self._driver.cuEventCreate, 0))
        _call(self._driver.cuEventRecord, self._events[0], self._stream)
        for stage, event in zip(stages, self._events[1:], strict=False):
            stage()
            _call(self._driver.cuEventRecord, event, self._stream)
        self.wait()
        elapsed = self._driver.cuEventElapsedTime
        return [
            round(1e6 * _call(elapsed, self._events[index], self._events[index + 1])) for index in range(len(stages))
        ]

    def close(self) -> None:
        """Free everything."""
        for graph in self._graphs:
            self._driver.cuGraphExecDestroy(graph)
        for event in self._events:
            self._driver.cuEventDestroy(event)
        for address in self._memory:
            self._driver.cuMemFree(address)
        for address in self._pinned:
            self._driver.cuMemFreeHost(address)
        self._driver.cuStreamDestroy(self._stream)
        self._driver.cuDevicePrimaryCtxRelease(self._device)
        self._graphs, self._events, self._memory, self._pinned = [], [], [], []


def _driver() -> Any:
    """CUDA's driver API, initialised."""
    try:
        import cuda.bindings.driver as driver  # the form in which its types are found
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "cuda-bindings is not installed",
            fix=f"pip install '{DISTRIBUTION}[tensorrt]'; on JetPack 6: pip install 'cuda-bindings<13'",
        ) from error
    try:
        _call(driver.cuInit, 0)
        supported = _call(driver.cuDriverGetVersion) // 1000
    except (DeviceError, RuntimeError) as error:
        raise DeviceError(
            f"there is no usable NVIDIA GPU here: {error}",
            fix="run it on the machine with the GPU: --device ssh://user@host; nvidia-smi shows the driver's state",
        ) from error
    bindings = driver.CUDA_VERSION // 1000
    if bindings > supported:
        raise DeviceError(
            f"cuda-bindings is for CUDA {bindings}, but the driver supports CUDA {supported}",
            fix=f"pip install 'cuda-bindings<{supported + 1}'",
        )
    return driver


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the driver and return its value, if any.

    Raises:
        DeviceError: it failed.
    """
    status, *values = function(*arguments)
    if int(status) != 0:
        raise DeviceError(
            f"{function.__name__} failed: {getattr(status, 'name', status)}",
            fix="nvidia-smi shows the GPU's state",
        )
    return values[0] if values else None
