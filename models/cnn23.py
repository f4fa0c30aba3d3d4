"""A 23-layer CNN: three convolution blocks and three dense blocks."""

from torch import nn

from .activations import activation_layer


def cnn23(num_classes: int, in_channels: int, image_size: tuple[int, int], activation: str) -> nn.Sequential:
    """Three Conv-BatchNorm-activation-MaxPool blocks, Flatten, two Linear-BatchNorm-activation-Dropout blocks, and
    Linear-LogSoftmax: 12 + 1 + 10 layers.

    The softmax is logarithmic: cross entropy of log-probabilities is exact, while cross entropy of probabilities would
    apply the softmax twice.

    Raises:
        ValueError: the image is smaller than 8 x 8 pixels, or the activation is unknown.
    """
    height, width = (side // 8 for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"cnn23's three poolings need at least 8 pixels per side, not {image_size}")
    act = activation_layer(activation)
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), act(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for inputs, outputs in ((128 * height * width, 128), (128, 84)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), act(), nn.Dropout(0.5)]
    layers += [nn.Linear(84, num_classes), nn.LogSoftmax(dim=1)]
    return nn.Sequential(*layers)
