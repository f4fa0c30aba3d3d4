"""Test images that a model has seen are found under any path or name."""

import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy import fingerprints
from edgekit.deploy.bundle import Bundle, create
from edgekit.deploy.documents import plain
from edgekit.deploy.errors import BundleError, DataError
from edgekit.deploy.fingerprints import appearance, distances, fingerprint, read_fingerprints, write_fingerprints
from edgekit.deploy.image_sources import open_images
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring.result import NearDuplicate, Overlap
from edgekit.toolkit.analysis.wording import overlap_lines
from edgekit.toolkit.datasets import load_dataset, part_of
from edgekit.toolkit.validation.overlap import unseen
from PIL import Image


def _photo(seed: int, width: int = 400, height: int = 300) -> Image.Image:
    """Random brightness at four scales, with a spectrum like a photograph's."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 1.0), (8, 0.7), (25, 0.4), (100, 0.2)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8))
        total += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return Image.fromarray(total.astype(np.uint8))


@pytest.fixture
def recorded(fp32: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """Copy the committed bundle with these fingerprints of its parts."""

    def make(**parts: np.ndarray) -> Bundle:
        path = tmp_path / "recorded"
        shutil.rmtree(path, ignore_errors=True)
        splits = {part: [f"{part}/{index}" for index in range(len(rows))] for part, rows in parts.items()}
        with create(path) as draft:
            shutil.copy(fp32.model_path, draft.folder)
            draft.add_golden(fp32.golden())
            draft.add_splits(splits)
            draft.add_fingerprints(parts)
            draft.finish(fp32.manifest)
        return Bundle.open(path)

    return make


def _folder(root: Path, images: ImageSet) -> Path:
    for index, sample in enumerate(images):
        (root / str(sample.label)).mkdir(parents=True, exist_ok=True)
        sample.image.save(root / str(sample.label) / f"{index}.png")
    return root


def test_calibration_images_are_left_out_under_another_path(
    fp32: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 100 images copied under other names, 30 calibrated and 13 judged the model: 57 remain."""
    from edgekit.toolkit.quantize.options import QuantizeOptions
    from edgekit.toolkit.quantize.quantize import quantize

    source = _folder(tmp_path / "own", load_dataset("digits").train.take(range(100)))
    made = quantize(fp32, QuantizeOptions(calibration_images=30), images=str(source), out=tmp_path / "made").bundle
    assert {part: len(rows) for part, rows in made.fingerprints().items()} == {"calibration": 30, "selection": 13}
    for file in source.rglob("*.png"):
        copy = tmp_path / "copy" / file.parent.name / f"IMG_{file.stem}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    test = part_of(made, "test", str(tmp_path / "copy"))
    assert test is not None
    assert len(test) == 100
    remaining, overlap = unseen([made], test, own=False)
    assert len(remaining) == 57
    assert overlap.excluded == 43
    assert not overlap.unchecked
    log = caplog.text
    assert "left out 43 of 100 test images that the model was made with" in log
    assert "of the calibration images" in log or "of the selection images" in log
    used = np.concatenate(list(made.fingerprints().values()))[:, 0]
    assert not np.isin(fingerprint(remaining)[:, 0], used).any()


def test_a_test_set_of_training_images_is_refused(
    recorded: Callable[..., Bundle], image_folder: Callable[..., Path]
) -> None:
    """Validating on the training images proves nothing."""
    images = open_images(image_folder())
    bundle = recorded(train=fingerprint(images))
    with pytest.raises(DataError, match=r"made with all 12 test images: cat/0\.png is train/0 of the training images"):
        unseen([bundle], images, own=False)


def test_its_own_test_part_is_checked_without_reading_it_again(
    recorded: Callable[..., Bundle], image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training image that is also a test image is left out; the recorded fingerprints suffice."""
    images = open_images(image_folder())
    rows = fingerprint(images)
    bundle = recorded(train=rows[:3], test=rows[2:])
    test = replace(images.take(range(2, 12)), ids=tuple(bundle.splits()["test"]))
    monkeypatch.setattr(fingerprints, "_content", None)
    monkeypatch.setattr(fingerprints, "_thumbnail", None)
    remaining, overlap = unseen([bundle], test, own=True)
    assert (len(remaining), overlap.excluded, overlap.excluded_ids) == (9, 1, ("test/0",))
    assert overlap.near_duplicates == 0


def test_near_duplicates_are_named_and_kept(recorded: Callable[..., Bundle], tmp_path: Path) -> None:
    """Saved as JPEG, at half or a quarter of the size, brighter, or rotated by EXIF; other images are not named."""
    originals = [_photo(seed) for seed in range(12)]
    for index, image in enumerate(originals):
        image.save(tmp_path / f"{index:02d}.png")
    train = open_images(tmp_path)
    bundle = recorded(train=fingerprint(train))
    changed = tmp_path / "changed"
    changed.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    originals[0].save(changed / "0.jpg", quality=60)
    originals[1].resize((200, 150)).save(changed / "1.jpg")
    originals[2].resize((100, 75)).save(changed / "2.webp")
    originals[3].point(lambda value: min(255, int(value * 1.1))).save(changed / "3.jpg")
    originals[4].rotate(90, expand=True).save(changed / "4.jpg", exif=exif)
    for seed in range(5, 30):
        _photo(100 + seed).save(changed / f"{seed}.jpg")
    remaining, overlap = unseen([bundle], open_images(changed), own=False)
    assert len(remaining) == 30
    assert overlap.excluded == 0
    assert [pair.id for pair in overlap.pairs] == ["0.jpg", "1.jpg", "2.webp", "3.jpg", "4.jpg"]
    assert [pair.other for pair in overlap.pairs] == [f"train/{index} of the training images" for index in range(5)]
    assert overlap.searched == (12, 12)


def test_digits_do_not_all_look_alike() -> None:
    """Different images of 8 x 8 pixels are only a few bits apart, but are still distinguished."""
    dataset = load_dataset("digits")
    train, test = appearance(dataset.train), appearance(dataset.test)
    close = [int(bits.min()) <= 2 for bits in distances(test[:, 0], np.ascontiguousarray(train[:, 0]))]
    assert sum(close) <= 3


def test_plain_images_are_not_near_duplicates(recorded: Callable[..., Bundle]) -> None:
    """Black images of different sizes are not near-duplicates, but an identical image is excluded."""
    images = ImageSet(("a",), ("0", "1"), np.zeros(2, np.int64), np.zeros((2, 9, 9), np.uint8))
    bundle = recorded(train=fingerprint(images))
    others = ImageSet(("a",), ("x",), np.zeros(1, np.int64), np.zeros((1, 8, 8), np.uint8))
    assert unseen([bundle], others, own=False)[1].near_duplicates == 0
    with pytest.raises(DataError, match="all 1 test images"):
        unseen([bundle], images.take([1]), own=False)


def test_an_older_bundle_opens_with_a_warning(fp32: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """It records no fingerprints: no image is left out, and the report does not claim a check."""
    assert fp32.fingerprints() == {}
    test = part_of(fp32, "test")
    assert test is not None
    remaining, overlap = unseen([fp32], test, own=True, limit=10)
    assert len(remaining) == 10
    assert overlap.unchecked == (str(fp32.path),)
    assert "records no fingerprints" in caplog.text
    assert "cannot check whether" in overlap_lines({"images": 10, "overlap": plain(overlap)})[0]
    assert overlap_lines({"images": 10}) == [], "a report of an earlier version"


def test_lines_of_a_report() -> None:
    """Counts of the images left out and of near-duplicates, with the first few names."""
    pairs = tuple(NearDuplicate(f"t{index}", f"o{index}") for index in range(5))
    overlap = plain(Overlap((), 4, ("a", "b", "c", "d"), 5, pairs, (50_000, 60_000)))
    first, second = overlap_lines({"images": 100, "overlap": overlap})
    assert "4 test images are left out" in first
    assert first.endswith("a, b, c and 1 more")
    assert "5 of 100 test images look like" in second
    assert "(50000 of 60000 compared)" in second
    assert second.endswith("t0 like o0, t1 like o1, t2 like o2 and 2 more")


def _array(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train.npy", content)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


GOOD = _npy(np.zeros((4, 3), "<u8"))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", _array(b""), _array(GOOD[:-1]), _array(GOOD + b"x"), _array(GOOD.replace(b"(4, 3)", b"(4,10**9)")),
     _array(GOOD.replace(b"(4, 3), }   ", b"(9999999, 3),")), _array(_npy(np.zeros((4, 2), "<u8"))),
     _array(_npy(np.zeros((4, 3), "<i8"))), _array(_npy(np.zeros((5, 3), "<u8"))),
     _array(_npy(np.array([[{}] * 3], object)))],
)  # fmt: skip
def test_damaged_fingerprints_are_refused(recorded: Callable[..., Bundle], content: bytes) -> None:
    """Other types and shapes, too few bytes, a number of rows that differs from the ids, pickles."""
    bundle = recorded(train=np.zeros((4, 3), np.uint64))
    (bundle.path / "fingerprints.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"fingerprints\.npz contains no valid fingerprints"):
        bundle.fingerprints()


def test_fingerprints_round_trip(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    """They are read as written; an unknown part is ignored."""
    rows = fingerprint(open_images(image_folder()))
    write_fingerprints(tmp_path / "x.npz", {"train": rows, "other": rows})
    restored = read_fingerprints(tmp_path / "x.npz")
    assert restored.keys() == {"train"}
    np.testing.assert_array_equal(restored["train"], rows)


def test_bits_are_counted_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 1.26 has no bitwise_count."""
    values = np.random.default_rng(0).integers(0, 1 << 63, 50, dtype=np.uint64)
    expected = [[(int(value) ^ int(other)).bit_count() for other in values] for value in values]
    assert [bits.tolist() for bits in distances(values, values)] == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert [bits.tolist() for bits in distances(values, values)] == expected


@pytest.mark.slow
def test_validate_reports_what_it_left_out(
    recorded: Callable[..., Bundle], image_folder: Callable[..., Path], fp32: Bundle, edgekit: Callable, tmp_path: Path
) -> None:
    """In report.json, on stderr and in the summary."""
    import json

    source = _folder(tmp_path / "own", load_dataset("digits").test.take(range(40)))
    bundle = recorded(train=fingerprint(open_images(source).take(range(5))))
    done = edgekit("validate", bundle.path, "--images", source, "--json", "--seconds", "0.2")
    report = json.loads(done.stdout)
    assert report["overlap"]["excluded"] == 5
    assert report["images"] == 35
    assert "left out 5 of 40 test images" in done.stderr
    assert "5 test images are left out" in (tmp_path / "runs/recorded.report/summary.md").read_text()
