"""Compare runtimes, precisions and quantization targets on this machine, one table row per network.

    python benchmarks/runtimes.py --images FOLDER [--networks timm:efficientnet_b0 mobilenet_v2 ...] [--seconds 4]

Networks are imported with random weights unless the library finds published ones here, so the table is about speed
alone. Each network is exported, quantized for this machine and for OpenVINO, and all candidates are measured together,
interleaved, with one thread, at batch 1 and 224 x 224. A cell is the speed-up over fp32 on ONNX Runtime with its 95 %
interval; the last rows are the geometric means, and that of the best candidate per network.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.environment import describe
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.progress import silent
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.analysis.document import measured_times
from edgekit.toolkit.analysis.statistics import Interval, ratio_of_times
from edgekit.toolkit.importing.import_model import import_model
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize

NETWORKS = ("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet50", "timm:efficientnet_lite0")
# column -> (bundle, runtime and options)
CANDIDATES = {
    "fp32 ONNX Runtime": ("fp32", "onnxruntime"),
    "int8 ONNX Runtime": ("int8", "onnxruntime"),
    "fp32 OpenVINO": ("fp32", "openvino"),
    "bf16 OpenVINO": ("fp32", "openvino:precision=bf16"),
    "int8 OpenVINO, the same file": ("int8", "openvino"),
    "int8 OpenVINO, its target": ("openvino", "openvino"),
}


def _bundles(network: str, images: str, folder: Path) -> dict[str, Bundle]:
    """The fp32 bundle and its quantizations; one with logits that are too noisy is timed all the same."""
    preprocess = Preprocess("RGB", 224, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    name = network.rpartition(":")[2]
    imported = import_model(network, name=name, preprocess=preprocess, images=images, out=folder / "imported")
    bundles = {"fp32": export_bundle(imported, "onnx", folder / "fp32")}
    for key, target in (("int8", None), ("openvino", "openvino")):
        options = QuantizeOptions(target=target, calibration_images=32)
        bundles[key] = quantize(bundles["fp32"], options, images=images, out=folder / key).bundle
    return bundles


def _speedups(bundles: Mapping[str, Bundle], seconds: float) -> dict[str, Interval]:
    """Column -> speed-up over fp32 on ONNX Runtime."""
    candidates = {
        column: Candidate(bundles[key].id, Choice.parse(choice)) for column, (key, choice) in CANDIDATES.items()
    }
    plan = Plan(seconds=seconds, processes=5, threads=1, candidates=tuple(candidates.values()))
    measured = open_device("local").measure(list(bundles.values()), plan, None, silent).measurements
    base, *_ = times = [measured_times(measurement.blocks) for measurement in measured]
    return {column: ratio_of_times(base, own) for column, own in zip(candidates, times, strict=True)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    print(f"| network | {' | '.join(CANDIDATES)} |\n|{'---|' * (1 + len(CANDIDATES))}")
    ratios: dict[str, list[float]] = {column: [] for column in (*CANDIDATES, "best")}
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                speedups = _speedups(_bundles(network, arguments.images, Path(folder)), arguments.seconds)
            except EdgeKitError as error:
                print(f"| {network} | {error} |", flush=True)
                continue
        for column, ratio in speedups.items():
            ratios[column].append(ratio.value)
        ratios["best"].append(max(ratio.value for ratio in speedups.values()))
        cells = [f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in speedups.values()]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)
    means = {column: math.exp(sum(map(math.log, values)) / len(values)) for column, values in ratios.items() if values}
    print(
        f"| geometric mean of {len(ratios['best'])} | {' | '.join(f'{means[column]:.2f}' for column in CANDIDATES)} |"
    )
    print(f"\nThe best candidate per network: {means['best']:.2f}")


if __name__ == "__main__":
    main()
