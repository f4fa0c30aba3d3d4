"""Classifiers of torchvision, adapted to small images, other numbers of channels, and published weights."""

import logging

import torchvision
from torch import nn

from .network import Published

_log = logging.getLogger(__name__)

# Below this many pixels, a stem that shrinks the image four-fold leaves too little for the following layers.
SMALL = 64

# By default, these return a tuple in training.
_OPTIONS = {
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def create(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    """Create torchvision's classifier `name` (see `create_network`).

    Raises:
        ValueError: the classifier is unknown, or `pretrained` is used with other than 3 channels.
        OSError: the published weights cannot be downloaded.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"torchvision has no classifier called {name!r}")
    if pretrained and in_channels != 3:
        raise ValueError(f"published weights take RGB images, not {in_channels} channel(s)")
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))
    if min(image_size) < SMALL:
        _shrink_less(network)
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    if pretrained:
        _load_published(network, name)
    return network


def published(name: str) -> Published:
    """The preprocessing of the default weights.

    Raises:
        ValueError: the classifier is unknown.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"torchvision has no classifier called {name!r}")
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    height, width = (preset.crop_size * 2)[:2]
    return Published(
        preset.resize_size[0], (height, width), preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ValueError("the network has no convolution to adapt to these images")


def _shrink_less(network: nn.Module) -> None:
    """Let the first convolution keep the image's size, and remove the max pooling of a ResNet's stem."""
    name, first = _first_convolution(network)
    if isinstance(network, torchvision.models.ResNet):  # the CIFAR stem of He et al. (2016), section 4.2
        first = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
        network.set_submodule(name, first)
    first.stride = (1, 1)
    if isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
        network.set_submodule("maxpool", nn.Identity())


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    name, old = _first_convolution(network)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # pyright: ignore[reportArgumentType] # Conv2d's own attributes are typed more loosely
        old.stride,  # pyright: ignore[reportArgumentType]
        old.padding,  # pyright: ignore[reportArgumentType]
        bias=old.bias is not None,
    )
    network.set_submodule(name, new)


def _load_published(network: nn.Module, name: str) -> None:
    """Load every published weight whose shape fits; the classifier and a changed stem keep their own."""
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    # torch draws a progress bar on standard error: only if log messages are enabled
    published = weights.get_state_dict(progress=_log.isEnabledFor(logging.INFO), check_hash=True)
    own = network.state_dict()
    network.load_state_dict({key: published[key] if _fits(published, key, own) else own[key] for key in own})


def _fits(published: dict, key: str, own: dict) -> bool:
    return key in published and published[key].shape == own[key].shape
