"""Sweeps: a strict grid, one process per point, exact continuation, and a table of what was found."""

import csv
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError, RecipeError, TrainingError
from edgekit.toolkit.training import checkpoint, run_sweep, sweep_child
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.sweep import MAX_POINTS, Sweep
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import EDGEKIT, heed_signals

RECIPE = {
    "name": "small", "model": {"name": "lenet"}, "preprocess": {"size": 16},
    "train": {"schedule": "step", "optimizer": "sgd", "lr": 0.05, "epochs": 1},
}  # fmt: skip


def _sweep(**grid: list[Any]) -> Sweep:
    return Sweep.from_dict({**RECIPE, "sweep": {key.replace("_", ".", 1): values for key, values in grid.items()}})


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the points here: a process that imports torch takes longer than its training."""
    monkeypatch.setattr(run_sweep, "_in_process", lambda task: sweep_child.run(json.loads(json.dumps(task)))["error"])


@given(
    st.dictionaries(
        st.sampled_from(["train.epochs", "train.batch_size", "train.step_size", "train.seed"]),
        st.lists(st.integers(1, 50), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_the_points_are_the_product(grid: dict[str, list[object]]) -> None:
    """Each combination once, in a stable order, with its own name and recipe."""
    sweep = Sweep.from_dict({**RECIPE, "sweep": grid})
    points = sweep.points()
    assert [tuple(point.values.values()) for point in points] == list(itertools.product(*grid.values()))
    assert len({point.name for point in points}) == len({point.recipe.name for point in points}) == len(points)
    for point in points:
        assert point.recipe == sweep.recipe.with_values({**point.values, "name": point.recipe.name})
    assert Sweep.from_dict(json.loads(json.dumps(sweep.to_dict()))).points() == points


@pytest.mark.parametrize("keys", ['train.epochs = [1, 2]\nmodel.activation = ["relu"]',
                                  '"train.epochs" = [1, 2]\n"model.activation" = ["relu"]'])  # fmt: skip
def test_a_file_is_read(tmp_path: Path, keys: str) -> None:
    """Keys with and without quotes are the same; the file's name is the sweep's, and options change the recipe."""
    (tmp_path / "mine.toml").write_text(f'[model]\nname = "lenet"\n[sweep]\n{keys}\n')
    sweep = Sweep.load(str(tmp_path / "mine.toml"), ["train.lr=0.5"])
    assert [point.name for point in sweep.points()] == ["001-1-relu", "002-2-relu"]
    assert sweep.recipe.name == "mine"
    assert {point.recipe.train.lr for point in sweep.points()} == {0.5}
    with pytest.raises(RecipeError, match="train.epochs is part of the sweep"):
        Sweep.load(str(tmp_path / "mine.toml"), ["train.epochs=5"])
    with pytest.raises(RecipeError) as caught:
        Recipe.load(str(tmp_path / "mine.toml"))
    assert "--sweep" in caught.value.fix


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "0 points"),
        ({"train.epochs": []}, "must be a list"),
        ({"train": {"epochs": 3}}, "sweep.train.epochs must be a list"),
        ({"train.epochs": [1, 2, 1]}, "a value twice"),
        ({"name": ["a", "b"]}, "sweep.name must be"),
        ({"train.epoch": [1]}, "did you mean train.epochs"),
        ({"trian.epochs": [1]}, "did you mean train"),
        ({"train.epochs": [1, 0]}, "1 or more"),
        ({"train.lr": [0.1, "fast"]}, "must be of type float"),
        ({"model.name": ["lenet", "lennet"]}, "did you mean lenet"),
        ({"train.seed": list(range(20)), "data.seed": list(range(20))}, f"1 to {MAX_POINTS}"),
        (3, "sweep must be a section"),
    ],
)
def test_a_wrong_grid_is_refused(section: object, message: str) -> None:
    """Before anything is trained, and with what is wrong."""
    with pytest.raises(RecipeError, match=message):
        Sweep.from_dict({**RECIPE, "sweep": section})


def test_longer_trainings_continue_shorter_ones_exactly(
    in_this_process: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights equal those of a training of its own; the shorter bundle stays."""
    sweep = _sweep(train_epochs=[1, 2], model_activation=["relu", "swish"])
    found = run_sweep.run_sweep(sweep, out=Path("s"))
    assert caplog.text.count("which has fewer epochs") == 2
    assert [row["epochs"] for row in found.rows] == [1, 1, 2, 2]
    for point in sweep.points()[-2:]:
        direct = training.train(point.recipe, out=Path(f"direct-{point.name}"))
        swept = Bundle.open(found.folder / point.name)
        first, second = load_file(direct.model_path), load_file(swept.model_path)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert swept.manifest.name == point.recipe.name
        assert Recipe.from_dict(swept.manifest.details["recipe"]) == point.recipe


def test_a_schedule_over_all_epochs_is_not_continued(in_this_process: None, caplog: pytest.LogCaptureFixture) -> None:
    """With one-cycle, a longer training differs from its first epoch on."""
    sweep = Sweep.from_dict({**RECIPE, "train": {"schedule": "one-cycle"}, "sweep": {"train.epochs": [1, 2]}})
    run_sweep.run_sweep(sweep, out=Path("s"))
    assert "fewer epochs" not in caplog.text
    assert "resuming" not in caplog.text


def test_a_failure_is_a_row(in_this_process: None, edgekit: Callable[..., Any], tmp_path: Path) -> None:
    """A rate at which the loss is not finite does not stop the others; the table and its files name the reason."""
    lines = ['name = "mixed"', "[model]", 'name = "lenet"', "[preprocess]", "size = 16", "[train]", "epochs = 1",
             'optimizer = "sgd"', "[sweep]", "train.lr = [1e30, 0.05]"]  # fmt: skip
    (tmp_path / "mixed.toml").write_text("\n".join(lines))
    failed, good = json.loads(edgekit("train", "--sweep", "mixed.toml", "--json").stdout)
    assert "the loss became nan" in failed["note"]
    assert (failed["trained"], failed["test_accuracy"]) == (False, None)
    assert good["values"] == {"train.lr": 0.05}
    assert 0 < good["test_accuracy_low"] < good["test_accuracy"] < good["test_accuracy_high"] < 1
    assert (good["epochs"], good["test_images"]) == (1, 359)
    assert good["seconds"] > 0
    folder = tmp_path / "runs/001-mixed.sweep"
    with (folder / "sweep.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["train.lr"] for row in table] == ["1e+30", "0.05"]
    assert float(table[1]["test_accuracy"]) == good["test_accuracy"]
    with Image.open(folder / "sweep.png") as plot:
        assert plot.format == "PNG"
    (listed,) = json.loads(edgekit("runs", "--json").stdout)
    assert (listed["path"], listed["kind"]) == ("runs/001-mixed.sweep", "sweep")
    again = edgekit("train", "--sweep", "mixed.toml", "--resume")
    assert "001-1e+30" in again.stderr  # the failed point is tried again
    assert "002-0.05\n" not in again.stderr
    assert "0.05" in again.stdout
    edgekit("clean", "001-mixed.sweep")
    assert not folder.exists()


def test_if_no_point_is_trained_the_command_fails(in_this_process: None) -> None:
    """The reason of the first one is the error."""
    with pytest.raises(TrainingError, match="no point could be trained.*the loss became"):
        run_sweep.run_sweep(_sweep(train_lr=[1e30, 1e31]), out=Path("s"))


def test_an_interrupted_sweep_is_resumed(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is finished is not trained again, and the interrupted point continues from its last epoch."""
    sweep = _sweep(train_epochs=[1, 3])
    whole = run_sweep.run_sweep(sweep, out=Path("whole"))
    real, saved = checkpoint.save, []

    def stopping(work: Path, *arguments: Any) -> None:
        real(work, *arguments)
        saved.append(work.name)
        if len(saved) == 2:  # in the second point, which continues the first
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_sweep.run_sweep(sweep, runs=Path("runs"))
    assert "repeat the command with --resume" in caplog.text
    (folder,) = Path("runs").glob("*.sweep")
    first = (folder / "001-1/manifest.json").read_bytes()
    with pytest.raises(TrainingError, match="no sweep with this recipe"):
        run_sweep.run_sweep(_sweep(train_epochs=[1, 4]), runs=Path("runs"), resume=True)
    caplog.clear()
    resumed = run_sweep.run_sweep(sweep, runs=Path("runs"), resume=True)
    assert "resuming runs/001-small.sweep/002-3.train after epoch 2" in caplog.text
    assert resumed.folder == folder
    assert (folder / "001-1/manifest.json").read_bytes() == first
    for point in sweep.points():
        one, two = (load_file(place / point.name / "model.safetensors") for place in (whole.folder, folder))
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("damage", ["another", "recipe", "accuracy"])
def test_a_foreign_bundle_is_not_a_row(in_this_process: None, damage: str) -> None:
    """A folder that was exchanged is refused in one line, not shown as the point's result."""
    sweep = _sweep(train_lr=[0.05])
    found = run_sweep.run_sweep(sweep, out=Path("s"))
    path = found.folder / "001-0.05/manifest.json"
    manifest = json.loads(path.read_text())
    if damage == "another":
        manifest["details"]["recipe"]["train"]["lr"] = 0.1
    elif damage == "recipe":
        del manifest["details"]["recipe"]
    else:
        manifest["details"]["test"] = {"accuracy": "high"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="001-0.05 is not of this sweep"):
        run_sweep.run_sweep(sweep, out=Path("s"), resume=True)


@pytest.mark.parametrize(
    "content", ["", "epoch,seconds\n1,2\n", "epoch\nx\n", "epoch\n\0\n", "epoch\n" + "1" * 200_000]
)
def test_unreadable_metrics_are_one_line(in_this_process: None, content: str) -> None:
    """Those of an interrupted point are read for the plot."""
    sweep = _sweep(train_lr=[0.05])
    folder = run_sweep._new(sweep, Path("s"), Path("runs"))
    work = folder / "001-0.05.train"
    work.mkdir()
    (work / "metrics.csv").write_text(content)
    if content:
        with pytest.raises(TrainingError, match="cannot read"):
            run_sweep.run_sweep(sweep, out=Path("s"), resume=True)
    else:
        assert run_sweep._history(folder, sweep.points()[0]) == []


def test_a_sweep_runs_once_at_a_time(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process does not train in the same folder, and nothing is overwritten."""
    sweep, errors = _sweep(train_lr=[0.05]), []

    def during(*_: object, **__: object) -> None:
        for resume in (False, True):
            with pytest.raises(EdgeKitError) as caught:
                run_sweep.run_sweep(sweep, out=Path("s"), resume=resume)
            errors.append(str(caught.value))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_sweep, "_in_process", during)
    with pytest.raises(KeyboardInterrupt):
        run_sweep.run_sweep(sweep, out=Path("s"))
    assert errors == ["s already exists", "another process runs the sweep in s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep", "plain.toml"), "has no section [sweep]"),
        (("--sweep", "grid.toml", "--model", "lenet"), "leave out --recipe, --model"),
        (("--sweep", "grid.toml", "--epochs", "3"), "train.epochs is part of the sweep"),
        (("--sweep", "grid.toml", "--resume"), "no sweep with this recipe"),
        (("--sweep", "missing.toml"), "pass a shipped recipe's name or a .toml file"),
        (("--recipe", "grid.toml"), "edgekit train --sweep grid.toml"),
        (("--json",), "--json is for --profile and --sweep"),
    ],
)
def test_wrong_requests_are_refused(
    edgekit: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Each with what to type instead."""
    (tmp_path / "plain.toml").write_text("[train]\nepochs = 1\n")
    (tmp_path / "grid.toml").write_text("[sweep]\ntrain.epochs = [1, 2]\n")
    done = edgekit("train", *arguments, code=1)
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_each_point_has_its_own_process(tmp_path: Path, edgekit: Callable[..., Any]) -> None:
    """Ctrl-C ends the point's process too and says how to continue; a killed process is a row with its signal."""
    (tmp_path / "s.toml").write_text(
        '[model]\nname = "lenet"\n[preprocess]\nsize = 16\n[train]\nschedule = "constant"\n[sweep]\n'
        "train.epochs = [1, 400]\n"
    )
    process = subprocess.Popen(
        [*EDGEKIT, "train", "--sweep", "s.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_signals,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if line.startswith("epoch   2"):
            break
    process.send_signal(signal.SIGINT)  # to the parent only
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "repeat the command with --resume" in output
    assert "Traceback" not in output
    folder = tmp_path / "runs/001-s.sweep"
    assert (folder / "001-1/manifest.json").is_file()
    assert not (folder / "002-400").exists()
    process = subprocess.Popen(
        [*EDGEKIT, "train", "--sweep", "s.toml", "--resume", "--json"], cwd=tmp_path, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    rows = json.loads(process.communicate(timeout=60)[0])
    assert [row["trained"] for row in rows] == [True, False]
    assert rows[1]["note"] == "its process ended by signal 9"
