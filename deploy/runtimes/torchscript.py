"""TorchScript (deprecated upstream, still what many mobile apps run)."""

import warnings
from pathlib import Path

import torch

from ..bundle import Bundle
from ..errors import BundleError
from ..session import SessionOptions
from .torch_module import ModuleSession


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


def open_session(bundle: Bundle, options: SessionOptions) -> ModuleSession:
    """Load a torchscript bundle."""
    return ModuleSession(load_module(bundle.model_path), "torchscript", bundle.manifest.input.batch, options.threads)
