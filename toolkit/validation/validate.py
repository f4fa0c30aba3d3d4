"""Validation: measure the original and the optimised models together on a device, compare, and give a verdict."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device, kind_of, open_device
from ...deploy.environment import describe
from ...deploy.errors import EdgeKitError, LostDeviceError
from ...deploy.images import ImageSet
from ...deploy.measuring.agent import Measured
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.result import Provenance, Result, ids_and_targets
from ...deploy.progress import Progress, silent
from ...deploy.runtimes.runtime import Choice, formats, require_options_used
from ..analysis.compare import check_hardware, counterpart, hold_against
from ..analysis.contract import Contract
from ..analysis.document import make_report
from ..analysis.host_answers import compare_with_host
from ..analysis.join import join_reports
from ..analysis.report_schema import Failed, Report
from ..datasets import own_images, part_of
from ..report.files import device_slug, write_result
from ..signing import verify_bundle
from .ancestors import with_ancestors
from .candidates import candidates_of, runtimes_of
from .overlap import unseen
from .reproduce import check_images
from .validation import Validation

_log = logging.getLogger(__name__)


def validate(
    bundles: Sequence[Bundle],
    *,
    baseline: Bundle | None = None,
    stored: Report | None = None,
    images: str | None = None,
    limit: int | None = None,
    contract: Contract | None = None,
    plan: Plan | None = None,
    runtimes: Sequence[str] = (),
    devices: Sequence[str] = ("local",),
    skip_corrupt: bool = False,
    across_hardware: bool = False,
    keep: Path | None = None,
    ort_web: Path | None = None,
    verify: Path | None = None,
    command: Sequence[str] = (),
    reproduces: Provenance | None = None,
    progress: Progress | Mapping[str, Progress] = silent,
) -> Validation:
    """Compare optimised models with their original, measured together on a device, or on each of several.

    Args:
        bundles: the candidates; the models that they were made from are measured too, as far as they are found and the
            device can run them.
        baseline: what they are compared with, alone; None is the source model in torch, or the fp32 ONNX without torch.
        stored: an earlier report (see comparison.read_report) whose models the candidates are compared with instead.
        images: test images from elsewhere than the bundle's own test part.
        limit: take this many of them, drawn by class.
        contract: what they are held to.
        runtimes: what runs the models, as Choice.parse reads it: each on each that opens its format, a model that the
            candidates were made from on the default where none does. Empty for the default of each format.
        devices: "local", or addresses (see deploy.devices.open_device); several measure at the same time.
        across_hardware: `stored` may be of another machine.
        ort_web: folder of ONNX Runtime Web's files for a browser; None is where EdgeKit keeps its own.
        verify: an ed25519 public key, whose owner must have signed the candidates and a baseline that is named; the
            models that they were made from are found by ids, which the signature covers.
        keep: folder for what was measured so far, should a device go away.
        command: arguments as typed, which the report records.
        reproduces: of an earlier report, whose test images these must be.
        progress: called as the work advances; or a callback per device, by its name.

    Raises:
        BundleError: the candidates do not belong together.
        EdgeKitError: a model cannot be run, or `stored` cannot be compared with; of several devices, on all of them.
        LostDeviceError: the device went away.
    """
    contract, plan = contract or Contract(), plan or Plan()
    if len(set(devices)) < len(devices):
        raise EdgeKitError("a device is named twice", fix="name each --device once")
    if ort_web and not any("ort_web" in kind_of(device).settings for device in devices):
        raise EdgeKitError("--ort-web is for a browser", fix="pass --device browser with it")
    opened = {name: open_device(name, ort_web=ort_web) for name in devices}
    if verify is not None:
        for bundle in (*bundles, *([baseline] if baseline else [])):
            verify_bundle(bundle, verify)
    if plan.candidates:
        raise EdgeKitError("what is measured is not the plan's to say here", fix="pass the runtimes: runtimes=(…)")
    choices = [Choice.parse(text) for text in runtimes]
    judged = {bundle.id for bundle in bundles}
    planned = candidates_of(bundles, judged, choices, {choice.name for choice in choices}, "")
    candidates = [candidate.key for candidate in planned]
    if stored is not None:
        if len(devices) > 1:
            raise EdgeKitError(
                "an earlier report is of one device", fix="pass one --device with --baseline report.json"
            )
        manifests = {bundle.id: bundle.manifest for bundle in bundles}
        for candidate in planned:  # before minutes are spent on measuring
            own = manifests[candidate.bundle]
            counterpart(
                stored, {"id": candidate.key, "name": own.name, "format": own.format, "precision": own.precision}
            )
        if all(device.here for device in opened.values()) and not across_hardware:
            check_hardware(stored["device"], describe())
    test, overlap = part_of(bundles[0], "test", images, skip_corrupt=skip_corrupt), None
    if test is not None:
        named = [*bundles, *([baseline] if baseline else [])]
        test, overlap = unseen(named, test, own=own_images(bundles[0], images), limit=limit)
    else:
        _log.info("no test images are known: accuracy is not measured (pass --images)")

    if reproduces is not None:
        check_images(reproduces, test)
    provenance: Provenance = {
        "command": list(command),
        "edgekit": __version__,
        "candidates": [bundle.id for bundle in bundles],
        "runtimes": [str(choice) for choice in choices],
        "baseline": baseline and baseline.id,
        "images": images,
        "images_sha256": None if test is None else test.sha256(),
        "limit": limit,
        "skip_corrupt": skip_corrupt,
    }

    def on(name: str, show: Progress) -> Result:
        with opened[name] as device:
            there = device.runtimes()
            chain = with_ancestors(bundles, baseline, set(formats(there)), name)
            measured = candidates_of(chain, judged, choices, there, name)
            require_options_used(plan.options, runtimes_of(chain, measured))
            folder = keep if len(devices) == 1 or keep is None else keep / device_slug(name)
            by = replace(plan, candidates=measured if choices else ())
            return _measure(device, chain, candidates, by, contract, test, show, folder)

    shows = {device: progress[device] if isinstance(progress, Mapping) else progress for device in devices}
    if len(devices) == 1:
        results, failed = [on(devices[0], shows[devices[0]])], []
    else:
        results, failed = _side_by_side(shows, on)
    results = [
        result if opened[result.device].here else _with_host(result, test, shows[result.device]) for result in results
    ]
    reports = [make_report(replace(result, overlap=overlap, provenance=provenance)) for result in results]
    if len(devices) > 1:
        return Validation(join_reports(reports, failed), test)
    report = reports[0]
    if stored is not None:
        report = hold_against(stored, report, candidates, contract, across_hardware=across_hardware)
    return Validation(report, test)


def _side_by_side(
    shows: Mapping[str, Progress], on: Callable[[str, Progress], Result]
) -> tuple[list[Result], list[Failed]]:
    """Measure on all devices at once; what failed is told apart.

    Raises:
        EdgeKitError: it failed on all of them.
    """
    outcomes: dict[str, Result | BaseException] = {}

    def run(device: str, show: Progress) -> None:
        try:
            outcomes[device] = on(device, show)
        except BaseException as error:  # raised again below
            outcomes[device] = error

    # daemons, so that Ctrl-C ends this process at once; that ends the connections, and these what runs on the boards
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in shows.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results: list[Result] = []
    failed: list[Failed] = []
    errors: list[BaseException] = []
    for device in shows:
        outcome = outcomes[device]
        if isinstance(outcome, Result):
            results.append(outcome)
            continue
        if not isinstance(outcome, EdgeKitError):
            raise outcome
        errors.append(outcome)
        failed.append({"device": device, "error": str(outcome), "fix": outcome.fix})
    if not results:
        raise errors[0]
    return results, failed


def _measure(
    device: Device, chain: Sequence[Bundle], candidates: Sequence[str], plan: Plan, contract: Contract,
    test: ImageSet | None, progress: Progress, keep: Path | None,
) -> Result:  # fmt: skip
    """Everything that the report is made from; what there is of it is kept when the device goes away."""

    def result(measured: Measured) -> Result:
        ids, targets = ids_and_targets(test)
        return Result(device.name, chain, candidates, plan, asdict(contract), ids, targets, *measured)

    try:
        return result(device.measure(chain, plan, test, progress))
    except LostDeviceError as lost:
        if keep is not None and lost.measured is not None:
            path = write_result(
                result(Measured.from_json(lost.measured, device.name, chain, len(test or ()), plan)), keep
            )
            _log.info(f"what was measured until then is kept: edgekit report {path}")
        raise


def _with_host(result: Result, test: ImageSet | None, progress: Progress) -> Result:
    """A result with this machine's own answers beside those of another one."""
    if test is None:
        return result
    return replace(result, host=compare_with_host(result.measured(), test, progress))
