"""The verdict as one sentence for readers who did not run the measurement."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...deploy.devices.device import is_here
from ...deploy.environment import UNAVAILABLE
from .contract import DEFAULT_MAX_DROP
from .model_schema import Against, DropEntry, Model, Ratio
from .report_schema import Comparison, ComparisonRow, Document, JoinedReport, Noisy, Report
from .wording import milliseconds, model_name, model_names, percent

# Most devices or comparisons that one sentence lists; the page lists all.
_MOST_NAMED = 4


def verdict_sentence(document: Document) -> str:
    """The speed and accuracy of the optimised model, its baseline, and the device.

    Args:
        document: a report, the joined reports of several devices, or a comparison of reports.
    """
    if "devices" in document:
        return _of_devices(document)
    if "rows" in document:
        return _of_comparison(document)
    return f"{_claim(document)} on {_device(document)}{_noisy(document)}"


def short_names(report: Report) -> dict[str, str]:
    """Map each id to the model's precision if it is unique, else to its name in the tables."""
    names = model_names(report)
    precisions = [model["precision"] for model in report["models"]]
    if len({model["name"] for model in report["models"]}) > 1:
        return names
    return {
        model["id"]: model["precision"] if precisions.count(model["precision"]) == 1 else names[model["id"]]
        for model in report["models"]
    }


def lead_candidate(report: Report) -> Model | None:
    """The candidate that the sentence is about; None if none was judged.

    The fastest of those that pass and are faster, else of those that pass, else of all.
    """
    return min(
        _candidates(report),
        key=lambda model: (
            not (_passes(model) and model["outcome"] == "faster"),
            not _passes(model),
            model["time_ms"]["value"],
        ),
        default=None,
    )


def _candidates(report: Report) -> list[Model]:
    return [model for model in report["models"] if model.get("judgements") and model["speedup"] is not None]


def _claim(report: Report, *, brief: bool = False) -> str:
    """The sentence without the device; a brief one omits the accuracy figures."""
    candidates, lead = _candidates(report), lead_candidate(report)
    if lead is None:
        return _alone(report)
    names = short_names(report)
    compared = _compared(report, lead, names)
    accuracy = _accuracy(compared, report["images"])
    claim = f"is {_speed(compared)}{accuracy.partition(' (')[0] if brief else accuracy}"
    if len(candidates) == 1:
        return f"{names[lead['id']]} {claim}"
    return f"{_introduction(candidates, lead, names)} {claim}"


def _introduction(candidates: Sequence[Model], lead: Model, names: Mapping[str, str]) -> str:
    """How to introduce the lead among several candidates."""
    count, name = len(candidates), names[lead["id"]]
    if not any(model["outcome"] == "faster" for model in candidates):
        return f"none of {count} candidates is shown to be faster: {name}"
    if not _passes(lead):
        return f"none of {count} candidates is shown to meet the contract: the fastest, {name},"
    if lead["outcome"] == "faster":
        return f"{name}, the fastest of {count} candidates that meets the contract,"
    return f"no candidate that meets the contract is shown to be faster: {name}"


def _passes(model: Model) -> bool:
    return all(judgement["outcome"] == "pass" for judgement in model.get("judgements", ()))


class _Compared(NamedTuple):
    """A candidate's comparison and its outcome; `flips` are changed answers, None if not counted."""

    baseline_name: str
    speedup: Ratio
    outcome: str
    drop: DropEntry | None
    flips: int | None
    judged: Mapping[str, str]

    @property
    def not_slower(self) -> bool:
        """Whether the candidate is faster or as fast."""
        return self.outcome in ("faster", "no difference")


def _compared(report: Report, model: Model, names: Mapping[str, str]) -> _Compared:
    """A candidate's comparison with its reference in an earlier report or in the same one."""
    if (against := model.get("against")) is not None:
        return _earlier(against, model)
    judged = {entry["rule"]: entry["outcome"] for entry in model.get("judgements", ())}
    baseline_name = names[model["speed_baseline"] or report["speed_baseline"]]
    speedup, outcome = model["speedup"] or {"ratio": 1.0, "low": 1.0, "high": 1.0}, model["outcome"] or "inconclusive"
    return _Compared(baseline_name, speedup, outcome, model["drop"], model["flips"], judged)


def _earlier(against: Against, model: Model | ComparisonRow) -> _Compared:
    judged = {entry["rule"]: entry["outcome"] for entry in model.get("judgements", ())}
    earlier_report = f"in {against['report']}"
    return _Compared(earlier_report, against["speedup"], against["outcome"], against["drop"], None, judged)


def _speed(compared: _Compared) -> str:
    baseline_name, speedup = compared.baseline_name, compared.speedup
    ratio, low, high = speedup["ratio"], speedup["low"], speedup["high"]
    figures = f"{ratio:.2f}× [{low:.2f}, {high:.2f}]"
    if compared.outcome == "faster":
        text = f"{ratio:.2f}× faster [{low:.2f}, {high:.2f}] than {baseline_name}"
    elif compared.outcome == "slower" and low > 0:
        text = f"{1 / ratio:.2f}× slower [{1 / high:.2f}, {1 / low:.2f}] than {baseline_name}"
    elif compared.outcome == "no difference":
        text = f"as fast as {baseline_name} ({figures})"
    elif (one_thread := speedup.get("one_thread")) is not None:
        text = f"not shown to be faster than {baseline_name} ({figures}, but {one_thread:.2f}× with one thread)"
    else:
        text = f"not shown to be faster than {baseline_name} ({figures})"
    remarks = {"fail": " (less than required)", "inconclusive": " (not shown to be as much as required)"}
    return text + remarks.get(compared.judged.get("min_speedup", ""), "")


def _accuracy(compared: _Compared, images: int | None) -> str:
    """The second half of the sentence, with its conjunction."""
    drop, judged = compared.drop, compared.judged.get("max_drop", "inconclusive")
    if drop is None:
        return _without_labels(compared.flips, images)
    figures = f"({_points(drop)})" if images is None else f"({_points(drop)}, {images:,} images)"
    good, bad = (" and", " but") if compared.not_slower else (" but", " and")
    if judged == "fail":
        return f"{bad} less accurate than allowed {figures}"
    if judged == "inconclusive":
        return f"{bad} not shown to be as accurate {figures}"
    if drop["high"] < 0:
        return f"{good} more accurate {figures}"
    if drop["low"] > 0:
        return f"{bad} less accurate, within the limit {figures}"
    if drop["high"] <= DEFAULT_MAX_DROP:
        return f"{good} as accurate {figures}"
    return f"{good} within the limit on accuracy {figures}"


def _without_labels(flips: int | None, images: int | None) -> str:
    if flips is None or not images:
        return "; its accuracy was not measured"
    changed = f"{flips:,} of {images:,} answers changed" if flips else f"all {images:,} answers stayed the same"
    return f"; its accuracy is unknown without labels ({changed})"


def _points(drop: DropEntry) -> str:
    """The change in accuracy in points with its interval; a loss is negative."""
    digits = 1 if drop["high"] - drop["low"] >= 0.5 else 2
    value, low, high = (_signed(-drop[key], digits) for key in ("points", "high", "low"))
    return f"{value} points [{low}, {high}]"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _alone(report: Report) -> str:
    model = report["models"][0]
    time = model["time_ms"]
    interval = f"[{milliseconds(time['low'])}, {milliseconds(time['high'])}]"
    text = (
        f"{short_names(report)[model['id']]}, measured alone, takes {milliseconds(time['value'])} {interval} per image"
    )
    if model["top1"] is None:
        return f"{text}; its accuracy was not measured"
    return f"{text} and is right on {percent(model['top1'])} of {report['images']:,} images"


def _device(report: Report) -> str:
    """The board or CPU, with the device's address unless it is this machine."""
    device = report["device"]
    known = [name for name in (device.get("board"), device.get("cpu")) if name not in (None, "", UNAVAILABLE)]
    if not known:
        return "this machine" if is_here(device["name"]) else device["name"]
    return f"{known[0]}" if is_here(device["name"]) else f"{device['name']} ({known[0]})"


def _noisy(report: Noisy) -> str:
    return " (noisy machine)" if report["noise"] else ""


def _of_devices(document: JoinedReport) -> str:
    """One claim for all devices if it holds on each, else one per device."""
    if (shared := _on_all(document)) is not None:
        return shared
    failed = [f"{failure['device']} gave no report" for failure in document["failed"]]
    claims = [
        f"{_claim(report, brief=True)} on {report['device']['name']}{_noisy(report)}" for report in document["devices"]
    ]
    return _listed([*failed, *claims], "devices")


def _on_all(document: JoinedReport) -> str | None:
    """A claim that holds on every device: the same model is faster and as accurate."""
    claims, ratios = set(), []
    for report in document["devices"]:
        lead, names = lead_candidate(report), short_names(report)
        if lead is None or not _passes(lead):
            return None
        compared = _compared(report, lead, names)
        if compared.outcome != "faster" or not _accuracy(compared, report["images"]).startswith(" and as accurate"):
            return None
        claims.add((names[lead["id"]], compared.baseline_name))
        ratios.append(compared.speedup["ratio"])
    if len(claims) > 1 or document["failed"]:
        return None
    ((name, baseline_name),) = claims
    ratio_range = " to ".join(dict.fromkeys(f"{ratio:.2f}×" for ratio in (min(ratios), max(ratios))))
    devices = {1: "the device", 2: "both devices"}.get(len(ratios), f"all {len(ratios)} devices")
    return f"{name} is {ratio_range} faster than {baseline_name} and as accurate on {devices}{_noisy(document)}"


def _of_comparison(document: Comparison) -> str:
    sentences = []
    for row in document["rows"]:
        compared = _earlier(row["against"], row)
        sentences.append(f"{model_name(row)} is {_speed(compared)}{_accuracy(compared, None)}")
    unproven = [row for row in document["rows"] if row["outcome"] not in (None, "faster")]
    if unproven:  # not slower than before does not mean faster than the model it replaces
        verb = "is slower" if any(row["outcome"] == "slower" for row in unproven) else "is not shown to be faster"
        sentences = [*sentences[:_MOST_NAMED], f"it {verb} than the unoptimised model"]
    return _listed(sentences, "comparisons") + _noisy(document)


def _listed(sentences: Sequence[str], kind: str) -> str:
    more = len(sentences) - _MOST_NAMED
    shown = sentences if more <= 1 else [*sentences[:_MOST_NAMED], f"and {more} more {kind}"]
    return "; ".join(shown)
