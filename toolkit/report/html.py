"""A report as one self-contained HTML page: no script, no font, no request; light and dark, phone and desk.

Built with ElementTree, which escapes every label and file name by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from ...deploy.images import ImageSet
from ...deploy.visible import visible
from ..analysis.host_answers import near_tie
from ..analysis.wording import (
    DEVICE_COLUMNS,
    against_lines,
    agreement_lines,
    device_rows,
    drop_cell,
    engine_lines,
    headline_of,
    host_lines,
    mean_text,
    megabytes,
    milliseconds,
    model_names,
    noise_details,
    noise_summary,
    noisy_devices,
    percent,
    percentile_text,
    ratio_lines,
    recommendation_lines,
    scenario_lines,
    share,
    speedup_cell,
    speedups,
    subject,
    thread_lines,
    warning_lines,
)
from . import charts
from .answers import confusion, gallery, per_class
from .elements import paragraph, scrolling, table

Report = Any  # see analysis.report_schema


def render(report: Report, images: ImageSet | None) -> str:
    """The page of a report, or of several devices' reports joined.

    Args:
        images: the test images, for the gallery of those on which the models disagree; None leaves it out.
    """
    page = Element("html", lang="en")
    head = SubElement(page, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    SubElement(head, "title").text = visible(f"EdgeKit: {headline_of(report)}")
    SubElement(head, "style").text = (Path(__file__).parent / "report.css").read_text()
    body = SubElement(page, "body")
    main = SubElement(body, "main")
    if "devices" in report:
        main.extend(_joined(report, images))
    else:
        main.extend(_verdict(report))
        main.extend(_sections(report, images))
    _show_controls(body)
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html")


def _show_controls(body: Element) -> None:
    """Show characters of labels and names that act instead of being shown, wherever they are in the page."""
    for element in body.iter():
        element.text, element.tail = visible(element.text or ""), visible(element.tail or "")
        for name, value in element.items():
            element.set(name, visible(value))


def _sections(report: Report, images: ImageSet | None) -> Iterator[Element]:
    """All that is known of one device's models, under headings; what there is nothing of is left out."""
    for title, parts in (
        ("Models", _models(report)),
        ("Latency", [scrolling(charts.latency(report))]),
        (
            "Accuracy against latency",
            [scrolling(charts.plane(report))] if report["models"][0]["top1"] is not None else [],
        ),
        ("Scenarios", _scenarios(report)),
        ("Device against host", _against_host(report)),
        ("Images on which the models disagree", gallery(report, images)),
        ("Confusion", confusion(report)),
        ("Accuracy by class", per_class(report)),
        ("Where the time goes", _parts(report)),
        ("Lineage", _lineage(report)),
        ("Machine", _environment(report)),
        ("Machine before and after", _state(report)),
    ):
        content = list(parts)
        if content:
            section = Element("section")
            SubElement(section, "h2").text = title
            section.extend(content)
            yield section


def _joined(document: Report, images: ImageSet | None) -> Iterator[Element]:
    """The devices side by side, then each one's own report, to be unfolded."""
    yield paragraph(headline_of(document), "headline")
    heading = Element("h1", {"class": document["verdict"]})
    heading.text = document["verdict"]
    yield heading
    yield paragraph(document["reason"], "reason")
    yield table(DEVICE_COLUMNS, device_rows(document))
    for line in (*agreement_lines(document), *recommendation_lines(document)):
        yield paragraph(line)
    for line in noisy_devices(document):
        yield paragraph(line, "warning")
    for report in document["devices"]:
        folded = Element("details")
        SubElement(folded, "summary").text = f"{report['device']['name']}: {report['verdict']}"
        folded.extend(part for part in _verdict(report) if part.tag != "h1")
        folded.extend(_sections(report, images))
        yield folded


def _verdict(report: Report) -> list[Element]:
    heading = Element("h1", {"class": report["verdict"]})
    heading.text = report["verdict"]
    what = Element("p", {"class": "subject"})
    what.text = subject(report)
    reason = Element("p", {"class": "reason"})
    reason.text = report["reason"]
    advice = [paragraph(line) for line in recommendation_lines(report)]
    return [paragraph(report["headline"], "headline"), heading, reason, *advice, what, *_noise(report)]


def _noise(report: Report) -> Iterator[Element]:
    """One sentence on a noisy run; what was seen, folded below it."""
    for line in noise_summary(report):
        folded = Element("details", {"class": "noise"})
        SubElement(folded, "summary").text = line
        folded.extend(paragraph(detail) for detail in noise_details(report))
        yield folded


def _models(report: Report) -> Iterator[Element]:
    names = model_names(report)
    rows = []
    for model in report["models"]:
        rows.append(
            [
                names[model["id"]],
                speedup_cell(model),
                mean_text(model),
                drop_cell(model, report),
                _with_interval(model["top1"], model["top1_interval"]),
                megabytes(model["size_bytes"]),
                *(percentile_text(model, key) for key in ("p50", "p90", "p95", "p99")),
                percent(model["top5"]),
                "-" if model["calibration_error"] is None else share(model["calibration_error"]),
                "-" if model["flips"] is None else str(model["flips"]),
                megabytes(model["peak_rss_bytes"]),
                _parity(model),
            ]
        )
    header = "model|speed-up|mean latency|drop, points|top-1|size|p50|p90|p95|p99|top-5|calibration error|flips"
    yield table([*header.split("|"), "peak memory", "parity"], rows)
    yield paragraph(_figures(report), "note")
    for text in (
        *thread_lines(report),
        *ratio_lines(report),
        *speedups(report),
        *against_lines(report),
        *engine_lines(report),
    ):
        yield paragraph(text)
    for model in report["models"]:
        if model.get("engine"):
            yield _layers(names[model["id"]], model["engine"]["layers"])
    for line in warning_lines(report):
        yield paragraph(line, "warning")


def _layers(name: str, layers: Sequence[Mapping[str, str]]) -> Element:
    """An engine's layers, folded away."""
    folded = Element("details")
    SubElement(folded, "summary").text = f"{name}: its {len(layers)} layers"
    rows = [[layer["name"], layer["type"], layer["precision"]] for layer in layers]
    folded.append(table(["layer", "type", "precision"], rows))
    return folded


def _figures(report: Report) -> str:
    """What the table's figures are."""
    grouped = [f"{model['calls_per_sample']}" for model in report["models"] if model["calls_per_sample"] > 1]
    text = (
        "Latency is inference alone, batch 1, the copies in and out included. A speed-up is a ratio of mean latencies, "
        "round by round, over the fastest model that is neither quantized nor built. (≤ …) bounds the true percentile "
        "at 99 % confidence; a dash stands where too few samples support a figure."
    )
    if grouped:
        text += (
            f" Calls under a millisecond are timed {' and '.join(dict.fromkeys(grouped))} together: percentiles are of "
            "those averages."
        )
    return text


def _parts(report: Report) -> Iterator[Element]:
    """Each step from the file on the disk to the answer, timed apart; and the outliers among the timed calls."""
    names, rows = model_names(report), []
    for model in report["models"]:
        beyond = model["outliers"]
        rounds = beyond["rounds"]
        where = f"in {len(rounds)} of {model['blocks'][-1]['round'] + 1} rounds" if rounds else "none"
        steps = ("file_ms", "load_ms", "first_ms", "warm_up_ms", "preprocess_ms")
        rows.append(
            [
                names[model["id"]],
                *(milliseconds(model[step]) for step in steps),
                milliseconds(model["latency_ms"]["p50"]),
                milliseconds(model["postprocess_ms"]),
                f"{model['samples']} of {model['calls_per_sample']}",
                f"{beyond['count']} ({share(beyond['share'])}) {where}" if beyond["count"] else where,
            ]
        )
    header = "model|file|load|first call|warm-up|preprocess|inference|postprocess|samples of calls|outliers"
    yield table(header.split("|"), rows)


def _scenarios(report: Report) -> Iterator[Element]:
    """Throughput by batch size, deadlines, the long run."""
    names = model_names(report)
    for line in scenario_lines(report):
        yield paragraph(line)
    offline = [model for model in report["models"] if model["offline"]]
    if offline:
        batches = sorted({size["batch"] for model in offline for size in model["offline"]["sizes"]})
        rows = []
        for model in offline:
            of = {size["batch"]: size for size in model["offline"]["sizes"]}
            cells = [
                f"{of[batch]['images_per_s']:.0f} [{of[batch]['low']:.0f}, {of[batch]['high']:.0f}]"
                if batch in of
                else "-"
                for batch in batches
            ]
            rows.append([names[model["id"]], *cells])
        yield table(["images/s at batch size", *map(str, batches)], rows)
    if any(model["sustained"] for model in report["models"]):
        yield scrolling(charts.sustained(report))
    held = [model for model in report["models"] if model["sustained"] and model["sustained"].get("rate")]
    if held:
        rows = [
            [names[model["id"]], str(one["minute"]), str(one["offered"]), str(one["missed"]), str(one["dropped"]),
             milliseconds(one["p50_ms"])]
            for model in held
            for one in model["sustained"]["minutes"]
        ]  # fmt: skip
        yield table(["model", "minute", "images offered", "missed their deadline", "dropped", "file to answer"], rows)


def _with_interval(share: float | None, interval: Sequence[float] | None) -> str:
    return percent(share) + (f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "")


def _parity(model: Mapping[str, Any]) -> str:
    """By how much the logits of the golden samples differ from the source's, and what is the first to differ."""
    difference, first = model["parity"]["logits_max_abs"], model["first_difference"]
    text = "not a number" if difference is None else f"{difference:.2g}"
    return text if first in ("none", "logits") else f"{text} ({first} differs)"


def _against_host(report: Report) -> Iterator[Element]:
    """Whether the device answers each image as the host does, and the images where it does not."""
    names = model_names(report)
    for line in host_lines(report):
        yield paragraph(line)
    rows = [
        [names[model["id"]], one["id"], one["truth"] or "?", one["host"], one["device"], f"{one['gap']:.3g}",
         "near tie" if near_tie(one, model["host"]) else "not explained by the kernels"]
        for model in report["models"]
        for one in (model["host"] or {"differ": []})["differ"][:50]
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
    """What the machine was like before and after, changes marked."""
    before, after = (report["device"].get(key, {}) for key in ("before", "after"))
    rows = []
    for key in before:
        changed = before[key] != after.get(key)
        rows.append([key, _plain(before[key]), _plain(after.get(key)), "changed" if changed else ""])
    if rows:
        yield table(["state", "before", "after", ""], rows)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
