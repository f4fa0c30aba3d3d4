"""Trainings that go wrong, each planted; the tool names the cause and what to try."""

from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.errors import TrainingError
from edgekit.toolkit import datasets
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.advice import Circumstances, advise, over_fitting
from edgekit.toolkit.training.recipe import Recipe

FINE = Circumstances(0.1, 1000, 1.0, 0.01)


def _rows(train: list[float], validation: list[float], accuracy: float = 0.6, waiting: float = 0.0) -> list[dict]:
    return [
        {"epoch": n + 1, "train_loss": t, "validation_loss": v, "train_accuracy": accuracy,
         "validation_accuracy": accuracy, "waiting": waiting}
        for n, (t, v) in enumerate(zip(train, validation, strict=True))
    ]  # fmt: skip


def _warnings(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> list[str]:
    training.train(recipe, out=Path("made"))
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def recipe() -> Recipe:
    """A small network on the digits."""
    return Recipe.load("digits", ["model.name=lenet", "preprocess.size=16", "train.epochs=3", "augment.pad_crop=0"])


def test_a_good_training_has_no_warning(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """Nor has one whose accuracy is low, but above guessing."""
    assert _warnings(recipe.changed(["train.lr=0.01"]), caplog) == []


def test_shuffled_labels(recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The network learns the training images by heart, and nothing about the others."""
    with np.load(Path(datasets.__file__).parent / "data" / "digits.npz") as found:
        images, labels, names = found["images"][:300], found["labels"][:300], found["names"]
    shuffled = np.random.default_rng(0).permutation(labels)
    np.savez(tmp_path / "shuffled.npz", images=images, labels=shuffled, names=names)
    settings = [f'data.data="{tmp_path / "shuffled.npz"}"', "train.epochs=25", "train.lr=0.01"]
    (warning, *others) = _warnings(recipe.changed(settings), caplog)
    assert "nothing learned" in warning
    assert "labels belong to the images" in warning
    assert all("over-fitting" in other for other in others)


def test_inputs_that_are_not_normalized(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """A std on the wrong scale makes inputs thousands of times too large: the loss overflows, or nothing is learned."""
    wrong = recipe.changed(["preprocess.mean=[0.0]", "preprocess.std=[0.0001]", "train.optimizer=sgd"])
    with pytest.raises(TrainingError, match="the inputs have a standard deviation of") as caught:
        training.train(wrong.changed(["train.lr=0.1"]), out=Path("nan"))
    assert "preprocess.std" in caught.value.fix
    (warning,) = _warnings(wrong.changed(["train.lr=1e-12", "train.epochs=1"]), caplog)
    assert "nothing learned" in warning
    assert "the inputs have a standard deviation of" in warning


def test_a_rate_that_is_too_low(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing moves, so other rates are named."""
    (warning,) = _warnings(recipe.changed(["train.lr=1e-9", "train.epochs=1"]), caplog)
    assert "ten times the rate" in warning
    assert "--set train.lr=1e-10" in warning


def test_a_loss_that_does_not_fall() -> None:
    """A rate far too high can stay a little above guessing; a network that has little left to learn is no such case."""
    wavering = _rows([1.35, 1.38, 1.34, 1.37], [1.4] * 4, accuracy=0.32)
    (warning,) = advise(wavering, FINE._replace(guessing=0.25, lr=0.1))
    assert "the training loss has not fallen since the first epoch (1.350, then at least 1.340)" in warning
    assert "--set train.lr=0.01)" in warning
    assert list(advise(_rows([1.35, 1.2, 1.1], [1.3] * 3), FINE)) == []
    assert list(advise(_rows([0.11, 0.11, 0.11], [0.3] * 3, accuracy=0.97), FINE)) == []
    assert list(advise(wavering[:2], FINE)) == []


def test_over_fitting_is_recognised() -> None:
    """The validation loss rises while the training loss falls; noise is not over-fitting."""
    train, rising = [2.0, 1.0, 0.5, 0.2, 0.1], [2.0, 1.2, 1.0, 1.3, 1.6]
    assert "since epoch 3" in (over_fitting(_rows(train, rising)) or "")
    assert over_fitting(_rows(train, rising)[:4]) is None
    assert over_fitting(_rows(train, train)) is None
    assert list(advise(_rows(train, train), FINE)) == []


def test_divergence_is_recognised() -> None:
    """The training loss rises and the training accuracy falls; a rise alone is noise."""
    rows = _rows([2.0, 1.5, 1.4, 1.42, 1.45], [2.0, 1.6, 1.5, 1.5, 1.5])
    assert list(advise(rows, FINE)) == []
    for row, accuracy in zip(rows, [0.3, 0.4, 0.45, 0.43, 0.39], strict=True):
        row["train_accuracy"] = accuracy
    (line,) = advise(rows, FINE)
    assert "diverging since epoch 3: the training loss rose from 1.400 to 1.450" in line
    assert "--set train.lr=0.001" in line
    assert list(advise(rows[:3], FINE)) == []


def test_slow_images_are_named() -> None:
    """More than a third of the time spent on waiting is worth a line."""
    (line,) = advise(_rows([1.0], [1.0], waiting=0.5), FINE)
    assert "50% of the time" in line
