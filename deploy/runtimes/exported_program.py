"""torch.export programs (.pt2), run by torch operator by operator."""

import io
import warnings
from pathlib import Path

import torch

from ..bundle import Bundle
from ..errors import BundleError
from .program_archive import check_program
from .runtime import ThreadOptions
from .torch_module import ModuleSession


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Load the program in a .pt2 file, after checking that it holds no code.

    Raises:
        BundleError: the file holds more than tensors and their operators, or this torch cannot load it.
    """
    check_program(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some releases warn about reading their own format
        try:
            return torch.export.load(str(path))
        except Exception as error:  # errors of zipfile, json and its own schema
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"torch {torch.__version__} cannot load {path}: {reason}",
                fix="use the torch version it was exported with, or export it again",
            ) from error


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a .pt2 file, through memory, because torch itself crashes on a full disk."""
    stream = io.BytesIO()
    torch.export.save(program, stream)
    path.write_bytes(stream.getvalue())


def open_session(bundle: Bundle, options: ThreadOptions) -> ModuleSession:
    """Load an exported-program bundle."""
    module = load_program(bundle.model_path).module()
    return ModuleSession(module, "torch.export", bundle.manifest.input.batch, options.threads)
