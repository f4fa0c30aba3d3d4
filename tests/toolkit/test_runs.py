"""runs/: its contents are listed, completed on the command line and removed by name; the next step is suggested."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.manifest import MAX_MANIFEST_BYTES
from edgekit.toolkit import runs as listing
from edgekit.toolkit.commands import completion
from edgekit.toolkit.commands.completion import complete_bundles, complete_runs
from edgekit.toolkit.workspace import locked
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import DATA

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """An fp32 bundle and the int8 bundle made from it, in runs/."""
    paths = tmp_path / "runs/001-lenet-fp32", tmp_path / "runs/002-lenet-int8"
    for path in paths:
        shutil.copytree(DATA / path.name.partition("-")[2], path)
    return paths


def test_bundles_are_listed_with_what_matters(edgekit: Run, two: tuple[Path, Path], report_of: Callable) -> None:
    """Id, size, date, source bundle, and the verdict of the latest report on it."""
    report = report_of(two[1], "--limit", "10", "--baseline", two[0])
    first, second = json.loads(edgekit("runs", "--json").stdout)
    bundles = [Bundle.open(path) for path in two]
    assert [first["id"], second["id"]] == [bundle.id for bundle in bundles]
    assert (first["verdict"], second["verdict"]) == (None, report["verdict"])
    assert (second["made_from"], second["lineage"]) == (
        two[0].name,
        [step["id"] for step in bundles[1].manifest.lineage],
    )
    assert second["created"] == bundles[1].manifest.created
    assert second["size_bytes"] == sum(path.stat().st_size for path in two[1].rglob("*") if path.is_file())
    shown = edgekit("runs").stdout
    assert all(word in shown for word in (two[0].name, two[1].name, "int8", report["verdict"]))


def test_a_verdict_on_a_runtime_is_shown_for_its_bundle(two: tuple[Path, Path]) -> None:
    """A report of `validate --runtime` names bundle and runtime."""
    identity = Bundle.open(two[1]).id
    model = {"id": f"{identity}@openvino:threads=2", "judgements": [{}]}
    (two[0].parent / "002-lenet-int8.report").mkdir()
    (two[0].parent / "002-lenet-int8.report/report.json").write_text(json.dumps({"models": [model], "verdict": "pass"}))
    assert [run.verdict for run in listing.list_runs(two[0].parent)] == [None, "pass"]


def test_damaged_and_hostile_bundles_are_listed(edgekit: Run, two: tuple[Path, Path]) -> None:
    """The others are listed too; control characters never reach the terminal."""
    for name, content in (("a", b"{"), ("b", b"[]"), ("c", b'{"name": 3}'), ("d", b"x" * (MAX_MANIFEST_BYTES + 1))):
        (two[0].parent / name).mkdir()
        (two[0].parent / name / "manifest.json").write_bytes(content)
    hostile = two[0].parent / "\x1b[31m [bold]\n"
    shutil.copytree(two[1], hostile)
    manifest = json.loads((hostile / "manifest.json").read_text())
    (hostile / "manifest.json").write_text(json.dumps({**manifest, "precision": "\x1b]0;x\x07", "created": 1e300}))
    shown = edgekit("runs").stdout
    assert "\x1b" not in shown
    assert shown.count("damaged: ") == 5
    assert two[1].name in shown
    assert "\\x1b[31m [bold]\\n" in shown
    kinds = [run["kind"] for run in json.loads(edgekit("runs", "--json").stdout)]
    assert sorted(kinds) == ["bundle"] * 2 + ["damaged"] * 5


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["name", "format", "precision", "created", "lineage", "id"]), inner, max_size=6
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_manifest_is_listed_or_damaged(document: object) -> None:
    """Whatever it contains, without a traceback."""
    folder = Path("runs/x")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(document))
    (run,) = listing.list_runs(Path("runs"))
    assert run.kind in ("bundle", "damaged")
    assert (run.problem is None) == (run.kind == "bundle")
    listing.next_step(Path("runs"))


@pytest.mark.parametrize(
    ("contents", "step"),
    [
        ((), "edgekit train "), (("torch",), "edgekit export --format onnx "), (("fp32",), "edgekit quantize "),
        (("fp32", "int8"), "edgekit validate "), (("fp32", "int8", "report"), "edgekit pack, or edgekit predict"),
        (("training",), "edgekit train --resume "),
    ],
)  # fmt: skip
def test_the_next_step_is_suggested(edgekit: Run, tmp_path: Path, contents: tuple[str, ...], step: str) -> None:
    """Without a command, the next of the four commands for this folder is suggested."""
    runs = tmp_path / "runs"
    for number, name in enumerate(contents):
        if name == "report":
            (runs / "1-int8.report").mkdir()
        elif name == "training":
            (runs / "1-x.train").mkdir(parents=True)
            (runs / "1-x.train/recipe.json").write_text("{}")
        else:
            shutil.copytree(DATA / f"lenet-{name.replace('torch', 'fp32')}", runs / f"{number}-{name}")
    if contents == ("torch",):
        manifest = json.loads((runs / "0-torch/manifest.json").read_text())
        (runs / "0-torch/manifest.json").write_text(json.dumps({**manifest, "format": "torch"}))
    shown = edgekit(code=2).stdout
    assert f"\nNext step: {step}" in shown
    assert all(f"  edgekit {name} " in shown for name in ("train", "export", "quantize", "validate"))


def test_clean_removes_the_named_bundles(edgekit: Run, two: tuple[Path, Path]) -> None:
    """By name or path; the freed space is reported."""
    done = edgekit("clean", two[1].name, Path("runs") / two[0].name)
    assert "MB freed" in done.stderr
    assert list(two[0].parent.iterdir()) == []


def test_clean_removes_leftovers_of_a_killed_clean(edgekit: Run, two: tuple[Path, Path]) -> None:
    """kill -9 during removal: the bundle is no longer listed, and the next clean removes its remaining files."""
    code = textwrap.dedent("""
        import os, shutil, signal, sys
        from pathlib import Path
        from edgekit.deploy import files
        files.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        files.remove_folder(Path(sys.argv[1]))
    """)
    assert subprocess.run([sys.executable, "-c", code, two[1]], check=False).returncode == -signal.SIGKILL
    leftovers = [entry.name for entry in two[0].parent.iterdir() if entry.name.startswith(".")]
    assert len(leftovers) == 1
    assert [run["path"] for run in json.loads(edgekit("runs", "--json").stdout)] == [f"runs/{two[0].name}"]
    edgekit("clean", two[0].name)
    assert list(two[0].parent.iterdir()) == []


def test_clean_asks_before_it_removes_a_source_bundle(edgekit: Run, two: tuple[Path, Path]) -> None:
    """Without a terminal it refuses and removes nothing; --yes removes the bundle."""
    assert f"is the source of runs/{two[1].name}" in edgekit("clean", two[0].name, code=1).stderr
    assert two[0].is_dir()
    edgekit("clean", "--yes", two[0].name)
    assert [path.name for path in two[0].parent.iterdir()] == [two[1].name]


def test_clean_refuses_everything_else(edgekit: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    """Paths outside runs/, links, other folders, an active training: an error, and nothing is changed."""
    runs = two[0].parent
    shutil.copytree(two[0], tmp_path / "outside")
    (runs / "link").symlink_to(tmp_path / "outside")
    (runs / "mine").mkdir()
    (runs / "mine/photo.jpg").touch()
    (runs / "003-x.train").mkdir()
    (runs / "003-x.train/recipe.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    names = ("../outside", "runs/../outside", tmp_path / "outside", "link", "mine", "nothing", "..", ".", "", "runs",
             "001-lenet-fp32/golden")  # fmt: skip
    for name in names:
        done = edgekit("clean", two[1].name, name, code=1)
        assert done.stderr.startswith("error: "), name
    with locked(runs / "003-x.train"):
        assert "a process is training" in edgekit("clean", "003-x.train", code=1).stderr
    assert sorted(tmp_path.rglob("*")) == before
    edgekit("clean", "003-x.train")
    assert not (runs / "003-x.train").exists()
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "runs").symlink_to(runs)
    assert "is a link, or in a linked folder" in edgekit("clean", two[1].name, cwd=linked, code=1).stderr


def test_names_are_completed(two: tuple[Path, Path]) -> None:
    """Bundles by path, folders of runs/ by name, and the entries of the registries."""
    (two[0].parent / "\x1b").mkdir()
    (two[0].parent / "\x1b/manifest.json").write_text("{}")
    assert complete_bundles("runs/001") == [f"runs/{two[0].name}"]
    assert complete_runs("00") == [path.name for path in two]
    assert completion.complete_datasets("fash") == ["fashion-mnist"]
    assert completion.complete_networks("mobilenet_v3_s") == ["mobilenet_v3_small"]
    assert completion.complete_targets("x86") == ["x86", "x86-avx2"]
    assert completion.complete_formats("on") == ["onnx"]
    assert {"local", "ssh://", "browser"} <= set(completion.complete_devices(""))


def test_completion_loads_nothing_heavy(two: tuple[Path, Path]) -> None:
    """Completion requests use bash's environment variables."""
    code = (
        "import sys\nfrom edgekit.toolkit.cli import main\nsys.argv = ['edgekit']\n"
        "try:\n    main()\nfinally:\n"
        "    print('LOADED', {'numpy', 'torch', 'onnx', 'PIL', 'rich'} & set(sys.modules), file=sys.stderr)\n"
    )
    request = {"_EDGEKIT_COMPLETE": "complete_bash", "COMP_WORDS": "edgekit inspect runs/", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **request})
    assert done.stdout.split() == [f"runs/{path.name}" for path in two]
    assert "LOADED set()" in done.stderr


def test_a_search_is_listed_by_its_confirmation(edgekit: Run, two: tuple[Path, Path]) -> None:
    """The chosen bundle has the verdict; the search's folder is no bundle, and can be removed by name."""
    folder = two[0].parent / "001-lenet-fp32.optimize"
    (folder / "local").mkdir(parents=True)
    (folder / "local.race.json").write_text("{}")
    model = {"id": f"{Bundle.open(two[1]).id}@openvino:threads=2", "judgements": [{}]}
    (folder / "local/report.json").write_text(json.dumps({"models": [model], "verdict": "fail"}))
    assert [run.verdict for run in listing.list_runs(two[0].parent)] == [None, "fail"]
    edgekit("clean", folder.name, "--yes")
    assert not folder.exists()
    assert all(path.exists() for path in two)
