"""Augmentation in batches: each image gets its own changes, and they do not depend on its batch."""

import numpy as np
import pytest
import torch
from edgekit.deploy.preprocess import Preprocess
from edgekit.toolkit.training.augment import Augmentation, normalized
from edgekit.toolkit.training.recipe import AugmentSettings
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
PLAIN = Preprocess("RGB", None, (8, 10), "bilinear", (0.0,) * 3, (1.0,) * 3)


def _pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (count, 3, 8, 10), np.uint8))


def _changed(augmentation: Augmentation, pixels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Pixels from 0 to 255 after the changes."""
    return augmentation(pixels, augmentation.draw(len(pixels), seed, CPU)) * 255


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99))
def test_crops_and_flips_move_pixels(pad: int, flip: float, seed: int) -> None:
    """Every result is a window of the zero-padded image, mirrored or not; each is possible, and none is invented."""
    pixels = _pixels(6, seed)
    augmentation = Augmentation(AugmentSettings(pad_crop=pad, horizontal_flip=flip), PLAIN)
    changed = _changed(augmentation, pixels, seed).round().to(torch.uint8)
    for before, after in zip(pixels, changed, strict=True):
        padded = torch.nn.functional.pad(before, (pad,) * 4)
        windows = [
            padded[:, top : top + 8, left : left + 10] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
        ]
        allowed = [w for w in windows if flip < 1] + [w.flip(-1) for w in windows if flip > 0]
        assert any(torch.equal(after, window) for window in allowed)


def test_images_of_a_batch_change_differently() -> None:
    """Copies of one image end at many places, mirrored and not, in other colours."""
    pixels = _pixels(1).expand(200, -1, -1, -1)
    moved = _changed(Augmentation(AugmentSettings(pad_crop=2, horizontal_flip=0.5), PLAIN), pixels)
    assert len(torch.unique(moved.flatten(1), dim=0)) > 40
    coloured = _changed(Augmentation(AugmentSettings(colour=0.3), PLAIN), pixels)
    assert len(torch.unique(coloured.flatten(1), dim=0)) == 200


def test_a_change_does_not_depend_on_the_batch() -> None:
    """One image alone gets the same changes as among others: batches may be divided among processes."""
    augmentation = Augmentation(AugmentSettings(pad_crop=2, horizontal_flip=0.5, colour=0.3, erase=0.5), PLAIN)
    pixels, draw = _pixels(20), augmentation.draw(20, 3, CPU)
    together = augmentation(pixels, draw)
    for index in range(20):
        alone = augmentation(pixels[index : index + 1], draw.of(torch.tensor([index])))
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-6)
    assert not torch.equal(augmentation(pixels, augmentation.draw(20, 4, CPU)), together)


def test_colours_are_those_of_torchvision() -> None:
    """Brightness, contrast and saturation by the same factors, up to torchvision's rounding to whole numbers."""
    from torchvision.transforms.v2 import functional

    pixels = _pixels(12)
    augmentation = Augmentation(AugmentSettings(colour=0.4), PLAIN)
    draw = augmentation.draw(12, 1, CPU)
    changed = augmentation(pixels, draw) * 255
    for image, factors, actual in zip(pixels, draw.colour.tolist(), changed, strict=True):
        brightness, contrast, saturation = factors
        expected = functional.adjust_brightness(image.float() / 255, brightness)
        expected = functional.adjust_saturation(functional.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(actual, expected * 255, rtol=0, atol=0.1)


def test_erased_rectangles() -> None:
    """About the asked share of images has a rectangle of the mean, between 2 % and a third of the area."""
    pixels = _pixels(400)
    augmentation = Augmentation(AugmentSettings(erase=0.25), PLAIN)
    erased = (augmentation(pixels, augmentation.draw(400, 0, CPU)) == 0).all(1)
    areas = erased.flatten(1).sum(1)
    assert 60 < int((areas > 0).sum()) < 140
    assert int(areas.max()) <= 8 * 10 / 2  # rounded sides exceed the share a little
    for mask in erased[areas > 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask.sum() == len(rows) * len(columns)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_no_changes_are_the_device_s_tensor(mode: str) -> None:
    """Without augmentation, and with grey images, the input is normalized only."""
    channels = 3 if mode == "RGB" else 1
    preprocess = Preprocess(mode, None, (8, 10), "bilinear", (0.4,) * channels, (0.2,) * channels)  # type: ignore[arg-type]
    pixels = _pixels(4)[:, :channels]
    plain = Augmentation(AugmentSettings(), preprocess)
    assert torch.equal(plain(pixels, plain.draw(4, 0, CPU)), normalized(pixels, preprocess))
    every = Augmentation(AugmentSettings(pad_crop=1, horizontal_flip=0.5, colour=0.1, erase=1.0), preprocess)
    assert every(pixels, every.draw(4, 0, CPU)).shape == (4, channels, 8, 10)
