"""Compare the forecast of `edgekit inspect --forecast` with a race on this machine, one table per network.

    python benchmarks/forecast.py --images FOLDER [--networks mobilenet_v2 ...] [--seconds 15] [--race 60]
                                     [--threads 1]

Networks have random weights, with BatchNorm statistics of real images (see parity.py). Each is exported to ONNX and
forecast. Then it is really quantized, and all candidates are raced, of which the slow ones run in one process only. A
row has both speed-ups over the race's fastest candidate in fp32. The last line counts the forecasts within 20 %, and
the intervals that contain the raced speed-up.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.environment import describe
from edgekit.deploy.measuring.plan import Candidate, Plan, Race
from edgekit.deploy.progress import silent
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.analysis.forecast import forecast_line, with_forecast
from edgekit.toolkit.analysis.search import Raced, conclude
from edgekit.toolkit.analysis.search_schema import DeviceSearch
from edgekit.toolkit.importing.import_model import ImportOptions, import_model
from edgekit.toolkit.optimizing.forecast import forecast
from edgekit.toolkit.optimizing.space import SOURCE, Variant, contenders_for, examine, variants_for
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.report.search import ratio_text
from parity import preprocess_of, save_calibrated

NETWORKS = ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "efficientnet_b0")


def _source(network: str, images: Path, folder: Path) -> Bundle:
    preprocess, weights = preprocess_of(network), folder / "weights.safetensors"
    save_calibrated(network, preprocess, images, weights)
    options = ImportOptions(weights=weights)
    imported = import_model(
        network, options, name="network", preprocess=preprocess, images=str(images), out=folder / "imported"
    )
    return export_bundle(imported, "onnx", folder / "fp32")


def _file(variant: Variant, source: Bundle, images: Path, folder: Path) -> Bundle:
    """A file as `optimize` makes it; one with logits that are too noisy is timed all the same."""
    if variant == SOURCE:
        return source
    options = QuantizeOptions(variant.precision, variant.target, calibration_images=32, selection_images=8)
    return quantize(source, options, images=str(images), out=folder / f"{variant.name}").bundle


def _compared(
    source: Bundle, images: Path, folder: Path, seconds: float, race_s: float, threads: Sequence[int]
) -> DeviceSearch:
    """The race with the forecast of each candidate."""
    device = open_device("local")
    place = examine(device, (), threads)
    variants = [variant for variant in variants_for(place, small=False) if variant.format == SOURCE.format]
    contenders = contenders_for(place, variants, streams=False)
    expected = forecast(source, contenders, seconds=seconds)
    print(f"{expected['sentence']} (in {expected['seconds']:.0f} s)\n", flush=True)
    files = {variant: _file(variant, source, images, folder) for variant in variants}
    plan = Plan(
        seconds=4.0, race=Race(max_loss=None, seconds=race_s),
        candidates=tuple(Candidate(files[contender.variant].id, contender.choice) for contender in contenders),
    )  # fmt: skip
    with device as connected:
        measured = connected.measure(list(files.values()), plan, None, silent)
    by_id = {file.id: file for file in files.values()}
    return with_forecast(conclude(Raced("local", by_id, plan, measured, (), 0.0)), expected)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--race", type=float, default=60.0)
    parser.add_argument("--threads", type=int, nargs="*", default=())
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    for network in arguments.networks:
        print(f"## {network}\n")
        with tempfile.TemporaryDirectory() as folder:
            source = _source(network, arguments.images, Path(folder))
            found = _compared(
                source, arguments.images, Path(folder), arguments.seconds, arguments.race, arguments.threads
            )
        print("| candidate | forecast | raced | processes |\n|---|---|---|---|")
        inside = total = 0
        for entry in found["candidates"]:
            expected, raced = entry["forecast_speedup"], entry["speedup"]
            row = (entry["name"], ratio_text(expected), ratio_text(raced), str(entry["processes"]))
            print(f"| {' | '.join(row)} |")
            if expected and raced and expected["low"] is not None and expected["high"] is not None:
                total += 1
                inside += expected["low"] <= raced["ratio"] <= expected["high"]
        print(f"\n{forecast_line(found)}; {inside} of {total} intervals contain the raced speed-up\n", flush=True)


if __name__ == "__main__":
    main()
