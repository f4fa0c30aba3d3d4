"""Search for the model that each device runs fastest within the limits, and confirm it on images that chose nothing."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device, open_device
from ...deploy.documents import DocumentError, parse, plain
from ...deploy.errors import BundleError, DataError, EdgeKitError
from ...deploy.files import write_file
from ...deploy.images import ImageSet
from ...deploy.measuring.agent import Measured
from ...deploy.measuring.elimination import FIRST_MARGIN
from ...deploy.measuring.plan import Candidate, Plan, Race
from ...deploy.progress import Progress, silent, titled
from ...deploy.runtimes.runtime import Choice
from ..analysis.contract import DEFAULT_MAX_DROP, FAIL, Contract
from ..analysis.forecast import Forecast, with_forecast
from ..analysis.search import Raced, conclude, shared_file
from ..analysis.search_schema import SCHEMA, CandidateEntry, DeviceSearch, NotMade, Search
from ..datasets import part_of
from ..report.files import device_slug, write_reports
from ..report.search import write_search
from ..validation.on_devices import side_by_side
from ..validation.validate import ValidateOptions, validate
from ..validation.validation import Validation
from .forecast import SECONDS, forecast
from .space import Contender, Place, Variant, contenders_for, examine, variants_for
from .variants import MakingOptions, make, source_of

_log = logging.getLogger(__name__)

_SEED = 0
# Minimum seconds for the blocks of a race's processes; the maximum is three times this.
_RACE_S = 4.0
# Shares of the budget after which no further file is made, and of the rest that the race may take.
_MAKING_SHARE, _RACE_SHARE = 0.5, 0.6
# The share of the budget for timing the forecast, at most its usual seconds.
_FORECAST_SHARE = 1 / 60
# The confirmation of a limited budget has at least this many test images.
_FEWEST_TEST_IMAGES = 500
# The largest record of a race that is read again.
_MAX_RECORD = 256 << 20


@dataclass(frozen=True)
class OptimizeOptions:
    """How to search.

    Attributes:
        devices: "local", or addresses (see deploy.devices.open_device); several are searched at the same time.
        runtimes: names of the runtimes that take part; empty for space.SEARCHED.
        objective: see plan.Race.
        size_bytes, memory_bytes: the largest file, and the largest resident memory; None for no limit.
        budget_s: seconds for the whole search. The first process of every candidate, and the confirmation, end even if
            they take longer.
        images: source of all images; None for the bundle's own.
        calibration_images, selection_images: their numbers, drawn by class.
        limit: number of test images; None for all that the budget allows.
        skip_corrupt: leave out images that cannot be decoded.
        command: the arguments as typed, for the report.
    """

    devices: Sequence[str] = ("local",)
    runtimes: Sequence[str] = ()
    objective: str = "latency"
    size_bytes: int | None = None
    memory_bytes: int | None = None
    budget_s: float = 600.0
    images: str | None = None
    calibration_images: int = 512
    selection_images: int = 500
    limit: int | None = None
    skip_corrupt: bool = False
    command: Sequence[str] = ()

    @property
    def streams(self) -> bool:
        """Whether batches matter."""
        return self.objective == "throughput"


@dataclass(frozen=True)
class Optimization:
    """What a search found.

    Attributes:
        search: the content of optimize.json.
        validations: device -> the confirmation of its model.
    """

    search: Search
    validations: Mapping[str, Validation] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 3 if the limits are not met, 4 if they are not proved, 1 if a device failed."""
        return self.search["exit_code"]


class Planned(NamedTuple):
    """The candidates of a search.

    Attributes:
        places: the devices that are searched.
        contenders: device -> what is raced there, the reference first.
        variants: all files, the source first.
    """

    places: dict[str, Place]
    contenders: dict[str, list[Contender]]
    variants: list[Variant]


def plan_search(options: OptimizeOptions, devices: Mapping[str, Device] | None = None) -> Planned:
    """List what the devices can run, without making or measuring anything.

    Raises:
        DeviceError: a device cannot be reached or searched.
    """
    devices = devices or _opened(options)
    places = {name: examine(device, options.runtimes) for name, device in devices.items()}
    small = options.objective == "size" or options.size_bytes is not None
    variants = {name: variants_for(place, small=small) for name, place in places.items()}
    contenders = {
        name: contenders_for(place, variants[name], streams=options.streams) for name, place in places.items()
    }
    return Planned(places, contenders, list(dict.fromkeys(entry for own in variants.values() for entry in own)))


def optimize(
    bundle: Bundle,
    options: OptimizeOptions,
    *,
    contract: Contract,
    folder: Path,
    progress: Progress | Mapping[str, Progress] = silent,
) -> Optimization:
    """Make the files that the devices can run, race them, and confirm each device's choice on the test images.

    The files are bundles in runs/. Earlier bundles that were made in the same way are used again, and so is the race
    of a search that was interrupted after it.

    Args:
        bundle: the float32 ONNX bundle, or the network that it is exported from.
        contract: max_drop also limits the loss on the selection images, min_speedup applies to the confirmation.
        folder: for optimize.json, optimize.html, and one folder per device with its confirmation.
        progress: a callback, or one per device.

    Raises:
        EdgeKitError: a device cannot be searched, or the source cannot be exported or run.
        BundleError: the bundle is not an original model.
        RecipeError: an option is out of range.
    """
    start = time.monotonic()
    devices = _opened(options)
    callbacks = progress if isinstance(progress, Mapping) else dict.fromkeys(devices, progress)
    first = next(iter(callbacks.values()))
    planned = plan_search(options, devices)
    source = source_of(bundle, first)
    files, not_made = _make_files(planned.variants, source, options, contract, start, first)
    selection = _selection(source, options)
    finder = _Finder(source, files, selection, options, contract, folder, start)
    results, failed = side_by_side(
        planned.places,
        lambda name: finder.search(devices[name], planned.places[name], planned.contenders[name], callbacks[name]),
    )
    searches = [found for found, _ in results.values()]
    worst = max(searches, key=lambda found: found["exit_code"])
    search: Search = {
        "search": SCHEMA, "source": str(source.path), "objective": options.objective,
        "limits": {
            "max_drop": contract.max_drop, "min_speedup": contract.min_speedup, "size_bytes": options.size_bytes,
            "memory_bytes": options.memory_bytes,
        },
        "images": len(selection or ()), "not_made": not_made, "devices": searches, "failed": failed,
        "shared": shared_file(searches), "seconds": round(time.monotonic() - start, 1),
        "verdict": "fail" if failed else worst["verdict"],
        "exit_code": 1 if failed else worst["exit_code"],
    }  # fmt: skip
    write_search(search, folder)
    for name in planned.places:
        finder.record(name).unlink(missing_ok=True)
    return Optimization(search, {name: done for name, (_, done) in results.items() if done is not None})


def _opened(options: OptimizeOptions) -> dict[str, Device]:
    if len(set(options.devices)) < len(options.devices):
        raise EdgeKitError("a device is named twice", fix="name each --device once")
    return {name: open_device(name) for name in options.devices}


def _make_files(
    variants: Sequence[Variant], source: Bundle, options: OptimizeOptions, contract: Contract, start: float,
    progress: Progress,
) -> tuple[dict[Variant, Bundle], list[NotMade]]:  # fmt: skip
    """Make or find each file; one that cannot be made is listed with the reason."""
    making = MakingOptions(
        options.images, options.calibration_images, options.selection_images, contract.max_drop, options.skip_corrupt
    )
    files: dict[Variant, Bundle] = {}
    not_made: list[NotMade] = []
    for variant in variants:
        if files and time.monotonic() - start > _MAKING_SHARE * options.budget_s:
            not_made.append({"name": variant.name, "reason": "the budget ended before it (--budget)"})
            continue
        try:
            made = make(variant, source, making, progress)
        except (BundleError, DataError, EdgeKitError) as error:
            not_made.append({"name": variant.name, "reason": str(error)})
            continue
        files[variant] = made.bundle
    return files, not_made


def _selection(source: Bundle, options: OptimizeOptions) -> ImageSet | None:
    images = part_of(source, "validation", options.images, skip_corrupt=options.skip_corrupt)
    return images and images.stratified(options.selection_images, _SEED)


@dataclass(frozen=True)
class _Finder:
    """A search with its files, to be carried out on one device after the other or on several at once."""

    source: Bundle
    files: Mapping[Variant, Bundle]
    selection: ImageSet | None
    options: OptimizeOptions
    contract: Contract
    folder: Path
    start: float

    def record(self, name: str) -> Path:
        """The file that keeps a device's race until the search is complete."""
        return self.folder / f"{device_slug(name)}.race.json"

    def search(
        self, device: Device, place: Place, contenders: Sequence[Contender], progress: Progress
    ) -> tuple[DeviceSearch, Validation | None]:
        """Race the contenders on the device, choose, and confirm the choice."""
        candidates = tuple(
            Candidate(self.files[contender.variant].id, contender.choice)
            for contender in contenders
            if contender.variant in self.files
        )
        expected = self._forecast(device, contenders, progress)
        raced = self._raced(device, place, candidates, progress)
        found = conclude(raced) if expected is None else with_forecast(conclude(raced), expected)
        optimised = _to_confirm(found)
        if optimised is None:
            return self._judged(found, None), None
        done = self._confirm(found, optimised, progress)
        return self._judged(found, done), done

    def _forecast(self, device: Device, contenders: Sequence[Contender], progress: Progress) -> Forecast | None:
        """What `inspect --forecast` says; None for other devices, and for batches, whose times it does not forecast."""
        if not device.here or self.options.streams:
            return None
        made = [contender for contender in contenders if contender.variant in self.files]
        seconds = min(SECONDS, _FORECAST_SHARE * self.options.budget_s)
        try:
            return forecast(self.source, made, seconds=seconds, progress=titled(progress, "forecast"))
        except EdgeKitError as error:
            _log.info(f"there is no forecast: {error}")
            return None

    def _raced(self, device: Device, place: Place, candidates: tuple[Candidate, ...], progress: Progress) -> Raced:
        """Race on the device, or read the race of an interrupted search for the same."""
        max_drop = DEFAULT_MAX_DROP if self.contract.max_drop is None else self.contract.max_drop
        rules = Race(
            objective=self.options.objective,  # type: ignore[arg-type] # the command checks it
            max_loss=max_drop, max_bytes=self.options.size_bytes, max_rss_bytes=self.options.memory_bytes,
            seconds=max(0.0, _RACE_SHARE * (self.options.budget_s - (time.monotonic() - self.start))),
        )  # fmt: skip
        plan = Plan(seconds=_RACE_S, candidates=candidates, seed=_SEED, race=rules)
        ids = {candidate.bundle for candidate in candidates}
        bundles = [bundle for bundle in self.files.values() if bundle.id in ids]
        count, key = len(self.selection or ()), self._key(place, replace(plan, race=replace(rules, seconds=None)))
        measured = self._recorded(place.name, key, bundles, count, plan)
        begun = time.monotonic()
        if measured is None:
            with device as connected:
                measured = connected.measure(bundles, plan, self.selection, progress)
            self.folder.mkdir(parents=True, exist_ok=True)
            entry = {"key": key, "seconds": time.monotonic() - begun, "measured": measured.to_json()}
            write_file(self.record(place.name), json.dumps(entry))
        targets = [] if self.selection is None else self.selection.targets.tolist()
        by_id = {bundle.id: bundle for bundle in bundles}
        return Raced(place.name, by_id, plan, measured, targets, round(time.monotonic() - begun, 1))

    def _key(self, place: Place, plan: Plan) -> str:
        """Identifies a race: the plan with its candidates, the images, the device and the version."""
        selection = "" if self.selection is None else self.selection.sha256()
        machine = {name: value for name, value in place.machine.items() if name != "timer_ns"}
        content = json.dumps([plain(plan), selection, place.name, machine, __version__], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _recorded(self, name: str, key: str, bundles: Sequence[Bundle], count: int, plan: Plan) -> Measured | None:
        path = self.record(name)
        try:
            entry = parse(path.read_bytes(), path, "a race", limit=_MAX_RECORD) if path.is_file() else None
            if not isinstance(entry, dict) or entry.get("key") != key:
                return None
            measured = Measured.from_json(entry.get("measured"), name, bundles, count, plan)
        except (EdgeKitError, DocumentError, OSError):
            return None
        _log.info(f"using the race of the interrupted search in {path}")
        return measured

    def _confirm(self, found: DeviceSearch, optimised: CandidateEntry, progress: Progress) -> Validation:
        """Validate a candidate against the fastest ones that are not optimised, on the test images."""
        by_id = {bundle.id: bundle for bundle in self.files.values()}
        entries = [*_baselines(found, self.source), optimised]
        candidates = tuple(self._candidate(entry) for entry in entries)
        bundles = list({candidate.bundle: by_id[candidate.bundle] for candidate in candidates}.values())
        validation = validate(
            bundles,
            ValidateOptions(devices=[found["name"]], skip_corrupt=self.options.skip_corrupt,
                            keep=self.folder / device_slug(found["name"]), command=self.options.command,
                            selected_on=frozenset(self.selection.ids) if self.selection is not None else ()),
            baseline=self.source, images=self.options.images, limit=self._limit(entries), contract=self.contract,
            plan=Plan(candidates=candidates, offline=self.options.streams), progress=progress,
        )  # fmt: skip
        write_reports(validation.report, validation.images, self.folder / device_slug(found["name"]))
        return validation

    def _candidate(self, entry: CandidateEntry) -> Candidate:
        identity = entry["id"].partition("@")[0]
        return Candidate(identity, Choice.parse(entry["runtime"]))

    def _limit(self, entries: Sequence[CandidateEntry]) -> int | None:
        """The number of test images that the rest of the budget allows; None for all."""
        if self.options.limit is not None:
            return self.options.limit
        test = part_of(self.source, "test", self.options.images, skip_corrupt=self.options.skip_corrupt)
        left = self.options.budget_s - (time.monotonic() - self.start)
        per_image = sum(entry["time_ms"] or 0.0 for entry in entries) / 1e3
        allowed = max(_FEWEST_TEST_IMAGES, int(0.5 * max(0.0, left) / max(per_image, 1e-6)))
        return None if test is None or len(test) <= allowed else allowed

    def _judged(self, found: DeviceSearch, done: Validation | None) -> DeviceSearch:
        """The search with its confirmation, verdict and exit code."""
        judged: DeviceSearch = {**found}
        if done is not None and "devices" not in done.report:
            judged["report"] = str(self.folder / device_slug(found["name"]))
            judged["headline"] = done.report["headline"]
        chosen = next((entry for entry in found["candidates"] if entry["id"] == found["chosen"]), None)
        if chosen is None:
            return judged
        least = self.contract.min_speedup
        if chosen["precision"] != "fp32" and done is not None:
            judged["verdict"], judged["reason"] = done.report["verdict"], done.report["reason"]
            judged["exit_code"] = done.report["exit_code"]
        elif least is not None and least > 1:
            judged["verdict"], judged["exit_code"] = "fail", FAIL
            judged["reason"] = f"no candidate within the limits is {least:g}x as fast as the original"
        else:
            judged["reason"] = "the original stays: no candidate within the limits is faster"
        return judged


def _to_confirm(found: DeviceSearch) -> CandidateEntry | None:
    """The chosen candidate if it is optimised, else the fastest optimised one within the limits; None without any."""
    within = [
        entry
        for entry in found["candidates"]
        if entry["status"] in ("chosen", "close", "slower", "larger") and entry["precision"] != "fp32"
    ]
    return next((entry for entry in within if entry["id"] == found["chosen"]), within[0] if within else None)


def _baselines(found: DeviceSearch, source: Bundle) -> list[CandidateEntry]:
    """The fastest of each runtime that may be the fastest that is not optimised, one of the source first."""
    floats = [entry for entry in found["candidates"] if entry["precision"] == "fp32" and entry["speedup"] is not None]
    floats.sort(key=lambda entry: -_ratio(entry))
    own = next(entry for entry in floats if entry["id"].partition("@")[0] == source.id)
    kept = {own["runtime"].partition(":")[0]: own}
    for entry in floats:
        if _ratio(entry) * FIRST_MARGIN >= _ratio(floats[0]):
            kept.setdefault(entry["runtime"].partition(":")[0], entry)
    return list(kept.values())


def _ratio(entry: CandidateEntry) -> float:
    return entry["speedup"]["ratio"] if entry["speedup"] is not None else 0.0
