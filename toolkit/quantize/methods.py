"""The calibration methods, which set the range of an activation; --help lists them without importing onnx."""

# Tries all methods, and keeps the best.
AUTO = "auto"

# name -> "module:function", which takes (ranges.Seen, targets.ActivationType) and returns (low, high)
METHODS: dict[str, str] = {
    "minmax": ".ranges:minmax",
    "percentile": ".ranges:percentile",
    "mse": ".ranges:least_error",
    "images-99": ".ranges:images_99",
    "images-95": ".ranges:images_95",
    "images-90": ".ranges:images_90",
    "images-80": ".ranges:images_80",
}
