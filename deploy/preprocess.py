"""The one implementation of preprocessing: from an image file to the tensor a network sees.

Training's evaluation, calibration, validation and the device all call it, and the bundle's manifest carries its
settings. It reproduces torchvision's PIL transforms (Resize, CenterCrop, ToTensor, Normalize) bit for bit, with Pillow
and numpy alone.
"""

import contextlib
import io
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .errors import DataError, EdgeKitError, RecipeError, unknown

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# Pillow's modes of 8 bits a channel that convert to RGB and to grey.
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}

# Grey of 16 bits. Its upper 8 bits are taken, as Pillow takes those of 16-bit colour.
SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}

# Pixels of a picture: the area of the largest canvas of a browser (16384 x 16384). Phones take 200 million; as RGB this
# many take 1 GB of memory.
MAX_PICTURE = 1 << 28
_OPENING = threading.Lock()

# An input of 4096 x 4096 takes 200 MB as float32 RGB; before its crop an image may be resized to twice that.
_MAX_SIDE = 8192

DTYPES = ("float32", "uint8")

# Above this a resized image is a mistake (a one-pixel-high strip scaled up), not a picture.
_MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Preprocess:
    """Settings from decoded image to network input.

    Attributes:
        mode: "RGB" (3 channels) or "L" (1 channel, ITU-R 601-2 luma as Pillow computes it).
        resize: length of the shorter side in pixels (the longer follows), (height, width), or None for none.
        crop: centre crop, (height, width) in pixels, or None. An image smaller than it is padded with zeros.
        interpolation: a key of INTERPOLATIONS. Resampling is antialiased, as Pillow's is.
        mean, std: one value a channel, on the scale [0, 1].
        dtype: of the tensor. float32 is (pixels / 255 - mean) / std; uint8 is the pixels as they are, 0 to 255, for a
            network that scales and normalizes them itself: mean 0 and std 1.
    """

    mode: Literal["RGB", "L"]
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Literal["float32", "uint8"] = "float32"

    def __post_init__(self) -> None:
        channels = {"RGB": 3, "L": 1}.get(self.mode)
        if channels is None:
            raise RecipeError(unknown("image mode", str(self.mode), ("RGB", "L")), fix="use RGB or L")
        if self.interpolation not in INTERPOLATIONS:
            raise RecipeError(
                unknown("interpolation", self.interpolation, INTERPOLATIONS),
                fix=f"use one of: {', '.join(INTERPOLATIONS)}",
            )
        if not len(self.mean) == len(self.std) == channels:
            raise RecipeError(
                f"mean has {len(self.mean)} and std {len(self.std)} values, mode {self.mode} needs {channels} of each",
                fix=f"give {channels} comma-separated value{'s' * (channels > 1)} for each",
            )
        if not all(np.isfinite(self.mean)) or not all(s > 0 and np.isfinite(s) for s in self.std):
            raise RecipeError("mean must be finite and std positive", fix="values are on the scale 0 to 1, e.g. 0.485")
        if self.dtype not in DTYPES:
            raise RecipeError(unknown("tensor type", str(self.dtype), DTYPES), fix=f"use one of: {', '.join(DTYPES)}")
        if self.dtype == "uint8" and (any(self.mean) or set(self.std) != {1.0}):
            raise RecipeError(
                "a network that takes uint8 pixels normalizes them itself, and mean and std are given",
                fix="leave out mean and std (0 and 1)",
            )
        pairs = [(self.resize, self.resize) if isinstance(self.resize, int) else self.resize, self.crop]
        for pair in pairs:
            if pair is not None and not (
                isinstance(pair, tuple) and len(pair) == 2 and all(type(side) is int and side >= 1 for side in pair)
            ):
                raise RecipeError(f"an image size of {pair} is not possible", fix="sizes are in whole pixels, from 1")
            if pair is not None and max(pair) > _MAX_SIDE:
                raise RecipeError(f"an image size of {pair} is too large", fix=f"at most {_MAX_SIDE} pixels a side")

    def pixels(self, image: Image.Image) -> Image.Image:
        """Convert, resize and crop a decoded image; the result is 8 bits a channel, in `mode`.

        Raises:
            DataError: the image has more than 8 bits a channel.
        """
        image = _converted(image, self.mode)
        if self.resize is not None:
            width, height = _resized(image.size, self.resize)
            if width * height > _MAX_PIXELS:
                raise DataError(
                    f"an image of {image.width}x{image.height} would become {width}x{height} pixels",
                    fix="crop it first: its sides differ too much",
                )
            if (width, height) != image.size:
                image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        if self.crop is not None:
            image = _centre_crop(image, *self.crop)
        return image

    def normalize(self, image: Image.Image) -> np.ndarray:
        """[c, h, w] in `dtype`, of an image that `pixels` (or an augmentation) made."""
        array = np.asarray(image, dtype=np.uint8)
        planes = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
        if self.dtype == "uint8":
            return planes
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        return (planes.astype(np.float32) / np.float32(255) - mean) / std

    def __call__(self, image: Image.Image) -> np.ndarray:
        """[c, h, w] in `dtype`, of a decoded image."""
        return self.normalize(self.pixels(image))

    def checksum(self, image: Image.Image) -> int:
        """CRC-32 of a decoded image's size and pixels in `mode`, before anything else is done with them."""
        converted = _converted(image, self.mode)
        return zlib.crc32(converted.tobytes(), zlib.crc32(f"{converted.width}x{converted.height}".encode()))

    def batch(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, c, h, w] in `dtype`, of decoded images."""
        return np.stack([self(image) for image in images])


def decode(source: bytes | Path) -> Image.Image:
    """Decode an image file to 8 bits a channel and turn it upright by its EXIF orientation.

    A photo is decoded at its full size, since decoding at a reduced one gives other pixels.

    Raises:
        DataError: the file is missing, truncated, too large, not an image, or has no 8-bit form; the message names it.
    """
    with opened(source) as image:
        image.load()
        return eight_bits(ImageOps.exif_transpose(image))


class Header(NamedTuple):
    """What an image file says of itself: (width, height) in pixels, Pillow's mode."""

    size: tuple[int, int]
    mode: str


def read_header(source: Path) -> Header:
    """Read an image file's header alone.

    Raises:
        DataError: `decode` would refuse the file for what stands in its header; the message names it.
    """
    with opened(source) as image:
        return Header(image.size, image.mode)


@contextlib.contextmanager
def opened(source: bytes | Path) -> Iterator[Image.Image]:
    """An image file of which only the header was read; what goes wrong with it from here on is a DataError."""
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, beside a picture that may be whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.mode not in _MODES | SIXTEEN_BITS:
                    raise DataError(
                        f"{name} has pixels of Pillow's mode {image.mode}, of which EdgeKit cannot know the range",
                        fix="convert it to 8 bits a channel, or pass --skip-corrupt",
                    )
                yield image
    except EdgeKitError:
        raise
    except FileNotFoundError as error:
        if isinstance(source, Path) and source.is_symlink():
            raise DataError(
                f"{name} is a link to {source.readlink()}, which is not there",
                fix="restore or remove it, or pass --skip-corrupt",
            ) from error
        raise DataError(f"no such image: {name}", fix="check the path") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{name} has more than {MAX_PICTURE / 1e6:.0f} million pixels",
            fix="make it smaller first, or pass --skip-corrupt",
        ) from error
    except Exception as error:  # Pillow's parsers let many kinds through
        raise DataError(
            f"cannot decode {name}: {error}", fix="replace or remove the file, or pass --skip-corrupt"
        ) from error


def _open(source: io.BytesIO | Path) -> Image.Image:
    """Image.open under our own limit of pixels; Pillow's, of 89 million, is a global variable."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PICTURE
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def eight_bits(image: Image.Image) -> Image.Image:
    """A decoded image in 8 bits a channel."""
    if image.mode not in SIXTEEN_BITS:
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode not in _MODES:
        raise DataError(
            f"the image is not of 8 bits a channel (Pillow mode {image.mode})", fix="convert it to RGB or L first"
        )
    return image if image.mode == mode else image.convert(mode)


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing; the rule for one number is torchvision's: the longer side is truncated."""
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """torchvision's CenterCrop on a PIL image, padding and rounding included."""
    if width > image.width or height > image.height:
        left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
        right, bottom = max(0, (width - image.width + 1) // 2), max(0, (height - image.height + 1) // 2)
        image = ImageOps.expand(image, (left, top, right, bottom), fill=0)
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
