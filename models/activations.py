"""Activations by name."""

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "swish": nn.SiLU}


def activation_layer(name: str) -> type[nn.Module]:
    """The activation's class; LeakyReLU keeps torch's slope of 0.01.

    Raises:
        ValueError: the activation is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
