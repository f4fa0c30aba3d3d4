"""The search on one device: forecast, race, choice, confirmation."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device
from ...deploy.documents import DocumentError, parse, plain, read
from ...deploy.errors import EdgeKitError
from ...deploy.files import write_file
from ...deploy.images import ImageSet
from ...deploy.measuring.agent import Measured
from ...deploy.measuring.plan import Candidate, Plan, Race
from ...deploy.progress import Progress, titled
from ...deploy.runtimes.runtime import Choice
from ..analysis.contract import DEFAULT_MAX_DROP, FAIL, Contract
from ..analysis.forecast import Forecast, with_forecast
from ..analysis.search import Raced, conclude
from ..analysis.search_schema import CandidateEntry, DeviceSearch
from ..datasets import part_of
from ..report.files import device_slug, write_reports
from ..validation.validate import ValidateOptions, validate
from ..validation.validation import Validation
from .forecast import SECONDS, forecast
from .options import SEED, OptimizeOptions
from .space import Contender, Place, Variant

_log = logging.getLogger(__name__)

# A race has at most so many processes per candidate: what they cannot tell apart is a near tie. The minimum seconds for
# their blocks; the maximum is three times this.
_RACE_PROCESSES, _RACE_S = 4, 2.4
# A candidate in float32 this much slower than the fastest one, in the race, is not measured again.
_MARGIN = 1.5
# The share of the budget, after the files are made, that the race may take.
_RACE_SHARE = 0.6
# The share of the budget for timing the forecast, at most its usual seconds.
_FORECAST_SHARE = 1 / 60
# The confirmation of a limited budget has at least this many test images.
_FEWEST_TEST_IMAGES = 500
# The largest record of a race that is read again.
_MAX_RECORD = 256 << 20


class _Record(NamedTuple):
    """A race on disk."""

    key: str
    seconds: float
    measured: dict[str, object]


@dataclass(frozen=True)
class DeviceSearcher:
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
            objective=self.options.objective,
            max_loss=max_drop, max_bytes=self.options.size_bytes, max_rss_bytes=self.options.memory_bytes,
            seconds=max(0.0, _RACE_SHARE * (self.options.budget_s - (time.monotonic() - self.start))),
        )  # fmt: skip
        plan = race_plan(candidates, rules)
        ids = {candidate.bundle for candidate in candidates}
        bundles = [bundle for bundle in self.files.values() if bundle.id in ids]
        count, key = len(self.selection or ()), self._key(place, replace(plan, race=replace(rules, seconds=None)))
        race = self._recorded(place.name, key, bundles, count, plan)
        if race is None:
            begun = time.monotonic()
            with device as connected:
                measured = connected.measure(bundles, plan, self.selection, progress)
            race = measured, round(time.monotonic() - begun, 1)
            self.folder.mkdir(parents=True, exist_ok=True)
            entry = {"key": key, "seconds": race[1], "measured": measured.to_json()}
            write_file(self.record(place.name), json.dumps(entry))
        targets = [] if self.selection is None else self.selection.targets.tolist()
        return Raced(place.name, {bundle.id: bundle for bundle in bundles}, plan, race[0], targets, race[1])

    def _key(self, place: Place, plan: Plan) -> str:
        """Identifies a race: the plan with its candidates, the images, the device and the version."""
        selection = "" if self.selection is None else self.selection.sha256()
        machine = {name: value for name, value in place.machine.items() if name != "timer_ns"}
        content = json.dumps([plain(plan), selection, place.name, machine, __version__], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _recorded(
        self, name: str, key: str, bundles: Sequence[Bundle], count: int, plan: Plan
    ) -> tuple[Measured, float] | None:
        """The race of an interrupted search for the same, and its seconds; None if there is none."""
        path = self.record(name)
        try:
            entry = read(_Record, parse(path.read_bytes(), path, "a race", limit=_MAX_RECORD))
            if entry.key != key:
                return None
            measured = Measured.from_json(entry.measured, name, bundles, count, plan)
        except (EdgeKitError, DocumentError, OSError):  # it is made again
            return None
        _log.info(f"using the race of the interrupted search in {path}")
        return measured, entry.seconds

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


def race_plan(candidates: tuple[Candidate, ...], rules: Race) -> Plan:
    """The plan of a race; the first candidate is the reference."""
    return Plan(seconds=_RACE_S, processes=_RACE_PROCESSES, candidates=candidates, seed=SEED, race=rules)


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
        if _ratio(entry) * _MARGIN >= _ratio(floats[0]):
            kept.setdefault(entry["runtime"].partition(":")[0], entry)
    return list(kept.values())


def _ratio(entry: CandidateEntry) -> float:
    return entry["speedup"]["ratio"] if entry["speedup"] is not None else 0.0
