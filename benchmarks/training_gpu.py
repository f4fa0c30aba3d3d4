"""Train by `edgekit train` and by a loop in the style of torchvision's references, and compare images per second.

    python benchmarks/training_gpu.py [--networks convnet resnet18 mobilenet_v2] [--images 20000] [--epochs 3]
    python benchmarks/training_gpu.py --device cpu --images 200 --epochs 2 --batch-size 16 --workers 1   # a dry run

The images are synthetic JPEG files in class folders: 32 pixels for convnet and resnet18 (with the stem for small
images), 256 pixels for mobilenet_v2, which trains on random resized crops of 224. The reference loop is that of
torchvision's references/classification/train.py: ImageFolder, a DataLoader with worker processes and pinned memory,
autocast, SGD, metrics read every ten steps; the channels of a pixel are side by side, as in EdgeKit. Both train the
same network with the same batch size, changes of images, precision and number of workers, in turns, each in a process
of its own. Images per second are those of the epochs after the first, without evaluation.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from edgekit.deploy.environment import describe
from edgekit.toolkit.analysis.statistics import exponential, student_mean
from PIL import Image

# network -> pixels of a file, pixels of an input, images per step
NETWORKS = {"convnet": (32, 32, 512), "resnet18": (32, 32, 512), "mobilenet_v2": (256, 224, 256)}
_CLASSES = 10

REFERENCE = """
import json, sys, time
import torch
from torch import nn
from torchvision import datasets
from torchvision.transforms import v2
from edgekit.models.network import create_network

def main():
    model, folder, side, batch, workers, epochs, device = sys.argv[1:]
    side, batch, workers, epochs, device = int(side), int(batch), int(workers), int(epochs), torch.device(device)
    crop = v2.RandomResizedCrop(side) if side > 32 else v2.RandomCrop(side, padding=4)
    images = datasets.ImageFolder(folder, v2.Compose([
        crop, v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]))
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True,
                                         pin_memory=device.type == "cuda", persistent_workers=workers > 0)
    torch.backends.cudnn.benchmark = True
    network = create_network(model, len(images.classes), 3, (side, side), "relu")
    network = network.to(device, memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    speeds = []
    for epoch in range(epochs):
        network.train()
        begun, seen = time.monotonic(), 0
        for step, (image, target) in enumerate(loader):
            image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
            target = target.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                output = network(image)
                loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(target)
            if step % 10 == 0:
                loss.item(), (output.argmax(1) == target).float().mean().item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        speeds.append(seen / (time.monotonic() - begun))
    print(json.dumps(speeds))

if __name__ == "__main__":
    main()
"""


def _write_images(folder: Path, images: int, side: int) -> None:
    """JPEG files in class folders, whose brightness depends on the class."""
    generator = np.random.default_rng(0)
    for number in range(images):
        label = number % _CLASSES
        coarse = generator.normal(60 + 15 * label, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        path = folder / f"class-{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def _reference(model: str, images: Path, work: Path, options: argparse.Namespace) -> float:
    """Images per second of the reference loop."""
    _, side, batch = NETWORKS[model]
    program = work / "reference.py"  # a file, because loader processes import it
    program.write_text(REFERENCE)
    command = [model, images, side, options.batch_size or batch, options.workers, options.epochs, options.device]
    done = subprocess.run([sys.executable, program, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(json.loads(done.stdout)[1:])


def _edgekit(model: str, images: Path, work: Path, options: argparse.Namespace) -> float:
    """Images per second of `edgekit train`."""
    _, side, batch = NETWORKS[model]
    changes = ["augment.resized_crop=0.08"] if side > 32 else ["augment.resized_crop=0.0", "augment.pad_crop=4"]
    settings = [
        *changes, "augment.horizontal_flip=0.5", f"preprocess.size={side}", "preprocess.mode=RGB",
        "train.optimizer=sgd", "train.lr=0.01", "train.schedule=constant", "data.validation=0.02",
        f"train.batch_size={options.batch_size or batch}", f"train.workers={options.workers}",
        f"train.device={options.device}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder) / "made"
        command = ["-m", "edgekit", "train", "--data", str(images), "--model", model, "--epochs", str(options.epochs),
                   "--out", str(out), *(part for setting in settings for part in ("--set", setting))]  # fmt: skip
        subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
        rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return statistics.median(float(row["images_per_s"]) for row in rows[1:])


def main() -> None:
    """Print a line per network and round, and each network's ratio with its 95 % interval over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="instead of the network's own")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.epochs < 2 or options.rounds < 1:
        parser.error("the first epoch does not count: --epochs 2 or more, --rounds 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU; --device cpu makes a dry run")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({**describe(), "device": device}), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for model in options.networks:
            stored = NETWORKS[model][0]
            images = work / f"images-{stored}"
            if not images.exists():
                _write_images(images / "train", options.images, stored)
                _write_images(images / "test", 10 * _CLASSES, stored)
            ratios = []
            for number in range(options.rounds):
                reference = _reference(model, images / "train", work, options)
                ours = _edgekit(model, images, work, options)
                ratios.append(math.log(ours / reference))
                print(f"{model}, {device}, round {number + 1}: reference {reference:.0f} images/s, "
                      f"EdgeKit {ours:.0f} images/s, ratio {ours / reference:.3f}", flush=True)  # fmt: skip
            if len(ratios) > 1:
                found = exponential(student_mean(ratios))
                print(f"{model}: ratio {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")


if __name__ == "__main__":
    main()
