"""Fixtures shared by several folders."""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.measuring.plan import Plan
from hypothesis import settings
from PIL import Image

from tests.needs import need, summary

# tests assert no speed, and this machine may be busy
settings.register_profile("edgekit", deadline=None)
settings.load_profile("edgekit")

# tests read the library's log with caplog
logging.getLogger("edgekit").setLevel(logging.INFO)

# several test processes run at once, and OpenMP threads spin while waiting for a core: five times the work on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"
EDGEKIT = [sys.executable, "-m", "edgekit.toolkit.cli"]


def heed_signals() -> None:
    """Restore SIGINT and SIGHUP in a child: under nohup or in a background script it would inherit ignored signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


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
    from edgekit.toolkit.training.recipe import Recipe
    from edgekit.toolkit.training.train import train

    recipe = Recipe.load("digits", ["train.epochs=2", "preprocess.size=16", "train.lr=0.004"])
    return train(recipe, runs=tmp_path_factory.mktemp("trained"))


@pytest.fixture
def untrained(trained: Bundle) -> Callable[..., Bundle]:
    """Make a bundle of an untrained network, with BatchNorm statistics of real images."""
    import torch
    from edgekit.deploy.bundle import create, make_golden
    from edgekit.deploy.manifest import TensorSpec
    from edgekit.deploy.preprocess import Preprocess
    from edgekit.models.network import create_network
    from edgekit.toolkit.datasets import load_dataset
    from safetensors.torch import save_file

    def make(name: str, path: Path, side: int = 32) -> Bundle:
        torch.manual_seed(0)
        size = (side, side)
        architecture = {"name": name, "num_classes": 10, "in_channels": 3, "image_size": size, "activation": "relu"}
        network = create_network(**architecture)
        preprocess = Preprocess("RGB", side, size, "bilinear", (0.5,) * 3, (0.25,) * 3)
        dataset = load_dataset("digits")
        with torch.no_grad():
            for start in range(0, 256, 64):
                batch = preprocess.batch([sample.image for sample in dataset.train.take(range(start, start + 64))])
                network(torch.from_numpy(batch))
        network.eval()

        def run(tensors: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return network(torch.from_numpy(tensors)).numpy()

        spec = TensorSpec(3, side, side)
        manifest = replace(trained.manifest, name=name, input=spec, preprocess=preprocess, architecture=architecture)
        with create(path) as draft:
            save_file(network.state_dict(), draft.folder / manifest.model)
            draft.add_golden(make_golden(dataset.test, preprocess, run))
            draft.add_splits({part: ids[:64] for part, ids in dataset.splits().items()})
            draft.finish(manifest)
        return Bundle.open(path)

    return make


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
    """Run the command line in an empty folder, in this process: importing torch takes longer than most commands.

    Measurements are as short as possible: three processes, two rounds of short blocks, one thread.
    """
    from edgekit.toolkit.commands import parsing as options

    plan_of = options.plan_of

    def short(*arguments: Any, **options: Any) -> Plan:
        plan = plan_of(*arguments, **options)
        return replace(plan, processes=3, rounds=2, block_ms=5, threads=plan.threads or 1)

    def run(*arguments: object, cwd: Path = tmp_path, code: int = 0) -> subprocess.CompletedProcess[str]:
        from edgekit.toolkit.cli import main

        command, before, status = ["edgekit", *map(str, arguments)], Path.cwd(), 0
        os.chdir(cwd)
        try:
            with (
                patch.object(sys, "argv", command),
                patch.object(options, "plan_of", short),
                contextlib.redirect_stdout(io.StringIO()) as out,
                contextlib.redirect_stderr(io.StringIO()) as err,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # as Python itself does for a command
                try:
                    main()
                except SystemExit as stop:
                    status = stop.code
        finally:
            os.chdir(before)
        done = subprocess.CompletedProcess(command, status or 0, out.getvalue(), err.getvalue())
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def edgekit_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder, in a separate process."""

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
    """Run a validation and return its JSON report."""

    def run(*arguments: object, code: int = 0) -> dict:
        return json.loads(edgekit("validate", *arguments, "--json", "--seconds", "0.2", code=code).stdout)

    return run


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the installed browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(program, "Chromium", "apt-get install chromium", "EDGEKIT_BROWSER")
    assert program is not None
    return program


@contextlib.contextmanager
def open_browser(program: str) -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def browser(chromium: str) -> Iterator[Any]:
    """Headless Chromium."""
    with open_browser(chromium) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path) -> Iterator[None]:
    """Run each test in its own folder: commands write to runs/ in the current one."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which tests were skipped, what they need and how to install it."""
    skipped = terminalreporter.stats.get("skipped", [])
    if line := summary(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)):
        terminalreporter.write_line(line, yellow=True)
