"""Checks of a report before it is shown or compared: the types of report_schema, and consistency between entries."""

from collections.abc import Mapping, Sequence

from ...deploy.documents import DocumentError, check_numbers, read
from .model_schema import Model
from .report_schema import JoinedReport, Report


def check_bounds(document: object) -> None:
    """Refuse a document that is not an object, nests too deeply, or has a number that is not finite or far too large.

    Raises:
        DocumentError: the document is refused.
    """
    check_numbers(read(dict[str, object], document))


def check_report(document: Mapping[str, object]) -> Report:
    """Read a report of the current schema strictly.

    Raises:
        DocumentError: an entry is missing, has the wrong type, or contradicts another entry.
    """
    check_bounds(document)
    report = read(Report, document)
    models, labels, images = report["models"], report["labels"], report["images"]
    ids = [model["id"] for model in models]
    _require(len(set(ids)) == len(ids), "a model is listed twice")
    _require({report["baseline"], report["speed_baseline"]} <= {*ids}, "a baseline is not among the models")
    _require(len(report["targets"]) == len(report["ids"]) == images, f"targets and ids do not match {images} images")
    _require(all(-1 <= target < len(labels) for target in report["targets"]), "a target is not one of the labels")
    for model in models:
        _check_model(model, f"model {model['id'][:80]}", ids, labels, images)
    _require(len({model["top1"] is None for model in models}) == 1, "only some models have an accuracy")
    _require(len({frozenset(model["per_class"] or ()) for model in models}) == 1, "the models have different classes")
    return report


def check_joined(document: Mapping[str, object]) -> JoinedReport:
    """Read the report of several devices as strictly as `check_report`.

    Raises:
        DocumentError: see `check_report`.
    """
    check_bounds(document)
    joined = read(JoinedReport, document)
    for report in joined["devices"]:
        check_report(report)
    return joined


def _check_model(model: Model, place: str, ids: Sequence[str], labels: Sequence[str], images: int) -> None:
    """Refuse an inconsistent entry of a model."""
    missing = "is compared with a missing model"
    _require(model.get("speedup_over", {}).keys() <= {*ids}, f"{place} {missing}")
    _require(model["speed_baseline"] in (None, *ids), f"{place} {missing}")
    compared = {model["speedup"] is None, model["speed_baseline"] is None, model["outcome"] is None}
    _require(len(compared) == 1, f"{place} has an incomplete comparison")
    _require(
        (model["top1"] is None) == (model["top1_interval"] is None),
        f"{place} has an accuracy without an interval, or the reverse",
    )
    if (classes := model["predictions"]) is not None:
        _require(len(classes) == images, f"{place} does not have one prediction per image")
        _require(
            all(0 <= predicted < len(labels) for predicted in classes), f"{place} predicts a class without a label"
        )
    if (sustained := model["sustained"]) is not None and sustained.get("rate"):
        counted = all(minute.keys() >= {"offered", "missed", "dropped"} for minute in sustained["minutes"])
        _require(counted, f"{place} has a minute without the images offered, missed and dropped")
    if (offline := model["offline"]) is not None:
        sizes = [size["batch"] for size in offline["sizes"]]
        _require(offline["best_batch"] in sizes, f"{place} has a best batch size that was not measured")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise DocumentError(problem)
