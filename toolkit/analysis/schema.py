"""What a report must be before it is shown or compared: its entries' types, bounds, and what must agree in it.

Entries that are not named here are taken as they are: plain JSON, its numbers and texts bounded like all others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...deploy.documents import DocumentError, check_numbers, read, within
from .noise import Signal

SCHEMA = 4

# Milliseconds; logarithms and ratios of these are finite.
_MIN_MS, _MAX_MS = 1e-9, 1e12

Share = float | None
_INTERVAL = {"low": float, "high": float}
_RATIO = {"ratio": float, **_INTERVAL, "one_thread?": float}
_DROP = {"points": float, **_INTERVAL}
_PERCENTILES = dict.fromkeys(("p50", "p90", "p95", "p99"), Share)
_OUTCOMES = Literal["faster", "slower", "no difference", "inconclusive"]
_VERDICTS = Literal["pass", "fail", "inconclusive"]
_EXIT_CODES = Literal[0, 1, 3, 4]

# A dict names the entries of an object, a list has what each of its entries is; a tuple is (what it is, or None);
# "key?" may be missing; anything else is an annotation.
_ENGINE = {
    "layers": [{"name": str, "type": str, "precision": str}], "precisions": Mapping[str, int], "reformats": int,
}  # fmt: skip
_HOST = {
    "images": int, "logits_max_abs": float,
    "differ": [{"id": str, "truth": str | None, "host": str, "device": str, "gap": float}],
}  # fmt: skip
_COUNTS = {"offered": int, "missed": int, "dropped": int}
_RATE = {"fps": float, **_COUNTS, "held_fps": float}
_SCENARIOS = {
    "offline": ({"sizes": [{"batch": int, "images_per_s": float, **_INTERVAL}], "best_batch": int}, None),
    "frames": ({"fps": float, "offered": int, "missed": int, "missed_share": {"value": float, **_INTERVAL},
                "latency_ms": {"p99": Share}}, None),
    "sustained": ({"minutes": [{"minute": int, "p50_ms": float}], "slope_per_minute": float, "trend_p": float,
                   "first_ms": float, "steady_ms": float, "rate?": (_RATE, None)}, None),
}  # fmt: skip
_JUDGEMENT = {"rule": str, "outcome": _VERDICTS, "sentence": str, "exit_code": _EXIT_CODES}
_MODEL = {
    "id": str, "bundle": str, "name": str, "format": str, "precision": str, "size_bytes": int,
    "top1": Share, "top1_interval": tuple[float, float] | None, "top5": Share,
    "per_class": Mapping[str, float] | None, "calibration_error": Share, "drop": (_DROP, None), "flips": int | None,
    "flips_by_class": ([{"label": str, "lost": int, "gained": int, "p": float}], None),
    "latency_ms": _PERCENTILES, "latency_upper_ms": _PERCENTILES, "time_ms": {"value": float, **_INTERVAL},
    "one_thread_ms?": Share, "samples": int, "calls_per_sample": int,
    "outliers": {"count": int, "share": float, "rounds": tuple[int, ...]},
    "speedup": (_RATIO, None), "speed_baseline": str | None, "outcome": _OUTCOMES | None,
    "speedup_over?": Mapping[str, Any],
    "file_ms": Share, "load_ms": Share, "first_ms": Share, "warm_up_ms": Share, "preprocess_ms": Share,
    "postprocess_ms": Share, "stages_ms?": Mapping[str, Share], "engine?": (_ENGINE, None),
    "peak_rss_bytes": int | None,
    "parity": {"checksums_agreement": Share, "tensor_max_abs": Share, "logits_max_abs": Share,
               "top1_agreement": float},
    "first_difference": str, "host": (_HOST, None), "session": {"runtime?": str, "placement?": Mapping[str, int]},
    "lineage": [{"id": str, "format": str, "precision": str}], "predictions": tuple[int, ...] | None,
    "blocks": [{"round": int, "process": int, "ms": float}], **_SCENARIOS, "warnings": tuple[str, ...],
    "judgements?": [_JUDGEMENT],
    "against?": {"report": str, "speedup": _RATIO, "outcome": _OUTCOMES, "drop": (_DROP, None), "how": str,
                 "time_ms?": float},
}  # fmt: skip
_VERDICT = {"verdict": _VERDICTS, "reason": str, "exit_code": _EXIT_CODES, "noise": [Signal]}
_OVERLAP = {
    "unchecked": tuple[str, ...], "excluded": int, "excluded_ids": tuple[str, ...], "near_duplicates": int,
    "pairs": [{"id": str, "other": str}], "searched": tuple[int, int],
}  # fmt: skip
_REPORT = {
    **_VERDICT, "headline": str, "baseline": str, "speed_baseline": str, "images": int, "plan": Mapping[str, Any],
    "device": {"name": str, "board?": str, "cpu?": str, "before?": Mapping[str, Any], "after?": Mapping[str, Any],
               "versions?": Mapping[str, Any], "cores_allowed?": int, "threads?": int},
    "labels": tuple[str, ...], "targets": tuple[int, ...], "ids": tuple[str, ...], "models": [_MODEL],
    "recommendation?": ({"sentence": str}, None), "overlap?": (_OVERLAP, None),
}  # fmt: skip
_JOINED = {
    **_VERDICT, "failed": [{"device": str, "error": str, "fix": str}], "devices": [_REPORT],
    "agreement": [{"id": str, "name": str, "format": str, "precision": str, "session": {"runtime?": str},
                   "images": int | None, "differ": [{"id": str, "answers": tuple[str, ...]}]}],
}  # fmt: skip


def check_bounds(document: Any) -> None:
    """Refuse a document that is not an object, nests too deep, or holds a number that is not finite or far too large.

    Raises:
        DocumentError: it does.
    """
    check_numbers(read(dict[str, Any], document))


def check_report(report: Mapping[str, Any]) -> None:
    """Refuse a report of this schema that lacks an entry, has one of another type, or does not agree with itself.

    Raises:
        DocumentError: the first such entry.
    """
    check_bounds(report)
    _check(_REPORT, report, "")
    models, labels, images = report["models"], report["labels"], report["images"]
    ids = [model["id"] for model in models]
    _agree(bool(ids) and len(set(ids)) == len(ids), "models are none, or one is there twice")
    _agree({report["baseline"], report["speed_baseline"]} <= {*ids}, "a baseline is none of the models")
    _agree(len(report["targets"]) == len(report["ids"]) == images, f"targets and ids are not of {images} images")
    _agree(all(-1 <= one < len(labels) for one in report["targets"]), "a target is none of the labels")
    for model in models:
        _check_model(model, f"model {model['id'][:80]}", ids, labels, images)
    _agree(len({model["top1"] is None for model in models}) == 1, "some models have an accuracy")
    _agree(len({frozenset(model["per_class"] or ()) for model in models}) == 1, "models have other classes")


def check_joined(document: Mapping[str, Any]) -> None:
    """Refuse a document of several devices as `check_report` refuses a report.

    Raises:
        DocumentError: the first such entry.
    """
    check_bounds(document)
    _check(_JOINED, document, "")
    _agree(bool(document["devices"]), "there is no device")
    for report in document["devices"]:
        check_report(report)


def _check_model(
    model: Mapping[str, Any], place: str, ids: Sequence[str], labels: Sequence[str], images: int
) -> None:  # fmt: skip
    """What must agree in a model's entry."""
    for other, ratio in model.get("speedup_over", {}).items():
        _agree(other in ids, f"{place} is compared with a model that is not there")
        _check(_RATIO, ratio, f"{place}.speedup_over")
    compared = {model[key] is None for key in ("speedup", "speed_baseline", "outcome")}
    _agree(len(compared) == 1, f"{place} has half of a comparison")
    _agree(model["speed_baseline"] in (None, *ids), f"{place} is compared with a model that is not there")
    _agree((model["top1"] is None) == (model["top1_interval"] is None), f"{place} has half of an accuracy")
    for share in (model["top1"], *(model["top1_interval"] or ())):
        within(share or 0.0, 0, 1, f"{place}.top1")
    if (seen := model["predictions"]) is not None:
        _agree(len(seen) == images, f"{place} has no prediction of each image")
        _agree(all(0 <= one < len(labels) for one in seen), f"{place} predicts what is none of the labels")
    _agree(bool(model["blocks"]), f"{place} has no blocks")
    if (alone := model.get("one_thread_ms")) is not None:
        within(alone, _MIN_MS, _MAX_MS, f"{place}.one_thread_ms")
    long_run = model["sustained"] or {"minutes": [], "steady_ms": 1.0}
    times = [*model["time_ms"].values(), *(block["ms"] for block in model["blocks"]), long_run["steady_ms"]]
    for value in (*times, *(minute["p50_ms"] for minute in long_run["minutes"])):
        within(value, _MIN_MS, _MAX_MS, f"{place}: milliseconds")
    _agree(model["sustained"] is None or bool(long_run["minutes"]), f"{place} has a long run of no time")
    if long_run.get("rate"):
        _check([_COUNTS], long_run["minutes"], f"{place}.sustained.minutes")
    if (offline := model["offline"]) is not None:
        sizes = [size["batch"] for size in offline["sizes"]]
        _agree(offline["best_batch"] in sizes, f"{place} has a best batch size that is not there")


def _check(kind: Any, value: Any, place: str) -> None:
    """Raise DocumentError where a value is not what `kind` says (see _ENGINE)."""
    if isinstance(kind, tuple):
        if value is not None:
            _check(kind[0], value, place)
    elif isinstance(kind, list):
        _agree(isinstance(value, list), f"{place} is not a list")
        for at, entry in enumerate(value):
            _check(kind[0], entry, f"{place}[{at}]")
    elif isinstance(kind, dict):
        _agree(isinstance(value, Mapping), f"{place or 'it'} is not an object")
        for key, inner in kind.items():
            name = key.removesuffix("?")
            _agree(name in value or name != key, f"{place} lacks {name}")
            if name in value:
                _check(inner, value[name], f"{place}.{name}" if place else name)
    else:
        read(kind, value, place)


def _agree(right: bool, wrong: str) -> None:
    if not right:
        raise DocumentError(wrong)
