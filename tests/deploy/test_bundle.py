"""Bundles are whole, untouched and of EdgeKit, or they are refused before anything is loaded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle, Manifest, create
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.files import new_folder, write_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture
def copy(fp32: Bundle, tmp_path: Path) -> Path:
    """A copy of a good bundle, to be damaged."""
    return Path(shutil.copytree(fp32.path, tmp_path / "copy"))


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_bundle_opens(fp32: Bundle) -> None:
    """With its golden samples and the ids of its data set."""
    golden = fp32.golden()
    assert len(golden.images) == len(golden.tensors) == len(golden.logits) == 16
    assert golden.tensors.dtype == golden.logits.dtype == np.float32
    parts = fp32.splits()
    assert not set(parts["train"]) & set(parts["test"]) | set(parts["train"]) & set(parts["validation"])


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "splits.json.gz", "golden/003.img"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "link"])
def test_damage_is_refused_and_named(copy: Path, name: str, damage: str) -> None:
    """Whatever the file and whatever was done to it."""
    file = copy / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        file.rename(copy / "elsewhere")
        file.symlink_to(copy / "elsewhere")
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "golden/../../outside", "..", "", "a\\..\\b"])
def test_files_outside_are_refused(copy: Path, name: str) -> None:
    """Path tricks in a manifest reach nothing, even where the hash would be right."""
    (copy.parent / "outside").write_bytes(b"x")
    _edit(copy, lambda manifest: manifest["files"].update({name: {"sha256": "0", "size": 1}}))
    with pytest.raises(BundleError, match="outside itself|is not an EdgeKit manifest|missing"):
        Bundle.open(copy)


def test_a_linked_folder_is_refused(copy: Path) -> None:
    """A link anywhere on the way to a file counts as a link."""
    (copy / "golden").rename(copy.parent / "golden")
    (copy / "golden").symlink_to(copy.parent / "golden")
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda m: m.update(schema=1), "schema 1"), (lambda m: m.pop("schema"), "not an EdgeKit manifest"),
     (lambda m: m.update(surprise=1), "surprise"), (lambda m: m.pop("labels"), "not an EdgeKit manifest"),
     (lambda m: m["files"].pop("model.onnx"), "no model"), (lambda m: m["input"].update(depth=1), "not an EdgeKit")],
)  # fmt: skip
def test_foreign_manifests_are_refused(copy: Path, change: Callable[[dict], object], words: str) -> None:
    """Another schema, unknown or missing entries."""
    _edit(copy, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', '{"schema": 2}'])
def test_what_is_no_manifest_is_refused(copy: Path, text: str) -> None:
    """Any JSON, and what is none."""
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="not an EdgeKit manifest"):
        Bundle.open(copy)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    """It says what to pass instead."""
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        Bundle.open(tmp_path)


def test_an_existing_path_is_not_overwritten(tmp_path: Path) -> None:
    """Nothing is lost by naming the same --out twice."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("x")
    with pytest.raises(EdgeKitError, match="exists already"), create(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept" / "mine").read_text() == "x"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """Neither the folder nor the temporary one."""
    with pytest.raises(ValueError, match="broken"), create(tmp_path / "new") as draft:
        (draft.folder / "model").write_bytes(b"x")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """kill -9 in the middle of a bundle leaves no bundle, and the next one written removes the rest."""
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from edgekit.deploy.bundle import create
        with create(Path(sys.argv[1])) as draft:
            (draft.folder / "model").write_bytes(b"half")
            print("writing", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list(tmp_path.iterdir())
    assert [entry.name.startswith(".new") for entry in left] == [True]
    with new_folder(tmp_path / "next"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["next"]


def test_a_living_process_is_not_swept(tmp_path: Path) -> None:
    """Two commands that write beside each other do not disturb each other."""
    with new_folder(tmp_path / "one") as one:
        (one / "file").write_text("x")
        with new_folder(tmp_path / "two"):
            pass
    assert (tmp_path / "one" / "file").read_text() == "x"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """A file is replaced whole or not at all, and the error says what to do."""
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from edgekit.deploy.errors import EdgeKitError
        from edgekit.deploy.files import write_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk with 1,000 bytes left
        try:
            write_file(Path(sys.argv[1]), b"n" * 5000)
        except EdgeKitError as error:
            print(error, error.fix)
    """)
    write_file(tmp_path / "report.json", "old")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "report.json"], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "--out" in done.stdout
    assert (tmp_path / "report.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """A file where a folder should be (root may write anywhere else)."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeKitError, match="cannot write"), create(tmp_path / "file" / "bundle"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody, whom a folder's mode binds")
def test_a_read_only_folder_is_explained(tmp_path: Path) -> None:
    """With the reason, and nothing but what was there before."""
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    code = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from edgekit.deploy.bundle import create
        from edgekit.deploy.errors import EdgeKitError
        os.seteuid(65534)
        try:
            with create(Path(sys.argv[1]) / "runs" / "new"):
                pass
        except EdgeKitError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert "Permission denied" in done.stdout
    assert list(folder.iterdir()) == []


def test_ids_tell_bundles_apart(copy: Path, fp32: Bundle) -> None:
    """The id is the manifest's: the same copy has the same, a changed one another."""
    assert Bundle.open(copy).id == fp32.id
    _edit(copy, lambda manifest: manifest.update(created=time.time()))
    assert Bundle.open(copy).id != fp32.id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=json_values)
def test_any_edit_of_a_manifest_is_taken_or_refused(data: st.DataObject, value: object) -> None:
    """Whatever stands in place of whatever entry: a bundle error, or a manifest that the rest of the code can use."""
    source = Path(__file__).parent.parent / "data" / "lenet-int8" / "manifest.json"
    manifest = json.loads(source.read_text())
    place = manifest
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        read = Manifest.from_json(json.dumps(manifest), source)
    except BundleError:
        return
    assert all(isinstance(label, str) for label in read.labels)
    assert all(isinstance(facts["size"], int) for facts in read.files.values())
    assert read.preprocess(Image.new("L", (9, 7))).dtype == np.float32
