"""A model packed in one file: it runs anywhere, is refused if a byte is wrong, and can be signed."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.documents import DocumentError
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.manifest import check_name
from edgekit.deploy.measuring.plan import Plan
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.packing.pack import Packed, unpack, verify_packed, write_packed
from edgekit.toolkit.signing import sign_bundle, verify_bundle
from edgekit.toolkit.workspace import new_path

from tests.needs import make_ssh_keys

QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def packed(fp32: Bundle, int8: Bundle, tmp_path: Path) -> Path:
    """Both committed models, packed with 50 digits."""
    test = part_of(fp32, "test")
    assert test is not None
    path = tmp_path / "lenet.pyz"
    write_packed([fp32, int8], [int8.id], test.stratified(50, seed=0), QUICK, Contract(max_drop=20.0), path)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Callable[[str], Path]:
    """Make a pair of keys and return the private key's path."""

    def make(name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = tmp_path / name
        make_ssh_keys(path, kind, passphrase)
        return path

    return make


def _run(path: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == code, done.stderr
    return done


def test_a_packed_file_runs_its_own_code(
    packed: Path, int8: Bundle, edgekit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even beside a folder called edgekit; `report` gives the same verdict for its result."""
    (packed.parent / "edgekit").mkdir()
    (packed.parent / "edgekit/__init__.py").write_text("raise SystemExit('the wrong one')")
    (packed.parent / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(packed.parent / "tmp"))
    done = _run(packed)
    assert "pass: top-1 drop" in done.stdout
    assert "50 test images" in done.stdout
    assert not list((packed.parent / "tmp").iterdir()), "unpacked files are removed"
    shutil.rmtree(packed.parent / "edgekit")
    report = json.loads(edgekit("report", packed.parent / "result.json", "--json", "--html", "page.html").stdout)
    assert report["models"][1]["id"] == int8.id
    assert report["images"] == 50
    assert (report["verdict"], report["contract"]["max_drop"]) == ("pass", 20.0), "the contract it was packed with"
    assert report["reason"] in done.stdout
    assert "<svg" in (packed.parent / "page.html").read_text()
    judged = edgekit("report", packed.parent / "result.json", "--max-drop", "0.1", code=4)
    assert "not proved" in judged.stdout


def test_the_plan_is_packed(int8: Bundle, edgekit: Run, tmp_path: Path) -> None:
    """pack's options are measured on the board; an option that no model supports is refused when packing."""
    edgekit(
        "pack", int8.path, "-o", "model.pyz", "--limit", 10, "--seconds", 0.1, "--threads", 1, "--fps", 100,
        "--scenario", "offline",
    )  # fmt: skip
    done = _run(tmp_path / "model.pyz")
    result = json.loads((tmp_path / "result.json").read_text())
    assert [result["plan"][name] for name in ("threads", "fps", "offline")] == [1, 100.0, True]
    assert "100 images/s offered" in done.stdout
    assert "best batch size" in done.stdout
    edgekit("pack", int8.path, "-o", "none.pyz", "--runtime", "reference", "--provider", "cuda", code=1)
    assert not (tmp_path / "none.pyz").exists()


def test_any_flipped_byte_is_refused(packed: Path) -> None:
    """Nothing is measured or written; bytes are flipped at random places and in every kind of structure."""
    content = packed.read_bytes()
    generator = np.random.default_rng(int(os.environ.get("PYTEST_SEED", "0")))
    with zipfile.ZipFile(packed) as archive:
        start = archive.infolist()[0].header_offset
        directory = archive.start_dir
    main = content.index(b"__main__.py") + len(b"__main__.py")
    places = [
        0,
        5,
        start + 4,
        main,
        main + 1,
        directory,
        directory + 20,
        len(content) - 200,
        len(content) - 100,
        len(content) - 1,
    ]
    places += [int(place) for place in generator.integers(main, main + 900, 12)]
    places += [int(place) for place in generator.integers(0, len(content), 12)]
    broken = packed.with_name("broken.pyz")
    for place in places:
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        broken.write_bytes(changed)
        done = subprocess.run([sys.executable, broken], capture_output=True, text=True, cwd=packed.parent)
        assert done.returncode != 0, place
        assert done.stdout == "", place
        assert "loading" not in done.stderr, place
        assert not (packed.parent / "result.json").exists(), place
    broken.write_bytes(content[:-1000])
    assert subprocess.run([sys.executable, broken], capture_output=True).returncode != 0


def test_damage_is_one_line(packed: Path) -> None:
    """A flipped bit in the middle of the file."""
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    assert (
        _run(packed, code=1).stderr
        == f"error: {packed} is damaged: it has changed since it was packed\nfix: copy it again\n"
    )


def test_missing_packages_are_named(packed: Path) -> None:
    """The fix is the line that installs them for this Python."""
    done = subprocess.run([sys.executable, "-S", packed], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not installed here: numpy, pillow, onnxruntime" in done.stderr
    assert f"{sys.executable} -m pip install numpy pillow onnxruntime" in done.stderr


def test_a_signed_file_is_verified_and_unpacked(
    packed: Path, fp32: Bundle, key: Callable[[str], Path], edgekit: Run
) -> None:
    """The maker's public key is enough; the unpacked bundle is the one that was packed."""
    private, other = key("mine"), key("other")
    edgekit("pack", fp32.path, "--sign", private, "-o", "signed.pyz", "--limit", 10)
    edgekit("pack", "--verify", f"{private}.pub", "signed.pyz", "-o", "got")
    (bundle,) = Path("got").iterdir()
    assert Bundle.open(bundle).id == fp32.id
    assert "not signed by the owner" in edgekit("pack", "--verify", f"{other}.pub", "signed.pyz", code=1).stderr
    assert "is not signed" in edgekit("pack", "--verify", f"{private}.pub", packed, code=1).stderr
    content = bytearray(Path("signed.pyz").read_bytes())
    content[5000] ^= 1
    Path("broken.pyz").write_bytes(content)
    assert "is damaged" in edgekit("pack", "--verify", f"{private}.pub", "broken.pyz", code=1).stderr


def test_a_signature_cannot_be_moved_to_other_content(packed: Path, fp32: Bundle, key: Callable[[str], Path]) -> None:
    """Even if the hash is recomputed."""
    private = key("mine")
    signed = packed.with_name("signed.pyz")
    write_packed([fp32], [fp32.id], None, QUICK, Contract(), signed, private)
    forged = packed.read_bytes()[:-192] + signed.read_bytes()[-192:-64]
    packed.write_bytes(forged + hashlib.sha256(forged).hexdigest().encode())
    with pytest.raises(EdgeKitError, match="not signed by the owner"):
        verify_packed(packed, Path(f"{private}.pub"))
    assert unpack(verify_packed(signed, Path(f"{private}.pub")), packed.parent / "got")


def test_invalid_keys_are_refused(packed: Path, fp32: Bundle, key: Callable[..., Path], edgekit: Run) -> None:
    """Another kind of key, a public key for signing, a passphrase, a missing file: one line each."""
    rsa, locked, private = key("rsa", "rsa"), key("locked", "ed25519", "secret"), key("mine")
    for wrong, message in (
        (rsa, "not an ed25519 private key"), (f"{private}.pub", "not an ed25519 private key"), (locked, "passphrase"),
        ("nothing", "cannot read the key"),
    ):  # fmt: skip
        assert message in edgekit("pack", fp32.path, "--sign", wrong, "-o", "x.pyz", code=1).stderr
    assert not Path("x.pyz").exists()
    edgekit("pack", fp32.path, "--sign", private, "-o", "signed.pyz", "--limit", 10)
    assert "not an ed25519 public key" in edgekit("pack", "--verify", private, "signed.pyz", code=1).stderr


def test_any_flipped_bit_of_the_first_entry_is_refused(packed: Path) -> None:
    """Python's zip import checks nothing, but no damaged file may exit with 0."""
    content = packed.read_bytes()
    generator = np.random.default_rng(int(os.environ.get("PYTEST_SEED", "1")))
    with zipfile.ZipFile(packed) as archive:
        info, directory = archive.infolist()[0], archive.start_dir
    header = [*range(info.header_offset, info.header_offset + 41), *range(directory, directory + 57)]
    bits = [(place, int(generator.integers(8))) for place in header]
    bits += [(int(generator.integers(info.header_offset, 4000)), int(generator.integers(8))) for _ in range(60)]
    broken = packed.with_name("broken.pyz")
    for place, bit in bits:
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        broken.write_bytes(changed)
        done = subprocess.run([sys.executable, "-I", "-S", broken], capture_output=True, text=True, cwd=packed.parent)
        assert done.returncode != 0, (place, bit)
        assert "not installed here" not in done.stderr, (place, bit)


def test_the_users_pythonpath_is_kept(packed: Path) -> None:
    """Its modules are found as well as the packed code."""
    with zipfile.ZipFile(packed) as archive:
        assert b"PYTHONPATH" in zlib.decompress(bytes.fromhex(archive.read("__main__.py").decode().split("'")[1]))
    folder = packed.parent / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"open({str(packed.parent / 'seen')!r}, 'a').write('x')")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, packed, "--seconds", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=packed.parent, env=environment)
    assert done.returncode == 0, done.stderr
    assert len((packed.parent / "seen").read_text()) > 3, "the measuring processes have it too"


def test_an_unwritable_output_is_refused_before_measuring(packed: Path) -> None:
    """No time is spent on measuring first."""
    done = _run(packed, "--out", "/proc/nothing/result.json", code=1)
    assert "cannot write" in done.stderr
    assert "loading" not in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_a_signature_must_be_a_regular_file(kind: str, fp32: Bundle, key: Callable[..., Path], tmp_path: Path) -> None:
    """Reading a fifo would block forever."""
    path = tmp_path / "bundle"
    shutil.copytree(fp32.path, path)
    signature = path / "manifest.sig"
    if kind == "fifo":
        os.mkfifo(signature)
    elif kind == "folder":
        signature.mkdir()
    else:
        signature.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not signed|does not list"):
        verify_bundle(Bundle.open(path), key("key").with_suffix(".pub"))


def _signed(fp32: Bundle, key: Path, path: Path) -> Path:
    """A copy of the bundle, signed with the key."""
    shutil.copytree(fp32.path, path)
    sign_bundle(path, key)
    return path


@pytest.mark.parametrize("name", ["weights.onnx", "model.onnx.data", "golden/999.img", "sub/x", ".hidden"])
def test_a_file_added_to_a_signed_bundle_is_refused(
    name: str, fp32: Bundle, key: Callable[..., Path], tmp_path: Path
) -> None:
    """The signature covers only the manifest, which does not list the file, but a runtime would load it."""
    private = key("key")
    path = _signed(fp32, private, tmp_path / "bundle")
    verify_bundle(Bundle.open(path), private.with_suffix(".pub"))
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="does not list"):
        verify_bundle(Bundle.open(path), private.with_suffix(".pub"))


def test_a_changed_file_of_a_signed_bundle_is_refused(fp32: Bundle, key: Callable[..., Path], tmp_path: Path) -> None:
    """Weights are protected by their hash, the manifest by the signature."""
    private = key("key")
    path = _signed(fp32, private, tmp_path / "bundle")
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b'"lenet"', b'"other"', 1))
    with pytest.raises(BundleError, match="not signed by the owner"):
        verify_bundle(Bundle.open(path), private.with_suffix(".pub"))
    manifest.write_bytes(content)
    (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="hash or size"):
        Bundle.open(path)


def _repacked(packed: Path, change: Callable[[zipfile.ZipFile], object]) -> Packed:
    """A packed file's content with entries added, as the owner of the key could sign it."""
    stream = io.BytesIO(packed.read_bytes()[:-192])
    stream.write(b"-" * 192)
    with zipfile.ZipFile(stream, "a") as archive:
        change(archive)
    return Packed(stream.getvalue(), b"", None)


@pytest.mark.parametrize(
    "name", ["bundles/../../outside", "bundles/x/../../../outside", "/outside", "bundles//outside", "bundles/x/./y",
             "bundles/{id}/weights.onnx", "bundles/{id}/golden/999.img", "bundles/outside", "bundles\\..\\outside",
             "bundles/../bundles/{id}/model.onnx"],
)  # fmt: skip
def test_unpacking_stays_in_its_folder(name: str, packed: Path, fp32: Bundle, tmp_path: Path) -> None:
    """It unpacks only files that a manifest lists."""
    (tmp_path / "in").mkdir()
    changed = _repacked(packed, lambda archive: archive.writestr(name.format(id=fp32.id), b"x"))
    before = {*tmp_path.rglob("*")}
    if name == "/outside":  # not among the bundles, so it is left alone
        assert len(unpack(changed, tmp_path / "in" / "got")) == 2
        shutil.rmtree(tmp_path / "in" / "got")
    else:
        with pytest.raises(BundleError):
            unpack(changed, tmp_path / "in" / "got")
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_an_invalid_archive_is_one_line(content: bytes, tmp_path: Path) -> None:
    """Even if it was signed."""
    with pytest.raises(BundleError, match="the packed file"):
        unpack(Packed(content, b"", None), tmp_path / "got")


def test_other_files_are_refused(tmp_path: Path, key: Callable[..., Path]) -> None:
    """A fifo, a folder, a correct hash with an invalid signature, a missing file."""
    public = key("key").with_suffix(".pub")
    os.mkfifo(tmp_path / "fifo")
    body = b"#!/usr/bin/env python3\n" + b"\xff" * 128
    (tmp_path / "odd").write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "odd", tmp_path / "nothing"):
        with pytest.raises(BundleError):
            verify_packed(path, public)


@pytest.mark.parametrize("name", ["CON", "NUL.txt", "a" * 100, "-o", "+x", "模型", "é" * 50, "x.pyz", "con.."])
def test_any_accepted_name_can_be_a_file_name(
    name: str, fp32: Bundle, tmp_path: Path, key: Callable[..., Path]
) -> None:
    """In runs/, of a packed file and of its contents, even if other systems reserve the name."""
    check_name(name)
    path = tmp_path / "bundle"
    shutil.copytree(fp32.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    bundle, out = Bundle.open(path), tmp_path / f"{name}.pyz"
    private = key("key")
    write_packed([bundle], [bundle.id], None, QUICK, Contract(), out, private)
    (got,) = unpack(verify_packed(out, private.with_suffix(".pub")), tmp_path / "got")
    assert Bundle.open(got).manifest.name == name
    new_path(f"{name}-onnx-int8", tmp_path / "runs").mkdir(parents=True)


@pytest.mark.parametrize(
    "name",
    [
        "org/model",
        "../x",
        "/x",
        "a\0b",
        "..",
        ".",
        "",
        "a b",
        "x" * 101,
        "模" * 34,
        "a\nb",
        "\udcff",
        "a\\b",
        ".x",
        "模" * 300,
    ],
)
def test_other_names_are_refused_or_made_safe(name: str, tmp_path: Path) -> None:
    """A manifest refuses them; for a name that the user passes, runs/ uses a safe form."""
    with pytest.raises(DocumentError):
        check_name(name)
    path = new_path(name, tmp_path / "runs")
    assert path.parent == tmp_path / "runs"
    path.mkdir(parents=True)
