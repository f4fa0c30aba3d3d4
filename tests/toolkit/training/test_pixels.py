"""Pixels in memory and from loader processes are the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgekit.deploy.errors import DataError
from edgekit.deploy.image_sources import open_images
from edgekit.deploy.preprocess import Preprocess
from edgekit.toolkit.training import pixels
from edgekit.toolkit.training.pixels import Decoded, Resident, Streamed, open_pixels

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
