"""Which of several candidates to take: the fastest that holds the contract."""

from collections.abc import Sequence
from typing import Any

from .display import model_names, speedup_text


def recommend(models: Sequence[dict[str, Any]], candidates: Sequence[str]) -> dict[str, Any] | None:
    """A recommendation among the candidates of a report; None where there are not two to choose from.

    Returns:
        "id" of the model to take (None where none holds the contract), and "sentence", which holds it against each of
        the others: lower precision is often not faster on small networks at batch 1, and then that is said.
    """
    names = model_names({"models": models})
    chosen = [model for model in models if model["id"] in candidates and "judgements" in model]
    if len(chosen) < 2:
        return None
    holding = [model for model in chosen if all(one["outcome"] == "pass" for one in model["judgements"])]
    if not holding:
        return {"id": None, "sentence": "none of the candidates is shown to hold the contract"}
    best = max(holding, key=lambda model: model["speedup"]["ratio"])
    against = []
    for other in chosen:
        if other is best:
            continue
        ratio = best["speedup_over"][other["id"]]
        remark = "" if other in holding else ", which is not shown to hold the contract"
        if ratio["low"] <= 1 <= ratio["high"]:
            remark += ", a difference that is not certain"
        against.append(f"{speedup_text(ratio)} as fast as {names[other['id']]}{remark}")
    sentence = f"take {names[best['id']]}, the fastest that holds the contract: {'; '.join(against)}"
    return {"id": best["id"], "sentence": sentence}
