"""A bundle's network as a torch module, and its session."""

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..deploy.bundle import Bundle
from ..deploy.errors import BundleError
from ..deploy.runtimes.exported_program import load_program
from ..deploy.runtimes.runtime import ThreadOptions
from ..deploy.runtimes.torch_module import ModuleSession
from ..deploy.runtimes.torchscript import load_module as load_torchscript
from ..models.network import create_network

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
            f"{bundle.path} has format {bundle.manifest.format}, which has no torch module",
            fix=f"pass a bundle of format {', '.join(TORCH_FORMATS)}",
        )
    # the bundle contains the weights: published ones would be downloaded in vain
    architecture = {**bundle.manifest.architecture, "pretrained": False}
    try:
        network = create_network(**{**architecture, "image_size": tuple(architecture["image_size"])})
        network.load_state_dict(load_file(bundle.model_path))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"the network of {bundle.path} cannot be recreated: {error}", fix="train or import it again"
        ) from error
    return network.eval()


def open_session(bundle: Bundle, options: ThreadOptions) -> ModuleSession:
    """Load a torch bundle, to be run eagerly by torch."""
    return ModuleSession(load_module(bundle), "torch eager", None, options.threads)
