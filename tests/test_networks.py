"""Every network of the registry goes the whole way: export, quantize, answer alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgekit.deploy.bundle import Bundle, TensorSpec, create, make_golden
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.session import load
from edgekit.export import Options, export_bundle
from edgekit.models import MODELS
from edgekit.models import create as create_model
from edgekit.toolkit.datasets import load_dataset
from edgekit.toolkit.quantize import quantize
from safetensors.torch import save_file

FAST = ("cnn23", "mobilenet_v3_small")


def _untrained(name: str, path: Path, trained: Bundle) -> Bundle:
    """A bundle of a network as it is initialised, with BatchNorm statistics of real images."""
    torch.manual_seed(0)
    architecture = {"name": name, "num_classes": 10, "in_channels": 3, "image_size": (32, 32), "activation": "relu"}
    network = create_model(**architecture)
    preprocess = Preprocess("RGB", 32, (32, 32), "bilinear", (0.5,) * 3, (0.25,) * 3)
    dataset = load_dataset("digits")
    with torch.no_grad():
        for start in range(0, 256, 64):
            batch = preprocess.batch([sample.image for sample in dataset.train.take(range(start, start + 64))])
            network(torch.from_numpy(batch))
    network.eval()

    def run(tensors: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(tensors)).numpy()

    manifest = replace(
        trained.manifest, name=name, input=TensorSpec(3, 32, 32), preprocess=preprocess, architecture=architecture
    )
    with create(path) as draft:
        save_file(network.state_dict(), draft.folder / manifest.model)
        draft.add_golden(make_golden(dataset.test, preprocess, run))
        draft.add_splits({part: ids[:64] for part, ids in dataset.splits().items()})
        draft.finish(manifest)
    return Bundle.open(path)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_network_goes_the_whole_way(name: str, trained: Bundle, tmp_path: Path) -> None:
    """Exported alike with a fixed and a free batch; int8 for every target follows the float logits."""
    source = _untrained(name, tmp_path / "source", trained)
    exported = export_bundle(source, "onnx", tmp_path / "onnx")
    export_bundle(source, "onnx", tmp_path / "dynamic", Options(dynamic_batch=True))
    golden = exported.golden()
    for target in ("x86", "x86-avx2", "arm", "tensorrt"):
        result = quantize(exported, target=target, calibration_images=64, out=tmp_path / target)
        # whether an untrained network's near-ties keep their class is not the point: the logits are
        logits = load(result.bundle.path).run(golden.tensors)
        spread = golden.logits - golden.logits.mean(axis=1, keepdims=True)
        error = logits - golden.logits
        assert np.linalg.norm(error) < 0.5 * np.linalg.norm(spread), f"{target}: the logits are noise"
