"""Quantize LiteRT bundles with EdgeKit and with ai-edge-quantizer, on the same calibration images, and compare.

    python benchmarks/litert_int8.py BUNDLE... --images FOLDER [--calibration-images 256] [--test-images 3000]
                                     [--seconds 6]

Each BUNDLE is an fp32 LiteRT bundle; --images is a named data set, or a folder with labelled images in `train` and
`test`. ai-edge-quantizer calibrates and writes by itself, with its recipe static_wi8_ai8 and float input and output.
All files answer the same test images on LiteRT with XNNPACK and one thread; a row has the drop of top-1 in percentage
points with its paired 95 % interval, the answers that differ from fp32's, the speed-up over fp32 (median of interleaved
blocks, and the quartiles), and the kernels that run the operators.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.deploy.runtimes.litert import Interpreter, read_placement
from edgekit.export.litert_packages import converter_packages
from edgekit.toolkit.analysis.contract import compare_accuracy
from edgekit.toolkit.datasets import BundleImages
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.trial import interleaved

# Reads sys.argv[1:5]: the packages, the float file, the calibration images [n, c, h, w] as .npy, and the file to write.
_PEER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
writer = quantizer.Quantizer(sys.argv[2])
ends = [dict(regex=".*", operation=name, algorithm_key="no_quantize", op_config=None) for name in ("INPUT", "OUTPUT")]
writer.load_quantization_recipe(recipe.static_wi8_ai8() + ends)
interpreter = Interpreter(sys.argv[2])
(key, signature), = interpreter.get_signature_list().items()
last = interpreter.get_input_details()[0]["shape"][1] != np.load(sys.argv[3]).shape[1]
images = (image[None].transpose(0, 2, 3, 1) if last else image[None] for image in np.load(sys.argv[3]))
ranges = writer.calibrate({key: [{signature["inputs"][0]: image} for image in images]})
open(sys.argv[4], "wb").write(writer.quantize(ranges).quantized_model)
"""


def _peer(bundle: Bundle, images: np.ndarray, folder: Path) -> Bundle:
    calibration, file = folder / "calibration.npy", folder / bundle.manifest.model
    np.save(calibration, images)
    arguments = [str(converter_packages()), str(bundle.model_path), str(calibration), str(file)]
    subprocess.run([sys.executable, "-I", "-c", _PEER, *arguments], check=True, capture_output=True)
    return dataclasses.replace(bundle, path=folder)


def _answers(bundle: Bundle, tensors: np.ndarray) -> np.ndarray:
    return Interpreter(bundle).run(tensors).argmax(axis=1)


def _rows(bundle: Bundle, arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    source = BundleImages(bundle, arguments.images)
    train, test = source.part("train"), source.part("test")
    if train is None or test is None:
        raise SystemExit(f"{arguments.images} has no parts train and test")
    train, test = (
        part.stratified(count, 0)
        for part, count in ((train, arguments.calibration_images), (test, arguments.test_images))
    )
    tensors = bundle.manifest.preprocess.batch([sample.image for sample in test])
    expected = _answers(bundle, tensors)
    yield ("fp32", f"accuracy {(expected == test.targets).mean():.4f}", "", "1", "")
    with tempfile.TemporaryDirectory() as folder:
        images = bundle.manifest.preprocess.batch([sample.image for sample in train])
        options = QuantizeOptions(calibration_images=len(train), selection_images=16)
        made = {
            "EdgeKit": quantize(bundle, options, images=arguments.images, out=Path(folder) / "edgekit").bundle,
            "ai-edge-quantizer": _peer(bundle, images, Path(folder)),
        }
        for tool, other in made.items():
            answers = _answers(other, tensors)
            drop = compare_accuracy(test.targets, expected, answers)
            pairs = interleaved(
                Interpreter(bundle), Interpreter(other), tensors[:1], arguments.seconds, clock=time.process_time  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            low, middle, high = np.quantile([first / second for first, second in pairs], [0.25, 0.5, 0.75])
            yield (
                tool, f"{drop.points.value:+.2f} [{drop.points.low:+.2f}, {drop.points.high:+.2f}]" if drop else "",
                f"{int((answers != expected).sum())} of {len(expected)}",
                f"{middle:.2f} ({low:.2f} to {high:.2f})", str(dict(read_placement(Interpreter(other).operators))),
            )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--images", required=True)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    for path in arguments.bundles:
        print(f"## {path.name}\n\n| tool | drop | answers changed | speed-up | operators |\n|---|---|---|---|---|")
        for row in _rows(Bundle.open(path), arguments):
            print(f"| {' | '.join(row)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
