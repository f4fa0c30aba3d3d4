"""Preprocessing equals torchvision's bit for bit, and explains what it refuses."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.documents import plain, read
from edgekit.deploy.errors import DataError, RecipeError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.preprocess import INTERPOLATIONS, Preprocess, decode
from edgekit.toolkit.training.augment import normalized
from edgekit.toolkit.training.pixels import Decoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1", "YCbCr")
MEANS, STDS = {"RGB": (0.485, 0.456, 0.406), "L": (0.2860,)}, {"RGB": (0.229, 0.224, 0.225), "L": (0.3530,)}


def _image(width: int, height: int, mode: str, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def _torchvision(preprocess: Preprocess) -> transforms.Compose:
    resize = list(preprocess.resize) if isinstance(preprocess.resize, tuple) else preprocess.resize
    steps: list = [] if resize is None else [transforms.Resize(resize, InterpolationMode(preprocess.interpolation))]
    steps += [] if preprocess.crop is None else [transforms.CenterCrop(list(preprocess.crop))]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)])


sizes = st.integers(1, 70)
resizes = st.one_of(st.none(), st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60)))
crops = st.one_of(st.none(), st.tuples(st.integers(1, 60), st.integers(1, 60)))


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.sampled_from(MODES), st.sampled_from(("RGB", "L")), resizes, crops,
       st.sampled_from(sorted(INTERPOLATIONS)), st.integers(0, 99))  # fmt: skip
def test_equals_torchvision(
    width: int, height: int, source: str, mode: str, resize: int | tuple | None, crop: tuple | None, interpolation: str,
    seed: int,
) -> None:  # fmt: skip
    """Any image, size, crop and interpolation gives the tensor of torchvision's PIL pipeline, bit for bit."""
    image = _image(width, height, source, seed)
    preprocess = Preprocess(mode, resize, crop, interpolation, MEANS[mode], STDS[mode])
    expected = _torchvision(preprocess)(image.convert(mode)).numpy()
    actual = preprocess(image)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from(MODES), st.integers(0, 99))
def test_training_sees_the_same_tensor(width: int, height: int, source: str, seed: int) -> None:
    """Without augmentation, the network gets the same tensor as on a device."""
    stream = io.BytesIO()
    image = _image(width, height, source if source in ("RGB", "L", "RGBA", "P", "1", "LA") else "RGB", seed)
    image.save(stream, "PNG")
    preprocess = Preprocess("RGB", 24, (20, 22), "bicubic", MEANS["RGB"], STDS["RGB"])
    pixels = np.asarray(decode(stream.getvalue()).convert("RGB"))[None]
    images = ImageSet(("a",), ("0",), np.zeros(1, np.int64), pixels)
    trained = normalized(Decoded(images, preprocess)[0, 0][0][None], preprocess)
    np.testing.assert_array_equal(trained[0].numpy(), preprocess(decode(stream.getvalue())))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """A photo taken sideways is turned upright before anything else."""
    upright = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate 90 degrees clockwise to view
    upright.save(tmp_path / "side.jpg", exif=exif)
    assert decode(tmp_path / "side.jpg").size == (4, 8)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_refused(mode: str) -> None:
    """16-bit and float images are not clipped silently."""
    with pytest.raises(DataError, match="does not have 8 bits per channel"):
        Preprocess("RGB", 8, (8, 8), "bilinear", MEANS["RGB"], STDS["RGB"])(Image.new(mode, (8, 8)))


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bit_grey_is_reduced_to_its_upper_byte(tmp_path: Path, suffix: str, kind: str) -> None:
    """Pillow reads 16-bit colour in the same way."""
    values = np.arange(0, 65536, 997, dtype=np.uint16).reshape(2, 33)
    image, path = Image.fromarray(values.astype(kind)), tmp_path / f"deep.{suffix}"
    image.save(path)
    decoded = decode(path)
    assert decoded.mode == "L"
    np.testing.assert_array_equal(np.asarray(decoded), values >> 8)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pixels_of_an_unknown_range_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    """32-bit, float and CIE images: the error names the file, so that it can be left out."""
    Image.new(mode, (4, 4)).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=rf"odd\.tif has Pillow mode {mode}"):
        decode(tmp_path / "odd.tif")


def test_a_phone_photo_is_accepted(tmp_path: Path) -> None:
    """108 megapixels exceed Pillow's limit, whose global setting is left unchanged."""
    Image.new("1", (12000, 9000)).save(tmp_path / "photo.png")
    before = Image.MAX_IMAGE_PIXELS
    assert decode(tmp_path / "photo.png").size == (12000, 9000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_strip_does_not_fill_the_memory() -> None:
    """One pixel by a million, resized by its shorter side, would be 65 gigapixels."""
    with pytest.raises(DataError, match="1000000x1"):
        Preprocess("L", 256, (224, 224), "bilinear", (0.5,), (0.5,))(Image.new("L", (1_000_000, 1)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot decode"), (b"not an image", "cannot decode"), (b"\x89PNG\r\n\x1a\n", "cannot")],
)
def test_corrupt_images_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    """The error names the file."""
    (tmp_path / "bad one.png").write_bytes(content)
    with pytest.raises(DataError, match="bad one.png") as caught:
        decode(tmp_path / "bad one.png")
    assert message in str(caught.value)


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    """Half a JPEG is an error, not half an image."""
    stream = io.BytesIO()
    _image(64, 64, "RGB", 0).save(stream, "JPEG")
    (tmp_path / "half.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(DataError, match="half.jpg"):
        decode(tmp_path / "half.jpg")


@pytest.mark.parametrize(
    "settings_",
    [{"mode": "BGR"}, {"interpolation": "cubic"}, {"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"crop": (0, 4)},
     {"mean": (float("nan"),) * 3}],
)  # fmt: skip
def test_invalid_settings_are_refused(settings_: dict) -> None:
    """Each one is a RecipeError."""
    good = {
        "mode": "RGB",
        "resize": 8,
        "crop": (8, 8),
        "interpolation": "bilinear",
        "mean": (0.5,) * 3,
        "std": (1.0,) * 3,
    }
    with pytest.raises(RecipeError):
        Preprocess(**{**good, **settings_})


def test_json_round_trip() -> None:
    """Settings are unchanged after writing and reading a manifest."""
    preprocess = Preprocess("RGB", (30, 40), (28, 28), "lanczos", MEANS["RGB"], STDS["RGB"])
    assert read(Preprocess, json.loads(json.dumps(plain(preprocess)))) == preprocess
