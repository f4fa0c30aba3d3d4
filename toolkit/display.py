"""Figures as people read them, the same in the terminal and on the page."""

from collections.abc import Mapping
from typing import Any


def subject(report: Mapping[str, Any]) -> str:
    """What was measured where, for a title; the models' name only where they share one."""
    names = {model["name"] for model in report["models"]}
    shared = [names.pop()] if len(names) == 1 else []
    return ", ".join([*shared, str(report["device"]["cpu"]), f"{report['images']} test images"])


def model_names(report: Mapping[str, Any]) -> dict[str, str]:
    """id -> how a model is called beside the others: without the name that they share."""
    models = report["models"]
    shared = len({model["name"] for model in models}) == 1
    return {model["id"]: f"{model['precision']} {_runtime(model)}" if shared else model_name(model) for model in models}


def model_name(model: Mapping[str, Any]) -> str:
    """Name, format and precision."""
    return f"{model['name']} {model['precision']} ({_runtime(model)})"


def _runtime(model: Mapping[str, Any]) -> str:
    """What ran it."""
    return model["session"].get("runtime", model["format"])


def megabytes(size: int | None) -> str:
    """Bytes as MB (10^6)."""
    return "-" if size is None else f"{size / 1e6:.2f} MB"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "-" if share is None else f"{100 * share:.2f} %"


def drop_text(drop: Mapping[str, float] | None) -> str:
    """Percentage points lost, with the interval."""
    return "-" if drop is None else f"{drop['points']:+.2f} [{drop['low']:+.2f}, {drop['high']:+.2f}]"


def speedup_text(speedup: Mapping[str, float] | None) -> str:
    """A ratio with the interval."""
    return "-" if speedup is None else f"{speedup['ratio']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def milliseconds(value: float | None) -> str:
    """Milliseconds, three significant digits."""
    return "-" if value is None else f"{value:.3g} ms"


def latency_text(latency: Mapping[str, float | None]) -> str:
    """The median of the calls."""
    return milliseconds(latency["p50"])


def speedups(report: Mapping[str, Any]) -> list[str]:
    """How much faster each candidate is than every model that it is not headed against: the steps between."""
    names = model_names(report)
    lines = []
    for model in report["models"]:
        for other, ratio in model.get("speedup_over", {}).items():
            if "judgements" in model and other != report["baseline"]:
                lines.append(f"{names[model['id']]} against {names[other]}: {speedup_text(ratio)}")
    return lines
