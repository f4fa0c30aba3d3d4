"""Measure a request on one device, or on several at the same time."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device
from ...deploy.errors import EdgeKitError, LostDeviceError
from ...deploy.images import ImageSet
from ...deploy.measuring.agent import Measured
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.result import Result, ids_and_targets
from ...deploy.progress import Progress
from ...deploy.runtimes.runtime import Choice, formats, require_options_used
from ..analysis.contract import Contract
from ..analysis.host_answers import compare_with_host
from ..analysis.report_schema import Failed
from ..report.files import device_slug, write_result
from .ancestors import with_ancestors
from .candidates import candidates_of, runtimes_of, with_baseline

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The validation that each device measures.

    Attributes:
        bundles: the candidates.
        candidates: keys of the candidates in the plan.
        baseline: the bundle to compare with; None to use the models that the candidates were made from.
        choices: the runtimes; empty for the default of each format.
        images: the test images; None if accuracy is not measured.
        keep: folder for the measurements so far if a device is lost.
    """

    bundles: Sequence[Bundle]
    candidates: Sequence[str]
    baseline: Bundle | None
    choices: Sequence[Choice]
    contract: Contract
    plan: Plan
    images: ImageSet | None
    keep: Path | None


def measure_on(
    devices: Mapping[str, Device], request: Request, progress: Mapping[str, Progress]
) -> tuple[dict[str, Result], list[Failed]]:
    """Measure on one device, or on several at the same time.

    Args:
        devices: device by the name that reports show.
        progress: callback by the same name.

    Returns:
        The results by device name, and the devices that failed.

    Raises:
        EdgeKitError: the only device failed, or all of several.
        LostDeviceError: the only device was lost.
    """

    def run(name: str) -> Result:
        keep = request.keep if len(devices) == 1 else request.keep and request.keep / device_slug(name)
        return _measure(name, devices[name], request, keep, progress[name])

    results, failed = side_by_side(devices, run)
    for name, result in results.items():
        if not devices[name].here and request.images is not None:
            answers = compare_with_host(result.measured(), request.images, progress[name])
            results[name] = replace(result, host=answers)
    return results, failed


def side_by_side(names: Iterable[str], run: Callable[[str], T]) -> tuple[dict[str, T], list[Failed]]:
    """Call `run` with the name of each device at once; devices that failed are listed separately.

    Raises:
        EdgeKitError: the only device failed, or all devices.
    """
    outcomes: dict[str, tuple[T] | BaseException] = {}

    def keep(name: str) -> None:
        try:
            outcomes[name] = (run(name),)
        except BaseException as error:  # raised again below
            outcomes[name] = error

    names = list(names)
    if len(names) == 1:  # in this thread, which gets Ctrl-C
        return {names[0]: run(names[0])}, []
    # daemons, so that Ctrl-C ends this process at once, and with it the connections and the boards' processes
    threads = [threading.Thread(target=keep, args=[name], daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results: dict[str, T] = {}
    errors: dict[str, EdgeKitError] = {}
    for name in names:
        outcome = outcomes[name]
        if isinstance(outcome, tuple):
            (results[name],) = outcome
        elif isinstance(outcome, EdgeKitError):
            errors[name] = outcome
        else:
            raise outcome
    if not results:
        raise next(iter(errors.values()))
    return results, [{"device": name, "error": str(error), "fix": error.fix} for name, error in errors.items()]


def _measure(name: str, opened: Device, request: Request, keep: Path | None, progress: Progress) -> Result:
    """Measure on one device, and return everything that its report requires."""
    with opened as device:
        runtimes = device.runtimes()
        chain = with_ancestors(request.bundles, request.baseline, set(formats(runtimes)), name)
        named = {bundle.id for bundle in request.bundles}
        if request.plan.candidates:
            plan, measured_ids = request.plan, {candidate.bundle for candidate in request.plan.candidates}
            chain = [bundle for bundle in chain if bundle.id in measured_ids]
        else:
            candidates = with_baseline(candidates_of(chain, named, request.choices, runtimes, name), chain)
            require_options_used(request.plan.options, runtimes_of(chain, candidates))
            plan = replace(request.plan, candidates=candidates if request.choices else ())
        ids, targets = ids_and_targets(request.images)

        def result(measured: Measured) -> Result:
            contract, (environment, measurements, _) = asdict(request.contract), measured
            return Result(
                device.name, chain, request.candidates, plan, contract, ids, targets, environment, measurements
            )

        try:
            return result(device.measure(chain, plan, request.images, progress))
        except LostDeviceError as lost:
            if keep is not None and lost.measured is not None:
                measured = Measured.from_json(lost.measured, device.name, chain, len(request.images or ()), plan)
                path = write_result(result(measured), keep)
                _log.info(f"the measurements so far are kept: edgekit report {path}")
            raise
