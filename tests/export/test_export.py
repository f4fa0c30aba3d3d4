"""An export is the same model, or it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError, ParityError
from edgekit.deploy.session import load
from edgekit.export import onnx as onnx_export
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.export.formats import FORMATS
from torch import nn

from tests.needs import need_converter


@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=pytest.mark.slow if name == "litert" else ()) for name in sorted(FORMATS)]
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_format_is_the_same_model(trained: Bundle, tmp_path: Path, format: str, dynamic: bool) -> None:
    """For one image and for any batch size; lineage, labels, preprocessing and data set are kept."""
    if dynamic and "dynamic_batch" not in FORMATS[format].options:
        with pytest.raises(BundleError, match="--dynamic-batch does not apply"):
            export_bundle(trained, format, tmp_path / "made", Options(dynamic_batch=True))
        return
    need_converter(format)
    exported = export_bundle(trained, format, tmp_path / "made", Options(dynamic_batch=dynamic))
    assert exported.manifest.input.batch == (None if dynamic else 1)
    assert exported.manifest.details["parity"]["top1_agreement"] == 1.0
    assert exported.manifest.lineage[-1]["id"] == trained.id
    assert exported.manifest.labels == trained.manifest.labels
    assert exported.manifest.preprocess == trained.manifest.preprocess
    assert exported.splits() == trained.splits()
    fingerprints = exported.fingerprints()
    assert fingerprints.keys() == {"train", "validation", "test"}
    assert all((fingerprints[part] == rows).all() for part, rows in trained.fingerprints().items())
    golden = trained.golden()
    np.testing.assert_allclose(load(exported.path).run(golden.tensors), golden.logits, atol=1e-3)


def test_onnx_file_carries_labels_and_preprocessing(trained: Bundle, tmp_path: Path) -> None:
    """They are in the .onnx file itself, which has no BatchNorm or Dropout left."""
    model = onnx.load(str(export_bundle(trained, "onnx", tmp_path / "made").model_path))
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["edgekit.labels"] == list(trained.manifest.labels)
    assert metadata["edgekit.preprocess"]["mean"] == list(trained.manifest.preprocess.mean)
    assert model.opset_import[0].version == 17
    assert not {"Dropout", "BatchNormalization", "Constant"} & {node.op_type for node in model.graph.node}
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 16, 16]


def test_cross_check_compares_both_exporters(trained: Bundle, tmp_path: Path) -> None:
    """The manifest records the difference between them."""
    exported = export_bundle(trained, "onnx", tmp_path / "made", Options(cross_check=True))
    details = exported.manifest.details["export"]
    assert details["exporter"] != details["cross_check"]["exporter"]
    assert 0 <= details["cross_check"]["max_abs"] < 1e-3


def _with_bias(change: float) -> Callable:
    """Change one bias in the exporters' output, as torch.onnx of some releases does to ResNet50."""
    real = onnx_export.onnxslim.slim

    def slim(model: onnx.ModelProto) -> onnx.ModelProto:
        slimmed = real(model)
        bias = next(entry for entry in slimmed.graph.initializer if len(entry.dims) == 1 and entry.dims[0] == 10)
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += change
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return slimmed

    return slim


@pytest.mark.parametrize("change", [0.02, -5.0, float("nan")])
def test_a_silently_wrong_export_is_refused(
    monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path, change: float
) -> None:
    """The exporter does not matter, and no files are left."""
    monkeypatch.setattr(onnx_export.onnxslim, "slim", _with_bias(change))
    with pytest.raises(ParityError, match="not the same model"):
        export_bundle(trained, "onnx", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_first_exporter_falls_back_to_the_other(
    monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path
) -> None:
    """The manifest records the fallback and its reason."""
    first, second = onnx_export.EXPORTERS

    def broken(network: nn.Module, example: torch.Tensor, options: Options) -> bytes:
        raise RuntimeError("operator not supported")

    monkeypatch.setitem(onnx_export.EXPORTERS, first, broken)
    exported = export_bundle(trained, "onnx", tmp_path / "made")
    details = exported.manifest.details["export"]
    assert details["exporter"] == second
    assert "operator not supported" in details["fallback_because"]
    assert details["opset"] == 18


def test_a_frozen_batch_is_detected(monkeypatch: pytest.MonkeyPatch, trained: Bundle, tmp_path: Path) -> None:
    """With --dynamic-batch, a file that accepts only one image is refused."""
    real = onnx_export.EXPORTERS
    for name, exporter in list(real.items()):
        monkeypatch.setitem(real, name, lambda n, e, o, f=exporter: f(n, e[:1], Options(opset=o.opset)))
    with pytest.raises(EdgeKitError):
        export_bundle(trained, "onnx", tmp_path / "made", Options(dynamic_batch=True))
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_apply_are_refused(trained: Bundle, tmp_path: Path) -> None:
    """They are not ignored."""
    with pytest.raises(BundleError, match="--cross-check does not apply"):
        export_bundle(trained, "torchscript", tmp_path / "made", Options(cross_check=True))


def test_a_low_opset_is_refused_or_met(trained: Bundle, tmp_path: Path) -> None:
    """A request is fulfilled or refused, never silently changed."""
    with pytest.raises(EdgeKitError):
        export_bundle(trained, "onnx", tmp_path / "low", Options(opset=5))
    exported = export_bundle(trained, "onnx", tmp_path / "made", Options(opset=13))
    assert onnx.load(str(exported.model_path)).opset_import[0].version == 13


def test_an_onnx_bundle_has_no_torch_network(fp32: Bundle, tmp_path: Path) -> None:
    """It cannot be exported again."""
    with pytest.raises(BundleError, match="no torch module"):
        export_bundle(fp32, "onnx", tmp_path / "made")


def test_an_unknown_format_suggests_the_nearest(trained: Bundle, tmp_path: Path) -> None:
    """It never falls back to another format."""
    with pytest.raises(BundleError, match="did you mean onnx"):
        export_bundle(trained, "onx", tmp_path / "made")
