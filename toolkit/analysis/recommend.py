"""The recommended model: the fastest candidate that meets the contract, or the unoptimised one if none is faster."""

from collections.abc import Mapping, Sequence

from .model_schema import Model
from .report_schema import Recommendation
from .wording import FASTEST, names_of, speedup_text


def recommend(models: Sequence[Model], candidates: Sequence[str]) -> Recommendation | None:
    """A recommendation for a report; None if its only candidate is faster and therefore the obvious choice.

    Returns:
        "id" of the recommended model, which may be the unoptimised one, and "sentence", which compares it with the
        others. The id is None if candidates are faster and none is shown to meet the contract.
    """
    names = names_of(models)
    judged = [model for model in models if model["id"] in candidates and "judgements" in model]
    passing = [
        model for model in judged if all(judgement["outcome"] == "pass" for judgement in model.get("judgements", ()))
    ]
    faster = [model for model in judged if model["outcome"] == "faster"]
    if judged and not faster:
        reference = _reference(min(judged, key=lambda model: model["time_ms"]["value"]))
        return {"id": reference, "sentence": f"keep {names[reference]}: no candidate is shown to be faster here"}
    if len(judged) < 2:
        return None
    if not passing:
        return {"id": None, "sentence": "none of the candidates is shown to meet the contract"}
    best = min(passing, key=lambda model: model["time_ms"]["value"])
    if best not in faster:
        reference = _reference(best)
        return {
            "id": reference,
            "sentence": f"keep {names[reference]}: no candidate that meets the contract is faster here",
        }
    against = [_comparison(best, other, names, other in passing) for other in judged if other is not best]
    sentence = f"take {names[best['id']]}{FASTEST}: {'; '.join(against)}"
    return {"id": best["id"], "sentence": sentence}


def _reference(model: Model) -> str:
    """The id of the model that a model's speed is judged against."""
    return model["speed_baseline"] or model["id"]


def _comparison(best: Model, other: Model, names: Mapping[str, str], passes: bool) -> str:
    ratio = best.get("speedup_over", {})[other["id"]]
    remark = "" if passes else ", which is not shown to meet the contract"
    if ratio["low"] <= 1 <= ratio["high"]:
        remark += ", but the difference is not certain"
    return f"{speedup_text(ratio)} as fast as {names[other['id']]}{remark}"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the models that no other model beats, ordered by latency.

    One model beats another if it is at least as fast and at least as accurate, and better in at least one of the two.

    Args:
        points: point estimates of each model's latency and accuracy.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        best = points[front[-1]] if front else None
        if best is None or points[index][1] > best[1] or points[index] == best:
            front.append(index)
    return front
