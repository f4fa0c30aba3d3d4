"""Data that cannot be read or trained on is reported in one line before the first epoch."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.errors import DataError, EdgeKitError, TrainingError
from edgekit.deploy.preprocess import Header
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.screening import processes
from PIL import Image

Folder = Callable[..., Path]


def _recipe(data: Path, *settings: str) -> Recipe:
    recipe = Recipe.from_dict({"name": "x", "data": {"data": str(data)}, "model": {"name": "cnn23"}})
    return recipe.changed(["train.epochs=1", "preprocess.size=16", "train.batch_size=4", *settings])


def _sixteen(path: Path, value: int = 0x8100) -> None:
    Image.fromarray(np.full((20, 20), value, np.uint16)).save(path)


def _float(path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), np.float32)).save(path, "TIFF")


def _huge(path: Path) -> None:
    """A header of 20000 x 20000 pixels, like a decompression bomb."""
    Image.new("1", (8, 8)).save(path, "PNG")
    raw = bytearray(path.read_bytes())
    raw[16:24] = (20000).to_bytes(4, "big") * 2
    import zlib

    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


SPOILED = {
    "corrupt": (lambda path: path.write_bytes(b"broken"), "cannot decode"),
    "float": (_float, "mode F"),
    "huge": (_huge, "more than 268 million pixels"),
    "link": (_linked, "a link to nowhere.png, which does not exist"),
}


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_unreadable_image_in_any_part_is_refused_before_the_first_epoch(
    image_folder: Folder, kind: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the file and the option that leaves it out; no run folder remains."""
    for name in ("train", "val", "test"):
        image_folder(f"set/{name}")
    root = Path("set").resolve()
    bad = root / part / "dog" / "3.png"
    spoil, message = SPOILED[kind]
    spoil(bad)
    with pytest.raises(DataError) as caught:
        training.train(_recipe(root), runs=Path("runs"))
    assert str(bad) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--skip-corrupt" in caught.value.fix
    assert "epoch" not in caplog.text
    assert not Path("runs").exists()


def test_skip_corrupt_trains_without_corrupt_images(image_folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """All four kinds are left out and listed, and no other image is."""
    root = image_folder(each=8)
    for index, (spoil, _) in enumerate(SPOILED.values()):
        spoil(root / "cat" / f"{index}.png")
    bundle = training.train(_recipe(root, "data.skip_corrupt=true"), runs=Path("runs"))
    assert sum(bundle.manifest.data["images"].values()) == 12
    assert "left out 4 corrupt images: cat/0.png, cat/1.png, cat/2.png, cat/3.png" in caplog.text


def test_several_unreadable_images_are_counted(image_folder: Folder) -> None:
    """The error names the first and counts the others."""
    root = image_folder()
    for index in range(3):
        (root / "cat" / f"{index}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="more images? cannot be read"):
        training.train(_recipe(root, "data.validation=0.01"), runs=Path("runs"))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_truncated_image_is_one_line_wherever_it_is_loaded(image_folder: Folder, workers: int) -> None:
    """Its header is complete; the loader process passes the error on unchanged."""
    for name in ("train", "val", "test"):
        image_folder(f"set/{name}", size=64)
    root = Path("set").resolve()
    bad = root / "val" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(DataError) as caught:
        training.train(_recipe(root, f"train.workers={workers}"), runs=Path("runs"))
    assert str(caught.value).startswith(f"cannot decode {bad}")
    assert "\n" not in str(caught.value)


def test_sixteen_bit_greyscale_images_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are trained on with their upper 8 bits."""
    for label, value in (("dark", 0x10FF), ("light", 0xF000)):
        (tmp_path / "deep" / label).mkdir(parents=True)
        for index in range(6):
            _sixteen(tmp_path / "deep" / label / f"{index}.png", value + index)
    bundle = training.train(_recipe(tmp_path / "deep"), runs=Path("runs"))
    assert bundle.manifest.preprocess.mode == "L"
    assert "12 grey images have 16 bits: only the upper 8 bits are used" in caplog.text


def test_one_class_is_refused(image_folder: Folder, tmp_path: Path) -> None:
    """If the only folder contains the class folders at any depth, the fix names the folder to pass."""
    image_folder("one", classes=("cat",))
    with pytest.raises(TrainingError, match="of one class, cat"):
        training.train(_recipe(tmp_path / "one"), runs=Path("runs"))
    deep = image_folder("outer/images/all")
    with pytest.raises(TrainingError, match="class folders: cat, dog") as caught:
        training.train(_recipe(tmp_path / "outer"), runs=Path("runs"))
    assert caught.value.fix == f"--data {deep}"


def test_processes_are_used_only_when_they_pay_off(image_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """None for few photographs or many thumbnails, several for thousands of photographs; a setting is honoured."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    photo, thumbnail = Header((640, 480), "RGB"), Header((32, 32), "RGB")
    assert processes(-1, []) == 0
    assert processes(-1, [Header((4000, 3000), "RGB")] * 20) == 0
    assert processes(-1, [thumbnail] * 2000) == 0
    assert processes(-1, [photo] * 5000) == 4
    assert processes(3, [thumbnail]) == 3
    assert processes(0, [photo] * 5000) == 0


def test_a_missing_data_set_suggests_commands_that_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error of `train --model convnet` in an empty folder; nothing is downloaded unless asked for."""
    import torchvision

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def forbidden(*arguments: object, download: bool = False, **options: object) -> None:
        raise RuntimeError("asked to download" if download else "not found")

    for name in ("CIFAR10", "MNIST", "FashionMNIST"):
        monkeypatch.setattr(torchvision.datasets, name, forbidden)
    for name in ("cifar10", "mnist"):
        recipe = Recipe.load("convnet", [f"data.data={name}"])
        for prepare in (lambda: None, lambda: (tmp_path / "cache/edgekit").mkdir(parents=True, exist_ok=True)):
            prepare()
            with pytest.raises(EdgeKitError, match=f"the data set {name} is not in") as caught:
                training.train(recipe, runs=Path("runs"))
            assert "--data digits" in caught.value.fix
            assert f"--data {name} --download" in caught.value.fix
        with pytest.raises(EdgeKitError, match="asked to download"):
            training.train(recipe, runs=Path("runs"), download=True)
