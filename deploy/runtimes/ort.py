"""ONNX Runtime."""

import numpy as np
import onnxruntime

from ..bundle import Bundle
from ..errors import BundleError
from ..session import in_batches_of


class OrtSession:
    """An ONNX model on ONNX Runtime's CPU provider."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class but Exception
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {bundle.model_path}: {error}",
                fix="upgrade onnxruntime, or export again with a lower --opset",
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._batch = bundle.manifest.input.batch
        self.facts = {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "providers": self._session.get_providers(),
            "threads": threads,
            "graph_optimization": "all",
        }

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: batch})[0])

    def close(self) -> None:
        """Free the model."""
        del self._session
