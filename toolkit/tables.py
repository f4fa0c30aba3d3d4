"""Results as tables that people read in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .display import drop_text, latency_text, megabytes, model_names, percent, speedup_text, speedups, subject

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def validation_table(report: Mapping[str, Any]) -> Iterator[Any]:
    """The models side by side, the warnings, and the verdict last, where the eye is."""
    names = model_names(report)
    table = Table(box=SIMPLE_HEAD, title=escape(subject(report)))
    for column in ("model", "size", "top-1", "drop, points", "latency", "speed-up"):
        table.add_column(
            column, justify="left" if column == "model" else "right", no_wrap=column != "model", overflow="fold"
        )
    for model in report["models"]:
        baseline = model["id"] == report["baseline"]
        table.add_row(
            escape(names[model["id"]]),
            megabytes(model["size_bytes"]),
            percent(model["top1"]),
            "baseline" if baseline else _stacked(drop_text(model["drop"])),
            latency_text(model["latency_ms"]),
            "baseline" if baseline else _stacked(speedup_text(model["speedup"])),
        )
    yield table
    for line in speedups(report):
        yield escape(line)
    for model in report["models"]:
        for warning in model["warnings"]:
            yield f"[yellow]warning[/] {escape(names[model['id']])}: {escape(warning)}"
    yield f"[bold {_COLOURS[report['verdict']]}]{report['verdict']}[/]: {escape(report['reason'])}"


def prediction_table(predictions: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """A row an image."""
    table = Table()
    for column in ("image", "true", "predicted"):
        table.add_column(column)
    for one in predictions:
        pairs = zip(one["labels"], one["confidences"], strict=True)
        best = ", ".join(f"{label} {share:.1%}" for label, share in pairs)
        table.add_row(escape(one["id"]), escape(one["truth"] or "-"), escape(best))
    yield table


def facts_table(facts: Mapping[str, Any]) -> Iterator[Any]:
    """Two columns, nested entries indented."""
    table = Table(show_header=False, box=None)
    _add_facts(table, facts, "")
    yield table


def doctor_table(found: Mapping[str, Any]) -> Iterator[Any]:
    """The machine, then the packages."""
    yield from facts_table({**found["machine"], "gpu": found["gpu"] or "none that torch sees"})
    table = Table()
    for column in ("package", "version", "for", "install"):
        table.add_column(column)
    for package in found["packages"]:
        missing = package.version is None
        version = "[yellow]missing[/]" if missing else package.version
        table.add_row(package.name, version, package.purpose, escape(package.install) if missing else "")
    yield table
    yield f"quantize --target {found['target']['name']}: {found['target']['why']}"


def comparison_table(comparison: Mapping[str, Any]) -> Iterator[Any]:
    """A row for each model that stands in more than one report."""
    table = Table(title="compared offline")
    for column in ("model", "report", "top-1", "latency", "against the first"):
        table.add_column(column)
    for row in comparison["rows"]:
        table.add_row(
            escape(row["model"]), escape(row["report"]), percent(row["top1"]), latency_text(row["latency_ms"]),
            "first" if row["latency_ratio"] is None else f"{row['latency_ratio']:.2f}x the time",
        )  # fmt: skip
    yield table
    yield escape(comparison["note"])


def _stacked(text: str) -> str:
    """An estimate over its interval, so that the table fits 80 columns."""
    return escape(text.replace(" [", "\n["))


def _add_facts(table: Table, facts: Mapping[str, Any], indent: str) -> None:
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            table.add_row(f"{indent}[bold]{escape(str(key))}[/]", "")
            _add_facts(table, value, indent + "  ")
            continue
        if isinstance(value, (list, tuple)):
            flat = [" ".join(map(str, entry.values())) if isinstance(entry, Mapping) else str(entry) for entry in value]
            value = ", ".join(flat[:20]) + (f" … ({len(flat)})" if len(flat) > 20 else "")
        table.add_row(f"{indent}{escape(str(key))}", escape(str(value)))
