"""Networks by name: `create_network(name, num_classes, ...)`.

Importing this module does not import torch; the files beside it do, one architecture family each.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "create_network", "published"]

# name -> "module:function" in this package, or "library:name" of another library's network
MODELS: dict[str, str] = {
    "cnn23": ".cnn23:cnn23",
    "lenet": ".lenet:lenet",
    "convnet": ".convnet:convnet",
    "vgg_small": ".convnet:vgg_small",
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "mobilenet_v3_small": "torchvision:mobilenet_v3_small",
    "mobilenet_v3_large": "torchvision:mobilenet_v3_large",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "shufflenet_v2_x1_0": "torchvision:shufflenet_v2_x1_0",
}

LIBRARIES = ("torchvision", "timm")


class Published(NamedTuple):
    """The preprocessing that a library's published weights were trained with.

    Attributes:
        resize: length of the shorter side, in pixels.
        crop: (height, width) in pixels.
        interpolation: bilinear, bicubic, …
        mean, std: of red, green and blue, on the scale [0, 1].
    """

    resize: int
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def create_network(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    activation: str = "relu",
    pretrained: bool = False,
) -> "nn.Module":
    """Create a network that maps float32 [n, in_channels, *image_size] to logits [n, num_classes].

    Args:
        name: a key of MODELS, `torchvision:NAME` or `timm:NAME`.
        image_size: (height, width) in pixels. Under 64 pixels, networks of other libraries get a stem that
            shrinks the image less.
        activation: a key of `models.activations.ACTIVATIONS`; networks of other libraries keep their own.
        pretrained: start from the library's published weights (except the classifier, and a changed stem).

    Raises:
        ValueError: the network is unknown, or cannot be created with these arguments.
    """
    library, _, entry = MODELS.get(name, name).partition(":")
    if library in LIBRARIES and entry:
        if activation != "relu":
            raise ValueError(f"{name} has its own activations; only EdgeKit's own networks take {activation!r}")
        module = importlib.import_module(f".{library}", __package__)
        return module.create(entry, num_classes, in_channels, image_size, pretrained)
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}; choose one of: {', '.join(MODELS)}, torchvision:NAME, timm:NAME")
    if pretrained:
        raise ValueError(f"{name} has no published weights; leave out pretrained")
    build = getattr(importlib.import_module(library, __package__), entry)
    return build(num_classes, in_channels, image_size, activation)


def published(name: str) -> Published:
    """The preprocessing of a network's published weights.

    Raises:
        ValueError: it has none.
    """
    library, _, entry = MODELS.get(name, name).partition(":")
    if library not in LIBRARIES:
        raise ValueError(f"{name} has no published weights; leave out pretrained")
    return importlib.import_module(f".{library}", __package__).published(entry)
