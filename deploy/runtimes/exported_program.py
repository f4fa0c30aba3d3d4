"""torch.export programs (.pt2), run by torch operator for operator."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch

from ..bundle import Bundle
from ..errors import BundleError
from ..session import in_batches_of


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The program in a .pt2 file.

    Raises:
        BundleError: this torch cannot load the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some releases warn of how they read their own format
        try:
            return torch.export.load(str(path))
        except Exception as error:  # it lets errors of zipfile, json and its own schema through
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"torch {torch.__version__} cannot load {path}: {reason}",
                fix="use the torch version it was exported with, or export it again",
            ) from error


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a .pt2 file; through memory, since torch itself crashes where the disk is full."""
    stream = io.BytesIO()
    torch.export.save(program, stream)
    path.write_bytes(stream.getvalue())


class ExportedProgramSession:
    """A torch.export program on the CPU."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module = load_program(bundle.model_path).module()
        self._batch = bundle.manifest.input.batch
        self.facts = {
            "runtime": "torch.export",
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._module(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Free the model."""
        del self._module
