"""A bundle's network as a torch module, and the session that runs it eagerly."""

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..deploy.bundle import Bundle
from ..deploy.errors import BundleError
from ..deploy.runtimes.exported_program import load_program
from ..deploy.runtimes.torchscript import load_module as load_torchscript
from ..models import create

TORCH_FORMATS = ("torch", "exported-program", "torchscript")


def load_module(bundle: Bundle) -> nn.Module:
    """The network of a torch, exported-program or torchscript bundle, in evaluation mode, on the CPU.

    Raises:
        BundleError: the bundle is of another format, or its weights do not fit its architecture.
    """
    if bundle.manifest.format == "exported-program":
        return load_program(bundle.model_path).module()
    if bundle.manifest.format == "torchscript":
        return load_torchscript(bundle.model_path)
    if bundle.manifest.format != "torch":
        raise BundleError(
            f"{bundle.path} is {bundle.manifest.format}, which has no torch module",
            fix=f"pass a bundle of format {', '.join(TORCH_FORMATS)}",
        )
    architecture = dict(bundle.manifest.architecture)
    try:
        network = create(**{**architecture, "image_size": tuple(architecture["image_size"])})
        network.load_state_dict(load_file(bundle.model_path))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"the network of {bundle.path} cannot be made again: {error}", fix="train or import it again"
        ) from error
    return network.eval()


class TorchSession:
    """A network run eagerly by torch on the CPU."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._module = load_module(bundle)
        self.facts = {"runtime": "torch eager", "version": str(torch.__version__), "threads": torch.get_num_threads()}

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        with torch.inference_mode():
            return self._module(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Free the network."""
        del self._module
