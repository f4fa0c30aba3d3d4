"""Train a network by `edgekit train` and by a plain loop of torch, in turns, and compare images per second.

    python benchmarks/training.py [--data fashion-mnist] [--model convnet] [--epochs 3] [--rounds 3] [--threads 1]

The plain loop is what a practitioner would write who knows torch: the images in memory as uint8, batches by one
lookup, the channels of a pixel side by side, the optimizer's fused kernel, and the loss read once per epoch. Both train
the same network from the recipe's settings, without augmentation. Each is a process of its own; images per second are
those of the epochs after the first, without evaluation.
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

from edgekit.deploy.environment import describe

PLAIN = """
import json, sys, time
import numpy as np, torch
from torch.nn import functional as F
from edgekit.models.network import create_network
from edgekit.toolkit.datasets import load_dataset
from edgekit.toolkit.training.recipe import for_model

data, model, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
settings, dataset = for_model(model).train, load_dataset(data)

def tensors(images):
    pixels = torch.from_numpy(np.ascontiguousarray(images.pictures))
    return (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(images.targets))

(images, targets), (tests, answers) = tensors(dataset.train), tensors(dataset.test)
values = images.float() / 255
mean, std = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True)
del values
network = create_network(model, len(dataset.train.labels), images.shape[1], tuple(images.shape[2:]), "relu")
network = network.to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
steps = -(-len(images) // settings.batch_size)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=epochs * steps + 1)

def batch(pixels):
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

speeds = []
for epoch in range(epochs):
    network.train()
    begun, total = time.monotonic(), torch.zeros(())
    for chosen in torch.randperm(len(images)).split(settings.batch_size):
        loss = F.cross_entropy(network(batch(images[chosen])), targets[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        total += loss.detach() * len(chosen)
    assert torch.isfinite(total)
    speeds.append(len(images) / (time.monotonic() - begun))
network.eval()
with torch.inference_mode():
    right = sum(int((network(batch(pixels)).argmax(1) == expected).sum())
                for pixels, expected in zip(tests.split(256), answers.split(256)))
print(json.dumps({"speeds": speeds, "accuracy": right / len(tests)}))
"""


def _plain(data: str, model: str, epochs: int) -> tuple[float, float]:
    """(images per second, test accuracy) of the plain loop."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, data, model, str(epochs)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return statistics.median(found["speeds"][1:]), found["accuracy"]


def _edgekit(data: str, model: str, epochs: int) -> tuple[float, float]:
    """(images per second, test accuracy) of `edgekit train`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        command = ["-m", "edgekit", "train", "--data", data, "--model", model, "--epochs", str(epochs),
                   "--out", str(out),
                   "--set", "augment.pad_crop=0", "--set", "augment.horizontal_flip=0.0"]  # fmt: skip
        subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
        manifest = json.loads((out / "manifest.json").read_text())
    return statistics.median(float(row["images_per_s"]) for row in rows[1:]), manifest["details"]["test"]["accuracy"]


def main() -> None:
    """Print a line per round, and the ratio of the speeds with its 95 % interval over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    print(json.dumps(describe()), file=sys.stderr)
    ratios = []
    for number in range(arguments.rounds):
        plain, plain_accuracy = _plain(arguments.data, arguments.model, arguments.epochs)
        ours, accuracy = _edgekit(arguments.data, arguments.model, arguments.epochs)
        ratios.append(math.log(ours / plain))
        print(f"round {number + 1}: plain {plain:.0f} images/s, top-1 {plain_accuracy:.4f}; "
              f"EdgeKit {ours:.0f} images/s, top-1 {accuracy:.4f}; ratio {ours / plain:.3f}")  # fmt: skip
    mean = statistics.fmean(ratios)
    if len(ratios) > 1:
        from scipy import stats

        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) * stats.t.ppf(0.975, len(ratios) - 1)
        print(f"ratio {math.exp(mean):.3f} [{math.exp(mean - error):.3f}, {math.exp(mean + error):.3f}]")


if __name__ == "__main__":
    main()
