"""The data sets that have a name; --help and completion list them without importing what reads them."""

# name -> "module:function", which takes (root or None, whether to download) and returns {part: images}
DATASETS: dict[str, str] = {
    "digits": ".datasets:read_digits",
    "mnist": ".datasets:read_mnist",
    "fashion-mnist": ".datasets:read_fashion_mnist",
    "cifar10": ".datasets:read_cifar10",
}
