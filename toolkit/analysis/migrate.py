"""Migration of earlier schemas' reports to the current schema, so that they stay readable."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from ...deploy.documents import read
from .contract import Contract
from .model_schema import MeasuredModel
from .report_schema import MeasuredReport
from .statistics import PERCENTILE_SAMPLES, BlockTime, typical_time
from .verdict import judge_report

# Untyped, because each step reads the structure of its own schema.
OldReport = dict[str, Any]


def migrate_report(report: Mapping[str, Any]) -> OldReport:
    """Migrate a report of schema 1, 2 or 3 to schema 4; return any other unchanged.

    Values that were not measured are null or empty. Speed and verdict follow today's rules.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the report does not match its schema number.
    """
    current = dict(report)
    while (step := _STEPS.get(current["schema"])) is not None:
        current = step(current)
    return current


def _from_1(report: OldReport) -> OldReport:
    """Add the entries of schema 2: blocks with their times, upper bounds, outliers, noise, scenarios."""
    confidence = report["contract"]["confidence"]
    return {
        **report,
        "schema": 2,
        "noise": [],
        "models": [_model_from_1(model, confidence) for model in report["models"]],
    }


def _model_from_1(model: Mapping[str, Any], confidence: float) -> OldReport:
    # schema 1 has no mean of a block's calls; their median stands in for it
    blocks = [
        {"round": block["round"], "process": block["process"], "at": 0.0, "ms": block["p50"], "ns": []}
        for block in model["blocks_ms"]
    ]
    time = typical_time([BlockTime(block["round"], block["process"], block["ms"]) for block in blocks], confidence)
    unknown = ("file_ms", "warm_up_ms", "postprocess_ms", "calibration_error", "flips_by_class", "offline", "frames",
               "sustained")  # fmt: skip
    unchanged = {key: value for key, value in model.items() if key not in ("blocks_ms", "calls")}
    percentiles = {f"p{percent}": model["latency_ms"].get(f"p{percent}") for percent in PERCENTILE_SAMPLES}
    return {
        **dict.fromkeys(unknown),
        **unchanged,
        "latency_ms": percentiles,
        "latency_upper_ms": dict.fromkeys(percentiles),
        "time_ms": {"value": time.value, "low": time.low, "high": time.high},
        "samples": model["calls"],
        "calls_per_sample": 1,
        "outliers": {"count": 0, "share": 0.0, "rounds": []},
        "blocks": blocks,
    }


def _from_2(report: OldReport) -> OldReport:
    """Add the entries of schema 3: the device's name, the decoder's agreement, the host's answers."""
    models = [
        {
            **model,
            "parity": {"checksums_agreement": None, **model["parity"]},
            "first_difference": "none",
            "host": None,
        }
        for model in report["models"]
    ]
    return {**report, "schema": 3, "exit_code": 0, "device": {"name": "local", **report["device"]}, "models": models}


def _from_3(report: OldReport) -> OldReport:
    """Judge by the rules of schema 4: speed against the fastest unoptimised model instead of the source."""
    candidates = [model["id"] for model in report["models"] if "judgements" in model]
    # the headline replaces this warning of schema 3
    models = [
        {
            **model,
            "warnings": [
                warning for warning in model["warnings"] if not warning.startswith("slower than the baseline here")
            ],
        }
        for model in report["models"]
    ]
    contract = read(Contract, report["contract"], "contract")
    current = cast("MeasuredReport", {**report, "schema": 4})
    judged = judge_report(current, cast("list[MeasuredModel]", models), candidates, contract)
    return dict(judged)


_STEPS: dict[int, Callable[[OldReport], OldReport]] = {1: _from_1, 2: _from_2, 3: _from_3}
