"""Networks have exactly the published shapes."""

from collections import Counter

import pytest
import torch
from edgekit.models.network import MODELS, create_network
from torch import nn


def _layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


# Counted by hand from the published descriptions: weights and biases of each layer.
COUNTS = {
    ("lenet", 10, 32): 456 + 2_416 + 48_120 + 10_164 + 850,
    ("convnet", 10, 32): 896 + 18_496 + 73_856 + (2048 * 512 + 512) + (512 * 256 + 256) + (256 * 10 + 10),
    ("vgg_small", 2, 224): 896 + 18_496 + 73_856 + (128 * 28 * 28 * 512 + 512) + (512 * 2 + 2),
    ("cnn23", 4, 32): (896 + 64)
    + (18_496 + 128)
    + (73_856 + 256)
    + (2048 * 128 + 128 + 256)
    + (128 * 84 + 84 + 168)
    + 340,
    # torchvision's 11,689,512, with 10 classes instead of 1,000 and a 3x3 stem instead of 7x7
    ("resnet18", 10, 32): 11_689_512 - 990 * 513 - 3 * 64 * (49 - 9),
}


@pytest.mark.parametrize(("name", "classes", "size"), COUNTS)
def test_parameter_counts(name: str, classes: int, size: int) -> None:
    """Five networks have the sizes of their published descriptions."""
    assert _parameters(create_network(name, classes, image_size=(size, size))) == COUNTS[name, classes, size]


def test_cnn23_has_23_layers() -> None:
    """Twelve layers in three blocks, Flatten, ten layers in the dense part, in this order."""
    names = [type(layer).__name__ for layer in _layers(create_network("cnn23", 4))]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    dense = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert names == block * 3 + ["Flatten"] + dense * 2 + ["Linear", "LogSoftmax"]
    assert len(names) == 23


def test_lenet_flattens_16x5x5() -> None:
    """Its convolutions have no padding, as published."""
    network = create_network("lenet", 10)
    assert [layer.in_features for layer in _layers(network) if isinstance(layer, nn.Linear)] == [400, 120, 84]


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("swish", nn.SiLU)])
@pytest.mark.parametrize("name", ["lenet", "convnet", "vgg_small", "cnn23"])
def test_activation_is_a_parameter(name: str, activation: str, kind: type[nn.Module]) -> None:
    """It replaces all activations and nothing else."""
    counts = Counter(type(layer) for layer in _layers(create_network(name, 10, activation=activation)))
    assert counts[kind] >= 4 or name == "vgg_small"
    assert sum(counts[other] for other in (nn.ReLU, nn.LeakyReLU, nn.SiLU)) == counts[kind]


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64)])
def test_every_network_accepts_small_images(name: str, channels: int, size: int) -> None:
    """Grey and colour; it trains (a gradient reaches the first layer) and evaluates."""
    network = create_network(name, 7, channels, (size, size))
    images = torch.randn(2, channels, size, size)
    network(images).square().sum().backward()
    assert next(network.parameters()).grad is not None
    assert network.eval()(images).shape == (2, 7)


def test_small_images_are_not_shrunk_at_the_start() -> None:
    """They get ResNet's stem for CIFAR (3x3, stride 1, no pooling); from 64 pixels on, the usual one."""
    small, usual = (create_network("resnet18", 10, image_size=(size, size)) for size in (32, 64))
    assert small.conv1.kernel_size == (3, 3)
    assert isinstance(small.maxpool, nn.Identity)
    assert usual.conv1.kernel_size == (7, 7)
    assert create_network("mobilenet_v2", 10).features[0][0].stride == (1, 1)


@pytest.mark.parametrize("name", ["torchvision:regnet_y_400mf", "timm:mobilenetv3_small_050"])
def test_other_libraries_networks(name: str) -> None:
    """Any classifier of torchvision or timm is available by name."""
    assert create_network(name, 5, 3, (64, 64)).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "resnet81"),
        ({"name": "torchvision:resnet81"}, "resnet81"),
        ({"name": "timm:resnet81"}, "resnet81"),
        ({"name": "lenet", "activation": "gelu"}, "gelu"),
        ({"name": "resnet18", "activation": "swish"}, "its own activations"),
        ({"name": "lenet", "image_size": (12, 12)}, "16 pixels"),
        ({"name": "convnet", "image_size": (7, 32)}, "8 pixels"),
        ({"name": "cnn23", "image_size": (4, 4)}, "8 pixels"),
        ({"name": "lenet", "pretrained": True}, "no published weights"),
        ({"name": "resnet18", "pretrained": True, "in_channels": 1}, "RGB"),
    ],
)
def test_invalid_arguments_are_explained(arguments: dict, message: str) -> None:
    """A wrong name, or an activation or size that the network does not support."""
    with pytest.raises(ValueError, match=message):
        create_network(**{"num_classes": 10, **arguments})


def test_pretrained_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights are loaded; the classifier and the changed stem are newly initialized."""
    import torchvision

    published = torchvision.models.resnet18().state_dict()
    kind = type(torchvision.models.get_model_weights("resnet18").DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **options: published)
    own = create_network("resnet18", 10, image_size=(32, 32), pretrained=True).state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape == (10, 512)
    assert own["conv1.weight"].shape == (64, 3, 3, 3)
