"""Metrics as TensorBoard events, read back by TensorBoard's own reader."""

import csv
import sys
from pathlib import Path

import pytest
from edgekit.deploy.errors import RecipeError
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.train import extend_training, train


def _events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    assert accumulator.Tags()["tensors"] == ["recipe/text_summary"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]}  # fmt: skip


def test_events_are_the_rows_of_metrics_csv() -> None:
    """Same names, epochs and values; a continued training adds to them."""
    recipe = Recipe.load("digits", ["train.epochs=1", "train.schedule=constant", "train.tensorboard=true",
                                    "model.name=lenet", "preprocess.size=16"])  # fmt: skip
    train(recipe, out=Path("made"))
    extend_training(Path("made.train"), 2)
    folder = next(Path().glob("0*.train"))
    events = _events(folder / "events")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert set(events) == set(rows[0])
    for name, values in events.items():
        assert [step for step, _ in values] == [1, 2]
        assert [value for _, value in values] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)


def test_a_missing_package_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command that installs it, and nothing is left behind."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match="needs the package tensorboard") as caught:
        train(Recipe.load("digits", ["train.tensorboard=true"]), out=Path("made"))
    assert caught.value.fix == "pip install 'edgekit-vision[tensorboard]'"
    assert not list(Path().glob("made*"))
