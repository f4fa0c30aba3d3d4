"""Conclusions from the profile of a training: where the time of a step goes, and which limit of the device is near.

The roofline model (Williams et al., 2009, "Roofline: An Insightful Visual Performance Model"): a program that computes
F floating-point operations and moves B bytes makes no more operations per second than the device's peak P, nor than its
memory bandwidth W times the arithmetic intensity F / B.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from .statistics import student_mean

# The share of a step from which a phase other than the network is worth a change.
_LARGE = 0.3
# Below this share of the limit, on a GPU, starting the kernels takes longer than running them.
_IDLE = 0.2


class Limits(NamedTuple):
    """What the device reaches, as measured.

    Attributes:
        flops_per_s: floating-point operations per second, of a large matrix product.
        bytes_per_s: read and written per second, by a large copy.
    """

    flops_per_s: float
    bytes_per_s: float


class PhaseEntry(TypedDict):
    """A part of a step.

    Attributes:
        ms: mean milliseconds per step, when the device is waited for after each phase.
        share: of the sum of all phases.
        flops: floating-point operations of convolutions and matrix products.
        flops_per_s: those per second; null for a phase without any.
    """

    name: str
    ms: float
    share: float
    flops: int
    flops_per_s: float | None


class Roofline(TypedDict):
    """How near the network's forward and backward pass come to the limits of the device.

    Attributes:
        flops: of forward and backward, per step.
        bytes: that their operators read and write, per step; what stays in a cache is counted too.
        intensity: flops per byte.
        peak_flops_per_s, bandwidth_bytes_per_s: measured on this device with the same precision and threads.
        limit: "compute" if the intensity is above the device's ratio of both, else "memory".
        attainable_flops_per_s: under that limit.
        achieved_flops_per_s: of forward and backward.
        share: achieved of attainable; above 1 if caches serve what the memory could not.
        share_of_peak: the step's flops in its whole time, without waiting after phases, of the peak.
    """

    flops: int
    bytes: int
    intensity: float
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    limit: str
    attainable_flops_per_s: float
    achieved_flops_per_s: float
    share: float
    share_of_peak: float


class TrainingProfile(TypedDict):
    """The profile of a training.

    Attributes:
        name: of the network, and the data.
        device: cpu or cuda.
        threads: of the CPU.
        precision: as in the recipe, chosen if that is auto.
        batch_size: images per step.
        steps: the number of steps that were measured, half of them without waiting after phases.
        step_ms: of a step without waiting after phases, with its 95 % interval.
        images_per_s: in such a step.
        sentence: what to do.
    """

    name: str
    device: str
    threads: int
    precision: str
    batch_size: int
    steps: int
    step_ms: float
    step_ms_interval: tuple[float, float]
    images_per_s: float
    phases: list[PhaseEntry]
    roofline: Roofline
    sentence: str


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        phase_s: seconds per step of each phase, in order.
        whole_s: seconds per step without waiting after phases, one entry per block of steps.
        flops: per step of each phase.
        moved: bytes per step that forward and backward read and write.
    """

    phase_s: dict[str, float]
    whole_s: Sequence[float]
    flops: dict[str, int]
    moved: int
    limits: Limits


def phase_entries(found: Measured) -> list[PhaseEntry]:
    """A row per phase."""
    total = sum(found.phase_s.values())
    return [
        PhaseEntry(
            name=name,
            ms=seconds * 1e3,
            share=seconds / total,
            flops=found.flops[name],
            flops_per_s=found.flops[name] / seconds if found.flops[name] else None,
        )
        for name, seconds in found.phase_s.items()
    ]


def roofline(found: Measured) -> Roofline:
    """The achieved speed against the limits."""
    peak, bandwidth = found.limits
    flops = sum(found.flops.values())
    intensity = flops / found.moved
    attainable = min(peak, intensity * bandwidth)
    achieved = flops / (found.phase_s["forward"] + found.phase_s["backward"])
    return Roofline(
        flops=flops,
        bytes=found.moved,
        intensity=intensity,
        peak_flops_per_s=peak,
        bandwidth_bytes_per_s=bandwidth,
        limit="compute" if intensity * bandwidth >= peak else "memory",
        attainable_flops_per_s=attainable,
        achieved_flops_per_s=achieved,
        share=achieved / attainable,
        share_of_peak=flops / student_mean(found.whole_s).value / peak,
    )


def advice(found: Measured, device: str) -> str:
    """What to do, in one line."""
    shares = {entry["name"]: entry["share"] for entry in phase_entries(found)}
    limits = roofline(found)
    if shares["data"] > _LARGE:
        return (
            f"{shares['data']:.0%} of a step waits for images: shrink the files once, leave out augment.resized_crop, "
            "which decodes every image in every epoch, or raise train.workers"
        )
    if shares["augment"] > _LARGE:
        return f"{shares['augment']:.0%} of a step changes images: leave out augment.colour or augment.pad_crop"
    if shares["optimizer"] > _LARGE:
        return (
            f"{shares['optimizer']:.0%} of a step is the optimizer, whose time does not depend on the number of "
            "images: larger batches help (--find-batch-size)"
        )
    if device == "cuda" and limits["share"] < _IDLE:
        return (
            f"the GPU reaches {limits['share']:.0%} of what it could: it waits for the program that starts its "
            "kernels; larger batches (--find-batch-size) or train.compile=true help"
        )
    if limits["limit"] == "memory":
        return (
            f"the network moves many bytes per operation ({limits['intensity']:.1f} operations per byte): "
            "memory is its limit; precision bf16-mixed moves half the bytes, and on a GPU train.compile=true fewer"
        )
    return (
        f"{shares['forward'] + shares['backward']:.0%} of a step is the network itself, and the device's arithmetic is "
        "its limit: a smaller network, smaller images or a faster device help"
    )
