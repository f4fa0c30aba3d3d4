"""Quantize a trained network after training, with quantization-aware training, and after as much plain training.

    python benchmarks/qat.py runs/001-mobilenet_v3_small-photos --target tensorrt [--epochs 5] [--set train.lr=1e-4]

Quantization-aware training also trains. So the gain counts only beyond that of the same number of epochs with the same
settings, augmentation and teacher, but without fake quantization, and quantized afterwards. All models answer the test
images, which took no part in training, calibration or the choice of an epoch. The drop is that of top-1 against the
given network in float, in percentage points with its 95 % interval. Writes its bundles into runs/.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.deploy.session import open_session
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.analysis.contract import compare_accuracy
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.qat.qat import SETTINGS, train_quantized
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.train import train
from edgekit.toolkit.workspace import new_path


def _tuned(bundle: Bundle, settings: list[str]) -> Bundle:
    """The network after plain training from its weights, with itself as the teacher, in ONNX."""
    recipe = Recipe.from_dict(bundle.manifest.details["recipe"])
    place = json.dumps(str(bundle.path.resolve()))
    start = [f"name={json.dumps(bundle.manifest.name + '-tuned')}", f"model.weights={place}", f"train.teacher={place}"]
    made = train(recipe.changed([*SETTINGS, *start, *settings]))
    return export_bundle(made, "onnx", new_path(f"{made.manifest.name}-onnx-fp32"))


def main() -> None:
    """Print a line per model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    print(json.dumps(describe()), file=sys.stderr)
    bundle, settings = Bundle.open(arguments.bundle), [f"train.epochs={arguments.epochs}", *arguments.settings]
    options = QuantizeOptions(target=arguments.target, float_layers=False)
    source = export_bundle(bundle, "onnx", new_path(f"{bundle.manifest.name}-onnx-fp32"))
    tuned = _tuned(bundle, settings)
    models = {
        "float": source,
        "quantized": quantize(source, options).bundle,
        "quantization-aware training": train_quantized(bundle, settings, target=arguments.target).bundle,
        "float, plain training": tuned,
        "the same, quantized": quantize(tuned, options).bundle,
    }
    test = part_of(source, "test")
    assert test is not None  # noqa: S101 # train records its images
    answers = {name: np.zeros(len(test), np.int64) for name in models}
    sessions = {name: open_session(model) for name, model in models.items()}
    for index, sample in enumerate(test):
        tensor = source.manifest.preprocess(sample.image)[None]
        for name, session in sessions.items():
            answers[name][index] = session.run(tensor)[0].argmax()
    for name, found in answers.items():
        drop = compare_accuracy(test.targets, answers["float"], found)
        assert drop is not None  # noqa: S101 # and their labels
        points = drop.points
        print(
            f"{name}: top-1 {(found == test.targets).mean():.4f}, {drop.flips} of {drop.count} answers changed, "
            f"drop {points.value:+.2f} [{points.low:+.2f}, {points.high:+.2f}]"
        )


if __name__ == "__main__":
    main()
