"""Classifiers of timm."""

import timm
from torch import nn


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
