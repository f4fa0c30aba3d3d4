"""What each target requires of a quantized graph to run it fast and correctly."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Target:
    """How to quantize for one kind of hardware.

    Attributes:
        activations: their type; "symmetric" is int8 with zero point 0, and "by sign" is that for a tensor with negative
            values, and uint8 for others.
        reduce_range: 7-bit weights, for CPUs that add uint8 x int8 products in 16 bits and saturate.
        quantize_bias: int32 biases; otherwise float.
        fused: the compiler fuses a layer with the operators after it, so values are quantized at the start of each
            fused group instead of after each operator; None for the faster of the two in a trial.
        runtime: the key in RUNTIMES of the runtime that it is for.
        why: the reason, one line for the user.
    """

    activations: Literal["uint8", "int8", "symmetric", "by sign"]
    reduce_range: bool
    quantize_bias: bool
    fused: bool | None
    runtime: str = "onnxruntime"
    why: str


TARGETS: dict[str, Target] = {
    "x86": Target(
        activations="uint8", reduce_range=False, quantize_bias=True, fused=False,
        why="uint8 activations, which x86 with VNNI multiplies by int8 at full speed",
    ),
    "x86-avx2": Target(
        activations="uint8", reduce_range=True, quantize_bias=True, fused=False,
        why="uint8 activations and 7-bit weights: without VNNI, 8-bit weights saturate",
    ),
    "arm": Target(
        activations="int8", reduce_range=False, quantize_bias=True, fused=False,
        why="int8 activations, which ARM's dot product multiplies by int8",
    ),
    "tensorrt": Target(
        activations="symmetric", reduce_range=False, quantize_bias=False, fused=True,
        why="symmetric int8 activations and float biases, as its parser requires, rounded once per fused group",
    ),
    "openvino": Target(
        activations="by sign", reduce_range=False, quantize_bias=True, fused=None, runtime="openvino",
        why="uint8 after ReLU and symmetric int8 elsewhere, which OpenVINO runs without corrections for zero points",
    ),
}  # fmt: skip


def this_machine() -> str:
    """The target for this machine."""
    from ...deploy.environment import cpu_isa  # imports numpy, and --help lists the targets

    return target_for(platform.machine(), cpu_isa())


def target_for(machine: str, isa: Sequence[str]) -> str:
    """The target for a machine type, as platform.machine() names it, with these instruction set extensions."""
    from ...deploy.environment import has_vnni

    if machine.lower() in ("aarch64", "arm64"):
        return "arm"
    return "x86" if has_vnni(isa) else "x86-avx2"
