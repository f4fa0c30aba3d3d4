"""Search for the model that each device runs fastest within the limits, and confirm it on images that chose nothing."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device, open_device
from ...deploy.errors import EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.progress import Progress, silent
from ..analysis.contract import Contract
from ..analysis.search import shared_file
from ..analysis.search_schema import SCHEMA, NotMade, Search
from ..datasets import part_of
from ..report.files import check_folder
from ..report.search import write_search
from ..runs import RUNS, SEARCH
from ..validation.on_devices import side_by_side
from ..validation.validation import Validation
from .on_device import DeviceSearcher
from .options import SEED, OptimizeOptions
from .space import Contender, Place, Variant, contenders_for, examine, variants_for
from .variants import MakingOptions, make, source_of

_log = logging.getLogger(__name__)

# The share of the budget after which no further file is made.
_MAKING_SHARE = 0.5


@dataclass(frozen=True)
class Optimization:
    """What a search found.

    Attributes:
        search: the content of optimize.json.
        folder: where it was written, beside the page and the reports.
        validations: device -> the confirmation of its model.
    """

    search: Search
    folder: Path
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
    places = {name: examine(device, options.runtimes, options.threads) for name, device in devices.items()}
    small = options.objective == "size" or options.size_bytes is not None
    variants = {name: variants_for(place, small=small) for name, place in places.items()}
    contenders = {
        name: contenders_for(place, variants[name], streams=options.streams) for name, place in places.items()
    }
    return Planned(places, contenders, list(dict.fromkeys(entry for own in variants.values() for entry in own)))


def optimize(
    bundle: Bundle,
    options: OptimizeOptions | None = None,
    *,
    contract: Contract | None = None,
    folder: Path | None = None,
    progress: Progress | Mapping[str, Progress] = silent,
) -> Optimization:
    """Make the files that the devices can run, race them, and confirm each device's choice on the test images.

    The files are bundles in runs/. Earlier bundles that were made in the same way are used again, and so is the race
    of a search that was interrupted after it.

    Args:
        bundle: the float32 ONNX bundle, or the network that it is exported from.
        contract: max_drop also limits the loss on the selection images, min_speedup applies to the confirmation.
        folder: for optimize.json, optimize.html, and one folder per device with its confirmation; None for the one in
            runs/ with the bundle's name.
        progress: a callback, or one per device.

    Raises:
        EdgeKitError: a device cannot be searched, or the source cannot be exported or run.
        BundleError: the bundle is not an original model.
    """
    start = time.monotonic()
    options, contract = options or OptimizeOptions(), contract or Contract()
    folder = folder or RUNS / f"{bundle.path.name}{SEARCH}"
    check_folder(folder)
    devices = _opened(options)
    callbacks = progress if isinstance(progress, Mapping) else dict.fromkeys(devices, progress)
    first = next(iter(callbacks.values()))
    planned = plan_search(options, devices)
    source = source_of(bundle, first)
    files, not_made = _make_files(planned.variants, source, options, contract, start, first)
    selection = _selection(source, options)
    searcher = DeviceSearcher(source, files, selection, options, contract, folder, start)
    results, failed = side_by_side(
        planned.places,
        lambda name: searcher.search(devices[name], planned.places[name], planned.contenders[name], callbacks[name]),
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
        searcher.record(name).unlink(missing_ok=True)
    return Optimization(search, folder, {name: done for name, (_, done) in results.items() if done is not None})


def _opened(options: OptimizeOptions) -> dict[str, Device]:
    return {name: open_device(name) for name in options.devices}


def _make_files(
    variants: Sequence[Variant], source: Bundle, options: OptimizeOptions, contract: Contract, start: float,
    progress: Progress,
) -> tuple[dict[Variant, Bundle], list[NotMade]]:  # fmt: skip
    """Make or find each file; one that cannot be made is listed with the reason."""
    making = MakingOptions(
        images=options.images, calibration_images=options.calibration_images,
        selection_images=options.selection_images, max_drop=contract.max_drop, skip_corrupt=options.skip_corrupt,
        install="litert" in options.runtimes,
    )  # fmt: skip
    files: dict[Variant, Bundle] = {}
    not_made: list[NotMade] = []
    for variant in variants:
        if files and time.monotonic() - start > _MAKING_SHARE * options.budget_s:
            not_made.append({"name": variant.name, "reason": "the budget ended before it (--budget)"})
            continue
        try:
            made = make(variant, source, making, progress)
        except EdgeKitError as error:
            not_made.append({"name": variant.name, "reason": f"{error} ({error.fix})"})
            continue
        if made.found and made.bundle.id != source.id:
            _log.info(f"using {made.bundle.path} for {variant.name}")
        files[variant] = made.bundle
    return files, not_made


def _selection(source: Bundle, options: OptimizeOptions) -> ImageSet | None:
    images = part_of(source, "validation", options.images, skip_corrupt=options.skip_corrupt)
    return images and images.stratified(options.selection_images, SEED)
