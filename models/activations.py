"""Activations by name."""

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "swish": nn.SiLU}


def activation_layer(name: str) -> type[nn.Module]:
    """The activation's class; LeakyReLU's slope is torch's 0.01.

    Raises:
        ValueError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation is called {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
