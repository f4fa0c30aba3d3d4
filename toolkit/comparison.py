"""Reports read again and compared offline: the gate of a change against what was measured before it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.errors import EdgeKitError
from ..deploy.result import Result
from .contract import Contract, Drop, call, compare_accuracy, overall, reason
from .display import model_name
from .joined import join_reports
from .migrate import migrate_report
from .noise import Signal
from .results import SCHEMA, make_report
from .statistics import (
    Interval,
    exponential,
    process_speedups,
    process_times,
    unpaired_difference,
    welch_difference,
)
from .verdict import admit, as_json, block_times, ratio

# What showing and comparing a report needs of it.
_REPORT_KEYS = (
    "headline", "verdict", "reason", "exit_code", "noise", "device", "plan", "baseline", "speed_baseline", "images",
    "labels", "targets", "ids", "models",
)  # fmt: skip
_MODEL_KEYS = (
    "id", "bundle", "name", "format", "precision", "size_bytes", "top1", "top1_interval", "top5", "per_class",
    "calibration_error", "drop", "flips", "flips_by_class", "latency_ms", "latency_upper_ms", "time_ms", "samples",
    "calls_per_sample", "outliers", "speedup", "speed_baseline", "file_ms", "load_ms", "first_ms", "warm_up_ms",
    "preprocess_ms", "postprocess_ms", "peak_rss_bytes", "parity", "session", "lineage", "predictions", "blocks",
    "offline", "frames", "sustained", "warnings", "host", "first_difference",
)  # fmt: skip

_JOINED_KEYS = ("verdict", "reason", "exit_code", "noise", "failed", "devices", "agreement")

# What must agree before two latencies may be compared.
_HARDWARE = ("machine", "cpu", "cores_allowed")


def read_document(path: Path, contract: Contract | None = None) -> dict[str, Any]:
    """What `read_report` reads, or the report.json of several devices.

    Raises:
        EdgeKitError: no such file, or none of them.
    """
    document = _read_json(path)
    if "devices" not in document:
        return read_report(path, contract)
    try:
        if document["schema"] < SCHEMA:
            document = join_reports([migrate_report(report) for report in document["devices"]], document["failed"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeKitError(f"{path} is not an EdgeKit report: {error!r}", fix="validate again") from error
    if document["schema"] != SCHEMA or not document.keys() >= set(_JOINED_KEYS):
        raise EdgeKitError(f"{path} is incomplete or from another EdgeKit version", fix="validate again, or upgrade")
    return document


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {**document}
    except (OSError, ValueError, TypeError) as error:
        raise EdgeKitError(
            f"{path} is not an EdgeKit report: {error}", fix="pass a report.json of edgekit validate"
        ) from error


def read_report(path: Path, contract: Contract | None = None) -> dict[str, Any]:
    """A report.json of this schema; or a result.json, such as a board wrote, of which the report is made here.

    Args:
        contract: what a result's candidates are held to; None is what they were measured for.

    Raises:
        EdgeKitError: no such file, or neither of them.
    """
    report = _read_json(path)
    if "devices" in report:
        raise EdgeKitError(f"{path} is of several devices", fix="pass the report of one of them")
    try:
        if "result" in report:
            result = Result.from_json(report, path)
            report = make_report(result if contract is None else replace(result, contract=asdict(contract)))
        elif contract is not None:
            raise EdgeKitError(
                f"{path} was judged when it was made",
                fix="leave out the limits; a result.json is judged anew, two reports too",
            )
        report = migrate_report(report)
        schema = report["schema"]
        missing = [key for key in _REPORT_KEYS if key not in report]
        missing += [key for model in report.get("models", []) for key in _MODEL_KEYS if key not in model]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeKitError(
            f"{path} is not an EdgeKit report: {error!r}", fix="pass a report.json of edgekit validate"
        ) from error
    if schema != SCHEMA:
        raise EdgeKitError(f"{path} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="validate again, or upgrade")
    if missing or not report["models"]:
        raise EdgeKitError(
            f"{path} is not whole: it lacks {', '.join(dict.fromkeys(missing)) or 'models'}", fix="validate again"
        )
    return {**report, "source": str(path)}


def check_hardware(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise EdgeKitError where two reports' devices are not the same kind of machine."""
    different = {
        key: (first["device"].get(key), second["device"].get(key))
        for key in _HARDWARE
        if first["device"].get(key) != second["device"].get(key)
    }
    if different:
        values = ", ".join(f"{key} {one!r} and {other!r}" for key, (one, other) in different.items())
        raise EdgeKitError(
            f"the reports are of different machines: {values}",
            fix="pass --across-hardware to hold one against the other, or --join to show them side by side",
        )


def counterpart(report: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model of another report that this one follows: the same bundle, else one of that name, format and precision.

    Raises:
        EdgeKitError: there is none.
    """
    for key in (("id",), ("name", "format", "precision")):
        for other in report["models"]:
            if all(other[part] == model[part] for part in key):
                return other
    known = ", ".join(model_name(other) for other in report["models"])
    raise EdgeKitError(
        f"{report['source']} has no {model['name']} {model['format']} {model['precision']} to compare with",
        fix=f"it has {known}; pass the report of the same model",
    )


def hold_against(
    stored: Mapping[str, Any], report: Mapping[str, Any], candidates: Sequence[str], contract: Contract,
    *, across_hardware: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Judge a report's candidates by the models of an earlier one instead of by its own baseline.

    Returns:
        The report with those judgements, what they rest on under each candidate's "against", and their verdict.

    Raises:
        EdgeKitError: the machines differ, or the earlier report lacks a candidate.
    """
    if not across_hardware:
        check_hardware(stored, report)
    noise = [Signal(**signal) for signal in (*stored["noise"], *report["noise"])]
    models, judgements = [], []
    for model in report["models"]:
        if model["id"] in candidates:
            then = counterpart(stored, model)
            speedup, how = _speedup(stored, then, report, model, contract.confidence)
            drop, paired = _drop(stored, then, report, model, contract.confidence)
            own = [admit(one, noise) for one in contract.judge(drop, speedup, stored["source"])]
            judgements += own
            against = {"report": stored["source"], "model": then["id"], "speedup": ratio(speedup), "how": how}
            against |= {"outcome": call(speedup), "drop": drop and _points(drop), "paired": paired}
            model = {**model, "against": against, "judgements": [as_json(one) for one in own]}
        models.append(model)
    verdict = overall(judgements)
    why = f"against {stored['source']}: {reason(judgements)}"
    held = {**report, "models": models, "verdict": verdict.outcome, "reason": why, "contract": asdict(contract)}
    return {**held, "exit_code": verdict.exit_code}


def compare_reports(
    reports: Sequence[Mapping[str, Any]], contract: Contract, *, across_hardware: bool = False
) -> dict[str, Any]:
    """The last report's candidates, held against each report before it, the first of which gives the verdict.

    Raises:
        EdgeKitError: see `hold_against`.
    """
    *earlier, last = reports
    candidates = [model["id"] for model in last["models"] if "judgements" in model]
    candidates = candidates or [model["id"] for model in last["models"]]
    held = [hold_against(stored, last, candidates, contract, across_hardware=across_hardware) for stored in earlier]
    rows = [
        {
            key: model[key]
            for key in ("id", "name", "format", "precision", "session", "top1", "time_ms", "against", "judgements")
        }
        for report in held
        for model in report["models"]
        if "against" in model
    ]
    first = held[0]
    return {
        "schema": SCHEMA, "verdict": first["verdict"], "reason": first["reason"], "exit_code": first["exit_code"],
        "report": last["source"],
        "noise": [*(signal for report in reports for signal in report["noise"])], "rows": rows,
    }  # fmt: skip


def _speedup(
    stored: Mapping[str, Any], then: Mapping[str, Any], report: Mapping[str, Any], now: Mapping[str, Any],
    confidence: float,
) -> tuple[Interval, str]:  # fmt: skip
    """How many times as fast a model is now as it was then, and how that was found.

    Where both runs measured the same baseline beside it, the two speed-ups are compared, so the machine's state, which
    differs from day to day, cancels. Without one the times themselves are.
    """
    base_then, base_now = stored["models"][0], report["models"][0]
    if base_then["id"] == base_now["id"] and then is not base_then and now["id"] != base_now["id"]:
        first = process_speedups(block_times(base_then), block_times(then))
        second = process_speedups(block_times(base_now), block_times(now))
        how = "through the same baseline in both runs"
    else:
        first, second = ([-value for value in process_times(block_times(model))] for model in (then, now))
        how = "by the times of two runs, which the machine's state of the day is part of"
    return exponential(welch_difference(second, first, confidence)), how


def _drop(
    stored: Mapping[str, Any], then: Mapping[str, Any], report: Mapping[str, Any], now: Mapping[str, Any],
    confidence: float,
) -> tuple[Drop | None, bool]:  # fmt: skip
    """The loss of accuracy since then, and whether it was counted on the same images."""
    if then["predictions"] is None or now["predictions"] is None or then["top1"] is None or now["top1"] is None:
        return None, False
    if (stored["ids"], stored["targets"], stored["labels"]) == (report["ids"], report["targets"], report["labels"]):
        answers = [np.asarray(values) for values in (report["targets"], then["predictions"], now["predictions"])]
        return compare_accuracy(*answers, confidence=confidence), True
    counts = len(then["predictions"]), len(now["predictions"])
    right, still = round(then["top1"] * counts[0]), round(now["top1"] * counts[1])
    points = unpaired_difference(right, counts[0], still, counts[1], confidence)
    # judged and extended as if each image had been answered by both, independently: the variance is the same
    count, before, after = min(counts), then["top1"], now["top1"]
    lost, gained = round(count * before * (1 - after)), round(count * (1 - before) * after)
    scaled = Interval(100 * points.value, 100 * points.low, 100 * points.high)
    return Drop(scaled, lost, gained, 0, count, float("nan")), False


def _points(drop: Drop) -> dict[str, float]:
    return {"points": drop.points.value, "low": drop.points.low, "high": drop.points.high}
