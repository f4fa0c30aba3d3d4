"""OpenVINO, on one named device of it."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..bundle import Bundle
from ..engine.layers import REFORMAT, Layer, summarize
from ..errors import BundleError, DeviceError, RecipeError
from ..files import cache_folder
from ..session import in_batches_of
from .runtime import Package, Runtime, ThreadOptions

# Importing OpenVINO reports its use over the network, from a forked process that keeps this one's pipes open: a
# device's agent would wait for ever. Without the package that sends, it does not. This comes before any import of it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None blocks an import

# A precision of EdgeKit -> OpenVINO's element type
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# AUTO, HETERO, MULTI and BATCH choose the device themselves.
_DEVICE = re.compile(r"CPU|NPU|GPU(\.\d{1,2})?")
_MAX_STREAMS = 1024


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions(ThreadOptions):
    """How OpenVINO loads a model.

    Attributes:
        threads: see ThreadOptions; a GPU or NPU does not use them.
        device: CPU, NPU, GPU, or GPU.N for one of several.
        precision: of the layers that compute in float. A device that does not run it refuses the model.
        streams: images computed side by side if several are given at once, at most one per thread; None for the lowest
            latency. Fewer than that are refused.
        cache: keep the compiled model in EdgeKit's cache, so that the next load is faster.
    """

    device: str = "CPU"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    streams: int | None = None
    cache: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _DEVICE.fullmatch(self.device):
            raise RecipeError(
                f"device={self.device} does not name one device of OpenVINO, so the report could not say what ran",
                fix="pass device=CPU, device=GPU or device=NPU",
            )
        if self.streams is not None and not 1 <= self.streams <= _MAX_STREAMS:
            raise RecipeError(f"streams={self.streams} is out of range", fix=f"pass 1 to {_MAX_STREAMS} streams")


RUNTIME = Runtime(
    name="openvino",
    formats={"onnx": ".openvino:OpenVinoSession", "openvino": ".openvino:OpenVinoSession"},
    packages=(
        Package(
            modules=("openvino",),
            distributions=("openvino",),
            purpose="running ONNX models by OpenVINO",
            extra="openvino",
        ),
    ),
    options=OpenVinoOptions,
    reports=("layers",),
)

# Bundle format -> OpenVINO's reader; by a file's name it could choose another one
_READERS = {"onnx": "onnx", "openvino": "ir"}
# Preprocess.dtype -> OpenVINO's name of the type
_TYPES = {"float32": "f32", "uint8": "u8"}
# The end of a kernel's name, or a layer's type of execution -> the precision that it computes in
_PRECISIONS = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
# Layers that compute nothing.
_STILL = ("Const", "Input", "Output")
# Layers with weights: they take nearly all the time, and show whether a precision was really used.
_COMPUTE = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
# The most characters of a reason in an error.
_REASON = 300


class OpenVinoSession:
    """An ONNX or IR model on OpenVINO: what was asked is read back, and refused where OpenVINO changed it.

    Raises:
        BundleError: the model cannot be loaded.
        DeviceError: the device is not here, or it does not run the precision or the streams.
    """

    def __init__(self, bundle: Bundle, options: OpenVinoOptions) -> None:
        import openvino

        version = openvino.get_version().partition("-")[0]
        core = openvino.Core()
        if options.device not in (known := _devices(core)):
            raise DeviceError(
                f"OpenVINO {version} here has no {options.device}: it has {', '.join(known)}",
                fix="leave out device, or install the device's driver",
            )
        compiled = _compile(core, bundle, options, version)
        _check_input(compiled, bundle)
        layers = _layers(compiled)
        _check_settings(compiled, options, bundle, layers)
        self._batch = bundle.manifest.input.batch
        self._request, self._tensor = compiled.create_infer_request(), openvino.Tensor
        self._queue = _queue(compiled, options.streams) if options.streams else None
        self.facts = {
            "runtime": "openvino", "version": version, "device": options.device, "precision": options.precision,
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")) if options.device == "CPU" else None,
            "streams": int(compiled.get_property("NUM_STREAMS")), "layers": summarize(layers) if layers else None,
            "loaded_from_cache": bool(compiled.get_property("LOADED_FROM_CACHE")) if options.cache else False,
        }  # fmt: skip

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] in the manifest's Preprocess.dtype -> float32 logits [n, k]."""
        if self._queue is None or len(batch) == 1:
            return in_batches_of(self._batch, batch, self._run)
        return self._run_side_by_side(batch, self._queue)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        # a tenth of a small model's time less than to pass the array to infer
        self._request.set_input_tensor(self._tensor(np.ascontiguousarray(batch), shared_memory=True))
        self._request.infer(share_outputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)

    def _run_side_by_side(self, batch: np.ndarray, queue: Any) -> np.ndarray:
        """A part of the images per stream, or of the model's fixed batch."""
        size = self._batch or -(-len(batch) // len(queue))
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        logits: list[np.ndarray] = [np.empty(0)] * len(parts)

        def keep(request: Any, index: int) -> None:
            logits[index] = np.array(request.get_output_tensor(0).data, np.float32)[: len(parts[index])]

        queue.set_callback(keep)
        for index, part in enumerate(parts):
            missing = (self._batch or len(part)) - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            queue.start_async([np.ascontiguousarray(filled)], userdata=index)
        queue.wait_all()
        return np.concatenate(logits)

    def close(self) -> None:
        """Free the model."""
        del self._request, self._queue


def _queue(compiled: Any, streams: int) -> Any:
    import openvino

    return openvino.AsyncInferQueue(compiled, streams)


def _devices(core: Any) -> list[str]:
    """The devices here; the first of several GPUs is also "GPU"."""
    found = list(core.available_devices)
    return [*found, *(["GPU"] if "GPU" not in found and "GPU.0" in found else [])]


def _compile(core: Any, bundle: Bundle, options: OpenVinoOptions, version: str) -> Any:
    from openvino.frontend import FrontEndManager

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
    }
    if options.device == "CPU":
        settings["ENABLE_CPU_PINNING"] = False  # the cores of a process are chosen by who measures it
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.streams is not None:
        settings["NUM_STREAMS"] = options.streams
    if options.cache:
        settings["CACHE_DIR"] = str(cache_folder() / "openvino")
    try:
        reader = FrontEndManager().load_by_framework(_READERS[bundle.manifest.format])
        return core.compile_model(reader.convert(reader.load(str(bundle.model_path))), options.device, settings)
    except Exception as error:  # its errors have no common class but Exception
        raise BundleError(
            f"OpenVINO {version} cannot load {bundle.model_path} in {options.precision} on {options.device}: "
            f"{reason_of(error)}",
            fix="run it on ONNX Runtime: --runtime onnxruntime",
        ) from error


def _check_input(compiled: Any, bundle: Bundle) -> None:
    """Refuse a model that does not take what its manifest says."""
    taken = [entry.get_element_type().get_type_name() for entry in compiled.inputs]
    if taken != [_TYPES[bundle.manifest.preprocess.dtype]] or len(compiled.outputs) != 1:
        raise BundleError(
            f"{bundle.model_path} takes {', '.join(taken) or 'nothing'} and has {len(compiled.outputs)} outputs; "
            f"its manifest says {bundle.manifest.preprocess.dtype}, and a classifier has one",
            fix="import the model again",
        )


def _check_settings(compiled: Any, options: OpenVinoOptions, bundle: Bundle, layers: Iterable[Layer]) -> None:
    """Refuse a compiled model that OpenVINO silently set up in another way than asked.

    Raises:
        DeviceError: the device, streams or precision differ.
    """
    used = compiled.get_property("EXECUTION_DEVICES")
    used = [used] if isinstance(used, str) else list(used)
    if not all(name.partition(".")[0] == options.device.partition(".")[0] for name in used):
        raise DeviceError(f"OpenVINO runs {bundle.path} on {', '.join(used)}", fix=f"pass device={used[0]}")
    if options.streams is not None:
        wanted = min(options.streams, options.threads or options.streams)
        if (streams := int(compiled.get_property("NUM_STREAMS"))) != wanted:
            raise DeviceError(f"OpenVINO uses {streams} streams here, not {wanted}", fix=f"pass streams={streams}")
    check_precision(options.precision, _type_name(compiled.get_property("INFERENCE_PRECISION_HINT")), layers)


def check_precision(precision: str, hint: str, layers: Iterable[Layer]) -> None:
    """Refuse a compiled model that computes in another float precision than asked.

    Args:
        precision: fp32, bf16 or fp16.
        hint: the element type that OpenVINO reads back.
        layers: of the compiled model; empty where the device does not report them.

    Raises:
        DeviceError: it does; the message names what ran.
    """
    floats = {layer.precision for layer in layers if layer.type in _COMPUTE} - {"int8"}
    if hint == _HINTS[precision] and (not floats or precision in floats):
        return
    ran = " and ".join(sorted(floats)) or _PRECISIONS.get(hint, hint)
    raise DeviceError(
        f"OpenVINO computes in {ran} here, not in {precision}, which this device does not run",
        fix="leave out precision, or pass one that the device runs: fp32, bf16, fp16",
    )


def _type_name(kind: Any) -> str:
    """An element type's name, which older versions return as text."""
    return kind if isinstance(kind, str) else kind.get_type_name()


def _layers(compiled: Any) -> list[Layer]:
    """The layers as compiled; empty where the device does not report them."""
    try:
        operations = compiled.get_runtime_model().get_ops()
    except Exception:  # an NPU reports none, by an error without a class of its own
        return []
    facts = [
        (operation.get_friendly_name(), {key: str(_plain(value)) for key, value in operation.get_rt_info().items()})
        for operation in operations
    ]
    return [read_layer(name, info) for name, info in facts if info.get("layerType") not in _STILL]


def _plain(value: Any) -> Any:
    return value.astype(str) if hasattr(value, "astype") else value


def read_layer(name: str, info: Mapping[str, str]) -> Layer:
    """A layer of the runtime model, by its `layerType`, `primitiveType` and `runtimePrecision`.

    A kernel's name ends in what it computes in (`brgconv_avx512_bf16`). `runtimePrecision` is the type that it reads
    first, so that a float layer behind an int8 one has int8 there.
    """
    kind, kernel = info.get("layerType", ""), info.get("primitiveType", "")
    ending = kernel.rpartition("_")[2].lower()
    precision = _PRECISIONS.get(ending) or _PRECISIONS.get(info.get("runtimePrecision", "").lower(), "unknown")
    return Layer(name, REFORMAT if kind == "Reorder" else kind, precision)


def reason_of(error: Exception) -> str:
    """OpenVINO's message in one line, without the places in its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(" ".join(kept).split())[:_REASON] or type(error).__name__
