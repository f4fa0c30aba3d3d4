"""The record of a search for float layers, as quantize writes it."""

from dataclasses import replace
from typing import Any

from edgekit.deploy.bundle import Bundle

# float layers, answers changed, drop with its interval, speed-up
_POINTS = (
    (0, 234, (0.24, -0.05, 0.53), 1.66), (2, 205, (0.08, -0.18, 0.35), 1.67), (4, 156, (0.01, -0.22, 0.24), 1.72),
    (7, 114, (0.04, -0.16, 0.24), 1.48), (8, 118, (0.06, -0.15, 0.27), 1.59), (11, 103, (-0.04, -0.23, 0.16), 1.54),
    (14, 86, (-0.02, -0.20, 0.16), 1.53),
)  # fmt: skip


def searched(*, labels: bool = True, timed: bool = True, name: str = "conv") -> dict[str, Any]:
    """The details of a manifest after a search that chose 11 of 20 layers."""
    names = [f"{name} {number}" for number in range(20)]
    points = []
    for count, changed, (value, low, high), speedup in _POINTS:
        drop = {"points": {"value": value, "low": low, "high": high}, "count": 5000}
        problem = None if high <= 0.2 else f"{name}: it is not proved to lose at most 0.2 points"
        points.append({
            "sentence": f"{count} layers float", "layers": names[:count], "changed": changed, "problem": problem,
            "drop": drop if labels else None, "speedup": speedup if timed else None,
        })  # fmt: skip
    noise = [
        {"name": layer, "kind": kind, "noise": 1 / (2 + number)}
        for number, layer in enumerate(names) for kind in ("result", "weights")
    ]  # fmt: skip
    difference = {"images": 8, "answers": 1}
    return {
        "target": "x86",
        "judgement": {"outcome": "pass", "sentence": f"{name}: top-1 drop -0.04 points: within the 0.2 allowed"},
        "contract": {"max_drop": 0.2, "min_speedup": 1.5},
        "remarks": [f"warning: {name}: the ranges still grow", f"{name} is printed"],
        "rewrites": [f"{name} as a sum"],
        "rewrites_refused": {f"{name} as pooling": f"{name} is slower"},
        "float_layers": names[:11],
        "selection": {"points": {"value": -0.04, "low": -0.23, "high": 0.16}, "count": 5000} if labels else None,
        "changed": {"images": 103, "count": 5000},
        "speedup": {"value": 1.54, "low": 1.5, "high": 1.6} if timed else None,
        "calibration": {
            "method": "mse", "expected_changes": {"minmax": 0.02, "mse": 0.01, name: 0.03},
            "advice": {
                "convergence": {"images": 512, "stable_after": 256, "half_width": 0.97},
                "duplicates": {"identical": 0, "alike": 2, "leaked": 0, "leaked_alike": 1},
                "mistake": f"{name}: the inputs are not divided by 255",
            },
        },
        "portability": {
            "images": 8,
            "cpus": {"ARM64": {"from_host": {"images": 0, "answers": 0}, "holds": True},
                     name: {"from_host": difference, "holds": False}},
        },
        "mixed_precision": {"points": points, "chosen": 5, "reason": f"{name}: the fewest that fulfil the contract"},
        "sensitivity": [{"name": name, "kind": "input", "noise": 0.5}, *noise],
    }  # fmt: skip


def with_details(bundle: Bundle, details: dict[str, Any]) -> Bundle:
    """The bundle with these details in its manifest."""
    return Bundle(bundle.path, replace(bundle.manifest, precision="int8", details=details), id="")
