"""The verdict, a pure function of a report's models, so that it applies to earlier schemas too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ...deploy.engine.passport import ENGINE_FORMAT
from .contract import Contract, Drop, Judgement, SpeedOutcome, compare_accuracy, overall, reason, speed_outcome
from .model_schema import JudgementEntry, MeasuredModel, Model, Ratio
from .noise import Signal
from .recommend import recommend
from .report_schema import ContractEntry, MeasuredReport, Report
from .statistics import BlockTime, Interval, ratio_of_times
from .wording import mean_text, names_of, speedup_text

AnyModel = TypeVar("AnyModel", bound=MeasuredModel)

# Several threads cost little, and at best divide a call's time by their number. If a model takes more than twice as
# long with several threads as with one, they wait for one another.
_COLLAPSE = 2.0


def judge_report(
    report: MeasuredReport, measured: Sequence[MeasuredModel], candidates: Sequence[str], contract: Contract
) -> Report:
    """Compare a report's models and judge its candidates.

    The drop is judged against the first model, the source. Speed is judged against the fastest model that is neither
    quantized nor built into an engine, because the user would run that one otherwise.

    Args:
        measured: the models, the source first.
        candidates: ids of the models that the contract applies to.
    """
    models = [_compare(model, measured, candidates, contract.confidence) for model in measured]
    names = names_of(models)
    noise = [Signal(entry["name"], entry["detail"]) for entry in report["noise"]]
    judgements: list[Judgement] = []
    for model in models:
        if model["id"] in candidates and model["speedup"] is not None and model["speed_baseline"] is not None:
            drop = drop_of(models[0], model, report["targets"], contract.confidence)
            against = names[model["speed_baseline"]]
            judged = contract.judge(drop, interval_of(model["speedup"]), against)
            if "one_thread" in model["speedup"]:
                judged = mark_undecided(judged, f"{speedup_text(model['speedup'])} as fast as {against}")
            judged = [note_noise(judgement, noise) for judgement in judged]
            model["judgements"] = [as_json(judgement) for judgement in judged]
            judgements += judged
    judgements = judgements or [_alone(models[0], contract)]
    verdict = overall(judgements)
    return {
        **report,
        "models": models,
        "headline": headline(models, candidates),
        "verdict": verdict.outcome,
        "reason": reason(judgements),
        "exit_code": verdict.exit_code,
        "contract": as_entry(contract),
        "speed_baseline": _fastest(models, candidates, models[0])["id"],
        "recommendation": recommend(models, candidates),
    }


def optimised(model: MeasuredModel) -> bool:
    """Whether a model was quantized, or built into an engine."""
    return model["precision"] != "fp32" or model["format"] == ENGINE_FORMAT


def headline(models: Sequence[Model], candidates: Sequence[str]) -> str:
    """The speed of each candidate against the model that the user would run otherwise; the first line of any output."""
    names = names_of(models)
    sentences = []
    for model in models:
        if model["id"] not in candidates or model["speedup"] is None or model["outcome"] is None:
            continue
        verb = {
            "faster": "is faster than",
            "slower": "is slower than",
            "no difference": "is not faster than",
            "inconclusive": "is not shown to be faster than",
        }[model["outcome"]]
        baseline = next(candidate for candidate in models if candidate["id"] == model["speed_baseline"])
        sentences.append(
            f"{names[model['id']]} {verb} {names[baseline['id']]} here: {speedup_text(model['speedup'])}, "
            f"{mean_text(model)} against {mean_text(baseline)}"
        )
    return "; ".join(sentences) or f"{names[models[0]['id']]} was measured alone"


def collapse(time_ms: float, one_thread_ms: float | None) -> float | None:
    """The ratio of a model's times with several threads and with one; None unless that is a collapse."""
    return time_ms / one_thread_ms if one_thread_ms and time_ms > _COLLAPSE * one_thread_ms else None


def one_thread_ratio(base: MeasuredModel, model: MeasuredModel) -> float | None:
    """The speed-up with one thread if it contradicts that with several threads, else None.

    It contradicts it if the two differ by more than a factor of two and the slower-looking model collapses (see
    `collapse`).
    """
    before, after = base.get("one_thread_ms"), model.get("one_thread_ms")
    if not (before and after):
        return None
    ratio = before / after
    discrepancy = base["time_ms"]["value"] / model["time_ms"]["value"] / ratio
    suspect = base if discrepancy > 1 else model
    collapsed = collapse(suspect["time_ms"]["value"], before if suspect is base else after) is not None
    return ratio if max(discrepancy, 1 / discrepancy) > _COLLAPSE and collapsed else None


def mark_undecided(judgements: Sequence[Judgement], figures: str) -> list[Judgement]:
    """Make the speed undecided, because the ratio with one thread contradicts it.

    Args:
        figures: the ratio with several threads, as the beginning of a sentence.
    """
    sentence = f"{figures}: threads waited for one another, so the ratio says little about the models; pass --threads 1"
    accuracy_judgements = [judgement for judgement in judgements if judgement.rule != "min_speedup"]
    strict = len(accuracy_judgements) < len(judgements)
    return [*accuracy_judgements, Judgement("min_speedup" if strict else "threads", "inconclusive", sentence, strict)]


def note_noise(judgement: Judgement, noise: Sequence[Signal]) -> Judgement:
    """Note in a judgement of speed that the run was noisy, because the interval does not cover constant errors."""
    if judgement.rule != "min_speedup" or not noise:
        return judgement
    names = ", ".join(dict.fromkeys(signal.name for signal in noise))
    return replace(judgement, sentence=f"{judgement.sentence}; the run was noisy ({names})")


def as_json(judgement: Judgement) -> JudgementEntry:
    """A judgement as an entry of the document."""
    return {
        "rule": judgement.rule, "outcome": judgement.outcome, "sentence": judgement.sentence,
        "strict": judgement.strict, "exit_code": judgement.exit_code,
    }  # fmt: skip


def as_entry(contract: Contract) -> ContractEntry:
    """A contract as an entry of the document."""
    return {
        "max_drop": contract.max_drop, "min_speedup": contract.min_speedup, "confidence": contract.confidence
    }  # fmt: skip


def outcome_of(speedup: Ratio) -> SpeedOutcome:
    """The outcome of a ratio in the document (see contract.speed_outcome); undecided if the ratio with one thread
    contradicts it."""
    return "inconclusive" if "one_thread" in speedup else speed_outcome(interval_of(speedup))


def interval_of(speedup: Ratio) -> Interval:
    """The interval of a ratio in the document."""
    return Interval(speedup["ratio"], speedup["low"], speedup["high"])


def ratio(speedup: Interval) -> Ratio:
    """A ratio as an entry of the document."""
    return {"ratio": speedup.value, "low": speedup.low, "high": speedup.high}


def block_times(model: MeasuredModel) -> list[BlockTime]:
    """A model's blocks for the statistics, in milliseconds per call."""
    return [BlockTime(block["round"], block["process"], block["ms"]) for block in model["blocks"]]


def drop_of(source: MeasuredModel, model: MeasuredModel, targets: Sequence[int], confidence: float) -> Drop | None:
    """The loss of top-1 accuracy against the source; None without predictions or labels."""
    if source["predictions"] is None or model["predictions"] is None:
        return None
    expected, before, after = map(np.asarray, (targets, source["predictions"], model["predictions"]))
    return compare_accuracy(expected, before, after, confidence)


def _compare(
    model: MeasuredModel, models: Sequence[MeasuredModel], candidates: Sequence[str], confidence: float
) -> Model:
    """A model's entry with its speed-ups over its baseline and over every other model."""
    speedups: dict[str, Ratio] = {}
    for other in models:
        if other is not model:
            speedups[other["id"]] = ratio(ratio_of_times(block_times(other), block_times(model), confidence))
            if (one_thread := one_thread_ratio(other, model)) is not None:
                speedups[other["id"]]["one_thread"] = one_thread
    reference = _fastest(models, candidates, model)
    speedup = speedups.get(reference["id"])
    return {
        **model,
        "speedup": speedup,
        "speed_baseline": speedup and reference["id"],
        "outcome": speedup and outcome_of(speedup),
        "speedup_over": speedups,
    }


def _fastest(models: Sequence[AnyModel], candidates: Sequence[str], model: MeasuredModel) -> AnyModel:
    """The baseline of a model's speed: the fastest model that is neither in a lower precision nor built into an engine.

    An unoptimised candidate (an export) is judged against the fastest other model that is not a candidate. Without
    such a model, the baseline is the first one.
    """
    unoptimised = [candidate for candidate in models if not optimised(candidate)]
    if model["id"] in candidates and not optimised(model):
        unoptimised = [candidate for candidate in unoptimised if candidate["id"] not in candidates]
    return min(unoptimised, key=lambda candidate: candidate["time_ms"]["value"], default=models[0])


def _alone(model: MeasuredModel, contract: Contract) -> Judgement:
    """The verdict on a single model: does it reproduce its golden samples?"""
    if contract.max_drop is not None or contract.min_speedup is not None:
        return Judgement(
            "baseline", "inconclusive", "there is no baseline to judge the contract against; pass --baseline", True
        )
    agreement = model["parity"]["top1_agreement"]
    if agreement < 1.0:
        return Judgement(
            "golden", "inconclusive", f"it agrees with its source on {agreement:.0%} of the golden samples"
        )
    return Judgement(
        "golden", "pass", "it answers all golden samples as its source did; there is no model to compare its speed with"
    )
