"""A user's own models become ordinary bundles, or are refused with the reason."""

import os
import pickle
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, DataError, EdgeKitError, ParityError, RecipeError
from edgekit.deploy.labels import read_labels
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.session import load
from edgekit.models.network import create_network
from edgekit.toolkit.commands.parsing import preprocess_of
from edgekit.toolkit.importing.import_model import ImportOptions, import_model
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

PREPROCESS = Preprocess("RGB", 24, (20, 20), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
NET = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            convolution = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
            self.body = nn.Sequential(*convolution, nn.AdaptiveAvgPool2d(2), nn.Flatten())
            self.head = nn.Linear(32, 2)

        def forward(self, x):
            return self.head(self.body(x))
"""


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    """The user's network, whose source is net.py."""
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    scope: dict = {}
    exec(textwrap.dedent(NET), scope)  # noqa: S102 # the text above
    torch.manual_seed(0)
    return scope["Net"]().eval()


@pytest.fixture
def bring(image_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Bundle]:
    """Import a model with the settings above."""
    images = image_folder(each=10, size=30)

    def run(model: object, **changes: Any) -> Bundle:
        arguments = {name: changes.pop(name) for name in ("labels", "weights") if name in changes}
        options = ImportOptions(**{"labels": ("cat", "dog"), **arguments})
        settings = {"name": "mine", "preprocess": PREPROCESS, "images": str(images), "out": tmp_path / "imported"}
        return import_model(str(model), options, **{**settings, **changes})

    return run


def _assert_same(bundle: Bundle, network: nn.Module) -> None:
    golden = bundle.golden()
    with torch.inference_mode():
        expected = network(torch.from_numpy(golden.tensors)).numpy()
    np.testing.assert_allclose(golden.logits, expected, atol=1e-5)
    np.testing.assert_allclose(load(bundle.path).run(golden.tensors), expected, atol=1e-5)


def test_torch_export_program(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """A .pt2 file."""
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 20, 20),)), str(tmp_path / "net.pt2"))
    bundle = bring(tmp_path / "net.pt2")
    assert (bundle.manifest.format, bundle.manifest.input.batch) == ("exported-program", 1)
    assert bundle.manifest.parameters == sum(w.numel() for w in network.parameters())
    _assert_same(bundle, network)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """TorchScript is recognized whatever the suffix."""
    torch.jit.trace(network, torch.zeros(1, 3, 20, 20)).save(str(tmp_path / "net.pt"))
    bundle = bring(tmp_path / "net.pt")
    assert bundle.manifest.format == "torchscript"
    _assert_same(bundle, network)


@pytest.mark.parametrize("weights", ["net.safetensors", "net.pth", "checkpoint.pth"])
def test_factory_in_a_file_with_weights(
    bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path, weights: str
) -> None:
    """path/to/net.py:Net with safetensors, a state dict, or a checkpoint that contains one."""
    state = network.state_dict()
    if weights.endswith("safetensors"):
        save_file(state, tmp_path / weights)
    else:
        torch.save({"state_dict": state} if weights.startswith("check") else state, tmp_path / weights)
    bundle = bring(f"{tmp_path}/net.py:Net", weights=tmp_path / weights)
    assert bundle.manifest.input.batch is None
    _assert_same(bundle, network)


def test_a_repository_with_its_own_models_package(
    bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path
) -> None:
    """models/ in a user's repository is not mistaken for EdgeKit's models/."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "models" / "net.py").write_text("from models import MINE\n" + textwrap.dedent(NET))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    _assert_same(bring("models.net:Net", weights=tmp_path / "w.safetensors"), network)


def _onnx(path: Path, network: nn.Module, **options: object) -> Path:
    torch.onnx.export(network, (torch.zeros(1, 3, 20, 20),), str(path), dynamo=False, opset_version=12, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [True, False])
def test_onnx(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path, dynamic: bool) -> None:
    """A file from another tool, with a fixed or free batch and an older opset."""
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}} if dynamic else None}
    bundle = bring(_onnx(tmp_path / "net.onnx", network, **names))
    assert (bundle.manifest.format, bundle.manifest.input.batch) == ("onnx", None if dynamic else 1)
    _assert_same(bundle, network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_external_weights_are_included(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """The bundle is complete without the data file beside the .onnx."""
    model = onnx.load(str(_onnx(tmp_path / "single.onnx", network)))
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="net.data", size_threshold=0)
    bundle = bring(tmp_path / "net.onnx")
    (tmp_path / "net.data").unlink()
    _assert_same(bundle, network)


def _graph(inputs: list[tuple[str, int, list]], outputs: int = 1) -> onnx.ModelProto:
    nodes = [helper.make_node("GlobalAveragePool", [inputs[0][0]], [f"y{index}"]) for index in range(outputs)]
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info(*entry) for entry in inputs],
            [helper.make_tensor_value_info(f"y{index}", inputs[0][1], [None] * 4) for index in range(outputs)],
        ), opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_graph([("x", TensorProto.FLOAT, [1, 3, 20, 20]), ("z", TensorProto.FLOAT, [1])]), "2 inputs"),
        (_graph([("x", TensorProto.FLOAT, [1, 3, 20, 20])], outputs=2), "2 outputs"),
        (_graph([("x", TensorProto.DOUBLE, [1, 3, 20, 20])]), "double"),
        (_graph([("x", TensorProto.FLOAT, [1, 64, 20, 20])]), "1 channel (grey) or 3 (RGB)"),
        (_graph([("x", TensorProto.FLOAT, [1, 3, 24, 24])]), "--input 3x24x24"),
        (_graph([("x", TensorProto.FLOAT, [1, 24, 24, 3])]), "--input 3x24x24"),
    ],
)
def test_onnx_files_that_are_not_classifiers(
    bring: Callable[..., Bundle], tmp_path: Path, model: onnx.ModelProto, message: str
) -> None:
    """More inputs or outputs, another type, number of channels, size or layout."""
    onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(BundleError) as caught:
        bring(tmp_path / "net.onnx")
    assert message in f"{caught.value} {caught.value.fix}"
    assert not (tmp_path / "imported").exists()


def test_pickles_are_not_executed(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """Neither a model nor weights may be an arbitrary pickle."""

    class Evil:
        def __reduce__(self) -> tuple:
            return Path(tmp_path / "ran").touch, ()

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": network.state_dict(), "evil": Evil()}, tmp_path / "evil2.pth")
    for model, weights in (
        ("net.py:Net", "evil.pth"),
        ("net.py:Net", "evil2.pth"),
        ("evil.pth", None),
        ("evil2.pth", None),
    ):
        with pytest.raises(EdgeKitError, match="plain state dict|pickle|not an ONNX"):
            bring(model, weights=tmp_path / weights if weights else None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("nowhere.onnx", "no file"), ("net.py:Nett", "Nett"), ("nothing.here:Net", "no module named nothing"),
     ("other.py:Net", "no file at other.py"), ("broken.py:Net", "ZeroDivisionError"), ("net.py:nn", "raised TypeError"),
     ("number.py:make", "returned a value of type int"), ("garbage.onnx", "not a valid ONNX")],
)  # fmt: skip
def test_missing_models_and_code_that_fails_are_explained(
    bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path, model: str, message: str
) -> None:
    """A missing path, name or package, and code that raises."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "number.py").write_text("def make():\n    return 3\n")
    (tmp_path / "garbage.onnx").write_bytes(b"\x08\xff\xff garbage")
    with pytest.raises(EdgeKitError, match=message):
        bring(model)


def test_weights_that_do_not_fit(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """The error shows the missing names."""
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(EdgeKitError, match="does not fit") as caught:
        bring("net.py:Net", weights=tmp_path / "w.safetensors")
    assert "head.weight" in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_left_in_training_mode_is_refused(
    bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path
) -> None:
    """Its answer for an image depends on the other images in the batch."""

    class AlwaysTraining(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(0)).mean((2, 3))[:, :2] + x.mean((2, 3))[:, :2]

    torch.jit.script(AlwaysTraining()).save(str(tmp_path / "net.pt"))
    with pytest.raises(ParityError, match="training mode"):
        bring(tmp_path / "net.pt")


def test_labels_must_fit(bring: Callable[..., Bundle], network: nn.Module, tmp_path: Path) -> None:
    """One label per output, a label for every folder, and a labels file with one unique name per line."""
    with pytest.raises(BundleError, match="2 outputs, but the number of labels is 3"):
        bring("net.py:Net", labels=("cat", "dog", "fish"))
    with pytest.raises(DataError, match="dog"):
        bring("net.py:Net", labels=("cat", "cow"))
    (tmp_path / "labels.txt").write_text("cat\r\n\r\n dog \n", encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == ("cat", "dog")
    (tmp_path / "labels.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match="twice"):
        read_labels(tmp_path / "labels.txt")
    os.truncate(tmp_path / "labels.txt", 1 << 30)
    with pytest.raises(DataError, match="too large"):
        read_labels(tmp_path / "labels.txt")


def test_preprocessing_must_fit_the_input(bring: Callable[..., Bundle], network: nn.Module) -> None:
    """The crop must match the network's input; a variable size is refused."""
    with pytest.raises(RecipeError, match="--crop 24 makes 24x24 images, but --input is 20x20"):
        preprocess_of((3, 20, 20), None, 24, "0.5", "0.2", "bilinear")
    with pytest.raises(RecipeError, match="any size"):
        bring("net.py:Net", preprocess=replace(PREPROCESS, crop=None))


@pytest.mark.parametrize(("name", "side"), [("timm:test_resnet", 32), ("torchvision:squeezenet1_1", 64), ("lenet", 32)])
def test_networks_by_name(bring: Callable[..., Bundle], tmp_path: Path, name: str, side: int) -> None:
    """Names as for `train --model`, with the user's weights; nothing is downloaded."""
    torch.manual_seed(0)
    network = create_network(name, 2, 3, (side, side)).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    preprocess = Preprocess("RGB", side, (side, side), "bilinear", (0.5,) * 3, (0.25,) * 3)
    settings = {"preprocess": preprocess, "weights": tmp_path / "w.pth"}
    bundle = bring(name, **settings)
    assert (bundle.manifest.format, bundle.manifest.details["imported"]) == ("exported-program", name)
    assert bundle.manifest.architecture == {}, "the bundle does not need the library"
    _assert_same(bundle, network)


def test_a_named_network_needs_fitting_weights(
    bring: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights for other classes and unknown names are refused; without weights the model is reported as untrained."""
    torch.save(create_network("lenet", 3, 3, (32, 32)).state_dict(), tmp_path / "w.pth")
    preprocess = Preprocess("RGB", 32, (32, 32), "bilinear", (0.5,) * 3, (0.25,) * 3)
    settings = {"preprocess": preprocess}
    with pytest.raises(EdgeKitError, match="does not fit the network") as caught:
        bring("lenet", weights=tmp_path / "w.pth", **settings)
    assert "made for 2 classes" in caught.value.fix
    with pytest.raises(EdgeKitError, match="no classifier called 'nothing'"):
        bring("torchvision:nothing", **settings)
    bring("lenet", **settings)
    assert "untrained, with random weights" in caplog.text


def test_an_unknown_label_names_the_nearest(bring: Callable[..., Bundle]) -> None:
    """Of a thousand labels a few are listed; of a few labels, all."""
    labels = tuple(f"class number {number}" for number in range(1000))
    with pytest.raises(DataError) as caught:
        bring("lenet", labels=labels)
    assert len(str(caught.value)) < 400
    assert "(1,000 in all)" in str(caught.value)
    with pytest.raises(DataError, match="did you mean cats"):
        bring("lenet", labels=("cats", *labels))
    with pytest.raises(DataError, match="one of: hen, owl"):
        bring("lenet", labels=("owl", "hen"))


@pytest.mark.parametrize(("name", "better"), [("org/model", "org-model"), ("my net", "my-net"), ("", "model")])
def test_a_name_that_is_invalid_in_paths_is_refused_first(
    bring: Callable[..., Bundle], tmp_path: Path, name: str, better: str
) -> None:
    """It is refused before a bundle is written."""
    with pytest.raises(EdgeKitError, match="may only contain letters") as caught:
        bring("lenet", name=name)
    assert caught.value.fix == f"--name {better}"
    assert not (tmp_path / "imported").exists()
