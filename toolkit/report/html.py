"""A report as one self-contained HTML page: no script, no font, no request; light, dark, phone and paper.

Built with ElementTree, which escapes every label and file name by itself. It begins with the verdict as a sentence,
one chart and the models' table; the explanations are folded.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from ...deploy.images import ImageSet
from ...deploy.visible import visible
from ..analysis.model_schema import DropEntry, Model, Ratio
from ..analysis.report_schema import Comparison, ComparisonRow, Document, JoinedReport, Noisy, Report
from ..analysis.scenario_schema import Milli
from ..analysis.sentence import verdict_sentence
from ..analysis.wording import (
    LONG,
    against_lines,
    agreement_lines,
    engine_lines,
    headline_of,
    megabytes,
    milliseconds,
    model_name,
    model_names,
    noise_details,
    noise_summary,
    noisy_devices,
    percent,
    ratio_lines,
    recommendation_lines,
    speedups,
    subject,
    thread_lines,
    warning_lines,
)
from . import charts
from .answers import gallery
from .elements import cards, cell, folded, notes, paragraph, section
from .sections import against_host, details, scenarios

# Most speed-ups over other models to list; a longer list is folded.
_FEW = 4


def render(document: Document, images: ImageSet | None) -> str:
    """The page of a report, of joined reports, or of a comparison.

    Args:
        images: the test images, for the gallery of changed answers; None leaves it out.
    """
    if "devices" in document:
        content = _joined(document, images)
    elif "rows" in document:
        content = _compared(document)
    else:
        content = _single(document, images)
    return page(f"EdgeKit: {document['verdict']}: {headline_of(document)}", content)


def page(title: str, content: Iterable[Element]) -> str:
    """A self-contained page with the report's style."""
    root = Element("html", lang="en")
    head = SubElement(root, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    SubElement(head, "title").text = visible(title)
    SubElement(head, "style").text = (Path(__file__).parent / "report.css").read_text()
    body = SubElement(root, "body")
    SubElement(body, "main").extend(content)
    _show_controls(body)
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html")


def _show_controls(body: Element) -> None:
    """Escape control characters in labels and names everywhere in the page."""
    for element in body.iter():
        element.text, element.tail = visible(element.text or ""), visible(element.tail or "")
        for name, value in element.items():
            element.set(name, visible(value))


def _single(report: Report, images: ImageSet | None) -> Iterator[Element]:
    yield _header(report, subject(report))
    yield from _sections(report, images)


def _joined(document: JoinedReport, images: ImageSet | None) -> Iterator[Element]:
    """The devices side by side, then each device's own report, folded."""
    yield _header(document, f"{len(document['devices'])} devices")
    yield from notes(noisy_devices(document), "warning")
    yield section("Latency by device", [charts.device_latencies(document)])
    yield section("Models by device", [_models_table(document["devices"]), *notes(agreement_lines(document))])
    for report in document["devices"]:
        title = f"{report['device']['name']}: {report['verdict']}"
        summary = [paragraph(f"{verdict_sentence(report)}."), paragraph(report["reason"], "reason"), *_noise(report)]
        yield folded(title, [*summary, *_sections(report, images)], kind="")


def _compared(document: Comparison) -> Iterator[Element]:
    """The last report's models next to those of each earlier report."""
    yield _header(document, f"{document['report']} compared with earlier reports")
    yield section("Speed compared with the earlier reports", [charts.changes(document)])
    rows = []
    for row in document["rows"]:
        against = row["against"]
        change = against["speedup"]
        rows.append(
            [
                cell(model_name(row), against["report"]),
                cell(f"{change['ratio']:.2f}×", f"{_range(change)} {against['outcome']}"),
                cell(milliseconds(row["time_ms"]["value"]), _milliseconds_range(row["time_ms"])),
                cell(milliseconds(against.get("time_ms"))),
                _drop(against["drop"]),
                cell(_outcomes(row)),
            ]
        )
    header = "model and earlier report|times as fast|mean latency|latency before|drop, points|verdict"
    how = dict.fromkeys(f"compared {row['against']['how']}" for row in document["rows"])
    yield section("Models", [cards(header.split("|"), rows), *notes(how)])


def _header(document: Document, kind: str) -> Element:
    """The verdict as a sentence, its reason, the advice, and the noise in one line."""
    header = Element("header")
    header.append(paragraph(kind, "subject"))
    heading = SubElement(header, "h1")
    verdict = SubElement(heading, "span", {"class": f"verdict {document['verdict']}"})
    verdict.text, verdict.tail = document["verdict"], f" {verdict_sentence(document)}"
    header.append(paragraph(document["reason"], "reason"))
    if "rows" not in document:
        header.extend(_advice(document))
    header.extend(_noise(document))
    return header


def _advice(document: Report | JoinedReport) -> Iterator[Element]:
    """A recommendation; a long comparison is folded."""
    for line, short in zip(recommendation_lines(document), recommendation_lines(document, short=True), strict=True):
        yield paragraph(line) if len(line) <= LONG else folded(short, [paragraph(line)], kind="noise")


def _noise(document: Noisy) -> Iterator[Element]:
    """One sentence on a noisy run, with the folded details."""
    for line in noise_summary(document):
        yield folded(line, map(paragraph, noise_details(document)), kind="noise")


def _sections(report: Report, images: ImageSet | None) -> Iterator[Element]:
    """All sections on one device's models; empty ones are omitted."""
    if report["models"][0]["top1"] is not None:
        yield section("Accuracy against latency", [charts.plane(report)])
    else:
        yield section("Latency", [charts.latencies(report)])
    yield section("Models", [_models_table([report]), *_remarks(report)])
    for title, content in (
        ("Scenarios", list(scenarios(report))),
        ("Device against host", list(against_host(report))),
        ("Images on which the models differ", list(gallery(report, images))),
    ):
        if content:
            yield section(title, content)
    yield from details(report)


def _models_table(reports: Sequence[Report]) -> Element:
    """The figures behind the verdict: one row per model and device."""
    header = ["model", "speed-up", "mean latency", "top-1", "drop, points", "size"]
    rows = []
    for report in reports:
        names = model_names(report)
        for model in report["models"]:
            row = [
                cell(names[model["id"]], _role(model, report)),
                _speedup(model),
                cell(milliseconds(model["time_ms"]["value"]), _milliseconds_range(model["time_ms"])),
                _top1(model),
                cell("source") if model["id"] == report["baseline"] else _drop(model["drop"]),
                cell(megabytes(model["size_bytes"])),
            ]
            rows.append([cell(report["device"]["name"]), *row] if len(reports) > 1 else row)
    return cards(["device", *header] if len(reports) > 1 else header, rows)


def _role(model: Model, report: Report) -> str:
    """The outcome of each judgement of a candidate; the role of any other model."""
    return _outcomes(model) or ("baseline of the speed-ups" if model["id"] == report["speed_baseline"] else "")


def _outcomes(model: Model | ComparisonRow) -> str:
    names = {"max_drop": "accuracy", "min_speedup": "speed"}
    return ", ".join(
        f"{names.get(judgement['rule'], judgement['rule'])}: {judgement['outcome']}"
        for judgement in model.get("judgements", [])
    )


def _speedup(model: Model) -> Element:
    if (speedup := model["speedup"]) is None:
        return cell("reference")
    one_thread = f" ({speedup['one_thread']:.2f}x with one thread)" if "one_thread" in speedup else ""
    return cell(f"{speedup['ratio']:.2f}×", f"{_range(speedup)} {model['outcome']}{one_thread}")


def _drop(drop: DropEntry | None) -> Element:
    return cell("-") if drop is None else cell(f"{drop['points']:+.2f}", f"[{drop['low']:+.2f}, {drop['high']:+.2f}]")


def _top1(model: Model) -> Element:
    interval = model["top1_interval"]
    return cell(percent(model["top1"]), f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "")


def _range(ratio: Ratio) -> str:
    return f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _milliseconds_range(time: Milli) -> str:
    return f"[{time['low']:.3g}, {time['high']:.3g}]"


def _remarks(report: Report) -> Iterator[Element]:
    """Notes below the table: warnings first, then the method."""
    yield from notes(warning_lines(report), "warning")
    other_speedups = speedups(report)
    remark_functions = (thread_lines, ratio_lines, against_lines, engine_lines)
    yield from notes(
        [
            *(other_speedups if len(other_speedups) <= _FEW else []),
            *(line for lines_of in remark_functions for line in lines_of(report)),
        ]
    )
    if len(other_speedups) > _FEW:
        yield folded("Speed-ups over the other models", notes(other_speedups))
    yield paragraph(
        "Latency is that of inference alone at batch 1, including copies. A speed-up is a ratio of mean latencies, "
        "round by round, over the fastest model that is neither in a lower precision nor built into an engine. A drop "
        "is a loss of top-1 accuracy against the source. Brackets are intervals.",
        "note",
    )
