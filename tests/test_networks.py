"""Every network in the registry can be exported, quantized and compiled for GPUs, and its answers stay close."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.build import Options
from edgekit.deploy.engine.passport import Passport
from edgekit.deploy.session import load
from edgekit.export.export_bundle import Options as ExportOptions
from edgekit.export.export_bundle import export_bundle
from edgekit.models.network import MODELS
from edgekit.toolkit.building.build import build, plan_build
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize

# one in the quick tests, one in CI, the rest in make test-all
MARKS: dict[str, Any] = {"cnn23": (), "mobilenet_v3_small": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.long)) for name in MODELS])
def test_network_is_exported_and_quantized(name: str, untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """It exports with a fixed and a free batch; int8 logits for every target stay close to the float logits."""
    source = untrained(name, tmp_path / "source")
    exported = export_bundle(source, "onnx", tmp_path / "onnx")
    export_bundle(source, "onnx", tmp_path / "dynamic", ExportOptions(dynamic_batch=True))
    golden = exported.golden()
    for target in ("x86", "x86-avx2", "arm", "tensorrt"):
        result = quantize(exported, QuantizeOptions(target=target, calibration_images=64), out=tmp_path / target)
        # an untrained network's near-ties may change their class, so only the logits are compared
        logits = load(result.bundle.path).run(golden.tensors)
        spread = golden.logits - golden.logits.mean(axis=1, keepdims=True)
        error = logits - golden.logits
        assert np.linalg.norm(error) < 0.5 * np.linalg.norm(spread), f"{target}: the logits are noise"


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.long)) for name in MODELS])
def test_network_compiles_for_gpus(name: str, untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """fp32, fp16 and int8 become engines for compute capability 8.6 and 8.9, and the lint has no findings."""
    pytest.importorskip("tensorrt_rtx_bindings")
    exported = export_bundle(untrained(name, tmp_path / "source"), "onnx", tmp_path / "onnx")
    fp16 = quantize(exported, QuantizeOptions(precision="fp16"), out=tmp_path / "fp16").bundle
    # an untrained network's answers are near-ties, so it may fail the contract; that is not tested here
    int8 = quantize(exported, QuantizeOptions(target="tensorrt", calibration_images=64), out=tmp_path / "int8").bundle
    for precision, bundle in (("fp32", exported), ("fp16", fp16), ("int8", int8)):
        assert plan_build(bundle).findings == []
        (engine,) = build(
            bundle, options=Options(compute_capabilities=("8.6", "8.9")), out=tmp_path / f"engine-{precision}"
        )
        passport = Passport.of(engine)
        assert passport.compute_capabilities == ("8.6", "8.9")
        assert passport.onnx_sha256 == hashlib.sha256(bundle.model_path.read_bytes()).hexdigest()
        assert engine.manifest.details["engine"]["precisions"][precision] > 0
