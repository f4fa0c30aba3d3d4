"""Pixels in memory and from loader processes are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgekit.deploy.errors import DataError
from edgekit.deploy.image_sources import open_images
from edgekit.deploy.images import ImageSet
from edgekit.deploy.preprocess import Preprocess, decode
from edgekit.toolkit.training import pixels
from edgekit.toolkit.training.pixels import Decoded, Resident, Streamed, open_pixels
from edgekit.toolkit.training.random_crop import RandomCrop
from PIL import Image
from torchvision.transforms import v2

CPU = torch.device("cpu")
SMALL = Preprocess("RGB", 16, (12, 14), "bilinear", (0.0,) * 3, (1.0,) * 3)
PLAN = [np.array([5, 0, 3]), np.array([1]), np.array([2, 4])]


def _all(source: pixels.Pixels, epoch: int = 0) -> list[tuple[torch.Tensor, list[int]]]:
    return [(batch.pixels, batch.targets.tolist()) for batch in source.batches(PLAN, epoch)]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_memory_and_processes_give_the_same_pixels(image_folder: Callable[..., Path], workers: int) -> None:
    """In the order of the plan, and equal to the device's preprocessing before normalization."""
    images = open_images(image_folder(each=3, size=20))
    decoded = Decoded(images, SMALL)
    resident = open_pixels(decoded, workers, CPU, "reading")
    assert isinstance(resident, Resident)
    expected = [
        (torch.stack([torch.from_numpy(np.array(SMALL.pixels(images[i].image))).permute(2, 0, 1) for i in indices]),
         images.targets[indices].tolist())
        for indices in PLAN
    ]  # fmt: skip
    for found in (_all(resident), _all(Streamed(decoded, workers, CPU))):
        for (first, first_targets), (second, second_targets) in zip(found, expected, strict=True):
            assert torch.equal(first, second)
            assert first_targets == second_targets


def test_what_does_not_fit_or_changes_is_streamed(
    image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random crops differ between epochs; too many images would fill the memory."""
    images = open_images(image_folder(each=3, size=20))
    assert isinstance(open_pixels(Decoded(images, SMALL, 0.5), 0, CPU, ""), Streamed)
    monkeypatch.setattr(pixels, "memory_cap", lambda: (4 * 6 * 3 * 12 * 14 - 4, "unavailable"))
    assert isinstance(open_pixels(Decoded(images, SMALL), 0, CPU, ""), Streamed)


def test_a_random_crop_depends_on_image_and_epoch_alone(image_folder: Callable[..., Path]) -> None:
    """The same crop in any order and process, another one in the next epoch; dropout's numbers stay untouched."""
    decoded = Decoded(open_images(image_folder(each=3, size=20)), SMALL, 0.3, seed=7)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = decoded[0, 2][0]
    assert torch.equal(torch.rand(3), expected)
    decoded[0, 1]
    assert torch.equal(decoded[0, 2][0], first)
    assert not torch.equal(decoded[1, 2][0], first)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_image_is_named(image_folder: Callable[..., Path], workers: int) -> None:
    """Also from a loader process, as one clear line."""
    folder = image_folder(each=3, size=20)
    victim = sorted((folder / "cat").iterdir())[1]
    images = open_images(folder)
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=victim.name):
        open_pixels(Decoded(images, SMALL), workers, CPU, "reading")


def _photo(path: Path, orientation: int = 1, size: tuple[int, int] = (512, 384)) -> Path:
    """A smooth picture with an EXIF orientation."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_random_crop_is_that_of_torchvision(tmp_path: Path, orientation: int, share: float) -> None:
    """Decoded at reduced size, it shows the same part of the upright picture."""
    images = ImageSet(("a",), ("a",), np.zeros(1, np.int64), [_photo(tmp_path / "a.jpg", orientation)])
    crop, expected = RandomCrop(share, SMALL), v2.RandomResizedCrop((12, 14), scale=(share, 1.0))
    for seed in range(5):
        torch.manual_seed(seed)
        wanted = np.asarray(expected(images[0].image), np.float64)
        assert np.abs(np.asarray(crop(images, 0, seed), np.float64) - wanted).mean() < 4


def test_only_random_crops_are_decoded_at_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never with fewer pixels than the crop gets, and never for what is evaluated."""
    images = ImageSet(("a",), ("a",), np.zeros(1, np.int64), [_photo(tmp_path / "a.jpg")])
    sizes: list[tuple[int, int]] = []
    real = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], resample: int, box: Any = None) -> Image.Image:
        if box:
            sizes.append(image.size)
            assert box[2] - box[0] >= size[0]
            assert box[3] - box[1] >= size[1]
        return real(image, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for epoch in range(20):
        Decoded(images, SMALL, 0.3)[epoch, 0]
    assert min(sizes) < (512, 384)
    monkeypatch.undo()
    exact = Decoded(images, SMALL)[0, 0][0]
    assert torch.equal(exact, torch.from_numpy(np.array(SMALL.pixels(decode(tmp_path / "a.jpg")))).permute(2, 0, 1))
