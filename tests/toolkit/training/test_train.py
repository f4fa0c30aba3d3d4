"""Training: resumed bit for bit, with clear errors."""

import csv
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError, RecipeError, TrainingError
from edgekit.models.network import create_network
from edgekit.toolkit.training import checkpoint
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.curves import draw_curves
from edgekit.toolkit.training.recipe import Recipe
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import heed_signals


@pytest.fixture
def recipe() -> Recipe:
    """A small network with dropout, BatchNorm and random crops, so that every kind of state matters."""
    return Recipe.load("digits", ["model.name=cnn23", "preprocess.size=8", "train.epochs=4", "augment.pad_crop=1"])


def test_the_bundle_is_complete(trained: Bundle) -> None:
    """Weights, golden samples, the parts of the data, metrics and curves; better than guessing."""
    assert {"model.safetensors", "metrics.csv", "curves.png", "golden.npz"} <= set(trained.manifest.files)
    assert trained.manifest.details["test"]["accuracy"] > 0.25
    assert trained.manifest.parameters == sum(w.numel() for w in load_file(trained.model_path).values())
    rows = list(csv.DictReader((trained.path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert trained.manifest.preprocess.mode == "L"


@pytest.mark.parametrize(
    ("stop_after", "settings"),
    [
        (1, []),
        (3, []),
        (2, ["train.ema=0.9", "augment.mixup=0.2", "augment.cutmix=1.0", "augment.erase=0.3", "train.warmup=0.5",
             "train.schedule=cosine", "train.class_weights=balanced", "train.accumulate=2"]),
    ],
)  # fmt: skip
def test_resume_is_exact(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, stop_after: int, settings: list[str]) -> None:
    """A run stopped after any epoch and resumed ends with the same weights as an uninterrupted one."""
    recipe = recipe.changed(settings)
    uninterrupted = training.train(recipe, out=Path("whole"))
    real = checkpoint.save

    def stopping(work: Path, state: checkpoint.RunState, *arguments: object) -> None:
        real(work, state, *arguments)  # type: ignore[arg-type]
        if state.epoch == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, runs=Path("runs"))
    resumed = training.resume_training(training.newest_training(Path("runs")))
    first, second = load_file(uninterrupted.model_path), load_file(resumed.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert uninterrupted.manifest.details["best_validation"] == resumed.manifest.details["best_validation"]
    with pytest.raises(TrainingError, match="no unfinished"):
        training.newest_training(Path("runs"))


def test_a_finished_training_is_extended_exactly(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """Two epochs and two more equal four; the two-epoch bundle stays unchanged."""
    recipe = recipe.changed(["train.schedule=step", "train.step_size=1", "train.epochs=2"])
    short = training.train(recipe, runs=Path("runs"))
    longer = training.extend_training(training.newest_training(Path("runs"), finished=True), 4)
    direct = training.train(recipe.changed(["train.epochs=4"]), out=Path("whole"))
    first, second = load_file(direct.model_path), load_file(longer.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert longer.path != short.path
    assert Bundle.open(short.path).id == short.id
    assert longer.manifest.details["recipe"]["train"]["epochs"] == 4
    assert "depends on the number of epochs" not in caplog.text
    with pytest.raises(TrainingError, match="has 4 epochs already"):
        training.extend_training(training.newest_training(Path("runs"), finished=True), 3)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_extending_a_schedule_over_all_epochs_is_reported(
    recipe: Recipe, caplog: pytest.LogCaptureFixture, schedule: str
) -> None:
    """The rate continues at the longer schedule's value for that epoch, and the difference is reported."""
    recipe = recipe.changed(
        [f"train.schedule={schedule}", "train.epochs=1", "model.name=convnet", "preprocess.size=16"]
    )
    training.train(recipe, runs=Path("runs"))
    longer = training.extend_training(training.newest_training(Path("runs"), finished=True), 2)
    direct = training.train(recipe.changed(["train.epochs=2"]), out=Path("whole"))
    rates = [
        [row["lr"] for row in csv.DictReader((bundle.path / "metrics.csv").read_text().splitlines())]
        for bundle in (longer, direct)
    ]
    assert float(rates[0][1]) == pytest.approx(float(rates[1][1]))
    assert "depends on the number of epochs" in caplog.text


def test_a_running_training_is_locked(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume skips it, and a second training with the same --out ends before its first epoch."""
    errors: list[str] = []

    def during(*arguments: object) -> None:
        for attempt in (
            lambda: training.newest_training(Path("runs")),
            lambda: training.resume_training(Path("runs/a.train")),
        ):
            with pytest.raises(TrainingError) as caught:
                attempt()
            errors.append(str(caught.value))
        with pytest.raises(EdgeKitError, match="already exists"):
            training.train(recipe, out=Path("runs/a"))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", during)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe, out=Path("runs/a"))
    assert errors[0] == "no unfinished training in runs/"
    assert errors[1] == "another process is training in runs/a.train"
    assert training.newest_training(Path("runs")) == Path("runs/a.train")


def test_a_loss_of_nan_stops_training(recipe: Recipe) -> None:
    """The error gives the epoch, the step, the rate and what to try."""
    wild = recipe.changed(["train.optimizer=sgd", "train.lr=1e30", "train.schedule=constant", "model.name=lenet",
                           "preprocess.size=16"])  # fmt: skip
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+, at learning rate 1e\+30") as caught:
        training.train(wild, out=Path("wild"))
    assert "train.clip=1.0" in caught.value.fix
    assert not Path("wild").exists()


@pytest.mark.slow
def test_kill_9_keeps_the_last_epoch(tmp_path: Path, edgekit: Callable) -> None:
    """No bundle and no partial file remain; --resume finishes the training."""
    import sys

    command = [
        sys.executable,
        "-m",
        "edgekit.toolkit.cli",
        "train",
        "--set",
        "train.epochs=12",
        "--set",
        "preprocess.size=8",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if line.startswith("epoch   2"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["001-convnet-digits.train"]
    done = edgekit("train", "--resume")
    assert "resuming" in done.stderr
    assert Bundle.open(tmp_path / done.stdout.strip()).manifest.format == "torch"


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    """The last complete epoch is kept, and no traceback is shown."""
    import sys

    command = [sys.executable, "-m", "edgekit.toolkit.cli", "train", "--set", "train.epochs=500"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_signals,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if line.startswith("epoch   1"):
            break
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "edgekit train --resume" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["step", "cosine", "one-cycle", "constant"])
def test_optimizers_and_schedules(optimizer: str, schedule: str) -> None:
    """Each runs to its end, and the schedule changes the rate as expected."""
    settings = ["model.name=lenet", "preprocess.size=16", "train.epochs=2", "train.step_size=1", "train.gamma=0.5",
                "train.lr=0.01", "train.clip=1.0", "train.label_smoothing=0.1"]  # fmt: skip
    chosen = [f"train.optimizer={optimizer}", f"train.schedule={schedule}"]
    recipe = Recipe.load("digits", [*settings, *chosen])
    bundle = training.train(recipe, out=Path("made"))
    rates = [float(row["lr"]) for row in csv.DictReader((bundle.path / "metrics.csv").read_text().splitlines())]
    expected = {"step": [0.005, 0.0025], "cosine": [0.005, 0.0], "constant": [0.01, 0.01]}
    if schedule == "one-cycle":
        assert rates[0] > rates[1] > 0
    else:
        assert rates == pytest.approx(expected[schedule], abs=1e-6)


def _image(pixels: Any) -> Image.Image:
    return Image.fromarray(pixels)


def _weights(recipe: Recipe, name: str, settings: list[str]) -> dict[str, torch.Tensor]:
    return load_file(training.train(recipe.changed(settings), out=Path(name)).model_path)


def test_a_step_in_parts_computes_the_same(recipe: Recipe) -> None:
    """Without BatchNorm and dropout, the weights equal those of whole steps up to rounding."""
    recipe = recipe.changed(["model.name=lenet", "preprocess.size=16", "train.epochs=1", "train.batch_size=100"])
    whole, parts = (_weights(recipe, f"in-{parts}", [f"train.accumulate={parts}"]) for parts in (1, 3))
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=1"], "leave a part with fewer than 2 images --set train.batch_size=3"),
        (["train.batch_size=8", "train.accumulate=5"], "divided into 5 parts"),
    ],
)
def test_batches_of_one_image_are_refused(recipe: Recipe, settings: list[str], message: str) -> None:
    """BatchNorm cannot learn from them; the fix is accepted."""
    with pytest.raises(RecipeError) as caught:
        training.train(recipe.changed(settings), out=Path("small"))
    assert message in f"{caught.value} {caught.value.fix}"
    assert not Path("small.train").exists()
    fix = str(caught.value.fix).removeprefix("--set ")
    training.train(recipe.changed([*settings, fix, "train.epochs=1"]), out=Path("fixed"))


def test_the_average_of_the_weights_is_kept(recipe: Recipe) -> None:
    """With a decay near 1, the result stays near the first weights; the metrics are those of the average."""
    recipe = recipe.changed(["train.epochs=2", "train.schedule=constant"])
    slow, plain = _weights(recipe, "slow", ["train.ema=0.9999"]), _weights(recipe, "plain", [])
    torch.manual_seed(recipe.train.seed)
    moved = {name: float((plain[name].float() - slow[name].float()).norm()) for name in plain}
    assert max(moved.values()) > 0.1
    tested = Bundle.open(Path("slow")).manifest.details["test"]["accuracy"]
    assert tested < Bundle.open(Path("plain")).manifest.details["test"]["accuracy"]


def test_training_stops_early(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """Without progress for the given epochs, the run ends, and its bundle is that of the best epoch."""
    caplog.set_level("INFO")
    stuck = recipe.changed(["train.lr=1e-12", "train.schedule=constant", "train.epochs=50", "train.patience=2"])
    bundle = training.train(stuck, out=Path("stuck"))
    rows = (bundle.path / "metrics.csv").read_text().splitlines()
    assert len(rows) - 1 < 50
    assert "stopped early" in caplog.text


def test_rare_classes_weigh_more(tmp_path: Path) -> None:
    """With balanced weights, a class of a few images among many is recognised more often."""
    import numpy as np

    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [380, 20])
    # two classes of overlapping brightness
    images = np.clip(generator.normal(np.where(labels, 140, 110)[:, None, None], 30, (400, 1, 1)), 0, 255)
    pixels = np.broadcast_to(images, (400, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "rare.npz", images=pixels, labels=labels, names=np.array(["many", "few"]))
    recipe = Recipe.from_dict({"name": "rare", "data": {"data": str(tmp_path / "rare.npz")}}).changed(
        ["model.name=lenet", "train.epochs=12", "train.batch_size=32", "train.schedule=constant", "train.lr=0.005"]
    )
    found = {}
    for weights in ("none", "balanced"):
        bundle = training.train(recipe.changed([f"train.class_weights={weights}"]), out=tmp_path / weights)

        network = create_network(**bundle.manifest.architecture)  # type: ignore[arg-type]
        network.load_state_dict(load_file(bundle.model_path))
        tensors = bundle.manifest.preprocess.batch([_image(picture) for picture in pixels])
        with torch.inference_mode():
            answers = network.eval()(torch.from_numpy(tensors)).argmax(1).numpy()
        found[weights] = int((answers[labels == 1] == 1).sum())
    assert found["balanced"] > found["none"]


@pytest.mark.long
def test_a_compiled_network_learns_the_same(recipe: Recipe) -> None:
    """torch.compile changes the weights only by rounding, and their names not at all."""
    recipe = recipe.changed(["model.name=lenet", "preprocess.size=16", "train.epochs=1"])
    plain, compiled = (_weights(recipe, f"compile-{on}", [f"train.compile={on}"]) for on in ("false", "true"))
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 40])
def test_curves_have_whole_epochs(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick is at a fraction such as 1.25 epochs."""
    from matplotlib.figure import Figure

    ticks: list[float] = []
    real = Figure.savefig

    def capture(figure: Figure, *arguments: Any, **options: Any) -> None:
        real(figure, *arguments, **options)
        ticks.extend(tick for axis in figure.axes for tick in axis.get_xticks())

    monkeypatch.setattr(Figure, "savefig", capture)
    names = [f"{part}_{metric}" for part in ("train", "validation") for metric in ("loss", "accuracy")]
    draw_curves([{"epoch": number + 1, **dict.fromkeys(names, 0.5)} for number in range(epochs)])
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.slow
def test_a_folder_of_photographs(image_folder: Callable[..., Path]) -> None:
    """A user's colour images are loaded by worker processes, with every augmentation."""
    folder = image_folder(each=20, size=40)
    recipe = Recipe.from_dict({"name": "x", "data": {"data": str(folder)}, "model": {"name": "cnn23"}}).changed(
        ["train.epochs=1", "train.batch_size=8", "preprocess.size=32", "augment.resized_crop=0.5",
         "augment.horizontal_flip=0.5", "augment.colour=0.2", "augment.pad_crop=2", "train.workers=1"]
    )  # fmt: skip
    bundle = training.train(recipe, out=Path("made"))
    assert bundle.manifest.labels == ("cat", "dog")
    assert bundle.manifest.preprocess.mode == "RGB"
    assert bundle.manifest.input.shape == (3, 32, 32)


def test_unusable_data_and_settings_are_refused(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Images without labels, an image size too small for the network, a missing GPU."""
    plain = image_folder() / "cat"
    with pytest.raises(TrainingError, match="without labels"):
        training.train(Recipe.from_dict({"data": {"data": str(plain)}}), out=tmp_path / "a")
    with pytest.raises(RecipeError, match="16 pixels"):
        training.train(Recipe.load("digits", ["model.name=lenet", "preprocess.size=8"]), out=tmp_path / "b")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="no CUDA GPU"):
            training.train(Recipe.load("digits", ["train.device=cuda"]), out=tmp_path / "c")


@pytest.mark.slow
def test_torchrun_equals_one_process(tmp_path: Path) -> None:
    """Two processes with the same recipe train the same weights; only one of them logs and writes the bundle."""
    import os
    import sys

    train = ["-m", "edgekit.toolkit.cli", "train", "--model", "lenet", "--data", "digits", "--out"]
    settings = ["--set", "train.epochs=2", "--set", "augment.pad_crop=2", "--set", "train.optimizer=sgd"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, start in (("one", []), ("two", launcher)):
        done = subprocess.run(
            [sys.executable, *start, *train, name, *settings], cwd=tmp_path, capture_output=True, text=True, check=True,
            timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.stdout.split() == [name]
        assert done.stderr.count("epoch   1") == 1
    one, two = (Bundle.open(tmp_path / name) for name in ("one", "two"))
    for name, expected in load_file(one.model_path).items():
        torch.testing.assert_close(load_file(two.model_path)[name], expected, rtol=1e-4, atol=1e-5)
    metrics = [list(csv.DictReader((bundle.path / "metrics.csv").read_text().splitlines())) for bundle in (one, two)]
    for first, second in zip(*metrics, strict=True):
        for key in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            assert float(first[key]) == pytest.approx(float(second[key]), abs=1e-3)
