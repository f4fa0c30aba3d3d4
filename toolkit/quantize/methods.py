"""The calibration methods, which set the range of an activation; --help lists them without importing onnx."""

# Tries all methods, and keeps the best.
AUTO = "auto"

# name -> "module:function", which takes (histogram.Histogram, targets.ActivationType) and returns (low, high)
METHODS: dict[str, str] = {
    "minmax": ".histogram:minmax",
    "percentile": ".histogram:percentile",
    "mse": ".histogram:least_error",
}
