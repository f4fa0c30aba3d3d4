"""What each target requires of a quantized graph to run it fast and correctly."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """How to quantize for one kind of hardware.

    Attributes:
        signed: int8 activations; otherwise uint8.
        symmetric: the zero point of activations is the middle of their type (0 for int8).
        reduce_range: 7-bit weights, for CPUs that add uint8 x int8 products in 16 bits and saturate.
        quantize_bias: int32 biases; otherwise float.
        fused: the compiler fuses a layer with the operators after it, so values are quantized at the start of each
            fused group instead of after each operator.
        why: the reason, one line for the user.
    """

    signed: bool
    symmetric: bool
    reduce_range: bool
    quantize_bias: bool
    fused: bool
    why: str


TARGETS: dict[str, Target] = {
    "x86": Target(
        signed=False, symmetric=False, reduce_range=False, quantize_bias=True, fused=False,
        why="uint8 activations, which x86 with VNNI multiplies by int8 at full speed",
    ),
    "x86-avx2": Target(
        signed=False, symmetric=False, reduce_range=True, quantize_bias=True, fused=False,
        why="uint8 activations and 7-bit weights: without VNNI, 8-bit weights saturate",
    ),
    "arm": Target(
        signed=True, symmetric=False, reduce_range=False, quantize_bias=True, fused=False,
        why="int8 activations, which ARM's dot product multiplies by int8",
    ),
    "tensorrt": Target(
        signed=True, symmetric=True, reduce_range=False, quantize_bias=False, fused=True,
        why="symmetric int8 activations and float biases, as its parser requires, rounded once per fused group",
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
