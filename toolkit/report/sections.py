"""The page's sections below the models' table, most of them folded."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ...deploy.engine.layers import SummaryEntry
from ..analysis.host_answers import near_tie
from ..analysis.model_schema import Model
from ..analysis.report_schema import Report
from ..analysis.wording import (
    host_lines,
    megabytes,
    milliseconds,
    model_names,
    percent,
    percentile_text,
    scenario_lines,
    share,
)
from . import charts
from .answers import confusion, per_class
from .elements import cell, folded, notes, paragraph, table


def details(report: Report) -> Iterator[Element]:
    """Folded explanations of the table; empty parts are omitted."""
    names = model_names(report)
    for title, parts in (
        ("Percentiles, top-5, memory and parity", _figures(report)),
        ("Latency of each block of calls", [charts.blocks(report)]),
        ("From the file to the answer", _steps(report)),
        ("Confusion", confusion(report)),
        ("Accuracy by class", per_class(report)),
        *((f"{names[model['id']]}: {len(engine['layers'])} layers", _layers(engine))
          for model in report["models"] if (engine := model.get("engine"))),
        ("Lineage", _lineage(report)),
        ("Machine", _environment(report)),
        ("Machine before and after", _state(report)),
    ):  # fmt: skip
        if content := list(parts):
            yield folded(title, content)


def _figures(report: Report) -> Iterator[Element]:
    names, rows = model_names(report), []
    for model in report["models"]:
        rows.append(
            [
                names[model["id"]],
                *(_percentile(model, key) for key in ("p50", "p90", "p95", "p99")),
                percent(model["top5"]),
                "-" if model["calibration_error"] is None else share(model["calibration_error"]),
                "-" if model["flips"] is None else str(model["flips"]),
                megabytes(model["peak_rss_bytes"]),
                _parity(model),
            ]
        )
    header = "model|p50|p90|p95|p99|top-5|calibration error|flips|peak memory|parity"
    yield table(header.split("|"), rows)
    text = (
        "(≤ …) bounds the true percentile at 99 % confidence; a dash means too few samples for a figure. "
        "Flips are images whose answer differs from the source's. Parity is the largest difference between the golden "
        "samples' logits."
    )
    grouped = dict.fromkeys(
        f"{model['calls_per_sample']}" for model in report["models"] if model["calls_per_sample"] > 1
    )
    if grouped:
        sizes = " and ".join(grouped)
        text += f" Calls under a millisecond are timed in groups of {sizes}: percentiles are of the averages."
    yield paragraph(text, "note")


def _percentile(model: Model, name: str) -> Element:
    value, bracket, bound = percentile_text(model, name).partition(" (")
    return cell(value, f"({bound}" if bracket else "")


def _parity(model: Model) -> str:
    """The largest logit difference on the golden samples, and the first stage that differs."""
    difference, first = model["parity"]["logits_max_abs"], model["first_difference"]
    text = "not a number" if difference is None else f"{difference:.2g}"
    return text if first in ("none", "logits") else f"{text} ({first} differs)"


def _steps(report: Report) -> Iterator[Element]:
    """Times of each step from file to answer, and the outliers among the timed calls."""
    names, rows = model_names(report), []
    for model in report["models"]:
        outliers = model["outliers"]
        rounds = outliers["rounds"]
        rounds_text = f"in {len(rounds)} of {model['blocks'][-1]['round'] + 1} rounds" if rounds else "none"
        steps = ("file_ms", "load_ms", "first_ms", "warm_up_ms", "preprocess_ms")
        rows.append(
            [
                names[model["id"]],
                *(milliseconds(model[step]) for step in steps),
                milliseconds(model["latency_ms"]["p50"]),
                milliseconds(model["postprocess_ms"]),
                f"{model['samples']} of {model['calls_per_sample']}",
                f"{outliers['count']} ({share(outliers['share'])}) {rounds_text}" if outliers["count"] else rounds_text,
            ]
        )
    header = "model|file|load|first call|warm-up|preprocess|inference|postprocess|samples of calls|outliers"
    yield table(header.split("|"), rows)


def _layers(engine: SummaryEntry) -> list[Element]:
    rows = [[layer["name"], layer["type"], layer["precision"]] for layer in engine["layers"]]
    return [table(["layer", "type", "precision"], rows)]


def scenarios(report: Report) -> Iterator[Element]:
    """Throughput by batch size, missed deadlines, and the long run."""
    names = model_names(report)
    yield from notes(scenario_lines(report))
    offline = [(names[model["id"]], scenario["sizes"]) for model in report["models"] if (scenario := model["offline"])]
    if offline:
        batches = sorted({size["batch"] for _, sizes in offline for size in sizes})
        rows = []
        for name, sizes in offline:
            rates = {
                size["batch"]: f"{size['images_per_s']:.0f} [{size['low']:.0f}, {size['high']:.0f}]" for size in sizes
            }
            rows.append([name, *(rates.get(batch, "-") for batch in batches)])
        yield table(["images/s at batch size", *map(str, batches)], rows)
    if any(model["sustained"] for model in report["models"]):
        yield charts.sustained(report)
    rows = [
        [names[model["id"]], str(minute["minute"]),
         *(str(minute.get(key, 0)) for key in ("offered", "missed", "dropped")), milliseconds(minute["p50_ms"])]
        for model in report["models"] if (run := model["sustained"]) and run.get("rate")
        for minute in run["minutes"]
    ]  # fmt: skip
    if rows:
        yield table(["model", "minute", "images offered", "missed their deadline", "dropped", "file to answer"], rows)


def against_host(report: Report) -> Iterator[Element]:
    """Whether device and host give the same answers, and the images with different ones."""
    names = model_names(report)
    yield from notes(host_lines(report))
    rows = [
        [names[model["id"]], answer["id"], answer["truth"] or "?", answer["host"], answer["device"],
         f"{answer['gap']:.3g}", "near tie" if near_tie(answer, host) else "not explained by the kernels"]
        for model in report["models"] if (host := model["host"])
        for answer in host["differ"][:50]
    ]  # fmt: skip
    if rows:
        yield table(["model", "image", "true", "host", "device", "logits apart", "why"], rows)


def _lineage(report: Report) -> Iterator[Element]:
    names, rows = model_names(report), []
    for model in report["models"]:
        steps = [f"{step['format']} {step['precision']} {step['id']}" for step in model["lineage"]]
        rows.append([names[model["id"]], " → ".join([*steps, model["id"]]), model["bundle"]])
    yield table(["model", "made from", "bundle"], rows)


def _environment(report: Report) -> Iterator[Element]:
    facts = {**report["device"], **{f"plan {key}": value for key, value in report["plan"].items()}}
    versions = {f"{name} version": value for name, value in facts.pop("versions", {}).items()}
    shown = {key: value for key, value in (facts | versions).items() if key not in ("before", "after")}
    yield table(["fact", "value"], [[key, _plain(value)] for key, value in shown.items()])


def _state(report: Report) -> Iterator[Element]:
    """The machine's state before and after, with changes marked."""
    before, after = (report["device"].get(key, {}) for key in ("before", "after"))
    rows = []
    for key in before:
        changed = before[key] != after.get(key)
        rows.append([key, _plain(before[key]), _plain(after.get(key)), "changed" if changed else ""])
    if rows:
        yield table(["state", "before", "after", ""], rows)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
