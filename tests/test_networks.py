"""Every network of the registry goes the whole way: export, quantize, answer alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.session import load
from edgekit.export import Options, export_bundle
from edgekit.models import MODELS
from edgekit.toolkit.quantize import quantize

FAST = ("cnn23", "mobilenet_v3_small")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_network_goes_the_whole_way(name: str, untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """Exported alike with a fixed and a free batch; int8 for every target follows the float logits."""
    source = untrained(name, tmp_path / "source")
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
