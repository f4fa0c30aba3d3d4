"""The page's sections on predictions: images with different answers, confusion, classes."""

import base64
import io
from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from PIL import Image

from ...deploy.images import ImageSet
from ..analysis.model_schema import Model
from ..analysis.report_schema import Report
from ..analysis.sentence import lead_candidate, short_names
from ..analysis.wording import model_names, percent
from .elements import folded, paragraph, table

_GALLERY = 24
_THUMBNAIL = 96


def gallery(report: Report, images: ImageSet | None) -> Iterator[Element]:
    """Images whose answer changed, starting with new errors; a table if there are no pictures."""
    base, candidate, names = report["models"][0], _shown_model(report), short_names(report)
    if base is candidate or not base["predictions"] or not candidate["predictions"]:
        return
    first, second = np.asarray(base["predictions"]), np.asarray(candidate["predictions"])
    targets = np.asarray(report["targets"])
    flips = np.flatnonzero(first != second)
    count = len(targets)
    if not len(flips):
        yield paragraph(f"None of {count:,}: every image has the same answer.")
        return
    order = sorted(flips, key=lambda index: (first[index] != targets[index], index))[:_GALLERY]
    shown = f"; the first {_GALLERY} are shown" if len(flips) > _GALLERY else ""
    yield paragraph(
        f"{len(flips):,} of {count:,}{shown}. Below each, the true label and the answers of {names[base['id']]} → "
        f"{names[candidate['id']]}."
    )

    def label(index: int) -> str:
        return report["labels"][index] if index >= 0 else "?"

    answers = [[label(values[index]) for values in (targets, first, second)] for index in order]
    if images is None:
        rows = [[report["ids"][index], *answer_names] for index, answer_names in zip(order, answers, strict=True)]
        yield folded("Which images", [table(["image", "true", names[base["id"]], names[candidate["id"]]], rows)])
        return
    grid = Element("div", {"class": "gallery"})
    for index, (truth, before, after) in zip(order, answers, strict=True):
        figure = SubElement(grid, "figure")
        figure.append(_thumbnail(images, int(index)))
        caption = SubElement(figure, "figcaption")
        SubElement(caption, "span").text = f"true: {truth}"
        line = SubElement(caption, "span")
        for answer, arrow in ((before, " → "), (after, "")):
            right = answer == truth
            mark = "" if truth == "?" else " ✓" if right else " ✗"
            kind = {} if truth == "?" else {"class": "right" if right else "wrong"}
            shown_answer = SubElement(line, "b", kind)
            shown_answer.text, shown_answer.tail = f"{answer}{mark}", arrow
    yield grid


def _shown_model(report: Report) -> Model:
    """The model whose answers are shown: the candidate of the verdict, else the last model."""
    return lead_candidate(report) or report["models"][-1]


def _thumbnail(images: ImageSet, index: int) -> Element:
    """The image at most 96 pixels wide and high; a small one is enlarged without smoothing."""
    image = images[index].image.convert("RGB")
    small = max(image.size) < _THUMBNAIL // 2
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    kind, content = min((_encoded(image, kind) for kind in ("PNG", "JPEG")), key=lambda pair: len(pair[1]))
    if small:
        kind, content = _encoded(image, "PNG")
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
    return Element("img", {"src": source, "alt": images.ids[index], **({"class": "small"} if small else {})})


def _encoded(image: Image.Image, kind: str) -> tuple[str, bytes]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return kind, stream.getvalue()


def confusion(report: Report) -> Iterator[Element]:
    """The optimised model's confusion matrix, one row per true class."""
    model, targets = _shown_model(report), report["targets"]
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
        cells = [_shaded(int(counts[index, column]), total, index == column) for column in shown]
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
    shares = [(names[model["id"]], recalls) for model in report["models"] if (recalls := model["per_class"])]
    if shares:
        yield table(
            ["class", *(name for name, _ in shares)],
            [[label, *(percent(recalls[label]) for _, recalls in shares)] for label in list(shares[0][1])[:200]],
        )
    for model in report["models"]:
        if changed := model["flips_by_class"]:
            rows = [
                [entry["label"], str(entry["lost"]), str(entry["gained"]), f"{entry['p']:.2g}"]
                for entry in changed[:20]
            ]
            yield paragraph(
                f"{names[model['id']]} against the baseline, the most certain change first (p of McNemar's test, "
                f"adjusted for {len(model['per_class'] or ())} classes by Holm's method)"
            )
            yield table(["class", "lost", "gained", "p"], rows)
