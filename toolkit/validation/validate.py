"""Validation: measure the original and the optimised models together on a device, compare, and give a verdict."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device, kind_of, open_device
from ...deploy.environment import describe
from ...deploy.errors import EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.measuring.plan import Candidate, Plan
from ...deploy.measuring.result import Overlap, Provenance
from ...deploy.progress import Progress, silent
from ...deploy.runtimes.runtime import Choice
from ..analysis.compare import check_hardware, counterpart, hold_against
from ..analysis.contract import Contract
from ..analysis.document import make_report
from ..analysis.join import join_reports
from ..analysis.report_schema import Report
from ..datasets import own_images, part_of
from ..signing import verify_bundle
from .candidates import candidates_of
from .on_devices import Request, measure_on
from .overlap import unseen
from .reproduce import check_images
from .validation import Validation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidateOptions:
    """Where to validate, and what to check before.

    Attributes:
        devices: "local", or addresses (see deploy.devices.open_device); several measure at the same time.
        runtimes: as Choice.parse reads them; each model is measured on each that opens its format, and a model that
            the candidates were made from on the default if none does. Empty for the default of each format.
        skip_corrupt: leave out test images that cannot be decoded.
        across_hardware: an earlier report may be of another machine.
        verify: an ed25519 public key, whose owner must have signed the candidates and a baseline that is named; the
            models that they were made from are found by ids, which the signature covers.
        keep: folder for the measurements so far, if a device goes away.
        ort_web: folder of ONNX Runtime Web's files for a browser; None is where EdgeKit keeps its own.
        command: arguments as typed, which the report records.
        reproduces: the provenance of an earlier report; the test images must be identical.
    """

    devices: Sequence[str] = ("local",)
    runtimes: Sequence[str] = ()
    skip_corrupt: bool = False
    across_hardware: bool = False
    verify: Path | None = None
    keep: Path | None = None
    ort_web: Path | None = None
    command: Sequence[str] = ()
    reproduces: Provenance | None = None


def validate(
    bundles: Sequence[Bundle],
    options: ValidateOptions | None = None,
    *,
    baseline: Bundle | Report | None = None,
    images: str | None = None,
    limit: int | None = None,
    contract: Contract | None = None,
    plan: Plan | None = None,
    progress: Progress | Mapping[str, Progress] = silent,
) -> Validation:
    """Compare optimised models with their original, measured together on a device, or on each of several.

    Args:
        bundles: the candidates; the models that they were made from are measured too, as far as they are found and the
            device can run them.
        baseline: the only model to compare with: a bundle, or an earlier report (see analysis.compare.read_report).
            None is the source model in torch, or the fp32 ONNX without torch.
        images: test images from elsewhere than the bundle's own test part.
        limit: take this many of them, drawn by class.
        contract: the limits that they are judged by.
        progress: called as the work advances; or a callback per device, by its name.

    Raises:
        BundleError: the candidates do not belong together.
        EdgeKitError: a model cannot be run, or the earlier report cannot be compared with; of several devices, on all
            of them.
        LostDeviceError: the device went away.
    """
    options, contract, plan = options or ValidateOptions(), contract or Contract(), plan or Plan()
    source, stored = (baseline, None) if baseline is None or isinstance(baseline, Bundle) else (None, baseline)
    named = [*bundles, *([source] if source else [])]
    devices = _opened(options)
    if options.verify is not None:
        for bundle in named:
            verify_bundle(bundle, options.verify)
    if plan.candidates:
        raise EdgeKitError("the plan cannot name candidates here", fix="pass ValidateOptions(runtimes=(…))")
    choices = [Choice.parse(text) for text in options.runtimes]
    judged = candidates_of(bundles, {bundle.id for bundle in bundles}, choices, {choice.name for choice in choices}, "")
    if stored is not None:  # before minutes are spent on measuring
        _check_stored(stored, bundles, judged, devices, across_hardware=options.across_hardware)
    test, overlap = _test_images(named, images, limit, skip_corrupt=options.skip_corrupt)
    if options.reproduces is not None:
        check_images(options.reproduces, test)
    provenance = _provenance(bundles, source, options, images, limit, test)
    candidates = [candidate.key for candidate in judged]
    request = Request(bundles, candidates, source, choices, contract, plan, test, options.keep)
    callbacks = progress if isinstance(progress, Mapping) else dict.fromkeys(devices, progress)
    results, failed = measure_on(devices, request, callbacks)
    reports = [make_report(replace(each, overlap=overlap, provenance=provenance)) for each in results.values()]
    if len(devices) > 1:
        return Validation(join_reports(reports, failed), test)
    (report,) = reports
    if stored is not None:
        report = hold_against(stored, report, candidates, contract, across_hardware=options.across_hardware)
    return Validation(report, test)


def _provenance(
    bundles: Sequence[Bundle], baseline: Bundle | None, options: ValidateOptions, images: str | None,
    limit: int | None, test: ImageSet | None,
) -> Provenance:  # fmt: skip
    """Everything that repeats the report."""
    return {
        "command": list(options.command),
        "edgekit": __version__,
        "candidates": [bundle.id for bundle in bundles],
        "runtimes": [str(Choice.parse(text)) for text in options.runtimes],
        "baseline": baseline and baseline.id,
        "images": images,
        "images_sha256": None if test is None else test.sha256(),
        "limit": limit,
        "skip_corrupt": options.skip_corrupt,
    }


def _opened(options: ValidateOptions) -> dict[str, Device]:
    """The devices by their names, not connected to yet."""
    if len(set(options.devices)) < len(options.devices):
        raise EdgeKitError("a device is named twice", fix="name each --device once")
    if options.ort_web and not any("ort_web" in kind_of(name).settings for name in options.devices):
        raise EdgeKitError("--ort-web is for a browser", fix="pass --device browser with it")
    return {name: open_device(name, ort_web=options.ort_web) for name in options.devices}


def _check_stored(
    stored: Report, bundles: Sequence[Bundle], judged: Sequence[Candidate], devices: Mapping[str, Device],
    *, across_hardware: bool,
) -> None:  # fmt: skip
    """Refuse an earlier report that has no counterpart of a candidate, or is of another machine."""
    if len(devices) > 1:
        raise EdgeKitError("an earlier report is of one device", fix="pass one --device with --baseline report.json")
    manifests = {bundle.id: bundle.manifest for bundle in bundles}
    for candidate in judged:
        own = manifests[candidate.bundle]
        counterpart(stored, {"id": candidate.key, "name": own.name, "format": own.format, "precision": own.precision})
    if all(device.here for device in devices.values()) and not across_hardware:
        check_hardware(stored["device"], describe())


def _test_images(
    named: Sequence[Bundle], images: str | None, limit: int | None, *, skip_corrupt: bool
) -> tuple[ImageSet | None, Overlap | None]:
    """The test images that none of the bundles was made with; None where none are known."""
    test = part_of(named[0], "test", images, skip_corrupt=skip_corrupt)
    if test is None:
        _log.info("no test images are known: accuracy is not measured (pass --images)")
        return None, None
    return unseen(named, test, own=own_images(named[0], images), limit=limit)
