"""Import a network of your own with its weights, quantize it, and compare the answers.

    python examples/import_and_quantize.py

The network is the class `Net` below. It is trained here by a plain torch loop on images that are drawn here, so the
example needs no files. In your project, start at `edgekit.import_model`.
"""

import sys
from pathlib import Path

import edgekit
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

CLASSES = ("circle", "square", "triangle")
SIDE = 32
# How an image becomes the network's input; the bundle stores it from here on.
PREPROCESS = edgekit.Preprocess("RGB", SIDE, (SIDE, SIDE), "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


class Net(nn.Sequential):
    """Three convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * (SIDE // 8) ** 2, len(CLASSES)),
        )  # fmt: skip


def main() -> int:
    """Draw, train, import, quantize, predict."""
    draw_images(Path("shapes"), per_class=120)
    train(Path("shapes"), Path("net.safetensors"))

    source = edgekit.import_model(
        f"{__file__}:Net",
        edgekit.ImportOptions(labels=CLASSES, weights=Path("net.safetensors")),
        name="shapes",
        preprocess=PREPROCESS,
        images="shapes",
    )
    exported = edgekit.export_bundle(source, "onnx", Path("runs/shapes-onnx-fp32"))
    result = edgekit.quantize(exported, max_drop=5.0)
    print(f"{exported.size_bytes} bytes became {result.bundle.size_bytes}: {result.bundle.path}")

    # The answers of both models on new images.
    draw_images(Path("new"), per_class=20, seed=1)
    pairs = zip(edgekit.predict(exported, "new"), edgekit.predict(result.bundle, "new"), strict=True)
    same = [before.labels[0] == after.labels[0] for before, after in pairs]
    print(f"{sum(same)} of {len(same)} new images get the same answer from both models")
    return 0


def draw_images(folder: Path, per_class: int, seed: int = 0) -> None:
    """Write `folder/<class>/<number>.png`: one shape each, of random place, size and colours."""
    random = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            back, front = (tuple(int(value) for value in random.integers(*span, 3)) for span in ((0, 100), (150, 256)))
            image = Image.new("RGB", (SIDE, SIDE), back)
            x, y, half = random.integers(11, 21), random.integers(11, 21), random.integers(5, 10)
            draw = ImageDraw.Draw(image)
            box = [(x - half, y - half), (x + half, y + half)]
            if name == "circle":
                draw.ellipse(box, fill=front)
            elif name == "square":
                draw.rectangle(box, fill=front)
            else:
                draw.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=front)
            image.save(folder / name / f"{index:03}.png")


def train(folder: Path, weights: Path, epochs: int = 12) -> None:
    """A plain torch loop, as in a project that knows nothing of EdgeKit."""
    torch.manual_seed(0)
    paths = sorted(folder.glob("*/*.png"))
    images = np.stack([np.asarray(Image.open(path), np.float32) for path in paths]) / 255
    inputs = torch.from_numpy((images - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()
    targets = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    network = Net()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    save_file(network.state_dict(), weights)


if __name__ == "__main__":
    sys.exit(main())
