"""The named data sets; --help and completion list them without importing the functions that read them."""

# name -> "module:function", which takes (root or None, whether to download) and returns {part: images}
DATASETS: dict[str, str] = {
    "digits": ".datasets:read_digits",
    "mnist": ".datasets:read_mnist",
    "fashion-mnist": ".datasets:read_fashion_mnist",
    "cifar10": ".datasets:read_cifar10",
}
