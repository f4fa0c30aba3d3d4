"""Data sets: parts are disjoint and reproducible."""

import io
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import DataError
from edgekit.deploy.images import ImageSet
from edgekit.toolkit import dataset_parts
from edgekit.toolkit.datasets import load_dataset, part_of
from PIL import Image

Folder = Callable[..., Path]


def _disjoint(dataset) -> bool:
    parts = [set(ids) for ids in dataset.splits().values()]
    return all(parts) and len(set.union(*parts)) == sum(map(len, parts))


def test_digits() -> None:
    """1,797 images in three disjoint parts, ten classes in each, the same every time."""
    dataset = load_dataset("digits")
    assert sum(len(ids) for ids in dataset.splits().values()) == 1797
    assert _disjoint(dataset)
    assert set(dataset.test.targets) == set(dataset.train.targets) == set(range(10))
    assert load_dataset("digits").splits() == dataset.splits()
    assert load_dataset("digits", seed=1).splits() != dataset.splits()


@pytest.mark.parametrize(
    ("folders", "test_from"),
    [
        (("train", "val", "test"), "test"),
        (("train", "test"), "test"),
        (("train", "val"), "val"),
        (("train",), "train"),
        ((), ""),
    ],
)
def test_folders_with_parts(image_folder: Folder, folders: tuple[str, ...], test_from: str) -> None:
    """Existing parts are kept, missing ones are drawn; no image is in two parts."""
    for name in folders or ("",):
        path = image_folder(f"set/{name}", each=10)
    dataset = load_dataset(str(path if not folders else path.parent))
    assert _disjoint(dataset)
    assert {name.split("/")[0] for name in dataset.test.ids} <= {test_from or "cat", "dog"} | {test_from}
    if "test" in folders:
        assert len(dataset.test) == 20


def _idx_set(folder: Path) -> None:
    def write(name: str, array: np.ndarray) -> None:
        head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
        (folder / name).write_bytes(head + array.tobytes())

    for prefix, count in (("train", 60), ("t10k", 20)):
        write(f"{prefix}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        write(f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_mnist_under_a_root(tmp_path: Path, folder: str) -> None:
    """The idx files or torchvision's folder; the official test part is kept."""
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    _idx_set(tmp_path / folder)
    dataset = load_dataset("mnist", root=str(tmp_path))
    assert len(dataset.test) == 20
    assert dataset.test.ids[0] == "test/0"
    assert (len(dataset.train), len(dataset.validation)) == (50, 10)


def test_cifar10_under_a_root_of_class_folders(image_folder: Folder) -> None:
    """train/ and test/ folders of class folders."""
    image_folder("cifar/train")
    root = image_folder("cifar/test").parent
    assert len(load_dataset("cifar10", root=str(root)).test) == 12


def test_a_folder_is_not_downloaded(image_folder: Folder) -> None:
    """--download with a path is an error; it is not ignored."""
    with pytest.raises(DataError, match="--download is for named data sets"):
        load_dataset(str(image_folder()), download=True)


def test_an_unknown_name_suggests() -> None:
    """A misspelled name is not taken for a path."""
    with pytest.raises(DataError, match="did you mean fashion-mnist"):
        load_dataset("fashion_mnist")


def test_parts_are_restored_by_their_ids(fp32: Bundle) -> None:
    """quantize and validate get the parts that the bundle recorded."""
    for part in ("train", "validation", "test"):
        images = part_of(fp32, part)
        assert images is not None
        assert images.ids == tuple(fp32.splits()[part])


def test_a_missing_data_set_is_reported(fp32: Bundle, tmp_path: Path) -> None:
    """A folder that no longer exists."""
    import dataclasses

    moved = dataclasses.replace(fp32.manifest, data={"data": str(tmp_path / "gone"), "root": None, "seed": 0})
    with pytest.raises(DataError, match="not on this machine") as caught:
        part_of(dataclasses.replace(fp32, manifest=moved), "test")
    assert "--images" in caught.value.fix


def test_images_from_another_folder(fp32: Bundle, tmp_path: Path) -> None:
    """Class folders in any order are matched to the model's labels; a test/ folder is the test part."""
    for label in ("7", "3"):
        folder = tmp_path / "own" / "test" / label
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "x.png")
    for source in (tmp_path / "own", tmp_path / "own" / "test"):
        images = part_of(fp32, "test", str(source))
        assert images is not None
        assert images.targets.tolist() == [3, 7]
    with pytest.raises(DataError, match="has no train/ folder"):
        part_of(fp32, "train", str(tmp_path / "own"))


def test_calibration_images_are_not_test_images(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same --images folder for quantize and validate, calibration, selection and test stay disjoint."""
    from edgekit.toolkit.quantize.quantize import quantize

    for index, sample in enumerate(load_dataset("digits").train.take(range(100))):
        folder = tmp_path / "own" / str(sample.label)
        folder.mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / f"{index}.png")
    source = str(tmp_path / "own")
    assert len(part_of(fp32, "test", source) or ()) == 100, "all images of an independent folder are test images"
    opened: list[Path] = []
    read = dataset_parts.open_images

    def counted(path: Path, *arguments: Any, **options: Any) -> ImageSet:
        opened.append(path)
        return read(path, *arguments, **options)

    monkeypatch.setattr(dataset_parts, "open_images", counted)
    made = quantize(fp32, images=source, out=tmp_path / "made").bundle
    assert opened == [Path(source)], "the folder is read once for calibration, selection and fingerprints"
    used = set(made.manifest.details["calibration"]["ids"])
    test, selection = part_of(made, "test", source), part_of(made, "validation", source)
    assert test is not None
    assert selection is not None
    assert len(test) == 20
    assert not used & set(test.ids)
    assert not used & set(selection.ids)
    assert not set(test.ids) & set(selection.ids)


def test_naming_the_models_own_data_changes_nothing(fp32: Bundle) -> None:
    """--images digits for a model trained on the digits gives the recorded parts."""
    images = part_of(fp32, "test", "digits")
    assert images is not None
    assert images.ids == tuple(fp32.splits()["test"])


def test_a_class_called_train_is_a_class(image_folder: Folder) -> None:
    """Among other class folders, train is a label and not the training part."""
    dataset = load_dataset(str(image_folder(classes=("car", "test", "train"), each=10)))
    assert dataset.train.labels == ("car", "test", "train")
    assert sum(len(ids) for ids in dataset.splits().values()) == 30


def test_other_folders_beside_the_parts_change_nothing(image_folder: Folder) -> None:
    """Parts with class folders are recognized, whatever other folders there are."""
    image_folder("set/test")
    root = image_folder("set/train").parent
    (root / "notes").mkdir()
    assert load_dataset(str(root)).train.labels == ("cat", "dog")


def test_skip_corrupt_applies_to_the_models_own_data(fp32: Bundle, image_folder: Folder) -> None:
    """A test image corrupted after training is left out and listed if skip_corrupt is set."""
    import dataclasses

    folder = image_folder()
    ids = ("cat/0.png", "cat/1.png", "dog/0.png")
    (folder / "cat" / "1.png").write_bytes(b"broken")
    manifest = dataclasses.replace(
        fp32.manifest, labels=("cat", "dog"), data={"data": str(folder), "root": None, "seed": 0}
    )

    class Recorded(Bundle):
        def splits(self) -> dict[str, list[str]]:
            return {"test": list(ids)}

    bundle = Recorded(fp32.path, manifest, "x")
    images = part_of(bundle, "test", skip_corrupt=True)
    assert images is not None
    assert images.ids == ("cat/0.png", "dog/0.png")
    assert images.left_out == ("cat/1.png",)


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_rare_class_stays_in_training(image_folder: Folder, rare: int) -> None:
    """The test and validation parts leave every class at least one training image."""
    folder = image_folder(each=40)
    for index in range(rare, 40):
        (folder / "dog" / f"{index}.png").unlink()
    dataset = load_dataset(str(folder))
    counts = {part: sum(name.startswith("dog") for name in ids) for part, ids in dataset.splits().items()}
    assert counts["train"] >= 1
    assert sum(counts.values()) == rare
    if rare == 3:
        assert set(counts.values()) == {1}


def _shards(folder: Path, *names: str) -> None:
    """Six images of two classes in each."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        with tarfile.open(folder / name, "w") as archive:
            for index in range(6):
                picture = io.BytesIO()
                Image.fromarray(np.full((8, 8, 3), 20 * number + index, np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(index % 2).encode())):
                    info = tarfile.TarInfo(f"{index}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def test_shards_are_divided_by_their_names(tmp_path: Path) -> None:
    """By the words train, val and test; shards of one kind are divided by class, as a folder is."""
    _shards(tmp_path / "set", "x-train-000.tar", "x-train-001.tar", "x-val-000.tar")
    for source in (tmp_path / "set", tmp_path / "set" / "x-{train-000,train-001,val-000}.tar"):
        dataset = load_dataset(str(source))
        assert {name.split("/")[0] for name in dataset.test.ids} == {"x-val-000.tar"}
        assert len(dataset.train) + len(dataset.validation) == 12
        assert dataset.train.labels == ("0", "1")
    alone = load_dataset(str(tmp_path / "set" / "x-train-{000..001}.tar"))
    assert sorted(map(len, (alone.train, alone.validation, alone.test))) == [2, 2, 8]
    (tmp_path / "set" / "x-val-000.tar").rename(tmp_path / "set" / "other.tar")
    with pytest.raises(DataError, match="other.tar names no part"):
        load_dataset(str(tmp_path / "set"))


def test_parts_in_folders_may_be_shards(tmp_path: Path) -> None:
    """train/ and test/ with shards of the same names."""
    for part in ("train", "test"):
        (tmp_path / "set" / part).mkdir(parents=True)
        _shards(tmp_path / "set" / part, "000.tar")
    dataset = load_dataset(str(tmp_path / "set"))
    assert dataset.test.ids[0] == "test/000.tar/0.png"


def test_reading_shards_takes_no_memory_for_the_images(tmp_path: Path) -> None:
    """The peak of a process that decodes four times as many images is about the same."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "PNG", compress_level=0)
    peaks = []
    for count in (100, 400):
        with tarfile.open(tmp_path / f"{count}.tar", "w") as archive:
            for index in range(count):
                info = tarfile.TarInfo(f"{index}.png")
                info.size = len(picture.getvalue())
                archive.addfile(info, io.BytesIO(picture.getvalue()))
        code = (
            "import sys\nfrom pathlib import Path\nfrom edgekit.deploy.image_sources import open_images\n"
            "for sample in open_images(Path(sys.argv[1])): sample.image.load()\n"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path / f"{count}.tar"], capture_output=True, text=True,
                              check=True)  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 4 * 1024, "300 more images have 36 MB"
