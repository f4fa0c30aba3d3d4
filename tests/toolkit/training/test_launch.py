"""Several processes: one that is lost, and restarts that continue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError, RecipeError, TrainingError
from edgekit.toolkit.training import checkpoint
from edgekit.toolkit.training import train as training
from edgekit.toolkit.training.launch import launch_id, losses_explained
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.workspace import locked
from safetensors.torch import load_file

SETTINGS = ["model.name=cnn23", "preprocess.size=8", "train.epochs=3"]


def _interrupt(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, out: Path | None = None, **options: Any) -> None:
    """Train one epoch, and stop."""
    real = checkpoint.save

    def stop(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, out=out, runs=Path("runs"), **options)


@pytest.mark.parametrize("out", [None, Path("made")])
def test_the_same_launch_continues(monkeypatch: pytest.MonkeyPatch, out: Path | None) -> None:
    """After a restart, the same command finishes the run; another launch, or another recipe, does not touch it."""
    recipe = Recipe.load("digits", SETTINGS)
    whole = training.train(recipe, out=Path("whole"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    _interrupt(monkeypatch, recipe, out)
    for change, other in (("job-2", recipe), ("job-1", recipe.changed(["train.lr=0.1"])), ("", recipe)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", change)
        if out:
            with pytest.raises(EdgeKitError, match=r"made.train already exists"):
                training.train(other, out=out)
        else:
            assert training._place(other, None, Path("runs"), ())[1] is False  # type: ignore[index]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    resumed = training.train(recipe, out=out, runs=Path("runs"))
    assert resumed.path == (out or Path("runs/001-digits"))
    assert resumed.model_path.read_bytes() == whole.model_path.read_bytes()


def test_a_restart_keeps_the_rate_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not search again, and finishes the same run."""
    recipe = Recipe.load("digits", SETTINGS)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    _interrupt(monkeypatch, recipe, find=["lr"])
    recorded = training._read_recipe(Path("runs/001-digits.train"))
    assert recorded.train.lr != recipe.train.lr
    monkeypatch.setattr(training, "find_lr", lambda *_: pytest.fail("searched again"))
    resumed = training.train(recipe, runs=Path("runs"), find=["lr"])
    assert resumed.path == Path("runs/001-digits")
    assert resumed.manifest.details["recipe"]["train"]["lr"] == recorded.train.lr


def test_a_launch_without_an_id_is_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the children of one process, and another for those of another."""
    code = "from edgekit.toolkit.training.launch import launch_id; print(launch_id())"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ids = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert ids[0].stdout == ids[1].stdout
    assert str(os.getpid()) in ids[0].stdout.split()
    assert launch_id() != ids[0].stdout.strip()


def test_a_lost_process_is_explained(tmp_path: Path) -> None:
    """Other errors stay as they are."""
    for error in (RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed"), torch.distributed.DistError("x")):
        with pytest.raises(TrainingError, match="another process of this training ended"):  # noqa: SIM117
            with losses_explained(tmp_path):
                raise error
    with pytest.raises(RuntimeError, match="out of memory"), losses_explained(tmp_path):
        raise RuntimeError("CUDA out of memory")


def test_all_processes_may_look_at_once(tmp_path: Path) -> None:
    """Processes that search for a run to resume do not take each other for one that trains."""
    with locked(tmp_path, shared=True) as first:
        assert first
        assert not training._busy(tmp_path)
    with locked(tmp_path):
        assert training._busy(tmp_path)


def test_sync_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process trains the same with it; several on CPUs are refused."""
    recipe = Recipe.load("digits", [*SETTINGS, "train.epochs=1"])
    synced = recipe.changed(["train.sync_batchnorm=true"])
    plain, same = (training.train(each, out=Path(name)) for each, name in ((recipe, "plain"), (synced, "synced")))
    assert plain.model_path.read_bytes() == same.model_path.read_bytes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="SyncBatchNorm runs on GPUs only"):
        training.train(synced.changed(["train.device=cpu"]), out=Path("refused"))


def _torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen([*launcher, *arguments], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def _kill_a_worker(launcher: subprocess.Popen[str], rank: int) -> None:
    """SIGKILL a worker after the second epoch."""
    assert launcher.stderr
    for line in launcher.stderr:
        if line.startswith("epoch   2"):
            break
    time.sleep(0.2)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (worker,) = [pid for pid in children if f"LOCAL_RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()]
    os.kill(int(worker), signal.SIGKILL)


@pytest.mark.slow
def test_training_survives_the_loss_of_a_process(tmp_path: Path) -> None:
    """It ends with one clear line and can be resumed, or torchrun restarts it: the weights stay the same."""
    train = ["-m", "edgekit.toolkit.cli", "train", "--model", "cnn23", "--data", "digits",
             "--set", "preprocess.size=16", "--set", "augment.pad_crop=1", "--set", "train.epochs=8"]  # fmt: skip
    whole = _torchrun(tmp_path, *train, "--out", "whole")
    assert whole.communicate(timeout=200)[0] == "whole\n"
    killed = _torchrun(tmp_path, *train)
    _kill_a_worker(killed, rank=1)
    errors = killed.communicate(timeout=100)[1]
    assert killed.returncode
    # torchrun may be faster in ending the other process than that one in noticing
    assert "complete epochs are kept in runs/001-cnn23-digits.train" in errors
    assert "train --resume" in errors
    assert "[rank0]" not in errors, "no traceback of EdgeKit"
    resumed = _torchrun(tmp_path, "-m", "edgekit.toolkit.cli", "train", "--resume")
    output, errors = resumed.communicate(timeout=200)
    assert "resuming" in errors
    restarted = _torchrun(tmp_path, "--max-restarts", "1", *train, "--out", "again")
    _kill_a_worker(restarted, rank=0)
    again, errors = restarted.communicate(timeout=200)
    assert again == "again\n"
    assert "resuming again.train after epoch" in errors
    expected = load_file(Bundle.open(tmp_path / "whole").model_path)
    for name in (output.strip(), "again"):
        found = load_file(Bundle.open(tmp_path / name).model_path)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
