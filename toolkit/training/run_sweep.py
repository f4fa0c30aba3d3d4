"""Run a sweep: one process per point, one after the other; what is finished is not trained again."""

import csv
import json
import logging
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ...deploy.bundle import Bundle
from ...deploy.documents import parse
from ...deploy.errors import BundleError, EdgeKitError, RecipeError, TrainingError
from ...deploy.files import new_folder, write_file
from ..analysis.statistics import wilson
from ..analysis.sweep import SweepRow, sweep_csv
from ..runs import RUNS, SWEEP, TRAINING, folders
from ..workspace import claimed, locked, new_path, release
from .advice import diverging, over_fitting, stalled
from .checkpoint import METRICS, STATE
from .curves import draw_comparison
from .recipe import Recipe
from .schedules import NEEDS_TOTAL_STEPS
from .sweep import Point, Sweep
from .sweep_child import Outcome, Task

_log = logging.getLogger(__name__)

SWEEP_FILE, TABLE, PLOT = "sweep.json", "sweep.csv", "sweep.png"

# Of metrics.csv: what the table and the plot are made from.
_COLUMNS = (
    "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "images_per_s", "seconds",
)  # fmt: skip
_CHILD = ("-m", f"{__package__}.sweep_child")
_MAX_BYTES = 1 << 20
# Seconds that a process has for its end, once it was interrupted.
_ENDING_S = 30.0


class SweepResult(NamedTuple):
    """A sweep's folder, with a bundle for each trained point, sweep.csv and sweep.png; and the rows of its table."""

    folder: Path
    rows: list[SweepRow]


def run_sweep(
    sweep: Sweep, *, out: Path | None = None, runs: Path = RUNS, resume: bool = False, download: bool = False
) -> SweepResult:
    """Train every point of a sweep in a process of its own.

    A point that fails becomes a row with the reason, and the others are trained. A point that differs from a finished
    one only in having more epochs continues it, if its schedule does not depend on the number of epochs: on one CPU,
    its weights equal those of a training of its own.

    Args:
        out: the sweep's folder; by default the next one in `runs`, or the newest one of this sweep to resume.
        resume: continue a sweep: finished points are kept, an interrupted one continues from its last epoch.

    Raises:
        TrainingError: there is no sweep to resume, another process runs it, or no point could be trained.
        EdgeKitError: the folder exists already, or cannot be written.
    """
    if "RANK" in os.environ:
        raise TrainingError("a sweep starts its own processes", fix="run edgekit train --sweep without torchrun")
    folder = _resumed(sweep, out, runs) if resume else _new(sweep, out, runs)
    points = sweep.points()
    with locked(folder) as acquired:
        if not acquired:
            raise TrainingError(f"another process runs the sweep in {folder}", fix="wait for it, or stop it")
        rows = {point.name: _row(folder, point) for point in points}
        _write(folder, points, list(rows.values()))
        for number, point in enumerate(points, 1):
            if rows[point.name]["trained"]:
                continue
            _log.info(f"{number} of {len(points)}: {point.name}")
            try:
                error = _trained(folder, point, points, download=download)
            except KeyboardInterrupt:
                _log.info(f"stopped; what is finished is kept in {folder}: repeat the command with --resume")
                raise
            if error:
                _log.warning(f"{point.name}: {error}")
            rows[point.name] = _row(folder, point, error)
            _write(folder, points, list(rows.values()))
    first = rows[points[0].name]
    if not any(row["trained"] for row in rows.values()):
        raise TrainingError(f"no point could be trained; {first['point']}: {first['note']}", fix="change the recipe")
    return SweepResult(folder, list(rows.values()))


def _new(sweep: Sweep, out: Path | None, runs: Path) -> Path:
    reserved = out or new_path(sweep.recipe.name, runs)
    folder = out or reserved.with_name(reserved.name + SWEEP)
    with claimed(reserved), new_folder(folder) as draft:
        (draft / SWEEP_FILE).write_text(json.dumps(sweep.to_dict(), indent=1))
    release(reserved)
    return folder


def _resumed(sweep: Sweep, out: Path | None, runs: Path) -> Path:
    found = [path for path in folders(runs) if path.name.endswith(SWEEP)]
    for folder in [out] if out else sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if (recorded := _recorded(folder)) and recorded.points() == sweep.points():
            return folder
    raise TrainingError(
        f"there is no sweep with this recipe, grid and options in {out or runs}/",
        fix="repeat the command with the same options, or start a new sweep without --resume",
    )


def _recorded(folder: Path) -> Sweep | None:
    """The sweep of a folder; None if it has none that this version reads."""
    path = folder / SWEEP_FILE
    try:
        with path.open("rb") as stream:
            document = parse(stream.read(_MAX_BYTES + 1), path, "a sweep", limit=_MAX_BYTES)
        return Sweep.from_dict(document) if isinstance(document, dict) else None
    except (EdgeKitError, OSError):
        return None


def _trained(folder: Path, point: Point, points: list[Point], *, download: bool) -> str | None:
    """Train a point in a process of its own; return why that failed, or None."""
    shorter = _shorter(folder, point, points)
    if shorter:
        _log.info(f"continues {shorter}, which has fewer epochs")
    task = Task(
        title=f"train {point.name}", recipe=point.recipe.to_dict(), out=str(folder / point.name),
        shorter=str(shorter) if shorter else None, download=download,
    )  # fmt: skip
    return _in_process(task)


def _in_process(task: Task) -> str | None:
    """Why the process of a task failed, or None."""
    process = subprocess.Popen(
        [sys.executable, *_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        answer = process.communicate(json.dumps(task))[0]
    except KeyboardInterrupt:  # a terminal interrupts both; another sender only this process
        process.terminate()
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if answer:
        outcome: Outcome = json.loads(answer)
        return outcome["error"]
    how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with exit code {process.returncode}"
    return f"its process ended {how}"


def _shorter(folder: Path, point: Point, points: list[Point]) -> Path | None:
    """The training that `point` continues: of the finished ones that differ only in epochs, the longest shorter one."""
    recipe, found = point.recipe, {}
    if recipe.train.schedule in NEEDS_TOTAL_STEPS:
        return None
    for other in points:
        epochs = other.recipe.train.epochs
        same = recipe == other.recipe.with_values({"name": recipe.name, "train.epochs": recipe.train.epochs})
        work = folder / f"{other.name}{TRAINING}"
        if same and epochs < recipe.train.epochs and (folder / other.name).exists() and (work / STATE).is_file():
            found[epochs] = work
    return found[max(found)] if found else None


def _write(folder: Path, points: list[Point], rows: list[SweepRow]) -> None:
    """Write the table and the plot of all points so far."""
    write_file(folder / TABLE, sweep_csv(rows))
    histories = {point.name: history for point in points if (history := _history(folder, point))}
    if histories:
        write_file(folder / PLOT, draw_comparison(histories))


def _history(folder: Path, point: Point) -> list[dict[str, float]]:
    """The metrics of a point's complete epochs.

    Raises:
        TrainingError: they cannot be read.
    """
    place = folder / point.name
    path = (place if place.exists() else folder / f"{point.name}{TRAINING}") / METRICS
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as stream:
            return [{key: float(row[key]) for key in _COLUMNS} for row in csv.DictReader(stream)]
    except (csv.Error, KeyError, OSError, TypeError, ValueError) as error:
        raise TrainingError(f"cannot read {path}", fix="remove its folder, and repeat with --resume") from error


def _row(folder: Path, point: Point, error: str | None = None) -> SweepRow:
    """The row of a point, from its bundle if it has one.

    Args:
        error: why it has none.

    Raises:
        BundleError: the bundle is damaged, or was not trained by the point's recipe.
    """
    row = SweepRow(
        point=point.name, values=point.values, trained=False, epochs=0, test_accuracy=None, test_accuracy_low=None,
        test_accuracy_high=None, test_images=None, best_validation=None, seconds=None, images_per_s=None,
        note=error or "not trained yet",
    )  # fmt: skip
    if not (folder / point.name).exists():
        return row
    bundle = Bundle.open(folder / point.name)
    try:
        details, history, images = bundle.manifest.details, _history(folder, point), len(bundle.splits()["test"])
        if Recipe.from_dict(details["recipe"]) != point.recipe:
            raise ValueError("another recipe")
        accuracy = float(details["test"]["accuracy"])
        interval, rate = wilson(round(accuracy * images), images), point.recipe.train.lr
        return {
            **row, "trained": True, "epochs": len(history), "test_accuracy": accuracy,
            "test_accuracy_low": interval.low, "test_accuracy_high": interval.high, "test_images": images,
            "best_validation": float(details["best_validation"]),
            "seconds": sum(epoch["seconds"] for epoch in history),
            "images_per_s": statistics.median(epoch["images_per_s"] for epoch in history),
            "note": over_fitting(history) or diverging(history, rate) or stalled(history, rate) or "",
        }  # fmt: skip
    except (RecipeError, ArithmeticError, KeyError, TypeError, ValueError) as problem:
        raise BundleError(
            f"{bundle.path} is not of this sweep: {problem}", fix="remove it, and repeat the command with --resume"
        ) from problem
