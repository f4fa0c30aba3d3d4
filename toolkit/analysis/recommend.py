"""Which model to take: the fastest candidate that meets the contract, or the unoptimised one where none is faster."""

from collections.abc import Mapping, Sequence
from typing import Any

from .wording import model_names, speedup_text


def recommend(models: Sequence[dict[str, Any]], candidates: Sequence[str]) -> dict[str, Any] | None:
    """A recommendation for a report; None where its only candidate is faster, and so the choice itself.

    Returns:
        "id" of the model to take, which may be the unoptimised one (None where the candidates are faster and none is
        shown to meet the contract), and "sentence", which compares it with each of the others.
    """
    names = model_names({"models": models})
    chosen = [model for model in models if model["id"] in candidates and "judgements" in model]
    holding = [model for model in chosen if all(one["outcome"] == "pass" for one in model["judgements"])]
    faster = [model for model in chosen if model["outcome"] == "faster"]
    if chosen and not faster:
        kept = min(chosen, key=lambda model: model["time_ms"]["value"])["speed_baseline"]
        return {"id": kept, "sentence": f"keep {names[kept]}: no candidate is shown to be faster here"}
    if len(chosen) < 2:
        return None
    if not holding:
        return {"id": None, "sentence": "none of the candidates is shown to meet the contract"}
    best = min(holding, key=lambda model: model["time_ms"]["value"])
    if best not in faster:
        kept = best["speed_baseline"]
        return {"id": kept, "sentence": f"keep {names[kept]}: no candidate that meets the contract is faster here"}
    against = [_beside(best, other, names, other in holding) for other in chosen if other is not best]
    sentence = f"take {names[best['id']]}, the fastest that meets the contract: {'; '.join(against)}"
    return {"id": best["id"], "sentence": sentence}


def _beside(best: Mapping[str, Any], other: Mapping[str, Any], names: Mapping[str, str], holds: bool) -> str:
    ratio = best["speedup_over"][other["id"]]
    remark = "" if holds else ", which is not shown to meet the contract"
    if ratio["low"] <= 1 <= ratio["high"]:
        remark += ", a difference that is not certain"
    return f"{speedup_text(ratio)} as fast as {names[other['id']]}{remark}"
