"""The profile of a training as a table for the terminal."""

from collections.abc import Iterator

from rich.console import RenderableType

from ..analysis.training_profile import TrainingProfile
from ..analysis.wording import milliseconds
from ..console import styled
from .terminal import Fitting, text_table


def profile_table(profile: TrainingProfile) -> Iterator[RenderableType]:
    """What to do, the phases of a step, and how near the network comes to the limits of the device."""
    yield styled(profile["sentence"], "bold")
    limits = profile["roofline"]
    table = text_table("phase", "ms", "share", "GFLOP/s", "of peak")
    for phase in profile["phases"]:
        speed = phase["flops_per_s"]
        table.add_row(
            phase["name"],
            milliseconds(phase["ms"]),
            f"{phase['share']:.1%}",
            f"{speed / 1e9:.1f}" if speed else "-",
            f"{speed / limits['peak_flops_per_s']:.1%}" if speed else "-",
        )
    yield Fitting(table)
    low, high = profile["step_ms_interval"]
    yield (
        f"{profile['name']}, {profile['device']}, {profile['threads']} threads, {profile['precision']}: a step of "
        f"{profile['batch_size']} images takes {profile['step_ms']:.2f} ms [{low:.2f}, {high:.2f}] without waiting "
        f"after each phase: {profile['images_per_s']:.0f} images/s, {limits['share_of_peak']:.1%} of the peak"
    )
    yield (
        f"measured limits: {limits['peak_flops_per_s'] / 1e9:.0f} GFLOP/s (a matrix product), "
        f"{limits['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s (a copy)"
    )
    yield (
        f"forward and backward: {limits['flops'] / 1e9:.2f} GFLOP and {limits['bytes'] / 1e9:.2f} GB per step, "
        f"{limits['intensity']:.1f} FLOP per byte; {limits['limit']} is the limit, at "
        f"{limits['attainable_flops_per_s'] / 1e9:.0f} GFLOP/s: {limits['share']:.0%} of it is achieved"
    )
