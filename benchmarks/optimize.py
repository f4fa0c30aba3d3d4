"""Race the candidates of `edgekit optimize`, and compare its choice with an exhaustive measurement of all of them.

    python benchmarks/optimize.py --images FOLDER [--networks timm:efficientnet_b0 ...] [--exhaustive] [--threads 1]

Networks have random weights, with BatchNorm statistics of real images, so the table is about speed alone. Each is
exported and quantized for this machine and for OpenVINO. A cell is the speed-up over fp32 on ONNX Runtime with as many
threads. With --exhaustive, every candidate is also measured to the end in seven processes; "of the fastest" is the
speed of the race's choice divided by that of the exhaustive run's fastest, both from the exhaustive run, with its 95 %
interval. The last row has the geometric means.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.environment import describe
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.measuring.plan import Candidate, Plan, Race
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.progress import silent
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.analysis.document import measured_times
from edgekit.toolkit.analysis.search import Raced, conclude
from edgekit.toolkit.analysis.search_schema import CandidateEntry, DeviceSearch
from edgekit.toolkit.analysis.statistics import ratio_of_times, typical_time
from edgekit.toolkit.importing.import_model import ImportOptions, import_model
from edgekit.toolkit.optimizing.on_device import race_plan
from edgekit.toolkit.optimizing.space import SOURCE, Place, Variant, contenders_for, examine, variants_for
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from parity import preprocess_of, save_calibrated

NETWORKS = ("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet50", "convnet", "vgg_small")
_CALIBRATION_IMAGES = 32
COLUMNS = ("chosen", "int8 on ONNX Runtime", "bf16 on OpenVINO", "best of ONNX Runtime")


class Row(NamedTuple):
    """A network's result: the speed-ups of COLUMNS, the choice and the figures of both runs."""

    speedups: list[float]
    name: str
    race: str
    exhaustive: str


def _files(network: str, images: str, place: Place, folder: Path) -> dict[Variant, Bundle]:
    """The fp32 bundle and its quantizations; one with logits that are too noisy is timed all the same."""
    preprocess: Preprocess = preprocess_of(network)
    save_calibrated(network, preprocess, Path(images), folder / "weights.safetensors")
    imported = import_model(
        network, ImportOptions(weights=folder / "weights.safetensors"), name="network", preprocess=preprocess,
        images=images, out=folder / "imported",
    )  # fmt: skip
    files = {SOURCE: export_bundle(imported, "onnx", folder / "fp32")}
    for variant in variants_for(place, small=False)[1:]:
        if variant.format == "onnx" and variant.precision == "int8":
            options = QuantizeOptions(
                target=variant.target, calibration_images=_CALIBRATION_IMAGES, selection_images=_CALIBRATION_IMAGES
            )
            files[variant] = quantize(files[SOURCE], options, images=images, out=folder / str(variant.target)).bundle
    return files


def _row(files: dict[Variant, Bundle], place: Place, *, exhaustive: bool) -> Row:
    contenders = contenders_for(place, list(files), streams=False)
    candidates = tuple(Candidate(files[entry.variant].id, entry.choice) for entry in contenders)
    bundles, device = list(files.values()), open_device("local")
    start = time.monotonic()
    plan = race_plan(candidates, Race())
    measured = device.measure(bundles, plan, None, silent)
    seconds = time.monotonic() - start
    found = conclude(Raced("local", {bundle.id: bundle for bundle in bundles}, plan, measured, [], seconds))
    processes = sum(entry["processes"] for entry in found["candidates"])
    kept = [candidate for candidate in candidates if candidate.key not in measured.failed]
    text = f"{seconds:.0f} s, {processes} processes of {len(kept)} candidates"
    compared = _exhaustive(kept, bundles, found, seconds) if exhaustive else ""
    return Row(_speedups(found), found["candidates"][0]["name"], text, compared)


def _exhaustive(candidates: list[Candidate], bundles: list[Bundle], found: DeviceSearch, seconds: float) -> str:
    """The choice compared with the fastest of a measurement of all candidates."""
    start = time.monotonic()
    plan = Plan(seconds=8.0, candidates=tuple(candidates))
    measured = open_device("local").measure(bundles, plan, None, silent).measurements
    spent = time.monotonic() - start
    times = {entry.bundle: measured_times(entry.blocks) for entry in measured}
    fastest = min(times, key=lambda key: typical_time(times[key]).value)
    names = {entry["id"]: entry["name"] for entry in found["candidates"]}
    ratio = ratio_of_times(times[fastest], times[str(found["chosen"])])
    return (
        f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of the fastest ({names[fastest]}), "
        f"in {seconds / spent:.2f} of {spent:.0f} s"
    )


def _speedups(found: DeviceSearch) -> list[float]:
    """The values of COLUMNS, over fp32 on ONNX Runtime."""
    entries = [entry for entry in found["candidates"] if entry["speedup"] is not None]

    def best(accept: Callable[[CandidateEntry], bool]) -> float:
        return max(entry["speedup"]["ratio"] for entry in entries if entry["speedup"] and accept(entry))

    def on(runtime: str, precision: str) -> float:
        return best(lambda entry: entry["runtime"].startswith(runtime) and entry["precision"] == precision)

    ort = on("onnxruntime", "fp32")
    int8 = on("onnxruntime", "int8")
    values = [best(lambda entry: entry["id"] == found["chosen"]), int8, on("openvino", "bf16"), max(ort, int8)]
    return [value / ort for value in values]


def main() -> None:
    """Race, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--exhaustive", action="store_true")
    parser.add_argument("--threads", type=int, nargs="*", default=())
    arguments = parser.parse_args()
    place = examine(open_device("local"), ("onnxruntime", "openvino"), arguments.threads)
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    print(f"| network | {' | '.join(COLUMNS)} | choice | race | exhaustive |\n|{'---|' * (4 + len(COLUMNS))}")
    rows = []
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = _files(network, arguments.images, place, Path(folder))
                row = _row(files, place, exhaustive=arguments.exhaustive)
            except (EdgeKitError, ValueError, RuntimeError) as error:
                print(f"| {network} | {' '.join(str(error).split())[:200]} |", flush=True)
                continue
        rows.append(row.speedups)
        cells = [*(f"{value:.2f}" for value in row.speedups), row.name, row.race, row.exhaustive]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)
    means = [math.exp(sum(map(math.log, values)) / len(values)) for values in zip(*rows, strict=True)]
    print(f"| geometric mean of {len(rows)} | {' | '.join(f'{value:.2f}' for value in means)} | | | |")


if __name__ == "__main__":
    main()
