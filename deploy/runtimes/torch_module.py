"""A torch module as a session; the files of torch's formats load it."""

from typing import Any

import numpy as np
import torch

from ..session import in_batches_of


class ModuleSession:
    """A loaded torch module on the CPU.

    Args:
        module: float32 [n, c, h, w] -> float32 [n, k], in evaluation mode.
        runtime: its name in reports.
        batch: the number of images that it takes at once; None for any.
        threads: for one inference; None leaves torch's own choice.
    """

    def __init__(self, module: Any, runtime: str, batch: int | None, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module, self._batch = module, batch
        self.facts = {"runtime": runtime, "version": str(torch.__version__), "threads": torch.get_num_threads()}

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._module(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Free the module."""
        del self._module
