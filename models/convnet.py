"""Plain stacks of three 3x3 convolutions: a small one for small images, and one like VGG for 224 pixels."""

from torch import nn

from .activations import activation_layer


def convnet(num_classes: int, in_channels: int, image_size: tuple[int, int], activation: str) -> nn.Sequential:
    """Conv 32/64/128 @3x3, each with pool 2, then Linear 512, Dropout 0.5, Linear 256, classes.

    Raises:
        ValueError: the image is smaller than 8 x 8 pixels, or the activation is unknown.
    """
    act = activation_layer(activation)
    return nn.Sequential(
        *_features(in_channels, act),
        nn.Linear(_flattened(image_size), 512), act(), nn.Dropout(0.5),
        nn.Linear(512, 256), act(),
        nn.Linear(256, num_classes),
    )  # fmt: skip


def vgg_small(num_classes: int, in_channels: int, image_size: tuple[int, int], activation: str) -> nn.Sequential:
    """Conv 32/64/128 @3x3, each with pool 2, then Linear 512, classes.

    Raises:
        ValueError: the image is smaller than 8 x 8 pixels, or the activation is unknown.
    """
    act = activation_layer(activation)
    return nn.Sequential(
        *_features(in_channels, act), nn.Linear(_flattened(image_size), 512), act(), nn.Linear(512, num_classes)
    )


def _features(in_channels: int, act: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), act(), nn.MaxPool2d(2)]
    return [*layers, nn.Flatten()]


def _flattened(image_size: tuple[int, int]) -> int:
    height, width = (side // 8 for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"three poolings need at least 8 pixels per side, not {image_size}")
    return 128 * height * width
