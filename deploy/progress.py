"""Progress of long work, for callers that want to show it."""

from collections.abc import Callable

# Called with (stage, share): the current stage, and the share of it that is done, from 0 to 1. The stage is "" if the
# work has only one.
Progress = Callable[[str, float], None]


def silent(stage: str, share: float) -> None:
    """Show nothing."""
    del stage, share


def titled(progress: Progress, title: str) -> Progress:
    """The same callback with a title before each stage: "build fp32: parsing"."""
    return lambda stage, share: progress(f"{title}: {stage}" if stage else title, share)
