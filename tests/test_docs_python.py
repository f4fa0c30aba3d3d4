"""The documentation's Python blocks run on real bundles and images, with shorter training and measurement."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.runtimes.runtime import ThreadOptions
from edgekit.toolkit.quantize.histogram import Histogram
from edgekit.toolkit.quantize.ranges import Seen
from onnx import TensorProto, helper

from .conftest import DATA
from .test_docs import BLOCKS

PYTHON = [block for block in BLOCKS if block.language == "python"]
Folder = Callable[..., Path]

# Replacements that shorten a block: (before, after).
SHORTER = (
    ('edgekit.Recipe.load("digits")', 'edgekit.Recipe.load("digits", ["train.epochs=1"])'),
    (
        "edgekit.validate([int8], ",
        "edgekit.validate([int8], plan=edgekit.Plan(seconds=0.2, processes=3, rounds=2, block_ms=5, threads=1), ",
    ),
)


def _run(marker: str, package: str = "") -> dict[str, Any]:
    """Run the only block that contains the marker, and return the names that it defines."""
    (block,) = [block for block in PYTHON if marker in block.text]
    text = block.text
    for before, after in SHORTER:
        text = text.replace(before, after)
    names: dict[str, Any] = {"__package__": package, "__name__": f"{package}.block"}
    exec(compile(text, block.place, "exec"), names)  # noqa: S102 # the documentation's own text
    return names


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_from_training_to_a_verdict() -> None:
    """The API's first example, with one epoch."""
    names = _run("edgekit.export_bundle(")
    assert names["validation"].exit_code in (0, 3, 4)
    assert Path("report/report.html").is_file()


@pytest.mark.slow
def test_messages_progress_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Stages and percentages are printed."""
    _run("logging.basicConfig")
    assert "100%" in capsys.readouterr().out


def test_predict(image_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """One line is printed per image; the session returns logits."""
    image_folder("photos", classes=("3", "7"), each=2)
    Path("runs").mkdir()
    Path("runs/003-convnet-digits-onnx-int8").symlink_to(DATA / "lenet-int8")
    names = _run("edgekit.predict(")
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert names["logits"].shape == (1, 10)


def test_own_model(image_folder: Folder) -> None:
    """An ONNX file with class names becomes a bundle."""
    image_folder("photos", each=10)
    Path("labels.txt").write_text("cat\ndog\n")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 3], [1.0, 0, 0, 0, 1, 0])
    shapes = ([1, 3, 224, 224], [1, 2])
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", shapes, strict=True)
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"], transB=1),
    ]
    graph = helper.make_graph(nodes, "mine", [image], [logits], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
    bundle = _run("edgekit.import_model(")["bundle"]
    assert (bundle.manifest.name, bundle.manifest.labels) == ("mine", ("cat", "dog"))


def test_a_network() -> None:
    """It has one output per class."""
    network = _run("def mynet(", "edgekit.models")["mynet"]
    assert network(5, 1, (32, 32), "relu").eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_a_data_set(image_folder: Folder, tmp_path: Path) -> None:
    """It returns the parts in its folder."""
    for part in ("train", "test"):
        image_folder(f"flowers/{part}", classes=("rose", "tulip"), each=3)
    parts = _run("def flowers(")["flowers"](tmp_path / "flowers", False)
    assert {part: len(images) for part, images in parts.items()} == {"train": 6, "test": 6}


def test_a_device() -> None:
    """Its address is parsed; nothing is connected yet."""
    assert _run("def open_board(")["open_board"]("ssh://pi@raspberrypi:2222").name == "ssh://pi@raspberrypi:2222"


def test_a_calibration_method() -> None:
    """The range is 5 % wider than that of all values."""
    seen = Seen(Histogram(-1.0, 3.0, np.ones(2048, np.int64)), np.empty((0, 2)))
    assert _run("def widened(")["widened"](seen, "uint8") == pytest.approx((-1.05, 3.15))


def test_a_runtime(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session opens a bundle with the package, here a fake one that returns zeros."""

    def load(path: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        assert (path, threads) == (str(fp32.model_path), 2)
        return lambda batch: np.zeros((len(batch), 10), np.float32)

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(load=load, __version__="1.0"))
    names = _run("class MySession")
    session = names["MySession"](fp32, ThreadOptions(threads=2))
    assert session.run(fp32.golden().tensors).shape == (len(fp32.golden().tensors), 10)
    assert session.facts["threads"] == 2
    session.close()
    assert names["RUNTIME"].formats == {"onnx": ".mine:MySession"}


def test_every_block_is_run() -> None:
    """A new block needs a test above."""
    markers = re.findall(r'_run\("(.+?)"', Path(__file__).read_text())
    unrun = [block.place for block in PYTHON if not any(marker in block.text for marker in markers)]
    assert unrun == []
