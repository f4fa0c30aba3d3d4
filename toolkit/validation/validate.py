"""Validation: measure the original and the optimised models together on a device, compare, and give a verdict."""

import logging
from collections.abc import Collection, Mapping, Sequence
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
from ..analysis.compare import check_hardware, counterpart, judge_against
from ..analysis.contract import Contract
from ..analysis.document import make_report
from ..analysis.join import join_reports
from ..analysis.report_schema import Report
from ..datasets import own_images, part_of
from ..signing import verify_bundle
from .candidates import candidates_of, optimised
from .on_devices import Request, measure_on
from .overlap import unseen
from .reproduce import check_images
from .validation import Validation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidateOptions:
    """Where to validate, and what to check first.

    Attributes:
        devices: "local", or addresses (see deploy.devices.open_device); several measure at the same time.
        runtimes: the runtimes, as Choice.parse reads them; empty for the default of each format. Each model is measured
            on each runtime that opens its format; if none does, an ancestor of a candidate is measured on the default.
        skip_corrupt: leave out test images that cannot be decoded.
        across_hardware: accept an earlier report from another machine.
        verify: an ed25519 public key, whose owner must have signed the candidates and a named baseline. Their ancestors
            are found by id, which the signature covers.
        keep: folder for the measurements so far if a device is lost.
        ort_web: folder of ONNX Runtime Web's files for a browser; None for EdgeKit's own folder.
        command: the arguments as typed, for the report.
        reproduces: the provenance of an earlier report; the test images must be identical.
        selected_on: ids of images that the candidates were selected on, and that are therefore not tested on.
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
    selected_on: Collection[str] = ()


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
    """Compare optimised models with their original, measured together on one device or on several.

    Args:
        bundles: the candidates; the models that they were made from are measured too if they are found and the device
            can run them.
        baseline: the only model to compare with: a bundle, or an earlier report (see analysis.compare.read_report).
            None for the source model in torch, or the fp32 ONNX without torch.
        images: source of test images, instead of the bundle's own test part.
        limit: take this many test images, drawn by class.
        contract: the limits that the candidates are judged by.
        plan: how to measure. Its candidates, if it names any, are exactly what is measured, instead of each bundle on
            each runtime; those in a lower precision than the source are judged.
        progress: a callback, or one per device name.

    Raises:
        BundleError: the candidates do not belong together.
        EdgeKitError: a model cannot be run, or the earlier report cannot be compared; with several devices, all of them
            failed.
        LostDeviceError: the only device was lost.
    """
    options, contract, plan = options or ValidateOptions(), contract or Contract(), plan or Plan()
    source, stored = (baseline, None) if baseline is None or isinstance(baseline, Bundle) else (None, baseline)
    named = [*bundles, *([source] if source else [])]
    devices = _opened(options)
    if options.verify is not None:
        for bundle in named:
            verify_bundle(bundle, options.verify)
    if plan.candidates and options.runtimes:
        raise EdgeKitError("both the plan and runtimes choose what is measured", fix="leave out the runtimes")
    choices = [Choice.parse(text) for text in options.runtimes]
    judged = _judged(bundles, source, choices, plan)
    if stored is not None:  # checked before minutes are spent on measuring
        _check_stored(stored, bundles, judged, devices, across_hardware=options.across_hardware)
    test, overlap = _test_images(named, images, limit, options)
    if options.reproduces is not None:
        check_images(options.reproduces, test)
    provenance = _provenance(bundles, source, options, images, limit, test)
    candidates = [candidate.key for candidate in judged]
    request = Request(bundles, candidates, source, choices, contract, plan, test, options.keep)
    callbacks = progress if isinstance(progress, Mapping) else dict.fromkeys(devices, progress)
    results, failed = measure_on(devices, request, callbacks)
    reports = [make_report(replace(result, overlap=overlap, provenance=provenance)) for result in results.values()]
    if len(devices) > 1:
        return Validation(join_reports(reports, failed), test)
    (report,) = reports
    if stored is not None:
        report = judge_against(stored, report, candidates, contract, across_hardware=options.across_hardware)
    return Validation(report, test)


def _judged(
    bundles: Sequence[Bundle], source: Bundle | None, choices: Sequence[Choice], plan: Plan
) -> Sequence[Candidate]:  # fmt: skip
    """The candidates that the contract applies to."""
    if plan.candidates:
        return optimised(plan.candidates, [*bundles, *([source] if source else [])], source or bundles[0])
    return candidates_of(bundles, {bundle.id for bundle in bundles}, choices, {choice.name for choice in choices}, "")


def _provenance(
    bundles: Sequence[Bundle], baseline: Bundle | None, options: ValidateOptions, images: str | None,
    limit: int | None, test: ImageSet | None,
) -> Provenance:  # fmt: skip
    """Everything that is required to reproduce the report."""
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
    """The devices by name, not yet connected."""
    if len(set(options.devices)) < len(options.devices):
        raise EdgeKitError("a device is named twice", fix="name each --device once")
    if options.ort_web and not any("ort_web" in kind_of(name).settings for name in options.devices):
        raise EdgeKitError("--ort-web requires --device browser", fix="add --device browser, or leave out --ort-web")
    return {name: open_device(name, ort_web=options.ort_web) for name in options.devices}


def _check_stored(
    stored: Report, bundles: Sequence[Bundle], judged: Sequence[Candidate], devices: Mapping[str, Device],
    *, across_hardware: bool,
) -> None:  # fmt: skip
    """Refuse an earlier report that lacks a counterpart of a candidate, or is from another machine."""
    if len(devices) > 1:
        raise EdgeKitError(
            "an earlier report covers only one device", fix="pass one --device with --baseline report.json"
        )
    manifests = {bundle.id: bundle.manifest for bundle in bundles}
    for candidate in judged:
        own = manifests[candidate.bundle]
        precision = candidate.precision(own.precision)
        counterpart(stored, {"id": candidate.key, "name": own.name, "format": own.format, "precision": precision})
    if all(device.here for device in devices.values()) and not across_hardware:
        check_hardware(stored["device"], describe())


def _test_images(
    named: Sequence[Bundle], images: str | None, limit: int | None, options: ValidateOptions
) -> tuple[ImageSet | None, Overlap | None]:
    """The test images that none of the bundles was made with, and the overlap; None if no test images are known."""
    test = part_of(named[0], "test", images, skip_corrupt=options.skip_corrupt)
    if test is None:
        _log.info("no test images are known: accuracy is not measured (pass --images)")
        return None, None
    if options.selected_on:
        test = test.take([index for index, name in enumerate(test.ids) if name not in options.selected_on])
    return unseen(named, test, own=own_images(named[0], images), limit=limit)
