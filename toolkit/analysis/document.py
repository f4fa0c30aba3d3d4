"""The report document, a pure function of the measurements."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.documents import plain, read
from ...deploy.environment import has_vnni
from ...deploy.errors import EdgeKitError
from ...deploy.images import UNLABELLED
from ...deploy.measuring.measure import lacking
from ...deploy.measuring.measurement import Block, Measurement, SessionFacts
from ...deploy.measuring.plan import Candidate, Plan
from ...deploy.measuring.result import Result
from ...deploy.measuring.rules import RULES
from ...deploy.parity import Parity
from ...deploy.runtimes.runtime import default_runtime
from .contract import Contract, compare_accuracy
from .host_answers import unexplained
from .model_schema import ClassFlips, MeasuredModel, Outliers, ParityEntry, SourceComparison
from .noise import signals
from .report_schema import SCHEMA, Report
from .scenarios import scenarios
from .statistics import (
    PERCENTILE_SAMPLES,
    BlockTime,
    Interval,
    calibration_error,
    holm,
    mcnemar,
    outliers,
    percentile,
    typical_time,
    wilson,
)
from .verdict import collapse, judge_report
from .wording import names_of


def make_report(result: Result) -> Report:
    """Make the report document, with its verdict.

    Raises:
        EdgeKitError: the run ended before its second process, so no interval can be computed.
    """
    if min(measured_processes(timed) for timed in result.measurements) < 2:
        raise EdgeKitError(
            f"{result.device} was lost in the first of its {result.plan.processes} processes; an interval needs two",
            fix="measure again; the file keeps the measurements so far",
        )
    measurements, targets, plan, contract = (
        result.measurements,
        result.targets,
        result.plan,
        read(Contract, result.contract, "contract"),
    )
    labels = result.bundles[0].manifest.labels
    models = [_describe(result, *measured, contract.confidence) for measured in result.measured()]
    names = names_of(models).values()
    threads = max(threads_of(result, candidate) for candidate, _, _ in result.measured())
    noise = signals(result.environment, dict(zip(names, measurements, strict=True)), threads)
    for at, measurement in enumerate(measurements[1:], 1):
        difference = _against_source(measurements[0], measurement, targets, labels, contract.confidence)
        models[at] = {**models[at], **difference}
    return judge_report(
        {
            "schema": SCHEMA,
            "noise": [{"name": signal.name, "detail": signal.detail} for signal in noise],
            "device": {"name": result.device, **result.environment},
            "plan": plan.to_report(),
            "baseline": models[0]["id"],
            "images": len(targets),
            "labels": list(labels),
            "targets": targets.tolist(),
            "ids": list(result.ids),
            "overlap": plain(result.overlap),
            "provenance": result.provenance,
        },
        models,
        result.candidates,
        contract,
    )


def threads_of(result: Result, candidate: Candidate) -> int:
    """Threads per inference: the candidate's own, those the device used, or in older results those requested."""
    environment = result.environment
    return candidate.threads or environment.get("threads") or result.plan.threads or environment["cores_allowed"]


def measured_processes(measurement: Measurement) -> int:
    """Number of processes with blocks; fewer than planned if the run was cut short."""
    return len({block.process for block in measurement.blocks})


def measured_times(blocks: Sequence[Block]) -> list[BlockTime]:
    """Blocks for the statistics, in milliseconds per call."""
    return [BlockTime(block.round, block.process, block.ms) for block in blocks]


def _describe(
    result: Result, candidate: Candidate, bundle: Bundle, measurement: Measurement, confidence: float
) -> MeasuredModel:  # fmt: skip
    """One model's entry in the report, before it is compared with the baseline."""
    manifest, predictions, targets = bundle.manifest, measurement.predictions, result.targets
    top1, top5 = _accuracy(measurement, targets, confidence)
    time = typical_time(measured_times(measurement.blocks), confidence)
    calls = np.asarray([value for block in measurement.blocks for value in block.call_ms])
    p50, p90, p95, p99 = (percentile(calls, percent) for percent in PERCENTILE_SAMPLES)
    return {
        "id": candidate.key,
        "bundle": str(bundle.path),
        "name": manifest.name,
        "format": manifest.format,
        "runtime": (candidate.choice or default_runtime(manifest.format, planted=True)).name,
        "runtime_options": dict(candidate.options),
        "precision": candidate.precision(manifest.precision),
        "size_bytes": bundle.size_bytes,
        "parameters": manifest.parameters,
        "top1": top1 and top1.value,
        "top1_interval": top1 and [top1.low, top1.high],
        "top5": top5,
        "per_class": _per_class(measurement, targets, manifest.labels),
        "calibration_error": _calibration_error(measurement, targets) if top1 else None,
        "drop": None,
        "flips": None,
        "flips_by_class": None,
        "latency_ms": {"p50": p50 and p50.value, "p90": p90 and p90.value, "p95": p95 and p95.value,
                       "p99": p99 and p99.value},
        "latency_upper_ms": {"p50": p50 and p50.upper, "p90": p90 and p90.upper, "p95": p95 and p95.upper,
                             "p99": p99 and p99.upper},
        "time_ms": {"value": time.value, "low": time.low, "high": time.high},
        "one_thread_ms": _median([block.ms for block in measurement.one_thread]),
        "samples": len(calls),
        "calls_per_sample": measurement.blocks[0].calls,
        "outliers": _outliers(measurement, calls),
        "file_ms": _median(measurement.file_ms),
        "load_ms": _median(measurement.load_ms),
        "first_ms": _median(measurement.first_ms),
        "warm_up_ms": _median([warm_up.ms for warm_up in measurement.warm_ups]),
        "preprocess_ms": _median(measurement.preprocess_ns, 1e-6),
        "postprocess_ms": _median(measurement.postprocess_ns, 1e-6),
        "stages_ms": {stage: _median(ns, 1e-6) for stage, ns in measurement.stages.items()},
        "engine": manifest.details.get("engine") or measurement.session.get("layers"),
        "peak_rss_bytes": measurement.peak_rss_bytes,
        "parity": _parity(measurement.parity),
        "first_difference": Parity(**measurement.parity).first_difference,
        "host": result.host.get(candidate.key),
        "session": _without_layers(measurement.session),
        "lineage": plain(manifest.lineage),
        "predictions": list(predictions.classes) if predictions else None,
        "confidences": list(predictions.confidences) if predictions else None,
        "blocks": [
            {"round": block.round, "process": block.process, "at": round(block.at, 3), "ms": block.ms,
             "ns": list(block.ns)}
            for block in measurement.blocks
        ],
        **scenarios(measurement, result.plan, confidence),
        "warnings": _warnings(result, candidate, bundle, measurement),
    }  # fmt: skip


def _without_layers(session: SessionFacts) -> SessionFacts:
    """The session's facts; its layers are the report's `engine`."""
    return cast("SessionFacts", {key: value for key, value in session.items() if key != "layers"})


def _parity(parity: Mapping[str, float]) -> ParityEntry:
    """Parity as JSON: NaN and infinity, which JSON cannot represent, become None."""

    def finite(key: str) -> float | None:
        return parity[key] if math.isfinite(parity[key]) else None

    return {
        "checksums_agreement": finite("checksums_agreement"), "tensor_max_abs": finite("tensor_max_abs"),
        "logits_max_abs": finite("logits_max_abs"), "top1_agreement": parity["top1_agreement"],
    }  # fmt: skip


def _against_source(
    source: Measurement, measurement: Measurement, targets: np.ndarray, labels: Sequence[str], confidence: float
) -> SourceComparison:
    """The differences between a model's answers and the source's."""
    entry: SourceComparison = {"drop": None, "flips": None, "flips_by_class": None}
    if source.predictions is None or measurement.predictions is None:
        return entry
    entry["flips"] = int((_classes(source) != _classes(measurement)).sum())
    drop = compare_accuracy(targets, _classes(source), _classes(measurement), confidence)
    if drop is not None:
        entry["drop"] = {"points": drop.points.value, "low": drop.points.low, "high": drop.points.high}
        entry["mcnemar_p"] = drop.p
        entry["flips_by_class"] = _flips_by_class(targets, _classes(source), _classes(measurement), labels)
    return entry


def _flips_by_class(
    targets: np.ndarray, baseline: np.ndarray, candidate: np.ndarray, labels: Sequence[str]
) -> list[ClassFlips]:
    """Images per class that only one of the two models gets right, the most certain change first; Holm-adjusted p."""
    baseline_right, candidate_right = baseline == targets, candidate == targets
    counts: dict[str, tuple[int, int]] = {}
    for index, label in enumerate(labels):
        if (in_class := targets == index).any():
            lost, gained = baseline_right & ~candidate_right, ~baseline_right & candidate_right
            counts[label] = int(lost[in_class].sum()), int(gained[in_class].sum())
    adjusted = holm({label: mcnemar(*pair) for label, pair in counts.items()})
    changed: list[ClassFlips] = [
        {"label": label, "lost": lost, "gained": gained, "p": adjusted[label]}
        for label, (lost, gained) in counts.items()
        if lost or gained
    ]
    return sorted(changed, key=lambda entry: (entry["p"], entry["gained"] - entry["lost"]))


def _outliers(measurement: Measurement, calls: np.ndarray) -> Outliers:
    """Number and rounds of samples beyond Tukey's fences; every figure includes them."""
    beyond = outliers(calls)
    rounds = np.repeat([block.round for block in measurement.blocks], [len(block.ns) for block in measurement.blocks])
    return {"count": int(beyond.sum()), "share": float(beyond.mean()), "rounds": np.unique(rounds[beyond]).tolist()}


def _warnings(result: Result, candidate: Candidate, bundle: Bundle, measurement: Measurement) -> list[str]:
    warnings = []
    parity = Parity(**measurement.parity)
    if not math.isfinite(parity.logits_max_abs):
        warnings.append("some of its outputs on the golden samples are not numbers")
    elif candidate.precision(bundle.manifest.precision) == "fp32" and not parity.exact:
        warnings.append(f"not equivalent to its source here: logits differ by up to {parity.logits_max_abs:.3g}")
    if parity.first_difference == "decoder":
        warnings.append(
            f"this device decodes {1 - parity.checksums_agreement:.0%} of the golden samples to other pixels than the "
            f"source, and the network's input differs by up to {parity.tensor_max_abs:.3g}: a different libjpeg"
        )
    elif parity.first_difference == "preprocessing":
        warnings.append(
            f"preprocessing on this device differs from the source's by up to {parity.tensor_max_abs:.3g} for the same "
            "pixels: a different Pillow"
        )
    layers = measurement.session.get("layers")
    if bundle.manifest.precision == "fp16" and layers is not None and "fp16" not in layers["precisions"]:
        warnings.append("computed in fp32 here: the runtime has no fp16 arithmetic for this device")
    if bundle.manifest.requires.get("isa") == "vnni" and not has_vnni(result.environment["isa"]):
        warnings.append("quantized for x86 with VNNI, which this CPU lacks: sums may saturate (--target x86-avx2)")
    if measurement.differed:
        warnings.append(
            f"{measurement.differed} of {measurement.checked} answers of the timed calls differ from those that its "
            "accuracy is based on"
        )
    if (host := result.host.get(candidate.key)) is not None and (unexplained_answers := unexplained(host)):
        warnings.append(
            f"{unexplained_answers} of its answers differ from the host's by more than the kernels' difference on the "
            "golden samples"
        )
    slowdown = collapse(measured_ms(measurement), _median([block.ms for block in measurement.one_thread]))
    if slowdown is not None:
        warnings.append(
            f"takes {slowdown:.2g} times as long with {threads_of(result, candidate)} threads as with one: they wait "
            "for one another (--threads 1)"
        )
    return warnings + _shortcomings(measurement, result.plan)


def measured_ms(measurement: Measurement) -> float:
    """The model's typical block, in milliseconds per call."""
    return typical_time(measured_times(measurement.blocks)).value


def _shortcomings(measurement: Measurement, plan: Plan) -> list[str]:
    """Measurement requirements that this run did not meet."""
    shortcomings = []
    inputs = len(measurement.postprocess_ns) // max(1, len(measurement.warm_ups))
    if inputs < RULES.inputs:
        shortcomings.append(f"timed on {inputs} different images instead of {RULES.inputs} (pass --images)")
    measured, planned = measured_processes(measurement), measurement.processes or plan.processes
    if measured < planned:
        shortcomings.append(f"the run was cut short: {measured} of {planned} processes were measured")
    elif planned < plan.processes:
        shortcomings.append(f"measured in {planned} processes instead of {plan.processes}, because starting took long")
    if unsettled := sum(not warm_up.settled for warm_up in measurement.warm_ups):
        shortcomings.append(
            f"its times had not settled at the end of the warm-up in {unsettled} of {measured} processes"
        )
    missed = dict.fromkeys(
        reason
        for process in range(measured)
        for reason in lacking(
            [block for block in measurement.blocks if block.process == process], replace(plan, processes=planned)
        )
    )
    if missed:
        shortcomings.append(f"the time was too short for {' and '.join(missed)} (--seconds)")
    return shortcomings


def _accuracy(measurement: Measurement, targets: np.ndarray, confidence: float) -> tuple[Interval | None, float | None]:
    predictions = measurement.predictions
    if predictions is None or predictions.in_top5 is None:
        return None, None
    right = int((_classes(measurement) == targets).sum())
    return wilson(right, len(targets), confidence), float(np.mean(predictions.in_top5))


def _calibration_error(measurement: Measurement, targets: np.ndarray) -> float:
    assert measurement.predictions is not None  # noqa: S101 # called only for models with an accuracy
    return calibration_error(measurement.predictions.confidences, _classes(measurement) == targets)


def _per_class(measurement: Measurement, targets: np.ndarray, labels: Sequence[str]) -> dict[str, float] | None:
    """Top-1 of each class that has images."""
    if measurement.predictions is None or len(targets) == 0 or (targets == UNLABELLED).any():
        return None
    right = _classes(measurement) == targets
    return {label: float(right[targets == index].mean()) for index, label in enumerate(labels) if index in targets}


def _classes(measurement: Measurement) -> np.ndarray:
    assert measurement.predictions is not None  # noqa: S101 # called only for models with predictions
    return np.asarray(measurement.predictions.classes)


def _median(values: Sequence[float], unit: float = 1.0) -> float | None:
    return float(np.median(values)) * unit if len(values) else None
