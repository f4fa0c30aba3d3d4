"""The operators that are quantized to int8, and the type of the activation ranges."""

# Operators that runtimes such as ONNX Runtime and TensorRT run on 8-bit integers, or that only move values.
COMPUTE = ("Conv", "Gemm", "MatMul")
OPS = (
    *COMPUTE, "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "Split",
)  # fmt: skip

# The operators whose inputs TensorRT requires quantized: those that always compute in int8, those that do so only if
# their inputs are quantized, and the sums of residual blocks ("Q/DQ layer-placement recommendations" of its developer
# guide). The operators in between are fused into the layer before them, or move quantized values.
FUSED_OPS = (*COMPUTE, "Add", "AveragePool", "GlobalAveragePool")

# Operators that combine several activations or constants; others have one, and parameters.
COMBINE = ("Add", "Mul", "Concat")

# Operators whose results are among their input's values, or between them.
SAME_GRID = (
    "MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad",
)  # fmt: skip

# activation -> (smallest, largest) value
Ranges = dict[str, tuple[float, float]]
