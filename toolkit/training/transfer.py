"""Start from trained weights, train the classifier first, and learn from a teacher."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation

from ...deploy.bundle import Bundle
from ...deploy.errors import RecipeError
from ...deploy.fingerprints import WIDTH
from ...deploy.preprocess import Preprocess
from ...export.eager import load_module

# The parts of a bundle whose images influenced the weights.
_SEEN = ("train", "validation", "earlier")


def open_weights(path: str, name: str) -> Bundle:
    """The bundle whose weights a network starts from.

    Raises:
        RecipeError: its network is another one.
        BundleError: it cannot be read.
    """
    bundle = Bundle.open(Path(path))
    if bundle.manifest.format != "torch":
        raise RecipeError(
            f"{path} is {bundle.manifest.format}, which cannot be trained", fix="pass a bundle that edgekit train wrote"
        )
    found = bundle.manifest.architecture.get("name")
    if found != name:
        raise RecipeError(f"{path} has the network {found}, and the recipe trains {name}", fix=f"--model {found}")
    return bundle


def load_fitting(network: nn.Module, bundle: Bundle) -> list[str]:
    """Load the bundle's weights of equal shape into a network; return the names of those that it keeps its own of.

    Raises:
        RecipeError: no weights fit.
    """
    known, own = load_module(bundle).state_dict(), network.state_dict()
    fitting = {name for name in own if name in known and known[name].shape == own[name].shape}
    if not fitting:
        raise RecipeError(f"no weights of {bundle.path} fit the network", fix="leave out model.weights")
    network.load_state_dict({name: known[name] if name in fitting else own[name] for name in own})
    return [name for name in own if name not in fitting]


def seen_images(bundles: Iterable[Bundle]) -> np.ndarray:
    """Fingerprints, uint64 [n, 3], of the images that bundles were made with: their knowledge is passed on."""
    rows = [parts[name] for bundle in bundles for parts in (bundle.fingerprints(),) for name in _SEEN if name in parts]
    return np.concatenate([np.empty((0, WIDTH), np.uint64), *rows])


def classifier(network: nn.Module) -> nn.Module:
    """The last layer with weights, which maps features to classes."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return layers[-1]


def set_frozen(network: nn.Module, frozen: bool) -> None:
    """Train the classifier only, with the others as in evaluation; or train all layers."""
    for weight in network.parameters():
        weight.requires_grad_(not frozen)
    network.train(not frozen)
    if not frozen:
        return
    last = classifier(network)
    last.train()
    for weight in last.parameters():
        weight.requires_grad_()


class Teacher:
    """A trained network whose probabilities another one learns (Hinton et al., 2015, "Distilling the Knowledge").

    Args:
        convert: makes the teacher's input from that of the network that learns.
    """

    def __init__(
        self, network: nn.Module, temperature: float, convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self._network, self._temperature, self._convert = network, temperature, convert

    @classmethod
    def open(
        cls, path: str, labels: tuple[str, ...], preprocess: Preprocess, temperature: float, device: torch.device
    ) -> "Teacher":
        """The network of a bundle.

        Args:
            preprocess: of the network that learns; the images are converted to the teacher's mean and std.

        Raises:
            RecipeError: its labels or its image size are others.
            BundleError: it is not a bundle that torch runs.
        """
        bundle = Bundle.open(Path(path))
        manifest, own = bundle.manifest, bundle.manifest.preprocess
        if manifest.labels != labels:
            raise RecipeError(f"the teacher {path} has other labels", fix="train it on the same classes")
        if (own.mode, own.crop, own.dtype) != (preprocess.mode, preprocess.crop, preprocess.dtype):
            raise RecipeError(
                f"the teacher {path} takes {own.mode} images of {own.crop}, the network {preprocess.mode} of "
                f"{preprocess.crop}",
                fix="--set preprocess.size and preprocess.mode to the teacher's",
            )
        network = load_module(bundle).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # (pixels - own mean) / own std, from the pixels that the network's mean and std normalized
        factor = torch.tensor(preprocess.std) / torch.tensor(own.std)
        shift = (torch.tensor(preprocess.mean) - torch.tensor(own.mean)) / torch.tensor(own.std)
        factor, shift = (values[:, None, None].to(device) for values in (factor, shift))
        return cls(network, temperature, lambda inputs: inputs * factor + shift)

    def loss(self, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The divergence of the probabilities from the teacher's, summed over the images.

        Multiplied by the square of the temperature, its gradient is about as large as that of the labels' loss (section
        2 of the paper).

        Args:
            inputs: float32 [n, c, h, w].
            logits: [n, k], those of the network that learns.
        """
        with torch.no_grad():
            own = inputs if self._convert is None else self._convert(inputs)
            expected = F.log_softmax(self._network(own) / self._temperature, dim=1)
        found = F.log_softmax(logits.float() / self._temperature, dim=1)
        return F.kl_div(found, expected.float(), reduction="sum", log_target=True) * self._temperature**2
