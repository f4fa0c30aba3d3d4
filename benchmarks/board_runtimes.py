"""Validate bundles on a device with every runtime and precision that opens them, and print one table row for each.

    python benchmarks/board_runtimes.py DEVICE BUNDLE... [--images SOURCE] [--limit 60] [--runtimes ncnn openvino ...]

DEVICE is an address as for `validate --device`, for example ssh://pi@raspberrypi.local. The answers are compared with
this machine's, on the default runtime of each format, in fp32 or the bundle's own precision: the number of test images
that differ, and the largest difference of a logit on the golden samples. A combination that is refused says why.
Latency is measured as briefly as possible, and not shown: the table is about installation and answers, also on an
emulated board.
"""

import argparse
from collections.abc import Iterator
from typing import get_args, get_type_hints

from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.measuring.plan import PRECISION, Plan
from edgekit.deploy.runtimes.runtime import Choice, all_runtimes, runtime_named
from edgekit.toolkit.validation.validate import ValidateOptions, validate

_BRIEF = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
_COLUMNS = (
    "runtime", "version", "format", "precision", "images", "answers that differ", "largest logit difference",
    "refused because",
)  # fmt: skip


def _choices(bundle: Bundle, names: list[str]) -> Iterator[tuple[Choice, str]]:
    """The runtimes that open a bundle, each in every precision that it may have, and that precision."""
    own = bundle.manifest.precision
    for runtime in all_runtimes():
        if runtime.name not in names or bundle.manifest.format not in runtime.formats:
            continue
        kinds = get_args(get_type_hints(runtime.options).get(PRECISION)) if own == "fp32" else ()
        for precision in kinds or (own,):
            yield Choice(runtime.name, {PRECISION: precision} if precision != own else {}), precision


def _cells(device: str, bundle: Bundle, choice: Choice, images: str | None, limit: int) -> list[str]:
    """Images, answers that differ, logit difference, and why it is refused."""
    options = ValidateOptions(devices=[device], runtimes=[str(choice)])
    try:
        report = validate([bundle], options, baseline=bundle, images=images, limit=limit, plan=_BRIEF).report
    except EdgeKitError as error:
        return ["", "", "", " ".join(str(error).split())]
    host = report["models"][-1]["host"]  # the candidate; a baseline in fp32 comes first
    if host is None:
        return ["0", "", "", ""]
    return [str(host["images"]), str(len(host["differ"])), f"{host['logits_max_abs']:.1e}", ""]


def main() -> None:
    """Validate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--images")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--runtimes", nargs="+")
    arguments = parser.parse_args()
    device = open_device(arguments.device)
    if device.here:
        parser.error("the answers are compared with this machine's, so name another device")
    with device:
        about, found = device.describe().about, device.runtimes()
    machine = about.machine if about else {}
    print(f"{machine.get('cpu')}, {machine.get('isa')}, {machine.get('versions')}")
    print(f"runtimes: {', '.join(sorted(found))}\n")
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for path in arguments.bundles:
        bundle = Bundle.open(path)
        for choice, precision in _choices(bundle, arguments.runtimes or [runtime.name for runtime in all_runtimes()]):
            package = runtime_named(choice.name).packages[0].distributions[0]
            version = str(machine.get("versions", {}).get(package, "missing"))
            cells = _cells(arguments.device, bundle, choice, arguments.images, arguments.limit)
            row = [choice.name, version, bundle.manifest.format, precision, *cells]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
