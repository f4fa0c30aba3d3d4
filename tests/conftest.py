"""Fixtures that several folders share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from PIL import Image

DATA = Path(__file__).parent / "data"
EDGEKIT = [sys.executable, "-m", "edgekit.toolkit.cli"]


@pytest.fixture
def fp32() -> Bundle:
    """The committed fp32 ONNX bundle."""
    return Bundle.open(DATA / "lenet-fp32")


@pytest.fixture
def int8() -> Bundle:
    """The committed int8 ONNX bundle, made from the fp32 one."""
    return Bundle.open(DATA / "lenet-int8")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small network trained for two epochs on the digits."""
    from edgekit.toolkit.recipe import Recipe
    from edgekit.toolkit.train import train

    recipe = Recipe.load("digits", ["train.epochs=2", "preprocess.size=16", "train.lr=0.004"])
    return train(recipe, runs=tmp_path_factory.mktemp("trained"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of class folders with random images."""

    def make(name: str = "images", classes: tuple[str, ...] = ("cat", "dog"), each: int = 6, size: int = 20) -> Path:
        generator = np.random.default_rng(0)
        for label in classes:
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(each):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    return make


@pytest.fixture
def edgekit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder, as a person would."""

    def run(*arguments: object, cwd: Path = tmp_path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*EDGEKIT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def report_of(edgekit: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., dict]:
    """The JSON document of a validation."""

    def run(*arguments: object, code: int = 0) -> dict:
        return json.loads(edgekit("validate", *arguments, "--json", "--seconds", "0.2", code=code).stdout)

    return run


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path) -> Iterator[None]:
    """Tests run in a folder of their own: the commands write to runs/ where they are."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)
