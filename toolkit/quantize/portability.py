"""For which CPUs the accuracy drop holds that was judged on this machine: what an int8 graph answers on each kind."""

from typing import TypedDict

import numpy as np
import onnx

from ...deploy.session import in_batches_of
from .gate import run_optimised
from .integer_run import IntegerRun, Sums, exact
from .saturation import can_saturate, saturated_sums

VNNI, AVX2, ARM = "x86 with VNNI", "x86 with AVX2 without VNNI", "ARM64"

# Logits that differ by less than this share of the largest one count as equal. Where ONNX Runtime fuses the same
# operators, they are the same bit for bit; where it leaves some in float, a few activations differ by one step.
_ROUNDING = 0.02


class Difference(TypedDict):
    """How much logits differ from others.

    Attributes:
        images: number of images whose logits differ by more than rounding.
        answers: number of images with another most likely class.
        largest: the largest difference of a logit.
    """

    images: int
    answers: int
    largest: float


class OnCpu(TypedDict):
    """What a kind of CPU answers.

    Attributes:
        from_reference: compared with exact integer arithmetic.
        from_host: compared with ONNX Runtime on this machine.
        holds: whether it answers like this machine, but for rounding, so that the accuracy drop holds there too.
    """

    from_reference: Difference
    from_host: Difference
    holds: bool


class Portability(TypedDict):
    """What an int8 graph answers on each kind of CPU.

    Attributes:
        images: number of images that were compared.
        host: ONNX Runtime on this machine with its default optimisations, compared with exact integer arithmetic.
        cpus: kind of CPU -> computed answers.
    """

    images: int
    host: Difference
    cpus: dict[str, OnCpu]


def certify(model: onnx.ModelProto, tensors: np.ndarray, batch: int | None = None) -> Portability:
    """Compare this machine's answers and those computed for other CPUs with exact integer arithmetic.

    The reference adds all products in int32 and rounds as ONNX Runtime does everywhere, so it is also what ARM64
    computes. x86 with VNNI adds exactly too (see integer_run.exact), but ONNX Runtime makes int8 activations uint8
    there. Without VNNI, sums of pairs also saturate (see saturation.py).

    Args:
        model: an int8 graph of emit_int8.
        tensors: float32 [n, c, h, w].
        batch: the graph's fixed batch size; None for any.
    """
    host = run_optimised(model, tensors)
    on_arm, on_x86 = IntegerRun(model, signed=True), IntegerRun(model, signed=False)

    def answers(run: IntegerRun, sums: Sums) -> np.ndarray:
        return in_batches_of(batch, tensors, lambda part: run.run(part, sums))

    reference = answers(on_arm, exact)
    with_vnni = answers(on_x86, exact) if on_x86.fused != on_arm.fused else reference
    without = answers(on_x86, saturated_sums) if any(map(can_saturate, on_x86.layers)) else with_vnni
    computed = {VNNI: with_vnni, AVX2: without, ARM: reference}
    cpus: dict[str, OnCpu] = {}
    for kind, logits in computed.items():
        from_host = _difference(host, logits)
        cpus[kind] = {
            "from_reference": _difference(reference, logits), "from_host": from_host, "holds": from_host["images"] == 0,
        }  # fmt: skip
    return {"images": len(tensors), "host": _difference(reference, host), "cpus": cpus}


def remarks(portability: Portability, target: str) -> tuple[str, ...]:
    """A line for the user if the accuracy drop of a file for a target does not hold on each kind of CPU."""
    if all(found["holds"] for found in portability["cpus"].values()):
        return ()
    return (sentence(portability) + ("" if target == "any" else "; --target any makes one file for all"),)


def sentence(portability: Portability) -> str:
    """For which CPUs the accuracy drop holds, in one sentence for the user."""
    cpus, images = portability["cpus"], portability["images"]
    holding = [kind for kind, found in cpus.items() if found["holds"]]
    others = [kind for kind in cpus if kind not in holding]
    where = (
        f"the accuracy drop holds on {_listed(holding)}"
        if holding
        else "the accuracy drop holds only on CPUs like this"
    )
    if not others:
        return f"{where}: the logits of {images} images are the same"
    differ = "; ".join(
        f"on {kind} {found['images']} of {images} images have other logits, and {found['answers']} another class"
        for kind, found in ((kind, cpus[kind]["from_host"]) for kind in others)
    )
    return f"{where}: {differ}"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _difference(reference: np.ndarray, logits: np.ndarray) -> Difference:
    apart = np.abs(logits - reference).reshape(len(reference), -1).max(axis=1)
    return {
        "images": int((apart > _ROUNDING * np.abs(reference).max()).sum()),
        "answers": int((logits.argmax(axis=1) != reference.argmax(axis=1)).sum()),
        "largest": float(apart.max()),
    }
