"""Export networks to every format, and print how far each file is from its network, or why it is refused.

    python benchmarks/parity.py --images FOLDER [--networks lenet resnet18 timm:NAME ...] [--formats onnx ncnn ...]

Networks have random weights. Their BatchNorm statistics are calibrated on the images first, because logits near zero
would agree with anything. A cell is the largest difference of logits on the golden images, as a share of the largest
logit; the export's own gate allows 1e-4.
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from edgekit.deploy.environment import describe
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.preprocess import Preprocess
from edgekit.export.export_bundle import export_bundle
from edgekit.export.formats import FORMATS
from edgekit.models.network import MODELS, create_network
from edgekit.toolkit.importing.import_model import ImportOptions, import_model
from PIL import Image
from safetensors.torch import save_file

_CALIBRATION_IMAGES = 32
_CLASSES = 10


def preprocess_of(name: str) -> Preprocess:
    """The input of a network: 32 x 32 for EdgeKit's own, 224 x 224 for other libraries'."""
    size = 32 if MODELS.get(name, "").startswith(".") else 224
    channels = 1 if name == "lenet" else 3
    mode = "L" if channels == 1 else "RGB"
    return Preprocess(mode, size, (size, size), "bilinear", (0.5,) * channels, (0.25,) * channels)


def save_calibrated(name: str, preprocess: Preprocess, images: Path, weights: Path) -> None:
    """Write a state dict of the network with random weights and BatchNorm statistics of real images."""
    torch.manual_seed(0)
    network = create_network(name, _CLASSES, len(preprocess.mean), preprocess.crop or (224, 224))
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average of all batches
    paths = random.Random(0).sample(sorted(images.rglob("*.jpg")), _CALIBRATION_IMAGES)
    batch = torch.from_numpy(preprocess.batch([Image.open(path).convert(preprocess.mode) for path in paths]))
    with torch.no_grad():
        network.train()(batch)
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, weights)


def _cell(name: str, formats: list[str], images: Path, folder: Path) -> list[str]:
    preprocess, weights = preprocess_of(name), folder / "weights.safetensors"
    save_calibrated(name, preprocess, images, weights)
    options = ImportOptions(weights=weights)
    imported = import_model(
        name, options, name="network", preprocess=preprocess, images=str(images), out=folder / "imported"
    )
    cells = []
    for format in formats:
        try:
            parity = export_bundle(imported, format, folder / format).manifest.details["parity"]
            cells.append(f"{parity['logits_max_abs'] / parity['scale']:.1e}")
        except EdgeKitError as error:
            cells.append(" ".join(str(error).split())[:100])
    return cells


def main() -> None:
    """Export and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(MODELS))
    parser.add_argument("--formats", nargs="+", default=[name for name in FORMATS if name != "litert"])
    arguments = parser.parse_args()
    print(f"{describe()['versions']}\n\n| network | {' | '.join(arguments.formats)} |")
    print(f"|{'---|' * (1 + len(arguments.formats))}")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = _cell(name, arguments.formats, arguments.images, Path(folder))
            except (EdgeKitError, ValueError, RuntimeError) as error:
                cells = [" ".join(str(error).split())[:100]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
