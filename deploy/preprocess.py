"""The only implementation of preprocessing, from an image file to a network's input tensor.

Evaluation in training, calibration, validation and the device all call it, and the bundle's manifest contains its
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
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .errors import DataError, EdgeKitError, RecipeError, unknown
from .members import Member

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# Pillow's modes with 8 bits per channel that convert to RGB and to grey.
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}

# 16-bit grey. The upper 8 bits are used, as Pillow does for 16-bit colour.
SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}

# Maximum number of pixels of a picture: the area of the largest canvas of a browser (16384 x 16384). Phones take 200
# million; as RGB, the maximum takes 1 GB of memory.
MAX_PICTURE = 1 << 28
_OPENING = threading.Lock()

# An input of 4096 x 4096 takes 200 MB as float32 RGB; before cropping, an image may be resized to twice that.
_MAX_SIDE = 8192

DTYPES = ("float32", "uint8")

# A larger resized image is a mistake, such as a one-pixel-high strip scaled up.
_MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Preprocess:
    """Settings from decoded image to network input.

    Attributes:
        mode: "RGB" (3 channels) or "L" (1 channel, ITU-R 601-2 luma as Pillow computes it).
        resize: length of the shorter side in pixels (the longer follows), (height, width), or None to keep the size.
        crop: centre crop, (height, width) in pixels, or None. Smaller images are padded with zeros.
        interpolation: a key of INTERPOLATIONS. Resampling is antialiased, as in Pillow.
        mean, std: one value per channel, on the scale [0, 1].
        dtype: of the tensor. float32 is (pixels / 255 - mean) / std; uint8 is the unchanged pixels, 0 to 255, for a
            network that scales and normalizes them itself; mean is then 0 and std 1.
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
                "a network that takes uint8 pixels normalizes them itself, but mean and std are given",
                fix="leave out mean and std (0 and 1)",
            )
        pairs = [(self.resize, self.resize) if isinstance(self.resize, int) else self.resize, self.crop]
        for pair in pairs:
            if pair is not None and not (
                isinstance(pair, tuple) and len(pair) == 2 and all(type(side) is int and side >= 1 for side in pair)
            ):
                raise RecipeError(f"the image size {pair} is invalid", fix="sizes are in whole pixels, at least 1")
            if pair is not None and max(pair) > _MAX_SIDE:
                raise RecipeError(f"the image size {pair} is too large", fix=f"use at most {_MAX_SIDE} pixels per side")

    def pixels(self, image: Image.Image) -> Image.Image:
        """Convert, resize and crop a decoded image; the result has 8 bits per channel, in `mode`.

        Raises:
            DataError: the image has more than 8 bits per channel.
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
        """Convert an image from `pixels` (or an augmentation) to [c, h, w] in `dtype`."""
        array = np.asarray(image, dtype=np.uint8)
        planes = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
        if self.dtype == "uint8":
            return planes
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        return (planes.astype(np.float32) / np.float32(255) - mean) / std

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Preprocess a decoded image to [c, h, w] in `dtype`."""
        return self.normalize(self.pixels(image))

    def checksum(self, image: Image.Image) -> int:
        """CRC-32 of a decoded image's size and pixels in `mode`, before any other step."""
        converted = _converted(image, self.mode)
        return zlib.crc32(converted.tobytes(), zlib.crc32(f"{converted.width}x{converted.height}".encode()))

    def batch(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Preprocess decoded images to [n, c, h, w] in `dtype`."""
        return np.stack([self(image) for image in images])


def decode(source: bytes | Path | Member) -> Image.Image:
    """Decode an image file to 8 bits per channel and turn it upright by its EXIF orientation.

    Photos are decoded at full size, since decoding at a reduced size gives different pixels.

    Raises:
        DataError: the file is missing, truncated, too large, not an image, or has no 8-bit form; the message names it.
    """
    with opened(source) as image:
        image.load()
        return eight_bits(ImageOps.exif_transpose(image))


class Header(NamedTuple):
    """An image file's header: (width, height) in pixels, and Pillow's mode."""

    size: tuple[int, int]
    mode: str


def read_header(source: Path | Member) -> Header:
    """Read only an image file's header.

    Raises:
        DataError: `decode` would refuse the file because of its header; the message names it.
    """
    with opened(source) as image:
        return Header(image.size, image.mode)


@contextlib.contextmanager
def opened(source: bytes | Path | Member) -> Iterator[Image.Image]:
    """Open an image file, reading only its header; any error in the block is raised as a DataError."""
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF data need not affect the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _content(source) as content, _open(content) as image:
                if image.mode not in _MODES | SIXTEEN_BITS:
                    raise DataError(
                        f"{name} has Pillow mode {image.mode}, whose range of values is unknown",
                        fix="convert it to 8 bits per channel, or pass --skip-corrupt",
                    )
                yield image
    except EdgeKitError:
        raise
    except FileNotFoundError as error:
        if isinstance(source, Path) and source.is_symlink():
            raise DataError(
                f"{name} is a link to {source.readlink()}, which does not exist",
                fix="restore or remove it, or pass --skip-corrupt",
            ) from error
        raise DataError(f"no such image: {name}", fix="check the path") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{name} has more than {MAX_PICTURE / 1e6:.0f} million pixels",
            fix="reduce its size, or pass --skip-corrupt",
        ) from error
    except Exception as error:  # Pillow's parsers raise errors of many kinds
        raise DataError(
            f"cannot decode {name}: {error}", fix="replace or remove the file, or pass --skip-corrupt"
        ) from error


def _content(source: bytes | Path | Member) -> contextlib.AbstractContextManager[BinaryIO | Path]:
    if isinstance(source, Path):
        return contextlib.nullcontext(source)
    return io.BytesIO(source) if isinstance(source, bytes) else source.open()


def _open(source: BinaryIO | Path) -> Image.Image:
    """Image.open with EdgeKit's limit of pixels; Pillow's limit (89 million) is a global variable."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PICTURE
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def eight_bits(image: Image.Image) -> Image.Image:
    """A decoded image with 8 bits per channel."""
    if image.mode not in SIXTEEN_BITS:
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode not in _MODES:
        raise DataError(
            f"the image does not have 8 bits per channel (Pillow mode {image.mode})", fix="convert it to RGB or L first"
        )
    return image if image.mode == mode else image.convert(mode)


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing; a single number is applied as in torchvision, truncating the longer side."""
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """torchvision's CenterCrop on a PIL image, including its padding and rounding."""
    if width > image.width or height > image.height:
        left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
        right, bottom = max(0, (width - image.width + 1) // 2), max(0, (height - image.height + 1) // 2)
        image = ImageOps.expand(image, (left, top, right, bottom), fill=0)
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
