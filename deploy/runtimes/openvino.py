"""OpenVINO on the CPU."""

import sys
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from ..session import in_batches_of
from .runtime import Package, Runtime, ThreadOptions

# Importing OpenVINO reports its use over the network, from a forked process that keeps this one's pipes open: a
# device's agent would wait for ever. Without the package that sends, it does not. This comes before any import of it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None blocks an import

RUNTIME = Runtime(
    name="openvino",
    formats={"onnx": ".openvino:OpenVinoSession"},
    packages=(
        Package(
            modules=("openvino",),
            distributions=("openvino",),
            purpose="running ONNX models by OpenVINO",
            extra="openvino",
        ),
    ),
)

# Preprocess.dtype -> OpenVINO's name of the type
_TYPES = {"float32": "f32", "uint8": "u8"}
# What a reason of an error may take of a line.
_SHOWN = 300


class OpenVinoSession:
    """An ONNX model on OpenVINO, in the precision of the graph: float32 stays float32 where the CPU has bfloat16.

    Raises:
        BundleError: the model cannot be loaded.
    """

    def __init__(self, bundle: Bundle, options: ThreadOptions) -> None:
        import openvino
        from openvino.frontend import FrontEndManager

        version = openvino.get_version().partition("-")[0]
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # the cores of a process are chosen by who measures it
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            # as ONNX whatever the file's name says: by its suffix OpenVINO would choose another reader
            reader = FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(str(bundle.model_path)))
            compiled = openvino.Core().compile_model(model, "CPU", settings)
        except Exception as error:  # its errors have no common class but Exception
            raise BundleError(
                f"OpenVINO {version} cannot load {bundle.model_path}: {reason_of(error)}",
                fix="run it on ONNX Runtime: --runtime onnxruntime",
            ) from error
        taken = [entry.get_element_type().get_type_name() for entry in compiled.inputs]
        if taken != [_TYPES[bundle.manifest.preprocess.dtype]] or len(compiled.outputs) != 1:
            raise BundleError(
                f"{bundle.model_path} takes {', '.join(taken) or 'nothing'} and has {len(compiled.outputs)} outputs; "
                f"its manifest says {bundle.manifest.preprocess.dtype}, and a classifier has one",
                fix="import the model again",
            )
        self._request = compiled.create_infer_request()
        self._batch = bundle.manifest.input.batch
        self.facts = {
            "runtime": "openvino", "version": version, "device": "CPU",
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        }  # fmt: skip

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] in the manifest's Preprocess.dtype -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)

    def close(self) -> None:
        """Free the model."""
        del self._request


def reason_of(error: Exception) -> str:
    """What OpenVINO reports, in one line, without the places in its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(" ".join(said).split())[:_SHOWN] or type(error).__name__
