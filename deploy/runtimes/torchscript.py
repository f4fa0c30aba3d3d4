"""TorchScript (deprecated upstream, still what many mobile apps run)."""

import warnings
from pathlib import Path

import numpy as np
import torch

from ..bundle import Bundle
from ..errors import BundleError
from ..session import in_batches_of


def load_module(path: Path) -> torch.jit.ScriptModule:
    """The module in a TorchScript file, on the CPU, in evaluation mode.

    Raises:
        BundleError: this torch cannot load the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation is said once, where the format is chosen
        try:
            return torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise BundleError(
                f"torch {torch.__version__} cannot load {path}: {reason}", fix="save the model again with this torch"
            ) from error


class TorchScriptSession:
    """A TorchScript module, frozen by its exporter, on the CPU."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module = load_module(bundle.model_path)
        self._batch = bundle.manifest.input.batch
        self.facts = {"runtime": "torchscript", "version": str(torch.__version__), "threads": torch.get_num_threads()}

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._module(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Free the model."""
        del self._module
