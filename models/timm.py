"""Classifiers of timm."""

import timm
from torch import nn

from .network import Published


def create(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    """Create timm's classifier `name` (see `create_network`); timm adapts stem weights to `in_channels` itself.

    Raises:
        ValueError: the classifier is unknown, or has no published weights.
    """
    del image_size  # timm's convolutional networks take any size
    if name not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name}*")[:5])
        raise ValueError(f"timm has no classifier called {name!r}" + (f"; similar names: {near}" if near else ""))
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except RuntimeError as error:
        raise ValueError(f"timm cannot create {name} with these settings: {error}") from error


def published(name: str) -> Published:
    """The preprocessing of the default weights.

    Raises:
        ValueError: it has none.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if config is None:
        raise ValueError(f"timm has no published weights for {name!r}; leave out pretrained")
    _, height, width = config.input_size
    resize = round(min(height, width) / config.crop_pct)
    return Published(resize, (height, width), config.interpolation, tuple(config.mean), tuple(config.std))
