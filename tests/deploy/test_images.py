"""Image sets: what they read, in which order, and what they refuse."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.errors import DataError
from edgekit.deploy.image_sources import open_images, read_idx
from edgekit.deploy.images import UNLABELLED, ImageSet, stratified
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

Folder = Callable[..., Path]


def test_class_folders(image_folder: Folder) -> None:
    """A class folder's name is the label; the path within the set is the id."""
    images = open_images(image_folder())
    assert images.labels == ("cat", "dog")
    assert images.ids[:2] == ("cat/0.png", "cat/1.png")
    assert [sample.label for sample in images] == [0] * 6 + [1] * 6


def test_folders_are_matched_to_a_label_list_by_name(image_folder: Folder) -> None:
    """Targets follow the list's order; a listed class may have no images."""
    images = open_images(image_folder(), ["bird", "dog", "cat"])
    assert set(images.targets[:6]) == {2}
    assert set(images.targets[6:]) == {1}


def test_a_folder_outside_the_label_list_is_an_error(image_folder: Folder) -> None:
    """The error suggests the nearest label."""
    with pytest.raises(DataError, match="did you mean dogs"):
        open_images(image_folder(), ["cat", "dogs"])


def test_an_empty_class_folder_is_named(image_folder: Folder) -> None:
    """It is an error, instead of a class without images."""
    folder = image_folder()
    (folder / "empty one").mkdir()
    with pytest.raises(DataError, match="empty one"):
        open_images(folder)


def test_numbered_images_beside_a_csv(tmp_path: Path) -> None:
    """An Image,Category table with numbers as file names; categories sort as numbers."""
    for index in (1, 2, 10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.jpg")
    (tmp_path / "labels.csv").write_text("Image,Category\n10,2\n1,10\n2,2\n")
    images = open_images(tmp_path)
    assert images.labels == ("2", "10")
    assert images.ids == ("10", "1", "2")
    assert images.targets.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [("Image,Category\n7,a\n", "7"), ("image;class\n1;a\n", "columns image, class, separated by a semicolon"),
     ("filename,label\n1,a\n", "columns filename, label, separated by a comma; required are Image,Category"),
     ("Image;Category\n1;a\n", "columns Image, Category, separated by a semicolon"),
     ("a\tb\tc\n", "a, b, c, separated by a tab"), ("", r"\(none\)"), ("Image,Category\n1\n", "row 2 has no"),
     ("Image,Category\n1,a\n1,a\n", "more than once"), ("Image,Category\n", "no rows")],
)  # fmt: skip
def test_a_wrong_csv_is_explained(tmp_path: Path, table: str, message: str) -> None:
    """A missing file, other columns, another separator, a short row, a repeated image, an empty table."""
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)


def test_a_csv_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Spreadsheets may save it in another encoding."""
    (tmp_path / "labels.csv").write_bytes("Image,Category\n1,Käfer\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read .*labels\.csv"):
        open_images(tmp_path)


def test_a_broken_link_is_named(image_folder: Folder) -> None:
    """It is an error that names the target; with skip_corrupt it is left out and listed."""
    folder = image_folder()
    (folder / "cat" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg is a link to /nowhere/x\.jpg, which does not exist"):
        list(open_images(folder))
    assert open_images(folder, skip_corrupt=True).left_out == ("cat/gone.jpg",)


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """MNIST's format, with and without gzip."""
    pictures = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    (tmp_path / "images").write_bytes(pack(_idx(pictures)))
    (tmp_path / "labels").write_bytes(pack(_idx(np.array([1, 0, 1], np.uint8))))
    images = read_idx(tmp_path / "images", tmp_path / "labels")
    assert images.targets.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(np.asarray(images[2].image), pictures[2])


def test_truncated_idx_is_named(tmp_path: Path) -> None:
    """A truncated file or one that is too long is refused, with and without gzip."""
    complete = _idx(np.zeros((3, 4, 5), np.uint8))
    labels = _idx(np.zeros(3, np.uint8))
    (tmp_path / "labels").write_bytes(labels)
    for content in (complete[:-1], complete[:7], complete + b"x", gzip.compress(complete)[:-9], b""):
        (tmp_path / "images").write_bytes(content)
        with pytest.raises(DataError, match="images"):
            read_idx(tmp_path / "images", tmp_path / "labels")


def test_npz(tmp_path: Path) -> None:
    """The arrays are images, labels and names; mismatched ones are refused."""
    pictures = np.zeros((4, 6, 6, 3), np.uint8)
    np.savez(tmp_path / "good.npz", images=pictures, labels=[0, 1, 1, 0], names=["a", "b"])
    assert open_images(tmp_path / "good.npz").labels == ("a", "b")
    assert open_images(tmp_path / "good.npz", ["b", "a"]).targets.tolist() == [1, 0, 0, 1]
    for wrong in (
        {"images": pictures},
        {"images": pictures, "labels": [0, 1]},
        {"images": pictures / 1.0, "labels": [0] * 4},
    ):
        np.savez(tmp_path / "bad.npz", **wrong)
        with pytest.raises(DataError, match=r"bad\.npz"):
            open_images(tmp_path / "bad.npz")


def test_a_label_outside_the_list_is_named(tmp_path: Path) -> None:
    """The message contains the image and the label."""
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 7])
    with pytest.raises(DataError, match="image 1 has label 7"):
        open_images(tmp_path / "x.npz", ["a", "b"])


def test_an_npz_with_pickles_is_refused(tmp_path: Path) -> None:
    """Nothing in a data file is executed."""
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object), labels=[0])
    with pytest.raises(DataError, match="x.npz"):
        open_images(tmp_path / "x.npz")


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    """Numbered file names sort as numbers."""
    for name in ("10", "9", "a"):
        Image.new("L", (3, 3)).save(tmp_path / f"{name}.png")
    images = open_images(tmp_path)
    assert images.ids == ("9.png", "10.png", "a.png")
    assert not images.labelled
    assert set(images.targets) == {UNLABELLED}


def test_skip_corrupt_lists_what_it_left_out(image_folder: Folder) -> None:
    """Without it, the first use of the image raises an error that names it."""
    folder = image_folder()
    (folder / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cat/0\.png"):
        list(open_images(folder))
    images = open_images(folder, skip_corrupt=True)
    assert images.left_out == ("cat/0.png",)
    assert len(list(images)) == 11


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_path_without_images_is_named(tmp_path: Path, path: str) -> None:
    """The error names a missing folder or an empty one."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=path):
        open_images(tmp_path / path)


@pytest.mark.parametrize("arrays", [True, False])
def test_a_saved_set_is_the_same_set(image_folder: Folder, tmp_path: Path, arrays: bool) -> None:
    """Images, labels and ids reach a device unchanged."""
    images = open_images(image_folder("ünïcode földer"))
    if arrays:
        pixels = np.stack([np.asarray(sample.image) for sample in images])
        images = ImageSet(images.labels, images.ids, images.targets, pixels)
    (tmp_path / "job").mkdir()
    images.save(tmp_path / "job")
    loaded = ImageSet.load(tmp_path / "job")
    assert (loaded.labels, loaded.ids, loaded.targets.tolist()) == (images.labels, images.ids, images.targets.tolist())
    for first, second in zip(images, loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(second.image))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90), st.integers(0, 9))
def test_stratified_keeps_the_shares(targets: list[int], count: int, seed: int) -> None:
    """It draws `count` images, or all; the same seed draws the same ones; each class is within one image of its share.

    If a share is below one, every class gets at least one image instead, provided that `count` allows it.
    """
    array = np.asarray(targets)
    chosen = stratified(array, count, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(targets))
    np.testing.assert_array_equal(chosen, stratified(array, count, seed))
    shares = {name: targets.count(name) * len(chosen) / len(targets) for name in set(targets)}
    drawn = {name: int((array[chosen] == name).sum()) for name in shares}
    if count < len(shares) or min(shares.values()) >= 1:
        assert all(abs(drawn[name] - share) <= 1 for name, share in shares.items())
    else:
        assert min(drawn.values()) >= 1


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), st.data())
def test_stratified_reaches_every_class(sizes: list[int], data: st.DataObject) -> None:
    """Even rare classes are drawn, if at least as many images are drawn as there are classes."""
    count = data.draw(st.integers(len(sizes), sum(sizes)))
    targets = np.repeat(np.arange(len(sizes)), sizes)
    drawn = np.bincount(targets[stratified(targets, count, 0)], minlength=len(sizes))
    assert drawn.sum() == count
    assert (drawn >= 1).all()
    assert (np.diff(drawn[np.argsort(sizes, kind="stable")]) >= -1).all(), "a larger class gets at most one image less"


def test_a_rare_class_is_drawn() -> None:
    """The share of 5 images in 10,005 is a quarter of an image in 512."""
    targets = np.repeat([0, 1], [10_000, 5])
    assert np.bincount(targets[stratified(targets, 512, 0)]).tolist() == [511, 1]


def test_drawing_is_unchanged_if_no_class_is_rare() -> None:
    """So a folder is split as it was when earlier models were trained on it."""
    targets = np.asarray([0] * 37 + [1] * 20 + [2] * 11)
    assert stratified(targets, 9, 1).tolist() == [1, 15, 17, 26, 34, 42, 45, 53, 59]


def test_select_names_missing_ids(image_folder: Folder) -> None:
    """Recorded ids that no longer exist are an error."""
    with pytest.raises(DataError, match=r"cat/99\.png"):
        open_images(image_folder()).select(["cat/0.png", "cat/99.png"])


def _bomb(path: Path, kind: str, size: int) -> Path:
    """Write a file of at most a few megabytes that unpacks to `size` bytes of zeros."""
    if kind == "idx":
        with gzip.open(path, "wb", 9) as stream:
            stream.write(b"\0\0\x08\x03" + np.asarray([size >> 20, 1024, 1024], ">u4").tobytes())
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
        return path
    header = io.BytesIO()
    shape = (size >> 20, 1024, 1024)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
        archive.writestr("labels.npy", b"")
    return path


@pytest.mark.parametrize("kind", ["npz", "idx"])
def test_a_decompression_bomb_is_refused_by_its_header(kind: str, tmp_path: Path) -> None:
    """300 MB of zeros are not unpacked."""
    path = _bomb(tmp_path / f"set.{kind}", kind, 300 << 20)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the file can hold"):
        open_images(path) if kind == "npz" else read_idx(path, path)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_a_large_valid_set_is_read(tmp_path: Path) -> None:
    """It takes the memory of its images once; they are writable, as torch requires."""
    pictures = np.random.default_rng(0).integers(0, 256, (300, 256, 256), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pictures, labels=np.zeros(300, np.int64))
    tracemalloc.start()
    images = open_images(tmp_path / "set.npz")
    assert tracemalloc.get_traced_memory()[1] < 1.2 * pictures.nbytes
    tracemalloc.stop()
    np.testing.assert_array_equal(images.pictures, pictures)
    assert images.pictures.flags.writeable  # type: ignore[union-attr]
