"""The operators that int8 applies to, and the known ranges of their values."""

# Operators that ONNX Runtime, TensorRT and the like run on 8-bit integers, or that only move them.
COMPUTE = ("Conv", "Gemm", "MatMul")
OPS = (
    *COMPUTE, "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "Split",
)  # fmt: skip

# The operators whose inputs TensorRT wants rounded: what computes in int8, what does so only if its inputs are, and the
# sums of residual blocks ("Q/DQ layer-placement recommendations" of its developer guide). Everything between is fused
# into the layer before it, or moves along with the rounding.
FUSED_OPS = (*COMPUTE, "Add", "AveragePool", "GlobalAveragePool")

# activation -> (smallest, largest) value
Ranges = dict[str, tuple[float, float]]
