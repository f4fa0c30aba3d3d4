"""runs/: numbered names, and the newest matching bundle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError
from edgekit.toolkit.workspace import find, given_or_newest, new_path, newest, release


def _put(source: Bundle, path: Path, created: float) -> Path:
    shutil.copytree(source.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "created": created}))
    return path


def test_names_count_up_and_are_valid_on_every_file_system(tmp_path: Path) -> None:
    """For any model name, and whatever else is in the folder."""
    assert new_path("a", tmp_path / "runs").name == "001-a"
    for name in ("007-x", "notes", "012-y.train", ".hidden"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert new_path("my model/v2: β", tmp_path / "runs").name == "013-my-model-v2-β"
    assert new_path("../..", tmp_path / "runs").parent == tmp_path / "runs"


def test_processes_never_get_the_same_number(tmp_path: Path) -> None:
    """Three processes at once, none of which has written anything yet."""
    code = "from edgekit.toolkit.workspace import new_path; print(*[new_path('x').name for _ in range(30)]); input()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    names: list[str] = []
    for process in processes:
        assert process.stdout
        names += process.stdout.readline().split()
    for process in processes:
        process.communicate("\n", timeout=60)
    assert sorted(names) == [f"{number:03d}-x" for number in range(1, 91)]
    assert not (tmp_path / "runs").exists(), "no run was created"


def test_the_claim_of_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    """A killed run's number stays unused; its claim is removed when a later run is visible."""
    (tmp_path / ".002.taken").touch()
    path = new_path("x", tmp_path)
    assert path.name == "003-x"
    path.mkdir()
    assert new_path("x", tmp_path).name == "004-x"
    assert not (tmp_path / ".002.taken").exists()
    release(path.with_name("004-x"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["003-x"]


def test_claims_are_released_when_a_process_ends(tmp_path: Path) -> None:
    """A command that fails leaves no gap."""
    code = "from edgekit.toolkit.workspace import new_path; print(new_path('x')); raise SystemExit(1)"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "runs/001-x\n"


def test_a_number_that_became_visible_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and claiming, another run wrote its bundle and released its claim."""
    touch = Path.touch

    def late(path: Path, **options: Any) -> None:
        (tmp_path / "001-other").mkdir(exist_ok=True)
        touch(path, **options)

    monkeypatch.setattr(Path, "touch", late)
    assert new_path("x", tmp_path).name == "002-x"


@pytest.mark.slow
def test_two_exports_at_once_both_succeed(trained: Bundle, tmp_path: Path) -> None:
    """Started together in one folder, each writes its own bundle."""
    command = [sys.executable, "-m", "edgekit.toolkit.cli", "export", str(trained.path)]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 2
    assert all(Bundle.open(tmp_path / out.strip()) for out, _ in outputs)


def test_newest_is_by_time_and_kind(fp32: Bundle, int8: Bundle, tmp_path: Path) -> None:
    """Not by name; rejected, unreadable and foreign folders are ignored."""
    _put(fp32, tmp_path / "009-old", 100)
    expected = _put(fp32, tmp_path / "001-new", 200)
    _put(int8, tmp_path / "010-other-kind", 300)
    _put(fp32, tmp_path / "011-bad.rejected", 400)
    (tmp_path / "012-foreign").mkdir()
    (tmp_path / "012-foreign" / "manifest.json").write_text("{")
    bundle = newest(lambda manifest: manifest.precision == "fp32", "fp32 bundle", "edgekit export", tmp_path)
    assert bundle.path == expected
    with pytest.raises(BundleError, match="there is no fp16 bundle") as caught:
        newest(lambda manifest: manifest.precision == "fp16", "fp16 bundle", "edgekit quantize", tmp_path)
    assert "edgekit quantize" in caught.value.fix


def test_a_named_bundle_of_the_wrong_kind_is_refused(int8: Bundle) -> None:
    """The error states the bundle's kind and the required one."""
    with pytest.raises(BundleError, match="is onnx int8; expected: torch bundle"):
        given_or_newest(int8.path, lambda manifest: manifest.format == "torch", "torch bundle", "edgekit train")


def test_find_by_id(fp32: Bundle, int8: Bundle) -> None:
    """A bundle beside another one is found; an unknown id is not."""
    bundle = find(fp32.id, int8.path.parent)
    assert bundle is not None
    assert bundle.path == fp32.path
    assert find("0" * 16, int8.path.parent, Path("nowhere")) is None


def test_a_damaged_manifest_is_skipped_with_a_warning(
    fp32: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other bundles are still found."""
    shutil.copytree(fp32.path, tmp_path / "001-good")
    for number, text in enumerate([b"{", b"[]", b"\xff\xfe", b"[" * 99999, b'{"schema": 99}', b'{"schema": []}']):
        folder = tmp_path / f"{number + 2:03d}-bad"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(text)
    assert newest(lambda manifest: True, "bundle", "edgekit train", runs=tmp_path).path.name == "001-good"
    assert caplog.text.count("skipping") == 6
    assert find(fp32.id, tmp_path) is not None
