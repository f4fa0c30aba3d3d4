"""Reading reports and comparing them offline, as a gate against regressions."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...deploy.documents import DocumentError, parse
from ...deploy.errors import EdgeKitError
from ...deploy.measuring.result import Result
from .contract import Contract, Drop, Judgement, compare_accuracy, overall, reason, speed_outcome
from .document import make_report
from .join import join_reports
from .migrate import migrate_report
from .model_schema import Against, DropEntry, Model, Named, identity_of
from .noise import Signal
from .report_schema import SCHEMA, Comparison, ComparisonRow, JoinedReport, Report
from .schema import check_bounds, check_joined, check_report
from .statistics import (
    Interval,
    exponential,
    process_speedups,
    process_times,
    unpaired_difference,
    welch_difference,
)
from .verdict import as_entry, as_json, block_times, mark_undecided, note_noise, one_thread_ratio, ratio
from .wording import model_name, speedup_text

# Enough for a result of 100,000 images and ten models.
_MAX_BYTES = 512 << 20

# Device entries that must agree before latencies are compared.
_HARDWARE = ("machine", "cpu", "cores_allowed")


def read_document(path: Path, contract: Contract | None = None) -> Report | JoinedReport:
    """Read a report as `read_report` does, or the report.json of several devices.

    Raises:
        EdgeKitError: the file does not exist or is not a report.
    """
    document = _read_json(path)
    if "devices" not in document:
        return read_report(path, contract)
    with _strict(path):
        if document["schema"] in range(SCHEMA):
            reports = [cast("Report", migrate_report(report)) for report in document["devices"]]
            document = dict(join_reports(reports, document["failed"]))
        _check_schema(document, path)
        return check_joined(document)


def read_report(path: Path, contract: Contract | None = None) -> Report:
    """Read a report.json, or make a report from a result.json, which a board writes.

    Args:
        contract: the contract to judge a result.json by; None for the one that it contains.

    Raises:
        EdgeKitError: the file does not exist or is neither of the two.
    """
    report = _read_json(path)
    if "devices" in report:
        raise EdgeKitError(f"{path} covers several devices", fix="pass the report of a single device")
    with _strict(path):
        if "result" in report:
            result = Result.from_json(report, path)
            report = dict(make_report(result if contract is None else replace(result, contract=asdict(contract))))
        elif contract is not None:
            raise EdgeKitError(
                f"{path} already contains a verdict",
                fix="leave out the limits; they apply to a result.json or to two reports",
            )
        else:
            check_bounds(report)
        report = migrate_report(report)
        _check_schema(report, path)
        return {**check_report(report), "source": str(path)}


def _read_json(path: Path) -> dict[str, Any]:
    fix = "pass a report.json of edgekit validate"
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        if isinstance(error, IsADirectoryError) and (path / "report.json").is_file():
            fix = f"pass the file in it: {path / 'report.json'}"
        raise EdgeKitError(f"cannot read {path}: {error.strerror}", fix=fix) from error
    document = parse(content, path, "an EdgeKit report", limit=_MAX_BYTES)
    if not isinstance(document, dict):
        raise EdgeKitError(f"{path} is not an EdgeKit report: it is not an object", fix=fix)
    return document


@contextlib.contextmanager
def _strict(path: Path) -> Iterator[None]:
    """Turn errors caused by an untrusted document into a one-line error.

    Such errors occur because earlier schemas are migrated before they are checked.
    """
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, DocumentError) else repr(error)[:200]
        raise EdgeKitError(
            f"{path} is not an EdgeKit report: {reason}", fix="pass a report.json of edgekit validate"
        ) from error


def _check_schema(document: Mapping[str, Any], path: Path) -> None:
    if document["schema"] != SCHEMA:
        schema = str(document["schema"])[:80]
        raise EdgeKitError(f"{path} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="validate again, or upgrade")


def check_hardware(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    """Raise EdgeKitError if two reports come from different kinds of machine."""
    different = {key: (first.get(key), second.get(key)) for key in _HARDWARE if first.get(key) != second.get(key)}
    if different:
        values = ", ".join(f"{key} {before!r} and {after!r}" for key, (before, after) in different.items())
        raise EdgeKitError(
            f"the reports come from different machines: {values}",
            fix="pass --across-hardware to compare them anyway, or --join to show them side by side",
        )


def counterpart(report: Report, model: Named) -> Model:
    """Find a model's counterpart in another report, with the same runtime and options.

    This is the same bundle if possible, else one with the same name, format and precision.

    Raises:
        EdgeKitError: the report has no counterpart.
    """
    kind = model["name"], model["format"], model["precision"]
    for candidate in report["models"]:
        if candidate["id"] == model["id"]:
            return candidate
    for candidate in report["models"]:
        if (candidate["name"], candidate["format"], candidate["precision"]) == kind and _choice(candidate) == _choice(
            model
        ):
            return candidate
    known = ", ".join(model_name(candidate) for candidate in report["models"])
    raise EdgeKitError(
        f"{source_of(report)} has no {model['name']} {model['format']} {model['precision']} to compare with",
        fix=f"it has {known}; pass the report of the same model",
    )


def _choice(model: Named) -> str:
    """The runtime and options in a model's id; "" for the default."""
    return model["id"].partition("@")[2]


def source_of(report: Report) -> str:
    """The file that a report was read from."""
    return report.get("source", "the report")


def judge_against(
    stored: Report, report: Report, candidates: Sequence[str], contract: Contract,
    *, across_hardware: bool = False,
) -> Report:  # fmt: skip
    """Judge a report's candidates against an earlier report's models instead of its own baseline.

    Returns:
        The report with those judgements and their verdict; each candidate's "against" has the figures.

    Raises:
        EdgeKitError: the machines differ, or the earlier report lacks a candidate.
    """
    if not across_hardware:
        check_hardware(stored["device"], report["device"])
    noise = [Signal(entry["name"], entry["detail"]) for entry in (*stored["noise"], *report["noise"])]
    models: list[Model] = []
    judgements: list[Judgement] = []
    source = source_of(stored)
    for model in report["models"]:
        if model["id"] in candidates:
            earlier = counterpart(stored, model)
            interval, how = _speedup(stored, earlier, report, model, contract.confidence)
            speedup, doubtful = ratio(interval), _contradicted(stored, earlier, report, model)
            drop, paired = _drop(stored, earlier, report, model, contract.confidence)
            judged = contract.judge(drop, interval, source)
            if doubtful:
                judged = mark_undecided(judged, f"{speedup_text(speedup)} as fast as {source}")
            judged = [note_noise(judgement, noise) for judgement in judged]
            judgements += judged
            against: Against = {
                "report": source, "model": earlier["id"], "speedup": speedup, "how": how,
                "time_ms": earlier["time_ms"]["value"],
                "outcome": "inconclusive" if doubtful else speed_outcome(interval),
                "drop": drop and _points(drop), "paired": paired,
            }  # fmt: skip
            models.append({**model, "against": against, "judgements": [as_json(judgement) for judgement in judged]})
        else:
            models.append(model)
    verdict = overall(judgements)
    return {
        **report, "models": models, "verdict": verdict.outcome, "reason": f"against {source}: {reason(judgements)}",
        "contract": as_entry(contract), "exit_code": verdict.exit_code,
    }  # fmt: skip


def compare_reports(reports: Sequence[Report], contract: Contract, *, across_hardware: bool = False) -> Comparison:
    """Compare the last report's candidates with each earlier report; the first one decides the verdict.

    Raises:
        EdgeKitError: see `judge_against`.
    """
    *earlier_reports, last = reports
    candidates = [model["id"] for model in last["models"] if "judgements" in model]
    candidates = candidates or [model["id"] for model in last["models"]]
    comparisons = [
        judge_against(stored, last, candidates, contract, across_hardware=across_hardware) for stored in earlier_reports
    ]
    rows = [row for report in comparisons for row in _rows(report)]
    first = comparisons[0]
    return {
        "schema": SCHEMA, "verdict": first["verdict"], "reason": first["reason"], "exit_code": first["exit_code"],
        "report": source_of(last), "headline": last["headline"],
        "noise": [*(signal for report in reports for signal in report["noise"])], "rows": rows,
    }  # fmt: skip


def _rows(report: Report) -> Iterator[ComparisonRow]:
    """The rows of a comparison, one per candidate."""
    for model in report["models"]:
        if "against" in model and "judgements" in model:
            yield {
                **identity_of(model), "top1": model["top1"], "time_ms": model["time_ms"], "outcome": model["outcome"],
                "against": model["against"], "judgements": model["judgements"],
            }  # fmt: skip


def _speedup(
    stored: Report, earlier: Model, report: Report, current: Model, confidence: float,
) -> tuple[Interval, str]:  # fmt: skip
    """A model's speed-up over its earlier self, and the method of comparison.

    If both runs measured the same baseline, their speed-ups are compared, which cancels the machine's state on each
    day. Otherwise the times themselves are compared.
    """
    if (bases := _shared_baseline(stored, earlier, report, current)) is not None:
        first = process_speedups(block_times(bases[0]), block_times(earlier))
        second = process_speedups(block_times(bases[1]), block_times(current))
        ratios = (math.exp(float(np.mean(values))) for values in (second, first))
        how = "through the same baseline in both runs ({:.2f}x its speed, {:.2f}x before)".format(*ratios)
    else:
        first, second = ([-value for value in process_times(block_times(model))] for model in (earlier, current))
        how = "by the times of two runs, which include the machine's state on each day"
    before, after = (entry["device"].get("threads") for entry in (stored, report))
    if before and after and before != after:
        how += f", with {before} and {after} threads"
    return exponential(welch_difference(second, first, confidence)), how


def _shared_baseline(stored: Report, earlier: Model, report: Report, current: Model) -> tuple[Model, Model] | None:
    """The common baseline as each run measured it; None if the runs share none."""
    earlier_base, current_base = stored["models"][0], report["models"][0]
    shared = (
        earlier_base["id"] == current_base["id"] and earlier is not earlier_base and current["id"] != current_base["id"]
    )
    return (earlier_base, current_base) if shared else None


def _contradicted(stored: Report, earlier: Model, report: Report, current: Model) -> bool:
    """Whether a ratio behind the comparison contradicts the ratio with one thread (see verdict.one_thread_ratio)."""
    bases = _shared_baseline(stored, earlier, report, current)
    pairs = [(earlier, current)] if bases is None else [(bases[0], earlier), (bases[1], current)]
    return any(one_thread_ratio(*pair) is not None for pair in pairs)


def _drop(
    stored: Report, earlier: Model, report: Report, current: Model,
    confidence: float,
) -> tuple[Drop | None, bool]:  # fmt: skip
    """The loss of accuracy since the earlier report, and whether both models answered the same images."""
    if (
        earlier["predictions"] is None
        or current["predictions"] is None
        or earlier["top1"] is None
        or current["top1"] is None
    ):
        return None, False
    if (stored["ids"], stored["targets"], stored["labels"]) == (report["ids"], report["targets"], report["labels"]):
        answers = [np.asarray(values) for values in (report["targets"], earlier["predictions"], current["predictions"])]
        return compare_accuracy(*answers, confidence=confidence), True
    counts = len(earlier["predictions"]), len(current["predictions"])
    earlier_right, current_right = round(earlier["top1"] * counts[0]), round(current["top1"] * counts[1])
    points = unpaired_difference(earlier_right, counts[0], current_right, counts[1], confidence)
    # counted as if both had answered each image independently: the variance is the same
    count, before, after = min(counts), earlier["top1"], current["top1"]
    lost, gained = round(count * before * (1 - after)), round(count * (1 - before) * after)
    scaled = Interval(100 * points.value, 100 * points.low, 100 * points.high)
    return Drop(scaled, lost, gained, 0, count, float("nan")), False


def _points(drop: Drop) -> DropEntry:
    return {"points": drop.points.value, "low": drop.points.low, "high": drop.points.high}
