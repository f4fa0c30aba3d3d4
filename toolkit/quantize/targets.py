"""What each target requires of a quantized graph to run it fast and correctly."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Of activations: "symmetric" is int8 with zero point 0, and "by sign" is that for a tensor with negative values, and
# uint8 for others.
ActivationType = Literal["uint8", "int8", "symmetric", "by sign"]


@dataclass(frozen=True)
class Form:
    """Where values are quantized, and in how many bits.

    Attributes:
        fused: once per group that the compiler fuses (a layer with the operators after it), at its start; otherwise
            after each operator.
        float_convolutions: so many of the first convolutions stay float. They read few channels, which int8 kernels
            compute slowly, their weights are small, and rounding their results costs the most accuracy.
        float_layers: names of more nodes that stay float.
        seven_bits: names of the layers whose weights are limited to ±64, so that no sum of two products overflows 16
            bits (see saturation.py).
    """

    fused: bool = False
    float_convolutions: int = 0
    float_layers: frozenset[str] = frozenset()
    seven_bits: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Target:
    """How to quantize for one kind of hardware.

    Attributes:
        activations: their type.
        reduce_range: 7-bit weights in layers whose sums overflow on CPUs that add uint8 x int8 products in 16 bits.
        quantize_bias: int32 biases; otherwise float.
        forms: the first one is the default; where the target can be timed, the fastest is taken.
        rewrites: the graph is rewritten for the int8 kernels of ONNX Runtime (see rewrite.py).
        format: of the float32 bundles that can be quantized for it.
        runtime: the key in RUNTIMES of the runtime that it is for.
        why: the reason, one line for the user.
    """

    activations: ActivationType
    reduce_range: bool
    quantize_bias: bool
    forms: tuple[Form, ...]
    rewrites: bool
    format: str = "onnx"
    runtime: str = "onnxruntime"
    why: str


# The formats that can be quantized, and their names for people.
FORMATS = {"onnx": "ONNX", "litert": "LiteRT"}

_EACH_OPERATOR = tuple(Form(float_convolutions=count) for count in range(6))

TARGETS: dict[str, Target] = {
    "x86": Target(
        activations="uint8", reduce_range=False, quantize_bias=True, forms=_EACH_OPERATOR, rewrites=True,
        why="uint8 activations, which x86 with VNNI multiplies by int8 at full speed",
    ),
    "x86-avx2": Target(
        activations="uint8", reduce_range=True, quantize_bias=True, forms=_EACH_OPERATOR, rewrites=True,
        why="uint8 activations, and 7-bit weights where sums of 8-bit ones saturate without VNNI",
    ),
    "any": Target(
        activations="uint8", reduce_range=True, quantize_bias=True, forms=_EACH_OPERATOR, rewrites=True,
        why="one file for x86 with and without VNNI and for ARM64: uint8 activations, and 7-bit weights where sums of "
        "8-bit ones saturate without VNNI",
    ),
    "arm": Target(
        activations="int8", reduce_range=False, quantize_bias=True, forms=_EACH_OPERATOR, rewrites=True,
        why="int8 activations, which ARM's dot product multiplies by int8",
    ),
    "tensorrt": Target(
        activations="symmetric", reduce_range=False, quantize_bias=False, forms=(Form(fused=True),), rewrites=False,
        why="symmetric int8 activations and float biases, as its parser requires, rounded once per fused group",
    ),
    "openvino": Target(
        activations="by sign", reduce_range=False, quantize_bias=True, forms=(Form(fused=True), Form()), rewrites=False,
        runtime="openvino",
        why="uint8 after ReLU and symmetric int8 elsewhere, which OpenVINO runs without corrections for zero points",
    ),
    "litert": Target(
        activations="int8", reduce_range=False, quantize_bias=True, forms=(Form(),), rewrites=False, format="litert",
        runtime="litert", why="int8 activations and per-channel weights, which XNNPACK runs on ARM and x86",
    ),
}  # fmt: skip


def this_machine() -> str:
    """The target for this machine."""
    from ...deploy.environment import cpu_isa  # imports numpy, and --help lists the targets

    return target_for(platform.machine(), cpu_isa())


def default_target(format: str) -> str:
    """The target for bundles of a format: that of the format, else that of this machine."""
    return format if format in TARGETS else this_machine()


def target_for(machine: str, isa: Sequence[str]) -> str:
    """The target for a machine type, as platform.machine() names it, with these instruction set extensions."""
    from ...deploy.environment import has_vnni

    if machine.lower() in ("aarch64", "arm64"):
        return "arm"
    return "x86" if has_vnni(isa) else "x86-avx2"
