"""Conclusions from a race: which model a device should use, and why the others were not chosen."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from ...deploy.bundle import Bundle
from ...deploy.devices.device import is_here
from ...deploy.images import UNLABELLED
from ...deploy.measuring.agent import Measured
from ...deploy.measuring.elimination import (
    INDIFFERENCE,
    points_lost,
    relative_batch_log,
    relative_logs,
    survivors,
)
from ...deploy.measuring.measurement import Measurement
from ...deploy.measuring.plan import Candidate, Plan, Race
from ...deploy.runtimes.runtime import PRECISION, default_runtime, options_text
from .contract import FAIL, PASS
from .search_schema import CandidateEntry, DeviceSearch, SharedFile, SpeedEntry, Status
from .statistics import student_mean
from .wording import megabytes


@dataclass(frozen=True)
class Raced:
    """A race on one device.

    Attributes:
        device: the device's name.
        bundles: id -> bundle of each file that took part.
        targets: of the selection images.
        seconds: how long it took.
    """

    device: str
    bundles: Mapping[str, Bundle]
    plan: Plan
    measured: Measured
    targets: Sequence[int]
    seconds: float

    @property
    def labelled(self) -> bool:
        """Whether each selection image has a label."""
        return UNLABELLED not in self.targets


@dataclass
class _Runner:
    """A candidate in a race; `rounds` has the logarithms of its relative times (see elimination.Logs).

    `time_ms` is per image at batch 1: relative to the reference's, so that it does not depend on when it was measured.
    """

    candidate: Candidate
    bundle: Bundle
    name: str
    measurement: Measurement | None = None
    rounds: list[list[float]] = field(default_factory=list)
    time_ms: float | None = None
    lost: float | None = None
    changed: float | None = None
    status: Status = "slower"
    detail: str = ""

    @property
    def logs(self) -> list[float]:
        """The logarithm of its relative time in each process."""
        return [median(values) for values in self.rounds]

    @property
    def log(self) -> float:
        """The mean of its logarithms."""
        return mean(self.logs)

    @property
    def precision(self) -> str:
        """The precision that it computes in."""
        return self.candidate.precision(self.bundle.manifest.precision)

    @property
    def optimised(self) -> bool:
        """Whether it computes in less than float32."""
        return self.precision != "fp32"


def candidate_name(candidate: Candidate, bundle: Bundle) -> str:
    """Precision, target, runtime and options: "int8 (openvino) on openvino threads=2"."""
    manifest = bundle.manifest
    precision, target = candidate.precision(manifest.precision), manifest.details.get("target")
    runtime = candidate.choice.name if candidate.choice else default_runtime(manifest.format).name
    options = {name: value for name, value in candidate.options.items() if (name, value) != (PRECISION, precision)}
    kept = options_text(options)
    return " ".join([precision, *([f"({target})"] if target else []), "on", runtime, *([kept] if kept else [])])


def conclude(raced: Raced) -> DeviceSearch:
    """The candidates in order, the chosen one first, and the reason.

    Among those that are equally fast (within INDIFFERENCE), one that is not optimised is preferred, then fewer threads,
    then the smaller loss of accuracy, then the smaller file.
    """
    rules = _rules(raced)
    runners = _runners(raced, rules)
    running = [runner for runner in runners if runner.measurement is not None]
    fastest_float = min((runner for runner in running if not runner.optimised), key=lambda runner: runner.log)
    within = [runner for runner in running if _keeps_limits(runner, rules, raced)]
    alive = _alive(within, rules, raced.plan.processes)
    chosen = _best(alive)
    if chosen is not None:
        for runner in within:
            runner.status, runner.detail = _placed(runner, chosen, alive)
    if rules.objective == "size" and within:
        smallest = min(runner.bundle.size_bytes for runner in within)
        for runner in within:
            if runner.bundle.size_bytes > INDIFFERENCE * smallest:
                runner.status, runner.detail = "larger", f"{megabytes(runner.bundle.size_bytes)}"
    front = _pareto(within)
    order = sorted(
        runners, key=lambda runner: (runner is not chosen, not runner.logs, runner.log if runner.logs else 0.0)
    )
    return {
        "name": raced.device,
        "environment": raced.measured.environment,
        "candidates": [_entry(runner, fastest_float, raced, runner in front) for runner in order],
        "chosen": chosen.candidate.key if chosen else None,
        "baseline": fastest_float.candidate.key,
        "sentence": _sentence(chosen, fastest_float, within, raced),
        "use": _command(chosen, raced.device) if chosen else None,
        "report": None, "headline": None,
        "verdict": "pass" if chosen else "fail",
        "reason": "nothing was optimised" if chosen else "no candidate keeps to the limits",
        "exit_code": PASS if chosen else FAIL,
        "seconds": raced.seconds,
    }  # fmt: skip


def shared_file(searches: Sequence[DeviceSearch]) -> SharedFile | None:
    """The file whose best candidate on each device is the closest to that device's fastest, in the geometric mean.

    None for one device, or if no file that was raced on all keeps to the limits there.
    """
    if len(searches) < 2:
        return None
    best: list[dict[str, tuple[float, CandidateEntry]]] = []
    for search in searches:
        files: dict[str, tuple[float, CandidateEntry]] = {}
        for entry in search["candidates"]:
            if entry["speedup"] is not None and entry["status"] in ("chosen", "close", "slower", "larger"):
                ratio = entry["speedup"]["ratio"]
                if entry["bundle"] not in files or ratio > files[entry["bundle"]][0]:
                    files[entry["bundle"]] = ratio, entry
        best.append(files)
    everywhere = set.intersection(*(set(files) for files in best)) if all(best) else set()
    if not everywhere:
        return None
    slower = {
        file: {
            search["name"]: max(ratio for ratio, _ in files.values()) / files[file][0]
            for search, files in zip(searches, best, strict=True)
        }
        for file in everywhere
    }
    file = min(slower, key=lambda file: (mean(math.log(value) for value in slower[file].values()), file))
    return {
        "bundle": file,
        "slower": slower[file],
        "candidates": {search["name"]: files[file][1]["name"] for search, files in zip(searches, best, strict=True)},
    }


def _rules(raced: Raced) -> Race:
    return raced.plan.race or Race()


def _runners(raced: Raced, rules: Race) -> list[_Runner]:
    measurements = {measurement.bundle: measurement for measurement in raced.measured.measurements}
    candidates = raced.plan.measured(raced.bundles)
    reference = measurements[candidates[0].key]
    reference_ms = math.exp(mean(math.log(block.ms) for block in reference.blocks))
    runners = []
    for candidate in candidates:
        bundle = raced.bundles[candidate.bundle]
        runner = _Runner(candidate, bundle, candidate_name(candidate, bundle), measurements.get(candidate.key))
        if (measurement := runner.measurement) is None:
            runner.status, runner.detail = "failed", raced.measured.failed.get(candidate.key, "not measured")
        else:
            processes = sorted({block.process for block in measurement.blocks})
            runner.rounds = [relative_logs(measurement.blocks, reference.blocks, number) for number in processes]
            runner.time_ms = math.exp(runner.log) * reference_ms
            if rules.objective == "throughput":
                own, others = measurement.throughput, reference.throughput
                runner.rounds = [[relative_batch_log(own, others, number)] for number in processes]
            if measurement.predictions is not None and reference.predictions is not None and len(raced.targets):
                first, second = reference.predictions.classes, measurement.predictions.classes
                runner.lost = points_lost(raced.targets, first, second)
                runner.changed = mean(a != b for a, b in zip(first, second, strict=True))
        runners.append(runner)
    return runners


def _keeps_limits(runner: _Runner, rules: Race, raced: Raced) -> bool:
    """Whether it keeps to the limits on size, accuracy and memory; sets the status of one that does not."""
    size = runner.bundle.size_bytes
    if rules.max_bytes is not None and size > rules.max_bytes:
        runner.status, runner.detail = "too large", f"{megabytes(size)}, {megabytes(rules.max_bytes)} allowed"
        return False
    memory = runner.measurement.peak_rss_bytes if runner.measurement else None
    if rules.max_loss is not None and runner.lost is not None and runner.lost > rules.max_loss:
        runner.status = "loses accuracy"
        images, allowed = len(raced.targets), f"{rules.max_loss:g}"
        runner.detail = (
            f"{runner.lost:+.2f} points lost on {images} selection images, {allowed} allowed"
            if raced.labelled
            else f"{runner.lost:.2f} % of {images} selection images are answered differently, {allowed} % allowed "
            "without labels"
        )
        return False
    if rules.max_rss_bytes is not None and memory is not None and memory > rules.max_rss_bytes:
        runner.status = "takes too much memory"
        runner.detail = f"{megabytes(memory)}, {megabytes(rules.max_rss_bytes)} allowed"
        return False
    return True


def _alive(within: Sequence[_Runner], rules: Race, looks: int) -> list[_Runner]:
    """Those that were measured to the end and may be the best."""
    if rules.objective == "size" and within:
        limit = INDIFFERENCE * min(runner.bundle.size_bytes for runner in within)
        within = [runner for runner in within if runner.bundle.size_bytes <= limit]
    processes = max((len(runner.rounds) for runner in within), default=0)
    whole = {runner.candidate.key: runner for runner in within if len(runner.rounds) == processes}
    if not whole:
        return []
    return [whole[key] for key in survivors({key: runner.rounds for key, runner in whole.items()}, looks)]


def _best(alive: Sequence[_Runner]) -> _Runner | None:
    if not alive:
        return None
    limit = min(runner.log for runner in alive) + math.log(INDIFFERENCE)
    return min(
        (runner for runner in alive if runner.log <= limit),
        key=lambda runner: (
            runner.optimised, runner.candidate.threads or 0, runner.lost or 0.0, runner.bundle.size_bytes, runner.log,
        ),
    )  # fmt: skip


def _placed(runner: _Runner, chosen: _Runner, alive: Sequence[_Runner]) -> tuple[Status, str]:
    if runner is chosen:
        return "chosen", ""
    ratio = f"{math.exp(chosen.log - runner.log):.2f}x as fast as the chosen one"
    return ("close", f"{ratio}: not certainly slower") if runner in alive else ("slower", ratio)


def _command(chosen: _Runner, device: str) -> str:
    choice = chosen.candidate.choice
    where = [] if is_here(device) else ["--device", device]
    runtime = ["--runtime", str(choice)] if choice else []
    return shlex.join(["edgekit", "validate", str(chosen.bundle.path), *runtime, *where])


def _speedup(runner: _Runner, baseline: _Runner) -> SpeedEntry:
    """Over the baseline, with Student's interval over the processes that both have."""
    differences = [first - second for first, second in zip(baseline.logs, runner.logs, strict=False)]
    if len(differences) < 2 or runner is baseline:
        return {"ratio": math.exp(baseline.log - runner.log), "low": None, "high": None}
    interval = student_mean(differences)
    return {"ratio": math.exp(interval.value), "low": math.exp(interval.low), "high": math.exp(interval.high)}


def _pareto(runners: Sequence[_Runner]) -> list[_Runner]:
    """Those that no other one beats in time, accuracy or size without being worse in another."""
    points = [(runner.log, runner.lost or 0.0, runner.bundle.size_bytes) for runner in runners]
    return [
        runner
        for runner, point in zip(runners, points, strict=True)
        if not any(
            other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True)) for other in points
        )
    ]


def _entry(runner: _Runner, baseline: _Runner, raced: Raced, pareto: bool) -> CandidateEntry:
    measurement, manifest = runner.measurement, runner.bundle.manifest
    choice = runner.candidate.choice
    batches = measurement.throughput if measurement and _rules(raced).objective == "throughput" else ()
    return {
        "id": runner.candidate.key, "name": runner.name, "bundle": str(runner.bundle.path), "format": manifest.format,
        "precision": runner.precision, "target": manifest.details.get("target"),
        "runtime": str(choice) if choice else default_runtime(manifest.format).name,
        "size_bytes": runner.bundle.size_bytes,
        "peak_rss_bytes": measurement and measurement.peak_rss_bytes,
        "speedup": _speedup(runner, baseline) if runner.logs else None,
        "forecast_speedup": None,
        "time_ms": runner.time_ms,
        "images_per_s": max((1e9 * entry.batch * len(entry.ns) / sum(entry.ns) for entry in batches), default=None),
        "points_lost": runner.lost if raced.labelled else None, "changed": runner.changed,
        "processes": len(runner.logs), "pareto": pareto,
        "status": runner.status, "detail": runner.detail,
    }  # fmt: skip


def _sentence(
    chosen: _Runner | None, baseline: _Runner, within: Sequence[_Runner], raced: Raced
) -> str:  # fmt: skip
    if chosen is None:
        return "no candidate keeps to the limits"
    if not chosen.optimised:
        return f"keep fp32: no optimised candidate within the limits is faster than {chosen.name}"
    speedup = _speedup(chosen, baseline)
    bounds = "" if speedup["low"] is None else f" [{speedup['low']:.2f}, {speedup['high']:.2f}]"
    text = f"use {chosen.name}: {speedup['ratio']:.2f}x{bounds} as fast as {baseline.name}"
    if _rules(raced).objective == "size":
        text = f"use {chosen.name}, the smallest with {megabytes(chosen.bundle.size_bytes)}: " + text.partition(": ")[2]
    if chosen.lost is not None and raced.labelled:
        text += f", {chosen.lost:+.2f} points lost on {len(raced.targets)} selection images"
    elif chosen.changed is not None:
        text += f", {100 * chosen.changed:.2f} % of {len(raced.targets)} answers changed"
    others = [runner for runner in within if runner is not chosen and runner.bundle.id != chosen.bundle.id]
    next_best = min(others, key=lambda runner: runner.log, default=baseline)
    if next_best is not baseline:  # which the choice has been compared with
        text += f"; {next_best.name} is {math.exp(chosen.log - next_best.log):.2f}x as fast as it"
    return text
