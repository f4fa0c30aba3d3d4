"""Bundles are complete, unmodified and written by EdgeKit, or refused before anything is loaded."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy import bundle as bundle_module
from edgekit.deploy.bundle import Bundle, create
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.files import new_folder, write_file
from edgekit.deploy.manifest import Manifest
from edgekit.deploy.parity import replay
from edgekit.deploy.session import open_session
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture
def copy(fp32: Bundle, tmp_path: Path) -> Path:
    """A copy of a valid bundle, for tests that damage it."""
    return Path(shutil.copytree(fp32.path, tmp_path / "copy"))


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_valid_bundle_opens(fp32: Bundle) -> None:
    """It has golden samples and the ids of its data set."""
    golden = fp32.golden()
    assert len(golden.images) == len(golden.tensors) == len(golden.logits) == 16
    assert golden.tensors.dtype == golden.logits.dtype == np.float32
    parts = fp32.splits()
    assert not set(parts["train"]) & set(parts["test"]) | set(parts["train"]) & set(parts["validation"])


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "splits.json.gz", "golden/003.img"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "link"])
def test_damage_is_refused_and_named(copy: Path, name: str, damage: str) -> None:
    """Any damage to any file is detected."""
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
    """Paths in a manifest cannot leave the bundle, even if the hash is right."""
    (copy.parent / "outside").write_bytes(b"x")
    _edit(copy, lambda manifest: manifest["files"].update({name: {"sha256": "0", "size": 1}}))
    with pytest.raises(BundleError, match="outside itself|is not an EdgeKit manifest|missing"):
        Bundle.open(copy)


def test_a_linked_folder_is_refused(copy: Path) -> None:
    """A link in any folder of a file's path counts as a link."""
    (copy / "golden").rename(copy.parent / "golden")
    (copy / "golden").symlink_to(copy.parent / "golden")
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda m: m.update(schema=4), "schema 4"), (lambda m: m.pop("schema"), "not an EdgeKit manifest"),
     (lambda m: m.update(surprise=1), "surprise"), (lambda m: m.pop("labels"), "not an EdgeKit manifest"),
     (lambda m: m["files"].pop("model.onnx"), "no model"), (lambda m: m["input"].update(depth=1), "not an EdgeKit")],
)  # fmt: skip
def test_foreign_manifests_are_refused(copy: Path, change: Callable[[dict], object], message: str) -> None:
    """They have another schema, or unknown or missing entries."""
    _edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', '{"schema": 2}'])
def test_an_invalid_manifest_is_refused(copy: Path, text: str) -> None:
    """It may be other JSON, or not JSON."""
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="not an EdgeKit manifest"):
        Bundle.open(copy)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    """The error names the missing file."""
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        Bundle.open(tmp_path)


def test_an_existing_path_is_not_overwritten(tmp_path: Path) -> None:
    """Passing the same --out twice loses nothing."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("x")
    with pytest.raises(EdgeKitError, match="already exists"), create(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept" / "mine").read_text() == "x"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """Neither the folder nor the temporary folder remains."""
    with pytest.raises(ValueError, match="broken"), create(tmp_path / "new") as draft:
        (draft.folder / "model").write_bytes(b"x")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """kill -9 while a bundle is written leaves no bundle, and the next write removes the leftovers."""
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
    assert [entry.name.startswith(".edgekit-") for entry in left] == [True]
    with new_folder(tmp_path / "next"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["next"]


def test_files_of_a_running_process_are_kept(tmp_path: Path) -> None:
    """Two commands that write at the same time do not disturb each other."""
    with new_folder(tmp_path / "one") as folder:
        (folder / "file").write_text("x")
        with new_folder(tmp_path / "two"):
            pass
    assert (tmp_path / "one" / "file").read_text() == "x"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """A file is replaced completely or not at all, and the error says what to do."""
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from edgekit.deploy.errors import EdgeKitError
        from edgekit.deploy.files import write_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # like a disk with 1,000 bytes left
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


def test_an_unwritable_location_is_explained(tmp_path: Path) -> None:
    """A file is in the place of a folder (root can write anywhere else)."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeKitError, match="cannot write"), create(tmp_path / "file" / "bundle"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user whom a folder's mode restricts")
def test_a_read_only_folder_is_explained(tmp_path: Path) -> None:
    """The error gives the reason, and the folder is unchanged."""
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


def test_ids_distinguish_bundles(copy: Path, fp32: Bundle) -> None:
    """The id depends on the manifest: an identical copy has the same id, a changed one has another."""
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
def test_any_edit_of_a_manifest_is_accepted_or_refused(data: st.DataObject, value: object) -> None:
    """Any value of any entry gives a BundleError, or a manifest that the rest of the code can use."""
    source = Path(__file__).parent.parent / "data" / "lenet-int8" / "manifest.json"
    manifest = json.loads(source.read_text())
    container = manifest
    while True:
        keys = sorted(container) if isinstance(container, dict) else range(len(container))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(container[key], (dict, list)) or not container[key] or data.draw(st.booleans()):
            break
        container = container[key]
    container[key] = value
    try:
        read = Manifest.from_json(json.dumps(manifest), source)
    except BundleError:
        return
    assert all(isinstance(label, str) for label in read.labels)
    assert all(isinstance(facts["size"], int) for facts in read.files.values())
    assert read.preprocess(Image.new("L", (9, 7))).dtype == np.float32


def _relist(folder: Path, **changes: object) -> None:
    """Update a manifest from the folder's files, and change entries of it."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["weights.onnx", "golden/999.img", "folder/x", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(copy: Path, name: str) -> None:
    """A runtime might load it by name, and a signature would not cover it."""
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "name", ["../../outside", "/tmp/x", "org/model", "", ".", "..", ".hidden", "a\x1b[31m", "x" * 101]
)
def test_a_name_that_could_be_a_path_is_refused(copy: Path, name: str) -> None:
    """Commands use it in file names."""
    _relist(copy, name=name)
    with pytest.raises(BundleError, match="not an EdgeKit manifest: the name"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "change",
    [{"input": {"channels": 1, "height": 1_000_000, "width": 1_000_000, "batch": 1}},
     {"input": {"channels": 1, "height": 16, "width": 32, "batch": 1}}, {"labels": []}, {"labels": ["x" * 1000]},
     {"input": {"channels": 1, "height": 32, "width": 32, "batch": 1 << 40}}],
)  # fmt: skip
def test_sizes_out_of_bounds_are_refused(copy: Path, change: dict) -> None:
    """They are refused before anything of that size is allocated."""
    _relist(copy, **change)
    with pytest.raises(BundleError, match="not an EdgeKit manifest"):
        Bundle.open(copy)


def test_a_crop_without_bounds_is_refused(copy: Path) -> None:
    """A crop of 40,000 x 40,000 pixels took 9 GB."""
    manifest = json.loads((copy / "manifest.json").read_text())
    preprocess = {**manifest["preprocess"], "crop": [40_000, 40_000]}
    _relist(copy, preprocess=preprocess, input={**manifest["input"], "height": 40_000, "width": 40_000})
    with pytest.raises(BundleError, match="too large|is not between"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "arrays",
    [{"tensors": np.zeros((16, 1, 32, 16), np.float32)}, {"logits": np.zeros((16, 9), np.float32)},
     {"logits": np.zeros((15, 10), np.float32)}, {"tensors": np.zeros((16, 1, 32, 32), np.float64)},
     {"checksums": np.zeros(3, np.uint32)}, {"logits": np.asarray([{}] * 16)},
     {"tensors": np.zeros((16, 64, 1024, 1024), np.uint8)}],
)  # fmt: skip
def test_golden_arrays_must_match_the_manifest(copy: Path, arrays: dict[str, np.ndarray]) -> None:
    """Shapes and types must match images, input and labels; a gigabyte of zeros is not unpacked."""
    golden = Bundle.open(copy).golden()
    valid = {"tensors": golden.tensors, "logits": golden.logits, "checksums": golden.checksums}
    np.savez_compressed(copy / "golden.npz", allow_pickle=True, **{**valid, **arrays})  # type: ignore[arg-type]
    _relist(copy)
    tracemalloc.start()
    with pytest.raises(BundleError, match="does not contain the golden samples"):
        Bundle.open(copy)  # as every command does before it uses anything of it
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"x", b"[]", b'{"train": [1]}', b'{"train": "x"}', b"\xff", b"[" * 9999])
def test_splits_that_cannot_be_read_are_refused(copy: Path, content: bytes) -> None:
    """The error names the file."""
    (copy / "splits.json.gz").write_bytes(content if content == b"x" else gzip.compress(content))
    _relist(copy)
    with pytest.raises(BundleError, match=r"splits\.json\.gz"):
        Bundle.open(copy).splits()


def test_splits_are_unpacked_up_to_a_limit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A highly compressed file is read up to the limit."""
    monkeypatch.setattr(bundle_module, "_MAX_SPLITS_BYTES", 1 << 20)
    (copy / "splits.json.gz").write_bytes(gzip.compress(b" " * (64 << 20)))
    _relist(copy)
    tracemalloc.start()
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(copy).splits()
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_bundle_of_schema_1_is_read() -> None:
    """The first release stored no checksums of golden samples, so this machine's decoder computes them."""
    bundle = Bundle.open(Path(__file__).parent.parent / "data" / "lenet-int8-schema-1")
    golden = bundle.golden()
    assert golden.checksums.shape == (16,)
    session = open_session(bundle)
    assert replay(bundle, session.run).top1_agreement == 1.0
    assert bundle.splits()["test"]


def test_a_fifo_in_a_bundle_is_refused(copy: Path) -> None:
    """Reading it would block forever."""
    (copy / "model.onnx").unlink()
    os.mkfifo(copy / "model.onnx")
    with pytest.raises(BundleError, match="missing|no regular file"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b"])
@pytest.mark.parametrize("entry", ["files", "model"])
def test_a_name_that_no_file_system_takes_is_refused(copy: Path, name: str, entry: str) -> None:
    """The error is one line, whichever entry has the name."""
    _edit(copy, lambda manifest: manifest["files"].update({name: manifest["files"]["model.onnx"]}))
    if entry == "model":
        _edit(copy, lambda manifest: manifest.update(model=name))
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(copy)
