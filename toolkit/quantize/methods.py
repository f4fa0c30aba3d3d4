"""The calibration methods, which set the ranges of activations; --help lists them without importing onnx."""

# name -> "module:function", which takes (model, manifest, images, progress) and returns Ranges
METHODS: dict[str, str] = {
    "minmax": ".observe:observe",
}
