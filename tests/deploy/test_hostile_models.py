"""Model files are hostile until checked: importing one or opening a bundle executes nothing in it."""

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.runtimes.exported_program import load_program, save_program
from edgekit.deploy.runtimes.torchscript import load_module
from edgekit.deploy.session import open_session
from onnx import TensorProto
from torch import nn


class _Evil:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self._trace),)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid .pt2 with a dynamic batch size."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), path)
    return path


def _rewritten(source: Path, out: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> Path:
    """Copy a zip file with records changed (None removes one) and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
        for name, content in added.items():
            new.writestr(f"{root}/{name}", content)
    return out


def _saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _edit_model(edit: Callable[[dict], object]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return change


def _graph(document: dict) -> dict:
    return document["graph_module"]["graph"]


def test_a_valid_program_is_loaded(program: Path) -> None:
    """Its sample inputs are tensors, which are allowed."""
    assert load_program(program).module()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def _pickled_samples(trace: Path) -> tuple[Callable, dict]:
    return lambda name, content: _saved(_Evil(trace)) if name.startswith("data/sample_inputs") else content, {}


def _pickled_weight(trace: Path) -> tuple[Callable, dict]:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return _saved(_Evil(trace)) if name == "data/weights/weight_0" else content

    return change, {}


def _pickled_constant(trace: Path) -> tuple[Callable, dict]:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_constants_config.json"):
            return json.dumps({"config": {"c": entry}}).encode()
        return content

    return change, {"data/constants/opaque_obj_0": pickle.dumps(_Evil(trace))}


def _legacy_weights(trace: Path) -> tuple[Callable, dict]:
    return lambda name, content: content, {"data/weights/model.pt": _saved(_Evil(trace))}


def _compiled(trace: Path) -> tuple[Callable, dict]:
    return lambda name, content: content, {"data/aotinductor/model/evil.so": b"\x7fELF"}


def _shape(trace: Path) -> tuple[Callable, dict]:
    def edit(document: dict) -> None:
        text = json.dumps(document).replace("Symbol('", f"__import__('os').mkdir('{trace}') or Symbol('")
        document.clear()
        document.update(json.loads(text))

    return _edit_model(edit), {}


def _guard(trace: Path) -> tuple[Callable, dict]:
    return _edit_model(lambda document: document.update(guards_code=[f"__import__('os').mkdir('{trace}')"])), {}


def _operator(trace: Path) -> tuple[Callable, dict]:
    def edit(document: dict) -> None:
        node = _graph(document)["nodes"][0]
        node["target"] = "torch.os.mkdir"
        node["inputs"] = [{"name": "path", "arg": {"as_string": str(trace)}, "kind": 1}]

    return _edit_model(edit), {}


def _from_file(trace: Path) -> tuple[Callable, dict]:
    return _edit_model(lambda d: _graph(d)["nodes"][0].update(target="torch.ops.aten.from_file.default")), {}


def _name(trace: Path) -> tuple[Callable, dict]:
    def edit(document: dict) -> None:
        text = json.dumps(document).replace('"input"', json.dumps(f"x=__import__('os').mkdir('{trace}')"))
        document.clear()
        document.update(json.loads(text))

    return _edit_model(edit), {}


ATTACKS = [
    _pickled_samples, _pickled_weight, _pickled_constant, _legacy_weights, _compiled, _shape, _guard, _operator,
    _from_file, _name,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_nothing_in_a_program_is_executed(program: Path, tmp_path: Path, attack: Callable[[Path], tuple]) -> None:
    """Anything that torch.export.load would unpickle, evaluate, look up or compile is refused first."""
    trace = tmp_path / "executed"
    change, added = attack(trace)
    evil = _rewritten(program, tmp_path / "model.pt2", change, **added)
    with pytest.raises(BundleError, match="is refused"):
        load_program(evil).module()
    assert not trace.exists()


def test_a_program_that_is_a_decompression_bomb_is_refused(program: Path, tmp_path: Path) -> None:
    """It is a compressed archive of zeros."""
    evil = tmp_path / "model.pt2"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(evil, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            big = info.filename.endswith("weight_0")
            new.writestr(info.filename, bytes(1 << 25) if big else old.read(info), zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="compressed|not a torch.export archive"):
        load_program(evil)


class _WritesFile(nn.Module):
    def __init__(self, trace: str) -> None:
        super().__init__()
        self.trace = trace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + torch.from_file(self.trace, True, 4)[:1]


class _WritesFileOnLoading(nn.Module):
    def __init__(self, trace: str) -> None:
        super().__init__()
        self.trace = trace

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.trace

    @torch.jit.export
    def __setstate__(self, trace: str) -> None:
        self.trace = trace
        torch.from_file(trace, True, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [_WritesFile, _WritesFileOnLoading])
def test_torchscript_writes_no_file(tmp_path: Path, kind: Callable[[str], nn.Module]) -> None:
    """It writes none while it runs or is loaded; saving one with __setstate__ does not load it."""
    trace = tmp_path / "written"
    torch.jit.save(torch.jit.script(kind(str(trace))), str(tmp_path / "model.pt"))
    with pytest.raises(BundleError, match="is refused"):
        load_module(tmp_path / "model.pt")(torch.zeros(1, 3, 4, 4))
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore")
def test_valid_torchscript_is_loaded(tmp_path: Path) -> None:
    """It may be traced or scripted."""
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small().eval()
    for module in (torch.jit.trace(network, torch.zeros(1, 3, 64, 64)), torch.jit.script(network)):
        torch.jit.save(module, str(tmp_path / "model.pt"))
        with torch.inference_mode():
            assert load_module(tmp_path / "model.pt")(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def _relist(folder: Path, **changes: Any) -> None:
    """Update a bundle's manifest from its files."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("location", ["weights.bin", "../outside.bin", "/etc/hostname", "golden/../../outside.bin"])
def test_weights_that_the_manifest_does_not_list_are_not_read(tmp_path: Path, location: str, fp32: Bundle) -> None:
    """They are next to the model or outside its folder; EdgeKit checks this, not the runtime."""
    folder = tmp_path / "bundle"
    shutil.copytree(fp32.path, folder)
    model = onnx.load(str(folder / "model.onnx"))
    tensor = next(entry for entry in model.graph.initializer if len(entry.dims) > 1)
    for place in (folder / "weights.bin", tmp_path / "outside.bin"):
        place.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if location != "weights.bin":
        (folder / "weights.bin").unlink()
    _relist(folder)
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(folder)


def test_listed_weights_are_read(tmp_path: Path, fp32: Bundle) -> None:
    """A model may consist of several files."""
    folder = tmp_path / "bundle"
    shutil.copytree(fp32.path, folder)
    model = onnx.load(str(folder / "model.onnx"))
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.data", size_threshold=0)
    manifest = json.loads((folder / "manifest.json").read_text())
    _relist(folder, files={**manifest["files"], "model.data": {}})
    golden = fp32.golden()
    session = open_session(Bundle.open(folder))
    np.testing.assert_allclose(session.run(golden.tensors), golden.logits, atol=1e-4)


def test_opening_a_network_downloads_nothing(trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its architecture may ask for published weights."""
    import socket

    import torchvision
    from edgekit.export.eager import load_module as load_network
    from safetensors.torch import save_file

    folder = tmp_path / "bundle"
    shutil.copytree(trained.path, folder)
    network = torchvision.models.resnet18(num_classes=10)
    save_file(network.state_dict(), folder / trained.manifest.model)
    architecture = {**trained.manifest.architecture, "name": "torchvision:resnet18", "in_channels": 3,
                    "image_size": [64, 64], "activation": "relu", "pretrained": True}  # fmt: skip
    _relist(folder, architecture=architecture)

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert load_network(Bundle.open(folder)) is not None


@pytest.mark.parametrize("kind", ["state dict", "TorchScript"])
@pytest.mark.filterwarnings("ignore")
def test_torch_files_that_are_decompression_bombs_are_refused(kind: str, tmp_path: Path) -> None:
    """Compressed zeros are refused by the sizes that the records claim."""
    from edgekit.toolkit.importing.network import _load_weights

    network, source, evil = nn.Linear(4, 4), tmp_path / "valid.pt", tmp_path / "evil.pt"
    if kind == "TorchScript":
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 4)), str(source))
    else:
        torch.save(network.state_dict(), source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(evil, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, bytes(1 << 26) if info.filename.endswith("data/0") else old.read(info))
        if kind == "TorchScript":
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/extra/zeros", bytes(1 << 26))
    real_reader = torch._C.PyTorchFileReader
    read: list[str] = []

    class Reader(real_reader):  # type: ignore[misc, valid-type]
        def get_record(self, name: str) -> bytes:
            read.append(name)
            return super().get_record(name)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EdgeKitError, match="compressed"):
        patch.setattr(torch._C, "PyTorchFileReader", Reader)
        load_module(evil) if kind == "TorchScript" else _load_weights(network, evil, "another network")
    assert read == []
