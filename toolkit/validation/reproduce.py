"""Repeat a validation as its report records it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.devices.device import open_device
from ...deploy.documents import DocumentError, read
from ...deploy.environment import describe
from ...deploy.errors import EdgeKitError, RecipeError
from ...deploy.images import ImageSet
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.result import Provenance
from ..analysis.compare import check_hardware, read_report
from ..analysis.contract import Contract
from ..analysis.report_schema import Report
from ..workspace import RUNS, find

_log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """A validation as its report records it."""

    report: Report
    provenance: Provenance
    bundles: Sequence[Bundle]
    baseline: Bundle | None
    plan: Plan
    contract: Contract


def recorded(path: Path, *, across_hardware: bool = False) -> Recorded:
    """Read a report, and find its bundles at their recorded paths, in runs/, or beside the report.

    Raises:
        EdgeKitError: the report does not record how it was made, a bundle is missing, or this is another machine.
    """
    report = read_report(path)
    provenance = report.get("provenance")
    if provenance is None:
        raise EdgeKitError(f"{path} does not record how it was made", fix="validate again; an earlier version wrote it")
    try:
        plan = Plan.from_report(report["plan"])
        if provenance.get("runtimes"):  # they choose the candidates
            plan = replace(plan, candidates=())
        contract = read(Contract, report.get("contract", {}), "contract")
    except (DocumentError, RecipeError) as error:
        raise EdgeKitError(
            f"{path} asks for something that this EdgeKit version does not measure: {error}", fix="upgrade"
        ) from error
    if open_device(report["device"]["name"]).here and not across_hardware:
        check_hardware(report["device"], describe())
    if provenance["edgekit"] != __version__:
        _log.warning(f"the report is from EdgeKit {provenance['edgekit'][:80]}; this is {__version__}")
    places = [Path(model["bundle"]).parent for model in report["models"]]
    named = dict.fromkeys(model["id"].partition("@")[0] for model in report["models"])
    by_id = {identity: _bundle(report, identity, path, places) for identity in named}
    unknown = {*provenance["candidates"], *filter(None, [provenance["baseline"]])} - by_id.keys()
    if unknown or not provenance["candidates"]:
        raise EdgeKitError(f"{path} names models that it does not contain", fix="validate again")
    baseline = by_id[provenance["baseline"]] if provenance["baseline"] else None
    bundles = [by_id[identity] for identity in provenance["candidates"]]
    return Recorded(report, provenance, bundles, baseline, plan, contract)


def check_images(provenance: Provenance, images: ImageSet | None) -> None:
    """Refuse test images that are not those of the report.

    Raises:
        EdgeKitError: their names or contents differ.
    """
    if (images.sha256() if images is not None else None) != provenance["images_sha256"]:
        place = provenance["images"] or "the bundle's data set"
        raise EdgeKitError(
            f"the test images of {place} are not those of the report", fix="restore them, or validate again"
        )


def warn_of_versions(before: Report, now: Report) -> None:
    """Log the packages whose versions on the device differ from the report's."""
    old, new = before["device"].get("versions", {}), now["device"].get("versions", {})
    changes = [f"{name} {old.get(name)} → {new.get(name)}" for name in sorted({*old, *new}) if _differ(old, new, name)]
    if changes:
        _log.warning(f"versions on the device differ: {', '.join(changes)}")


def _differ(old: Mapping[str, object], new: Mapping[str, object], name: str) -> bool:
    return old.get(name) != new.get(name)


def _bundle(report: Report, identity: str, path: Path, places: Sequence[Path]) -> Bundle:
    bundle = find(identity, *dict.fromkeys([*places, RUNS, path.parent, path.parent.parent]))
    if bundle is None:
        model = next(entry for entry in report["models"] if entry["id"].partition("@")[0] == identity)
        raise EdgeKitError(
            f"the bundle {identity} ({model['name']} {model['format']} {model['precision']}) was not found",
            fix=f"put it into {RUNS}/, or beside {path}",
        )
    return bundle
