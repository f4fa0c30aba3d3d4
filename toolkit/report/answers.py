"""The page's sections on what the models answer: images on which they disagree, confusion, classes."""

import base64
import io
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ...deploy.images import ImageSet
from ..analysis.wording import model_names, percent
from .elements import paragraph, table

_GALLERY = 24
_THUMBNAIL = 96

Report = Any  # see analysis.report_schema


def gallery(report: Report, images: ImageSet | None) -> Iterator[Element]:
    """Images whose answer changed, those that the optimised model loses first."""
    base, last, names = report["models"][0], report["models"][-1], model_names(report)
    if images is None or base is last or not base["predictions"]:
        return
    first, second, targets = (np.asarray(v) for v in (base["predictions"], last["predictions"], report["targets"]))
    flips = np.flatnonzero(first != second)
    if not len(flips):
        note = Element("p")
        note.text = f"None of {len(images)}: every image has the same answer."
        yield note
        return
    order = sorted(flips, key=lambda index: (first[index] != targets[index], index))
    gallery = Element("div", {"class": "gallery"})
    for index in order[:_GALLERY]:
        figure = SubElement(gallery, "figure")
        SubElement(figure, "img", src=_thumbnail(images, int(index)), alt=images.ids[index])
        caption = SubElement(figure, "figcaption")
        labels = [
            report["labels"][value] if value >= 0 else "?" for value in (targets[index], first[index], second[index])
        ]
        caption.text = f"{labels[0]}: {labels[1]} → {labels[2]}"
    note = Element("p")
    note.text = f"{len(flips)} of {len(images)}; true label: {names[base['id']]} → {names[last['id']]}" + (
        f"; the first {_GALLERY} are shown" if len(flips) > _GALLERY else ""
    )
    yield note
    yield gallery


def _thumbnail(images: ImageSet, index: int) -> str:
    image = images[index].image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def confusion(report: Report) -> Iterator[Element]:
    """The optimised model's confusion matrix: a row a true class."""
    model, targets = report["models"][-1], report["targets"]
    if not model["predictions"] or -1 in targets:
        return
    size = len(report["labels"])
    counts = np.zeros((size, size), int)
    np.add.at(counts, (targets, model["predictions"]), 1)
    shown = np.flatnonzero(counts.sum(0) + counts.sum(1))
    if len(shown) > 30:
        wrong = counts * (1 - np.eye(size, dtype=int))
        pairs = np.argwhere(wrong)[np.argsort(-wrong[wrong > 0], kind="stable")][:20]
        rows = [[report["labels"][a], report["labels"][b], str(wrong[a, b])] for a, b in pairs]
        yield table(["true", "predicted", "images"], rows)
        return
    names = [report["labels"][index] for index in shown]
    rows = []
    for index in shown:
        total = counts[index].sum()
        cells = [_shaded(int(counts[index, other]), total, index == other) for other in shown]
        rows.append([report["labels"][index], *cells])
    yield table(["true \\ predicted", *names], rows)


def _shaded(count: int, total: int, right: bool) -> Element:
    share = count / total if total else 0.0
    colour = "var(--good)" if right else "var(--bad)"
    cell = Element("td", style=f"background: color-mix(in srgb, {colour} {round(60 * share)}%, transparent)")
    cell.text = str(count) if count else "·"
    return cell


def per_class(report: Report) -> Iterator[Element]:
    """Top-1 of each class, and the classes in which answers changed."""
    names = model_names(report)
    models = [model for model in report["models"] if model["per_class"]]
    if models:
        labels = list(models[0]["per_class"])
        yield table(
            ["class", *(names[model["id"]] for model in models)],
            [[label, *(percent(model["per_class"][label]) for model in models)] for label in labels[:200]],
        )
    for model in models:
        if model["flips_by_class"]:
            rows = [
                [entry["label"], str(entry["lost"]), str(entry["gained"]), f"{entry['p']:.2g}"]
                for entry in model["flips_by_class"][:20]
            ]
            yield paragraph(
                f"{names[model['id']]} against the baseline, the most certain change first (p of McNemar's test, "
                f"adjusted for {len(model['per_class'])} classes by Holm's method)"
            )
            yield table(["class", "lost", "gained", "p"], rows)
