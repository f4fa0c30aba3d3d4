"""Validation: measure the original and the optimised models together on a device, compare, and give a verdict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..deploy.bundle import Bundle
from ..deploy.devices import Measured, open_device
from ..deploy.environment import has_vnni
from ..deploy.errors import BundleError
from ..deploy.images import UNLABELLED, ImageSet
from ..deploy.measurement import Measurement
from ..deploy.parity import Parity
from ..deploy.plan import Plan
from .console import progress_bar, say
from .contract import Judgement, compare_accuracy, judge_drop, judge_speedup, overall
from .datasets import part_of
from .statistics import CONFIDENCE, Interval, percentile, ratio_of_medians, wilson
from .workspace import RUNS, find

SCHEMA = 1


@dataclass(frozen=True)
class Validation:
    """What validate found.

    Attributes:
        report: the document of schema 1 (documented in the README).
        judgement: the verdict and its exit code.
        images: the test images, for the report's pictures; None when there are none.
    """

    report: dict[str, Any]
    judgement: Judgement
    images: ImageSet | None


def validate(
    bundles: Sequence[Bundle],
    *,
    baseline: Bundle | None = None,
    images: str | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    confidence: float = CONFIDENCE,
    plan: Plan | None = None,
    device: str = "local",
    skip_corrupt: bool = False,
) -> Validation:
    """Compare optimised models with their original, measured together on one device.

    Args:
        bundles: the candidates; the models that they were made from are measured too, as far as they are found.
        baseline: what they are compared with, alone; None is the source model in torch, or the fp32 ONNX without torch.
        images: test images from elsewhere than the bundle's own test part.
        limit: take this many of them, drawn by class.
        max_drop, min_speedup: the contract (see contract.py).

    Raises:
        BundleError: the candidates do not belong together.
        EdgeKitError: a model cannot be run.
    """
    chain = _with_ancestors(bundles, baseline)
    test = part_of(bundles[0], "test", images, skip_corrupt=skip_corrupt)
    if test is not None and limit is not None:
        test = test.stratified(limit, seed=0)
    if test is None:
        say("no test images are known: accuracy is not measured (pass --images)")
    plan = plan or Plan()
    with progress_bar("validate") as show:
        measured = open_device(device).measure(chain, plan, test, show)
    report, judgement = make_report(
        chain, measured, test, [bundle.id for bundle in bundles], plan, max_drop, min_speedup, confidence
    )
    return Validation(report, judgement, test)


def _with_ancestors(bundles: Sequence[Bundle], baseline: Bundle | None) -> list[Bundle]:
    """[baseline, the models between where no baseline was named, candidates], each once."""
    labels = {bundle.manifest.labels for bundle in (*bundles, *([baseline] if baseline else []))}
    if len(labels) != 1:
        raise BundleError("the bundles have different labels", fix="validate models of the same classes together")
    if baseline is not None:
        return list({bundle.id: bundle for bundle in (baseline, *bundles)}.values())
    found = []
    for bundle in bundles:
        for entry in bundle.manifest.lineage:
            ancestor = find(entry["id"], bundle.path.parent, RUNS)
            if ancestor is None:
                say(f"{entry['name']} ({entry['format']} {entry['precision']}) is not here: not compared")
            elif not _runs_here(ancestor):
                say(f"{ancestor.path} needs a runtime that is not installed here: not compared")
            else:
                found.append(ancestor)
    return list({bundle.id: bundle for bundle in (*found, *bundles)}.values())


def _runs_here(bundle: Bundle) -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime" if bundle.manifest.format == "onnx" else "torch") is not None


def make_report(
    chain: Sequence[Bundle], measured: Measured, test: ImageSet | None, candidates: Sequence[str], plan: Plan,
    max_drop: float | None, min_speedup: float | None, confidence: float,
) -> tuple[dict[str, Any], Judgement]:  # fmt: skip
    """The report of schema 1 and the verdict, as a function of the measurements alone."""
    base = measured.measurements[0]
    targets = test.targets if test is not None else np.empty(0, np.int64)
    models, judgements = [], []
    for bundle, measurement in zip(chain, measured.measurements, strict=True):
        model = _describe(bundle, measurement, targets, confidence)
        if measurement is not base:
            speedup = _speedup(base, measurement, confidence)
            model["speedup"] = _ratio(speedup)
            model["outcome"] = _outcome(speedup)
            model["speedup_over"] = {
                other.bundle: _ratio(_speedup(other, measurement, confidence))
                for other in measured.measurements
                if other is not measurement
            }
            drop = None
            if base.predictions and measurement.predictions:
                drop = compare_accuracy(targets, _classes(base), _classes(measurement), confidence)
                model["flips"] = int((_classes(base) != _classes(measurement)).sum())
            if drop is not None:
                model["drop"] = {"points": drop.points.value, "low": drop.points.low, "high": drop.points.high}
                model["mcnemar_p"] = drop.p
            if bundle.id in candidates:
                own = [judge_drop(drop, max_drop, confidence)]
                if min_speedup is not None:
                    own.append(judge_speedup(speedup, min_speedup))
                if speedup.high < 1:
                    model["warnings"].append(f"slower than the baseline here: {speedup.value:.2f} times as fast")
                model["judgements"] = [{**asdict(one), "exit_code": one.exit_code} for one in own]
                judgements += own
        models.append(model)
    verdict = overall(judgements) if judgements else _alone(models[0], max_drop, min_speedup)
    report = {
        "schema": SCHEMA,
        "verdict": verdict.outcome,
        "reason": verdict.sentence,
        "contract": {"max_drop": max_drop, "min_speedup": min_speedup, "confidence": confidence},
        "device": measured.environment,
        "plan": plan.to_json(),
        "baseline": base.bundle,
        "images": len(targets),
        "labels": list(chain[0].manifest.labels),
        "targets": targets.tolist(),
        "ids": list(test.ids) if test is not None else [],
        "models": models,
    }
    return report, verdict


def _alone(model: dict[str, Any], max_drop: float | None, min_speedup: float | None) -> Judgement:
    """The verdict on a model with nothing to compare it with: does it answer as its golden samples say?"""
    if max_drop is not None or min_speedup is not None:
        return Judgement(
            "baseline", "inconclusive", "there is no baseline to hold the contract against; pass --baseline", True
        )
    agreement = model["parity"]["top1_agreement"]
    if agreement < 1.0:
        return Judgement(
            "golden", "inconclusive", f"it agrees with its source on {agreement:.0%} of the golden samples"
        )
    return Judgement(
        "golden", "pass", "it answers all golden samples as its source did; nothing to compare its speed with"
    )


def _describe(bundle: Bundle, measurement: Measurement, targets: np.ndarray, confidence: float) -> dict[str, Any]:
    """One model's entry in the report, without what compares it with the baseline."""
    manifest = bundle.manifest
    calls = np.concatenate([block.ns for block in measurement.blocks]) / 1e6
    top1, top5 = _accuracy(measurement, targets, confidence)
    predictions = measurement.predictions
    return {
        "id": bundle.id,
        "bundle": str(bundle.path),
        "name": manifest.name,
        "format": manifest.format,
        "precision": manifest.precision,
        "size_bytes": bundle.size_bytes,
        "parameters": manifest.parameters,
        "top1": top1 and top1.value,
        "top1_interval": top1 and [top1.low, top1.high],
        "top5": top5,
        "per_class": _per_class(measurement, targets, manifest.labels),
        "drop": None,
        "flips": None,
        "latency_ms": {f"p{which}": percentile(calls, which) for which in (50, 90, 99)},
        "calls": len(calls),
        "speedup": None,
        "preprocess_ms": float(np.median(measurement.preprocess_ns)) / 1e6 if measurement.preprocess_ns else None,
        "load_ms": float(np.median(measurement.load_ms)),
        "first_ms": float(np.median(measurement.first_ms)),
        "peak_rss_bytes": measurement.peak_rss_bytes,
        "parity": {
            key: value if math.isfinite(value := measurement.parity[key]) else None
            for key in ("tensor_max_abs", "logits_max_abs", "top1_agreement")
        },
        "session": dict(measurement.session),
        "lineage": [*map(dict, manifest.lineage)],
        "predictions": list(predictions.classes) if predictions else None,
        "confidences": list(predictions.confidences) if predictions else None,
        "blocks_ms": [
            {"round": block.round, "process": block.process, "p50": float(np.median(block.ns)) / 1e6}
            for block in measurement.blocks
        ],
        "warnings": _warnings(bundle, measurement),
    }


def _warnings(bundle: Bundle, measurement: Measurement) -> list[str]:
    found = []
    parity = Parity(**measurement.parity)
    if not math.isfinite(parity.logits_max_abs):
        found.append("its answers on the golden samples are not numbers")
    elif bundle.manifest.precision == "fp32" and not parity.exact:
        found.append(f"not the same model as its source here: logits differ by up to {parity.logits_max_abs:.3g}")
    if not parity.same_input:
        found.append(
            f"preprocessing here differs from the source's by up to {parity.tensor_max_abs:.3g}: "
            "another decoder or Pillow"
        )
    if bundle.manifest.requires.get("isa") == "vnni" and not has_vnni():
        found.append("quantized for x86 with VNNI, which this CPU lacks: sums may saturate (--target x86-avx2)")
    return found


def _accuracy(measurement: Measurement, targets: np.ndarray, confidence: float) -> tuple[Interval | None, float | None]:
    predictions = measurement.predictions
    if predictions is None or predictions.in_top5 is None:
        return None, None
    right = int((_classes(measurement) == targets).sum())
    return wilson(right, len(targets), confidence), float(np.mean(predictions.in_top5))


def _per_class(measurement: Measurement, targets: np.ndarray, labels: Sequence[str]) -> dict[str, float] | None:
    """Top-1 of each class that has images."""
    if measurement.predictions is None or len(targets) == 0 or (targets == UNLABELLED).any():
        return None
    right = _classes(measurement) == targets
    return {label: float(right[targets == index].mean()) for index, label in enumerate(labels) if index in targets}


def _classes(measurement: Measurement) -> np.ndarray:
    assert measurement.predictions is not None  # noqa: S101 # asked only where there are predictions
    return np.asarray(measurement.predictions.classes)


def _speedup(baseline: Measurement, candidate: Measurement, confidence: float) -> Interval:
    """How many times faster the candidate is than the baseline, from the rounds they share."""
    blocks = [
        [(block.process, float(np.median(block.ns))) for block in measurement.blocks]
        for measurement in (baseline, candidate)
    ]
    return ratio_of_medians(*blocks, confidence=confidence)


def _outcome(speedup: Interval) -> str:
    if speedup.low > 1:
        return "faster"
    if speedup.high < 1:
        return "slower"
    return "no difference"


def _ratio(speedup: Interval) -> dict[str, float]:
    return {"ratio": speedup.value, "low": speedup.low, "high": speedup.high}
