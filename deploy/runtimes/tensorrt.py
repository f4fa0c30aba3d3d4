"""TensorRT and TensorRT for RTX."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..engine.gpu import Stream, find_gpu
from ..engine.library import FLAVOURS, Message, last_error, load, recording_logger
from ..engine.passport import ENGINE_FORMAT, WEIGHTS, Passport, check
from ..errors import DeviceError, EngineError
from .runtime import STAGES, ByHand, Package, Runtime


@dataclass(frozen=True, kw_only=True)
class TrtOptions:
    """How TensorRT runs an engine.

    Attributes:
        cuda_graph: record a run once as a CUDA graph, and launch that.
    """

    cuda_graph: bool = False


def check_here(bundle: Bundle, device: str | None) -> None:
    """Refuse an engine of another library, GPU or system; only its manifest and header are read.

    Raises:
        EngineError: the engine does not fit; the fix is the command that rebuilds it on `device`.
    """
    check(bundle, load(Passport.of(bundle).flavour), find_gpu(), device)


RUNTIME = Runtime(
    name="tensorrt",
    formats={ENGINE_FORMAT: ".tensorrt:TrtSession"},
    packages=(
        Package(
            modules=FLAVOURS["tensorrt"],
            distributions=("tensorrt",),
            purpose="building and running TensorRT engines",
            extra="tensorrt",
        ),
        Package(
            modules=FLAVOURS["tensorrt-rtx"],
            distributions=("tensorrt-rtx-cu13-bindings",),
            purpose="engines for other GPUs",
            extra="tensorrt-rtx",
        ),
    ),
    also=(Package(modules=("cuda",), distributions=("cuda-bindings",), purpose="running engines", extra="tensorrt"),),
    options=TrtOptions,
    check=check_here,
    reports=("layers", "stages"),
    by_hand=ByHand(
        "it comes with the system of a Jetson, or must fit the GPU's driver",
        "on a Jetson, name the system's Python: --device ssh://host/usr/bin/python3",
    ),
)


class TrtSession:
    """An engine on the first GPU, with pinned host memory, its own stream and optionally a CUDA graph.

    Raises:
        EngineError: the engine is of another library, GPU or system; raised before any of it is loaded.
    """

    def __init__(self, bundle: Bundle, options: TrtOptions) -> None:
        passport = Passport.of(bundle)
        library, gpu = load(passport.flavour), find_gpu()
        check(bundle, library, gpu)
        self._trt, self._heard = library.trt, list[Message]()
        self._logger = recording_logger(library.trt, self._heard)
        self._stream = Stream()
        runtime = library.trt.Runtime(self._logger)
        if passport.version_compatible:  # such an engine contains the runtime of its version
            runtime.engine_host_code_allowed = True
        self._engine = runtime.deserialize_cuda_engine(bundle.model_path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{library.flavour} {library.version} cannot load {bundle.model_path}: {last_error(self._heard)}",
                fix="build it again on this device: edgekit build",
            )
        if WEIGHTS in bundle.manifest.files:
            self._put_in_weights(bundle)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(
                f"the GPU has no memory for {bundle.path}: {last_error(self._heard)}", fix="free its memory: nvidia-smi"
            )
        self._least, _, self._most = bundle.manifest.details["build"]["batch"]
        self._name_tensors(bundle)
        self._graphs: dict[int, Any] | None = {} if options.cuda_graph else None
        self._set = 0
        self.facts = {
            "runtime": library.flavour, "version": library.version, "threads": None,
            "gpu": gpu.name if gpu else platform.machine(), "cuda_graph": options.cuda_graph,
        }  # fmt: skip

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        parts = [self._run(batch[start : start + self._most]) for start in range(0, len(batch), self._most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def staged(self, batch: np.ndarray) -> dict[str, int]:
        """Nanoseconds of one run to the GPU, on it, and back, by the GPU's clock."""
        size = self._fill(batch[: self._most])
        return dict(zip(STAGES, self._stream.timed(self._stages(size)), strict=True))

    def layers(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the engine and its memory."""
        del self._context, self._engine
        self._stream.close()

    def _run(self, batch: np.ndarray) -> np.ndarray:
        size = self._fill(batch)
        if self._graphs is None:
            for stage in self._stages(size):
                stage()
        else:
            if size not in self._graphs:
                self._graphs[size] = self._capture(size)
            self._stream.launch(self._graphs[size])
        self._stream.wait()
        return self._answers[: len(batch)].copy()

    def _fill(self, batch: np.ndarray) -> int:
        """Copy images to pinned memory, padded to the engine's smallest batch; returns the batch size."""
        size = max(len(batch), self._least)
        self._images[: len(batch)] = batch
        self._images[len(batch) : size] = batch[-1:]
        if size != self._set:
            self._context.set_input_shape(self._input, (size, *self._images.shape[1:]))
            self._set = size
        return size

    def _stages(self, size: int) -> list[Callable[[], None]]:
        return [
            lambda: self._stream.to_gpu(self._at_input, self._images[:size]),
            self._enqueue,
            lambda: self._stream.from_gpu(self._answers[:size], self._at_output),
        ]

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise DeviceError(
                f"the engine does not run: {last_error(self._heard)}", fix="build it again on this device"
            )

    def _capture(self, size: int) -> Any:
        # TensorRT for RTX may still have kernels to compile
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.handle):
            raise DeviceError("this engine cannot be recorded as a CUDA graph", fix="leave out --cuda-graph")
        for stage in self._stages(size):  # the first run's setup must not be recorded
            stage()
        self._stream.wait()

        def work() -> None:
            for stage in self._stages(size):
                stage()

        return self._stream.graph(work)

    def _put_in_weights(self, bundle: Bundle) -> None:
        """Refit a stripped engine with the weights of the ONNX file beside it."""
        refitter = self._trt.Refitter(self._engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(bundle.path / WEIGHTS)) or not refitter.refit_cuda_engine():
            raise EngineError(
                f"the weights in {bundle.path / WEIGHTS} do not fit its engine: {last_error(self._heard)}",
                fix="build it again: edgekit build --strip-weights",
            )

    def _name_tensors(self, bundle: Bundle) -> None:
        """Find the engine's input and output, and allocate memory for each."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        types = {engine.get_tensor_dtype(name) for name in names}
        if len(inputs) != 1 or len(outputs) != 1 or types != {trt.DataType.FLOAT}:
            raise EngineError(
                f"{bundle.path} has inputs {inputs} and outputs {outputs}; a classifier has one of each, in float32",
                fix="export the network again: edgekit export --format onnx",
            )
        self._input = inputs[0]
        shape = (self._most, *bundle.manifest.input.shape)
        answers = (self._most, len(bundle.manifest.labels))
        self._images, self._answers = self._stream.pinned(shape), self._stream.pinned(answers)
        self._at_input, self._at_output = (
            self._stream.memory(array.nbytes) for array in (self._images, self._answers)
        )  # fmt: skip
        self._context.set_tensor_address(self._input, self._at_input)
        self._context.set_tensor_address(outputs[0], self._at_output)
