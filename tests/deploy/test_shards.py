"""Tar shards: every image is found at its place, and nothing in an archive is trusted."""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.errors import DataError
from edgekit.deploy.fingerprints import fingerprint
from edgekit.deploy.image_sources import open_images
from edgekit.deploy.images import UNLABELLED, ImageSet, read_headers
from edgekit.deploy.shards import shard_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

Files = Mapping[str, bytes] | Sequence[tuple[str, bytes]]


def _picture(seed: int, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(stream, suffix)
    return stream.getvalue()


def write_shard(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write files into a tar file, in their order."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
    return path


def _samples(count: int, classes: Sequence[str] = ("0", "1"), first: int = 0) -> dict[str, bytes]:
    """`count` images with their classes in turn."""
    files = {}
    for index in range(first, first + count):
        files |= {f"{index:04d}.png": _picture(index), f"{index:04d}.cls": classes[index % len(classes)].encode()}
    return files


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_every_image_is_read_at_its_place(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], form: int
) -> None:
    """Its content, class and id, in the order of the shards, for any number of shards and any kind of tar."""
    folder, first, expected = tmp_path_factory.mktemp("shards"), 0, []
    for number, size in enumerate(sizes):
        write_shard(folder / f"s-{number}.tar", _samples(size, first=first), form)
        expected += [(f"s-{number}.tar/{index:04d}.png", index) for index in range(first, first + size)]
        first += size
    images = open_images(folder)
    assert images.ids == tuple(name for name, _ in expected)
    assert [images.encoded(row) for row in range(first)] == [(_picture(index), ".png") for _, index in expected]
    assert images.targets.tolist() == [index % 2 for _, index in expected]
    shuffled = np.random.default_rng(0).permutation(first)
    assert images.take(shuffled).select(images.ids).sha256() == images.sha256()


def test_a_shard_equals_a_folder(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    """The same pixels, headers and fingerprints; also after saving for a device, and in a loader process."""
    folder = open_images(image_folder())
    files = {}
    for index, name in enumerate(folder.ids):
        files |= {f"{index}.png": folder.encoded(index)[0], f"{index}.cls": name.split("/")[0].encode()}
    images = open_images(write_shard(tmp_path / "x.tar", files))
    assert images.labels == folder.labels
    assert images.targets.tolist() == folder.targets.tolist()
    assert read_headers(images) == read_headers(folder)
    np.testing.assert_array_equal(fingerprint(images), fingerprint(folder))
    for with_files in (False, True):
        place = tmp_path / f"job-{with_files}"
        place.mkdir()
        images.save(place, with_files=with_files)
        loaded = ImageSet.load(place)
        for same in (loaded, pickle.loads(pickle.dumps(loaded))):
            assert same.ids == images.ids
            assert all(one.image.tobytes() == two.image.tobytes() for one, two in zip(same, folder, strict=True))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("{a,b}-{9..10}.tar", ["a-9.tar", "a-10.tar", "b-9.tar", "b-10.tar"]),
        ("s.tar", ["s.tar"]),
    ],
)
def test_braces_name_shards(tmp_path: Path, pattern: str, names: list[str]) -> None:
    """As in a shell; zeros in front count."""
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in shard_files(tmp_path / pattern)] == names
    (tmp_path / names[-1]).unlink()
    with pytest.raises(DataError, match=f"1 of {len(names)} shards are missing, starting with .*{names[-1]}"):
        shard_files(tmp_path / pattern)


@pytest.mark.parametrize("pattern", ["{0..999999999}.tar", "{1..2}{0..99999}{0..99999}.tar", "{5..2}.tar"])
def test_patterns_are_bounded(pattern: str) -> None:
    """A bundle may name any pattern as its data set."""
    with pytest.raises(DataError, match="names .* shards"):
        shard_files(Path(pattern))


def test_classes_are_numbers_or_names(tmp_path: Path) -> None:
    """Numbers are places in the model's list, or in labels.txt, whose names then count."""
    numbered = write_shard(tmp_path / "n.tar", _samples(3, ("2", "0")))
    assert open_images(numbered).labels == ("0", "1", "2")
    assert open_images(numbered, ["a", "b", "c"]).targets.tolist() == [2, 0, 2]
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert open_images(numbered).labels == ("cat", "dog", "bird")
    assert open_images(numbered, ["bird", "cat", "dog"]).targets.tolist() == [0, 1, 0]
    named = write_shard(tmp_path / "named.tar", _samples(3, ("dog", "cat\n")))
    assert open_images(named).targets.tolist() == [1, 0, 1]
    plain = write_shard(tmp_path / "plain.tar", {"a.PNG": _picture(0), "b.input.png": _picture(1)})
    assert open_images(plain, ["x"]).targets.tolist() == [UNLABELLED] * 2


def test_other_files_are_ignored(tmp_path: Path) -> None:
    """Hidden ones, WebDataset's own, other kinds of data, and samples without an image."""
    files = {"__index__.json": b"{}", "._0000.png": b"mac", "only.json": b"{}", **_samples(2), "0001.json": b"{}"}
    assert open_images(write_shard(tmp_path / "x.tar", files)).ids == ("x.tar/0000.png", "x.tar/0001.png")


def test_links_and_devices_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are never followed; a name outside the archive is only text."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"{ord(kind)}.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        entry = tarfile.TarInfo("../../etc/passwd.png")
        entry.size = len(_picture(0))
        archive.addfile(entry, io.BytesIO(_picture(0)))
    images = open_images(tmp_path / "x.tar")
    assert images.ids == ("x.tar/../../etc/passwd.png",)
    assert images[0].image.size == (8, 9)
    assert "skipped 4 links and other entries" in caplog.text
    (tmp_path / "job").mkdir()
    images.save(tmp_path / "job", with_files=True)
    assert sorted(file.name for file in (tmp_path / "job").iterdir()) == ["000000.png", "images.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"x", "a.cls": b"0", "b.png": b"x"}, "x.tar/b.png has no .cls, unlike other images"),
        ({"a.png": b"x", "a.cls": b"-1"}, "x.tar/a.png has class -1"),
        ({"a.png": b"x", "a.cls": b"9" * 18}, "but 100001 class names are known"),
        ({"a.png": b"x", "a.cls": b""}, "a.cls is not a class"),
        ({"a.png": b"x", "a.cls": b"x" * 2000}, "a.cls is not a class"),
        ({"a.png": b"x", "a.cls": b"a\0b"}, "a.cls is not a class"),
        ({"a.png": b"x", "a.jpg": b"x"}, "two images with one key: a.png and a.jpg"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.png", b"x")], "x.tar/a.png is twice"),
        ({"a" * 2000 + ".png": b"x"}, "a name of 2004 characters"),
        ({"a.json": b"{}"}, "no images in"),
        ({}, "no images in"),
    ],
)
def test_unclear_samples_are_refused(tmp_path: Path, files: Files, message: str) -> None:
    """The message names the image or the file."""
    with pytest.raises(DataError, match=message):
        open_images(write_shard(tmp_path / "x.tar", files))


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    """Cut off anywhere, damaged in a header, or compressed."""
    whole = write_shard(tmp_path / "x.tar", _samples(2), tarfile.USTAR_FORMAT).read_bytes()
    content = 512 * 8  # four entries of one block each; then come zeros
    for size in range(1, content + 1, 171):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match="cut.tar is damaged"):
            open_images(tmp_path / "cut.tar")
    (tmp_path / "bad.tar").write_bytes(whole[:1024] + b"?" + whole[1025:])
    with pytest.raises(DataError, match="bad.tar is damaged: no entry begins at byte 1024"):
        open_images(tmp_path / "bad.tar")
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole))
    for name in ("packed.tar", "packed.tar.gz"):
        with pytest.raises(DataError, match="is compressed") as caught:
            open_images(tmp_path / name)
        assert "unpack" in caught.value.fix


def test_a_shard_that_changed_is_named(tmp_path: Path) -> None:
    """It was cut off after it was opened."""
    images = open_images(write_shard(tmp_path / "x.tar", _samples(2)))
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match="x.tar/0001.png"):
        images[1]


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    """tarfile alone would read it into memory."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataError, match="a header of 1099511627776 bytes"):
        open_images(tmp_path / "x.tar")
