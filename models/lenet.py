"""LeNet-5 for colour images (LeCun et al., 1998, with max pooling)."""

from torch import nn

from .activations import activation_layer


def lenet(num_classes: int, in_channels: int, image_size: tuple[int, int], activation: str) -> nn.Sequential:
    """Conv 6@5x5, pool, Conv 16@5x5, pool, Linear 120, 84, classes; no padding, so 32 x 32 flattens to 16x5x5.

    Raises:
        ValueError: the image is smaller than 16 x 16 pixels, or the activation is unknown.
    """
    height, width = (((side - 4) // 2 - 4) // 2 for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"lenet's two unpadded 5x5 convolutions need at least 16 pixels per side, not {image_size}")
    act = activation_layer(activation)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5), act(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), act(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120), act(),
        nn.Linear(120, 84), act(),
        nn.Linear(84, num_classes),
    )  # fmt: skip
