"""The page of a quantized bundle: the verdict, the models with float layers, where the noise comes from, the advice."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError, EdgeKitError
from ...deploy.files import write_file
from ...deploy.manifest import MANIFEST
from ..analysis.contract import DEFAULT_MAX_DROP
from ..analysis.quantization_record import (
    AdviceEntry,
    CalibrationEntry,
    JudgementEntry,
    LossEntry,
    MixedPrecisionEntry,
    PortabilityEntry,
    QuantizationRecord,
    noise_by_layer,
    quantization_record,
)
from ..analysis.recommend import pareto_front
from ..analysis.wording import megabytes, share
from . import quantization_charts as charts
from .elements import cards, cell, folded, notes, paragraph, section, table
from .html import page
from .quantization_charts import Axes, Choice

# Most rows of a table and characters of a text, since a bundle may come from anyone.
_MOST_ROWS, _MOST_CHARACTERS = 200, 500
# Most models in the chart; a search compares about ten.
_MOST_POINTS = 40


def write_quantization(bundle: Bundle, path: Path) -> None:
    """Write the page of a quantized bundle.

    Raises:
        BundleError: the bundle was not quantized, or what its manifest records is not valid.
        EdgeKitError: the page would be written into a bundle.
    """
    if (path.parent / MANIFEST).exists():
        raise EdgeKitError(f"{path.parent} is a bundle, which another file would damage", fix=f"--html {path.name}")
    write_file(path, render_quantization(bundle))


def render_quantization(bundle: Bundle) -> str:
    """The page of a quantized bundle, self-contained.

    Raises:
        BundleError: the bundle was not quantized, or what its manifest records is not valid.
    """
    record = quantization_record(bundle)
    if "judgement" not in record:
        raise BundleError(
            f"{bundle.path} has no record of a quantization", fix="pass a bundle that edgekit quantize made"
        )
    judgement = record["judgement"]
    content = [_header(bundle, record, judgement), *_sections(record)]
    return page(f"EdgeKit: {judgement['outcome']}: {bundle.manifest.name}", content)


def _sections(record: QuantizationRecord) -> Iterator[Element]:
    if (search := record.get("mixed_precision")) is not None and search["points"]:
        yield section("Float layers", _search(search, record))
    if "rewrites" in record:  # int8 for ONNX
        yield section("Where the noise comes from", _noise(record))
        yield section("Rewrites", _rewrites(record))
    if "calibration" in record:
        yield section("Calibration", _calibration(record["calibration"]))
    if (portability := record.get("portability")) is not None:
        yield section("Other CPUs", _portability(portability))
    if remarks := record.get("remarks"):
        yield folded("What quantize printed", notes(map(_cut, remarks[:_MOST_ROWS])))


def _header(bundle: Bundle, record: QuantizationRecord, judgement: JudgementEntry) -> Element:
    """The verdict as a sentence, the figures and the warnings."""
    manifest = bundle.manifest
    header = Element("header")
    target = f" for {record['target']}" if "target" in record else ""
    header.append(paragraph(_cut(f"{manifest.name} in {manifest.precision}{target}"), "subject"))
    heading = SubElement(header, "h1")
    mark = SubElement(heading, "span", {"class": f"verdict {judgement['outcome']}"})
    mark.text, mark.tail = judgement["outcome"], f" {_cut(judgement['sentence'])}"
    header.append(_figures(bundle, record))
    warnings = [line for line in record.get("remarks", ())[:_MOST_ROWS] if line.startswith(("warning:", "keep fp32"))]
    header.extend(notes((_cut(line.removeprefix("warning: ")) for line in warnings), "warning"))
    return header


def _figures(bundle: Bundle, record: QuantizationRecord) -> Element:
    """The bundle's speed-up, changed answers, drop and size."""
    speedup, changed, loss = record.get("speedup"), record.get("changed"), record.get("selection")
    interval = f"[{speedup['low']:.2f}, {speedup['high']:.2f}]" if speedup else "this machine is not the target"
    row = [
        cell(bundle.manifest.precision),
        cell(f"{speedup['value']:.2f}×" if speedup else "-", interval),
        cell(str(changed["images"]) if changed else "-", f"of {changed['count']}" if changed else "no images"),
        _loss(loss),
        cell(megabytes(bundle.size_bytes)),
    ]
    return cards(["model", "speed-up over fp32", "answers changed", "top-1 drop, points", "size"], [row])


def _loss(loss: LossEntry | None) -> Element:
    if loss is None:
        return cell("-", "no labels")
    points = loss["points"]
    return cell(f"{points['value']:+.2f}", f"[{points['low']:+.2f}, {points['high']:+.2f}]")


def _search(search: MixedPrecisionEntry, record: QuantizationRecord) -> Iterator[Element]:
    points, chosen = search["points"][:_MOST_POINTS], search["chosen"]
    models = _choices(search)
    front = set(pareto_front([(-model.across, model.up) for model in models]))
    yield paragraph(_sentence(search["reason"]))
    yield charts.choices(models, front, chosen, _axes(search, record))
    rows = []
    for index, (model, point) in enumerate(zip(models, points, strict=True)):
        result = "fulfilled" if point["problem"] is None else "not fulfilled"
        rows.append(
            [
                cell(model.name, "Pareto front" if index in front else ""),
                cell("-" if point["speedup"] is None else f"{point['speedup']:.2f}×"),
                cell(str(point["changed"])), _loss(point["drop"]),
                cell("chosen" if index == chosen else result, _cut(point["problem"] or "")),
            ]
        )  # fmt: skip
    yield cards(["model", "speed-up over fp32", "answers changed", "top-1 drop, points", "contract"], rows)
    yield paragraph(
        "All models were compared on the same selection images; their speed-ups are medians of a one-second trial. The "
        "model with the fewest float layers that fulfils the contract is chosen. That favours lucky ones, so edgekit "
        "validate judges it on the test images.",
        "note",
    )
    if layers := record.get("float_layers"):
        yield folded(f"Layers that stay float: {len(layers)}", notes(map(_cut, layers[:_MOST_ROWS])))


def _choices(search: MixedPrecisionEntry) -> list[Choice]:
    """The points of a search as models of its chart."""
    points = search["points"][:_MOST_POINTS]
    timed = all(point["speedup"] is not None for point in points)
    labelled = all(point["drop"] is not None for point in points)
    models = []
    for point in points:
        count = len(point["layers"])
        values = (point["changed"],) * 3
        if labelled and (loss := point["drop"]) is not None:
            values = tuple(loss["points"][key] for key in ("value", "high", "low"))
        across = point["speedup"] if timed and point["speedup"] is not None else -count
        models.append(Choice(f"{count} float", across, *(-value for value in values)))
    return models


def _axes(search: MixedPrecisionEntry, record: QuantizationRecord) -> Axes:
    points, contract = search["points"][:_MOST_POINTS], record.get("contract")
    timed = all(point["speedup"] is not None for point in points)
    labelled = all(point["drop"] is not None for point in points)
    up = "top-1 drop, points" if labelled else "answers changed"
    across = "times as fast as fp32" if timed else "float layers"
    slowest = most_lost = None
    if contract is not None:
        slowest = contract["min_speedup"] if timed else None
        limit = DEFAULT_MAX_DROP if contract["max_drop"] is None else contract["max_drop"]
        most_lost = -limit if labelled else None
    return Axes(f"{up} over {across} of each model", across, up, slowest, most_lost, not timed, not labelled)


def _noise(record: QuantizationRecord) -> Iterator[Element]:
    sources = record.get("sensitivity")
    if not sources:
        yield paragraph("Not measured. To measure it: edgekit quantize --sensitivity", "note")
        return
    layers, kept = noise_by_layer(sources), set(record.get("float_layers", ()))
    yield paragraph(
        "Each activation and each layer's weights are rounded alone, before any layer is kept float, and the noise in "
        "the logits is measured. These numbers add up to about the noise of the whole model.",
        "note",
    )
    yield charts.noise_bars([{**layer, "name": _cut(layer["name"])} for layer in layers], kept)
    rows = [
        [str(rank), _cut(layer["name"]), share(layer["result"] + layer["weights"]), share(layer["result"]),
         share(layer["weights"]), "float" if layer["name"] in kept else "int8"]
        for rank, layer in enumerate(layers[:_MOST_ROWS], 1)
    ]  # fmt: skip
    header = ["", "layer", "of the noise", "its result rounded", "its weights rounded", "now"]
    yield folded(_of("Layers", len(layers)), [table(header, rows)])


def _rewrites(record: QuantizationRecord) -> Iterator[Element]:
    kept, refused = record.get("rewrites", ()), record.get("rewrites_refused", {})
    if not kept and not refused:
        yield paragraph("None applies to this network.", "note")
        return
    rows = [[_cut(name), "kept", ""] for name in kept[:_MOST_ROWS]]
    rows += [[_cut(name), "refused", _cut(why)] for name, why in list(refused.items())[:_MOST_ROWS]]
    yield table(["rewrite", "", "why"], rows)


def _calibration(calibration: CalibrationEntry) -> Iterator[Element]:
    if "advice" in calibration:
        yield from _advice(calibration["advice"])
    method, expected = calibration.get("method", ""), calibration.get("expected_changes", {})
    rows = [
        [_cut(name), share(min(changes, 1.0)), "used" if name == method else ""]
        for name, changes in list(expected.items())[:_MOST_ROWS]
    ]
    if rows:
        yield table(["ranges by", "answers that are expected to change", ""], rows)
    else:
        yield from notes([f"Ranges by {_cut(method)}."])


def _advice(advice: AdviceEntry) -> Iterator[Element]:
    grown, twice = advice["convergence"], advice["duplicates"]
    if advice["mistake"] is not None:
        yield from notes([_sentence(advice["mistake"])], "warning")
    found = {
        "are identical to another": twice["identical"],
        "look like another": twice["alike"],
        "are also among the validation or test images": twice["leaked"],
        "look like a validation or test image": twice["leaked_alike"],
    }
    repeated = [f"{count} {what}" for what, count in found.items() if count]
    yield from notes(
        [
            f"{grown['images']} images. After {grown['stable_after']} of them, nine tenths of the ranges had 95 % of "
            f"their final width; half of the images gave {share(min(grown['half_width'], 1.0))} of the median one.",
            f"{', '.join(repeated) or 'None is identical to another, or looks like it'}.",
        ]
    )


def _portability(portability: PortabilityEntry) -> Iterator[Element]:
    images, rows = portability["images"], []
    for kind, found in list(portability["cpus"].items())[:_MOST_ROWS]:
        differ = found["from_host"]
        holds = "holds" if found["holds"] else "does not hold"
        rows.append([_cut(kind), holds, f"{differ['images']} of {images}", f"{differ['answers']} of {images}"])
    yield table(["CPU", "the accuracy drop", "images with other logits", "other answers"], rows)
    yield paragraph("Computed from golden samples, as each kind of CPU multiplies and adds integers.", "note")


def _of(title: str, count: int) -> str:
    """The title of a list, of which only a part may be shown."""
    return f"{title}: {count}" if count <= _MOST_ROWS else f"{title}: the first {_MOST_ROWS} of {count}"


def _sentence(text: str) -> str:
    text = _cut(text)
    return f"{text[:1].upper()}{text[1:]}."


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
