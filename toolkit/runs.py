"""The contents of runs/, read as plain JSON. Imports nothing heavy: completion and `edgekit` alone use it.

Everything in runs/ may come from elsewhere, so names and values are checked here and escaped when they are shown.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from ..deploy.documents import parse
from ..deploy.errors import EdgeKitError

RUNS = Path("runs")
REJECTED, REPORT, TRAINING, SEARCH, SWEEP = ".rejected", ".report", ".train", ".optimize", ".sweep"

_MANIFEST, _REPORT_FILES, _RECIPE, _SWEEP = "manifest.json", ("report.json", "result.json"), "recipe.json", "sweep.json"
# A search that was interrupted has only the record of its race.
_SEARCH_FILES = ("optimize.json", "*.race.json")
# As in deploy/manifest.py and analysis/compare.py: larger files are not genuine.
_MAX_MANIFEST, _MAX_REPORT = 16 << 20, 512 << 20
# The end of the year 9999 in seconds since 1970, the latest possible date.
_LATEST = 253_402_300_799
# Maximum length of a text value: longer ones do not fit in a table's line.
_MAX_TEXT = 200


@dataclass(frozen=True)
class Run:
    """A folder of runs/.

    Attributes:
        kind: "bundle", "rejected" (a bundle that missed its contract), "training" (unfinished), "sweep", "report" or
            "damaged".
        id: of the bundle.
        created: seconds since 1970, as the bundle records it.
        lineage: ids of the models that it was made from, oldest first.
        size_bytes: of all files in the folder.
        verdict: of the newest report in runs/ on the bundle.
        problem: what is wrong with a damaged bundle.
        made_from: folder name of the model that it was made from, or its id if it is not in runs/.
    """

    path: Path
    kind: str
    id: str | None = None
    name: str | None = None
    format: str | None = None
    precision: str | None = None
    created: float = 0.0
    lineage: tuple[str, ...] = ()
    size_bytes: int = 0
    verdict: str | None = None
    problem: str | None = None
    made_from: str | None = None

    def to_json(self) -> "RunEntry":
        """Plain values, for `edgekit runs --json`."""
        return {
            "path": str(self.path), "kind": self.kind, "id": self.id, "name": self.name, "format": self.format,
            "precision": self.precision, "created": self.created, "lineage": list(self.lineage),
            "size_bytes": self.size_bytes, "verdict": self.verdict, "problem": self.problem,
            "made_from": self.made_from,
        }  # fmt: skip


class RunEntry(TypedDict):
    """A `Run` as JSON."""

    path: str
    kind: str
    id: str | None
    name: str | None
    format: str | None
    precision: str | None
    created: float
    lineage: list[str]
    size_bytes: int
    verdict: str | None
    problem: str | None
    made_from: str | None


def list_runs(runs: Path = RUNS) -> list[Run]:
    """The bundles, unfinished trainings and sweeps of `runs`, by name, with sizes and last verdicts."""
    listed = [run for path in folders(runs) if (run := read_run(path)) is not None and run.kind != "report"]
    verdicts, names = _verdicts(runs), {run.id: run.path.name for run in listed if run.id}
    return [
        replace(
            run,
            size_bytes=size_of(run.path),
            verdict=verdicts.get(run.id or ""),
            made_from=names.get(run.lineage[-1], run.lineage[-1]) if run.lineage else None,
        )
        for run in listed
    ]


def folders(runs: Path = RUNS) -> list[Path]:
    """The visible folders of `runs`, without links."""
    with suppress(OSError):
        entries = sorted(os.scandir(runs), key=lambda entry: entry.name)
        return [runs / e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    return []


def read_run(path: Path) -> Run | None:
    """Identify a folder, without its size and verdict; None if EdgeKit did not write it."""
    if (path / _MANIFEST).is_file():
        return _bundle(path)
    if path.name.endswith(TRAINING) and (path / _RECIPE).is_file():
        return None if path.with_name(path.name.removesuffix(TRAINING)).exists() else Run(path, "training")
    if path.name.endswith(SWEEP) and (path / _SWEEP).is_file():
        return Run(path, "sweep")
    is_search = path.name.endswith(SEARCH) and any(any(path.glob(name)) for name in _SEARCH_FILES)
    if is_search or (path.name.endswith(REPORT) and any((path / name).is_file() for name in _REPORT_FILES)):
        return Run(path, "report")
    return None


def _bundle(path: Path) -> Run:
    try:
        content = _content(path / _MANIFEST, _MAX_MANIFEST)
        manifest = parse(content, path, "an EdgeKit manifest", limit=_MAX_MANIFEST)
        if not isinstance(manifest, dict):
            raise EdgeKitError("its manifest is not a JSON object", fix="")
    except (EdgeKitError, OSError) as error:
        return Run(path, "damaged", problem=str(error))
    texts = [manifest.get(key) for key in ("name", "format", "precision")]
    created = manifest.get("created", 0.0)
    lineage = manifest.get("lineage", [])
    steps = lineage if isinstance(lineage, list) else [None]
    steps = [step.get("id") if isinstance(step, dict) else None for step in steps]
    dated = type(created) in (int, float) and 0 <= created < _LATEST
    if not dated or not all(isinstance(value, str) and len(value) <= _MAX_TEXT for value in (*texts, *steps)):
        return Run(path, "damaged", problem="its manifest lacks a name, format, precision, date or lineage")
    return Run(
        path, "rejected" if path.name.endswith(REJECTED) else "bundle", hashlib.sha256(content).hexdigest()[:16],
        *map(str, texts), created=float(created), lineage=tuple(map(str, steps)),
    )  # fmt: skip


def _content(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def _verdicts(runs: Path) -> dict[str, str]:
    """Bundle id -> the verdict of the newest report that judged it."""
    verdicts: dict[str, str] = {}
    found = folders(runs)
    reports = [path / "report.json" for path in found if path.name.endswith(REPORT)]
    reports += [report for path in found if path.name.endswith(SEARCH) for report in path.glob("*/report.json")]
    for path in sorted((path for path in reports if path.is_file()), key=lambda path: path.stat().st_mtime):
        with suppress(EdgeKitError, OSError):
            document = parse(_content(path, _MAX_REPORT), path, "an EdgeKit report", limit=_MAX_REPORT)
            for verdict, models in _verdicts_of(document):
                for model in models:
                    if isinstance(model, dict) and model.get("judgements") and isinstance(model.get("id"), str):
                        bundle = model["id"].partition("@")[0]  # a runtime may follow the @
                        verdicts[bundle] = str(verdict)[:_MAX_TEXT]
    return verdicts


def _verdicts_of(document: object) -> Iterator[tuple[object, list[object]]]:
    """Verdict and models of a report, or of each device's report."""
    if isinstance(document, dict):
        devices = document.get("devices")
        for report in devices if isinstance(devices, list) else [document]:
            if isinstance(report, dict) and isinstance(report.get("models"), list):
                yield report.get("verdict"), report["models"]


def size_of(path: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 # names may be of any bytes
    return total


def named_run(name: str, runs: Path = RUNS) -> Run:
    """The folder of `runs` with this name or path.

    Raises:
        EdgeKitError: it is outside of `runs`, a link, missing, or not written by EdgeKit.
    """
    path = Path(name)
    if path.parent == Path() and path.name:
        path = runs / path.name
    if path.name in ("", "..") or Path(os.path.abspath(path.parent)) != Path(os.path.abspath(runs)):  # noqa: PTH100
        raise EdgeKitError(f"{name} is not in {runs}/", fix="pass a folder of runs/; edgekit runs lists them")
    if runs.is_symlink() or path.is_symlink():
        raise EdgeKitError(f"{path} is a link, or in a linked folder", fix="remove the link by hand")
    if not path.is_dir():
        raise EdgeKitError(f"there is no folder {path}", fix="edgekit runs lists the folders")
    run = read_run(path)
    if run is None and path.name.endswith(TRAINING) and (path / _RECIPE).is_file():
        return Run(path, "training")
    if run is None:
        raise EdgeKitError(f"{path} is not a bundle, report or training", fix="remove it by hand")
    return run


def made_from(run: Run, runs: Path = RUNS) -> list[Path]:
    """The bundles of `runs` that were made from this one, directly or indirectly."""
    all_runs = (candidate for path in folders(runs) if (candidate := read_run(path)) is not None)
    return [candidate.path for candidate in all_runs if run.id and run.id in candidate.lineage]


def next_step(runs: Path = RUNS) -> tuple[str, str]:
    """(the next command for this folder, the reason)."""
    all_runs = [run for path in folders(runs) if (run := read_run(path)) is not None]
    bundles = [run for run in all_runs if run.kind == "bundle"]
    trainings = [run for run in all_runs if run.kind == "training"]
    if not bundles:
        if trainings:
            return "edgekit train --resume", f"{trainings[-1].path} is not finished"
        return "edgekit train", f"there is no bundle in {runs}/ yet"
    newest = max(bundles, key=lambda run: (run.created, run.path.name))
    if newest.format not in ("onnx", "tensorrt"):
        return "edgekit export --format onnx", f"{newest.path} is {newest.format}"
    if (newest.format, newest.precision) == ("onnx", "fp32"):
        return "edgekit quantize", f"{newest.path} is fp32 ONNX"
    if not newest.path.with_name(newest.path.name + REPORT).is_dir():
        return "edgekit validate", f"{newest.path} is not validated"
    return "edgekit pack, or edgekit predict IMAGES", f"{newest.path} is validated"
