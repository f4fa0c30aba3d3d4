"""Classifiers of timm."""

import timm
from torch import nn


def create(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    """Make timm's classifier `name` (see models.create); timm adapts stem weights to `in_channels` itself.

    Raises:
        ValueError: no such classifier, or no published weights for it.
    """
    del image_size  # its convolutional networks take any
    if name not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name}*")[:5])
        raise ValueError(f"timm has no classifier called {name!r}" + (f"; there are {near}" if near else ""))
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except RuntimeError as error:
        raise ValueError(f"timm cannot make {name} like this: {error}") from error
