"""Reports read again and compared offline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..deploy.errors import EdgeKitError
from .display import model_name
from .validate import SCHEMA

# What showing and comparing a report needs of it.
_REPORT_KEYS = ("verdict", "reason", "device", "plan", "baseline", "images", "labels", "targets", "ids", "models")
_MODEL_KEYS = (
    "id", "bundle", "name", "format", "precision", "size_bytes", "top1", "top1_interval", "top5", "per_class", "drop",
    "flips", "latency_ms", "speedup", "preprocess_ms", "load_ms", "first_ms", "peak_rss_bytes", "parity", "session",
    "lineage", "predictions", "blocks_ms", "warnings",
)  # fmt: skip

# What must agree before two latencies may be compared.
_HARDWARE = ("machine", "cpu", "cores_allowed")


def read_report(path: Path) -> dict[str, Any]:
    """A report.json of this schema.

    Raises:
        EdgeKitError: no such file, or not a report of schema 1.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        schema = report["schema"]
        missing = [key for key in _REPORT_KEYS if key not in report]
        missing += [key for model in report.get("models", []) for key in _MODEL_KEYS if key not in model]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeKitError(
            f"{path} is not an EdgeKit report: {error}", fix="pass a report.json of edgekit validate"
        ) from error
    if schema != SCHEMA:
        raise EdgeKitError(f"{path} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="validate again, or upgrade")
    if missing or not report["models"]:
        raise EdgeKitError(
            f"{path} is not whole: it lacks {', '.join(dict.fromkeys(missing)) or 'models'}", fix="validate again"
        )
    return {**report, "source": str(path)}


def compare_reports(reports: Sequence[Mapping[str, Any]], *, across_hardware: bool = False) -> dict[str, Any]:
    """A row for every model of every report, its median latency against the first report that has the same model.

    Raises:
        EdgeKitError: the reports are of different hardware, and `across_hardware` was not said.
    """
    different = sorted(
        key for key in _HARDWARE if len({json.dumps(report["device"].get(key)) for report in reports}) > 1
    )
    if different and not across_hardware:
        values = {key: [report["device"].get(key) for report in reports] for key in different}
        raise EdgeKitError(
            f"the reports are of different machines: {values}", fix="pass --across-hardware if that is what you mean"
        )
    first: dict[str, float] = {}
    rows = []
    for report in reports:
        for model in report["models"]:
            p50 = model["latency_ms"]["p50"]
            known = first.get(model["id"])
            rows.append(
                {
                    "model": model_name(model),
                    "report": report["source"],
                    "top1": model["top1"],
                    "latency_ms": model["latency_ms"],
                    "latency_ratio": p50 / known if known and p50 else None,
                }
            )
            if p50 is not None:
                first.setdefault(model["id"], p50)
    note = "medians of runs apart in time: only a ratio measured in one run has an interval"
    return {"schema": SCHEMA, "rows": rows, "note": note}
