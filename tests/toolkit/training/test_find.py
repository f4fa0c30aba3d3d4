"""The learning rate and the batch size that are found before a training."""

import json
from pathlib import Path

import pytest
import torch
from edgekit.deploy.errors import RecipeError, TrainingError
from edgekit.toolkit.training import find_batch_size as batch_finder
from edgekit.toolkit.training.find_lr import LR_FINDER, RangeTest, suggested_rate
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.train import resume_training, train
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture
def recipe() -> Recipe:
    """A small network with dropout and BatchNorm, so that a search could disturb every kind of state."""
    return Recipe.load("digits", ["model.name=cnn23", "preprocess.size=8", "train.epochs=1", "augment.pad_crop=1"])


def test_a_found_rate_trains_as_if_it_had_been_given(recipe: Recipe) -> None:
    """The search leaves weights and random numbers as they were, and is the same for one seed."""
    found = train(recipe, out=Path("found"), find=["lr"])
    rate = found.manifest.details["recipe"]["train"]["lr"]  # type: ignore[index]
    assert rate != recipe.train.lr
    given = train(recipe.changed([f"train.lr={rate}"]), out=Path("given"))
    first, second = load_file(found.model_path), load_file(given.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert found.manifest.details == given.manifest.details
    with Image.open(Path("found.train") / LR_FINDER) as picture:
        assert picture.size[0] > picture.size[1]


def test_a_resumed_training_does_not_search_again(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is in the run's recipe before the first epoch ends."""
    from edgekit.toolkit.training import checkpoint

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=Path("stopped"), find=["lr"])
    recorded = json.loads(Path("stopped.train/recipe.json").read_text())["train"]["lr"]
    assert recorded != recipe.train.lr
    resumed = resume_training(Path("stopped.train"))
    assert resumed.manifest.details["recipe"]["train"]["lr"] == recorded  # type: ignore[index]


def test_an_interrupted_search_is_not_resumed_with_another_rate(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a found rate there is no recipe to resume."""
    from edgekit.toolkit.training import find_lr

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(find_lr, "range_test", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=Path("stopped"), find=["lr"])
    with pytest.raises(TrainingError, match="not the folder of an unfinished training"):
        resume_training(Path("stopped.train"))


def test_the_suggested_rate_is_a_third_of_the_best() -> None:
    """To two digits, whatever comes after the smallest loss."""
    assert suggested_rate(RangeTest([0.001, 0.01, 0.1, 1.0], [2.3, 1.5, 1.0, 4.0])) == 0.033
    assert suggested_rate(RangeTest([0.001, 0.01], [2.3, 1.0])) == 0.0033


@pytest.mark.parametrize("losses", [[], [2.3, 2.31, 2.29, 5.0], [1.0, 2.0, 5.0]])
def test_a_loss_that_does_not_fall_gives_no_rate(losses: list[float]) -> None:
    """Nothing was learned at any rate: a rate from noise would be wrong."""
    with pytest.raises(TrainingError, match="does not fall at any learning rate"):
        suggested_rate(RangeTest([10.0**-number for number in range(len(losses))], losses))


def _speeds(monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float | None]) -> list[int]:
    tried: list[int] = []

    def speed(run: object, size: int) -> float | None:
        tried.append(size)
        return speeds[size]

    monkeypatch.setattr(batch_finder, "_images_per_s", speed)
    return tried


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({16: 100.0, 32: 104.0}, 16),  # gains less than 5 %
        ({16: 100.0, 32: 180.0}, 32),  # 64 would leave 18 steps per epoch
        ({16: 100.0, 32: None}, 16),  # the GPU's memory is full
    ],
)
def test_batches_are_doubled_while_it_pays_off(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float | None], expected: int
) -> None:
    """The bundle's recipe has the largest size that was worth it."""
    tried = _speeds(monkeypatch, speeds)
    bundle = train(recipe, out=Path("made"), find=["batch_size"])
    assert bundle.manifest.details["recipe"]["train"]["batch_size"] == expected  # type: ignore[index]
    assert tried == list(speeds)


def test_a_full_memory_ends_the_search(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's error in the middle of a step is not shown, and the training goes on with the size before."""
    from torch.optim import AdamW

    real, steps = AdamW.step, 0

    def step(self: AdamW, *arguments: object) -> object:
        nonlocal steps
        steps += 1
        if steps == before + 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_finder, "_MOST_STEPS", 1)
    before = batch_finder._WARM_UP + 1 + batch_finder._BLOCKS
    monkeypatch.setattr(AdamW, "step", step)
    bundle = train(recipe, out=Path("made"), find=["batch_size"])
    assert bundle.manifest.details["recipe"]["train"]["batch_size"] == 16  # type: ignore[index]


def test_a_network_too_large_for_any_batch_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the first size fits; with too few images, no size leaves enough steps."""
    _speeds(monkeypatch, {16: None})
    with pytest.raises(RecipeError, match="16 images per step do not fit"):
        train(recipe, out=Path("large"), find=["batch_size"])
    with pytest.raises(RecipeError, match="1198 training images are fewer than 20 steps of 64"):
        train(recipe.changed(["train.accumulate=4"]), out=Path("few"), find=["batch_size"])


@pytest.mark.slow
def test_all_processes_find_the_same_rate(tmp_path: Path) -> None:
    """Two processes find what one finds, and train with it."""
    import os
    import subprocess
    import sys

    command = ["-m", "edgekit.toolkit.cli", "train", "--model", "lenet", "--data", "digits", "--epochs", "1",
               "--find-lr", "--out"]  # fmt: skip
    rates = []
    for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2"])):
        subprocess.run(
            [sys.executable, *start, *command, name], cwd=tmp_path, capture_output=True, text=True, check=True,
            timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        rates.append(json.loads((tmp_path / f"{name}.train/recipe.json").read_text())["train"]["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=0.3)
