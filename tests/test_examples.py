"""The programs in examples/ run as described."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DATA
from .needs import need

EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_example_is_run_here() -> None:
    """Every file in examples/ is named in a test."""
    source = Path(__file__).read_text()
    for path in EXAMPLES.iterdir():
        assert f'"{path.name}"' in source or path.name == "__pycache__", path


@pytest.mark.parametrize(("name", "points"), [("lenet-sweep.toml", 12), ("convnet-sweep.toml", 4)])
def test_sweeps(name: str, points: int) -> None:
    """Each is the grid of a table in docs/experiments.md, around the shipped recipe of that text."""
    from edgekit.toolkit.training.recipe import Recipe
    from edgekit.toolkit.training.sweep import Sweep

    sweep = Sweep.load(str(EXAMPLES / name))
    text = Recipe.load(f"{name.removesuffix('-sweep.toml')}-text")
    assert sweep.recipe == text.with_values({"name": sweep.recipe.name})
    assert len(sweep.points()) == points


@pytest.mark.slow
def test_train_to_validate(tmp_path: Path) -> None:
    """It ends with a verdict and writes the report."""
    done = _run("train_to_validate.py", "--epochs", "1", "--seconds", "0.2", folder=tmp_path)
    assert done.returncode in (0, 3, 4), done.stderr
    assert (tmp_path / "report/report.html").is_file()
    assert "int8" in done.stdout


@pytest.mark.slow
def test_import_and_quantize(tmp_path: Path) -> None:
    """The script's own network becomes int8 and gives nearly the same answers on new images."""
    done = _run("import_and_quantize.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    agreeing, total = done.stdout.splitlines()[-1].split()[:3:2]
    assert int(total) == 60
    assert int(agreeing) > 50


def test_ci_gate(tmp_path: Path) -> None:
    """A gate on two reports: an undecided comparison passes with a warning, an unreadable report fails."""
    report = DATA / "reports/schema-3.json"
    done = _run("ci_gate.py", str(report), str(report), folder=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "summary.md").is_file()
    assert _run("ci_gate.py", str(report), str(tmp_path / "none.json"), folder=tmp_path).returncode == 1
    assert "usage" in _run("ci_gate.py", folder=tmp_path).stderr


@pytest.mark.slow
def test_notebook(tmp_path: Path) -> None:
    """Every cell runs; the notebook is committed with outputs."""
    try:
        import ipykernel  # noqa: F401
        import nbclient
        import nbformat
    except ModuleNotFoundError:
        need(False, "the packages of the documentation", "make docs", "EDGEKIT_DOCS")
    notebook = nbformat.read(shutil.copy(EXAMPLES / "digits.ipynb", tmp_path), 4)
    assert any(cell.get("outputs") for cell in notebook.cells), "commit it with its outputs"
    environment = {**os.environ, "JUPYTER_PLATFORM_DIRS": "1"}
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute(env=environment)
