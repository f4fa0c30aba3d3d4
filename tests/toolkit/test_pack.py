"""A model as one file: it runs anywhere, is refused when a byte is wrong, and can be signed."""

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
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.plan import Plan
from edgekit.toolkit.contract import Contract
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.pack import pack, unpack, verify_packed
from edgekit.toolkit.signing import verify_bundle

QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def packed(fp32: Bundle, int8: Bundle, tmp_path: Path) -> Path:
    """Both committed models with 50 digits."""
    test = part_of(fp32, "test")
    assert test is not None
    path = tmp_path / "lenet.pyz"
    pack([fp32, int8], [int8.id], test.stratified(50, seed=0), QUICK, Contract(max_drop=20.0), path)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Callable[[str], Path]:
    """Make a pair of keys; the private one's path."""

    def make(name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)
        return path

    return make


def _run(path: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == code, done.stderr
    return done


def test_it_runs_from_its_own_code_and_joins(
    packed: Path, int8: Bundle, edgekit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder called edgekit in the way; the verdict is printed there, and the same here."""
    (packed.parent / "edgekit").mkdir()
    (packed.parent / "edgekit/__init__.py").write_text("raise SystemExit('the wrong one')")
    (packed.parent / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(packed.parent / "tmp"))
    done = _run(packed)
    assert "pass: top-1 drop" in done.stdout
    assert "50 test images" in done.stdout
    assert not list((packed.parent / "tmp").iterdir()), "what was unpacked is removed"
    shutil.rmtree(packed.parent / "edgekit")
    report = json.loads(edgekit("report", packed.parent / "result.json", "--json", "--html", "page.html").stdout)
    assert report["models"][1]["id"] == int8.id
    assert report["images"] == 50
    assert (report["verdict"], report["contract"]["max_drop"]) == ("pass", 20.0), "what it was packed for"
    assert report["reason"] in done.stdout
    assert "<svg" in (packed.parent / "page.html").read_text()
    judged = edgekit("report", packed.parent / "result.json", "--max-drop", "0.1", code=4)
    assert "not proved" in judged.stdout


def test_any_flipped_byte_is_refused(packed: Path) -> None:
    """Nothing is measured, nothing written: bytes all over the file, and every kind of place in it."""
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
    """A bit of the model."""
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    assert (
        _run(packed, code=1).stderr == f"error: {packed} is damaged: it is not as it was packed\nfix: copy it again\n"
    )


def test_missing_packages_are_named(packed: Path) -> None:
    """With the line that installs them, for this Python."""
    done = subprocess.run([sys.executable, "-S", packed], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not installed here: numpy, pillow, onnxruntime" in done.stderr
    assert f"{sys.executable} -m pip install numpy pillow onnxruntime" in done.stderr


def test_a_signed_file_is_verified_and_unpacked(
    packed: Path, fp32: Bundle, key: Callable[[str], Path], edgekit: Run
) -> None:
    """By its maker's public key alone; the bundles in it are those that went in."""
    mine, other = key("mine"), key("other")
    edgekit("pack", fp32.path, "--sign", mine, "-o", "signed.pyz", "--limit", 10)
    edgekit("pack", "--verify", f"{mine}.pub", "signed.pyz", "-o", "got")
    (bundle,) = Path("got").iterdir()
    assert Bundle.open(bundle).id == fp32.id
    assert "not signed by the owner" in edgekit("pack", "--verify", f"{other}.pub", "signed.pyz", code=1).stderr
    assert "is not signed" in edgekit("pack", "--verify", f"{mine}.pub", packed, code=1).stderr
    content = bytearray(Path("signed.pyz").read_bytes())
    content[5000] ^= 1
    Path("broken.pyz").write_bytes(content)
    assert "is damaged" in edgekit("pack", "--verify", f"{mine}.pub", "broken.pyz", code=1).stderr


def test_a_signature_cannot_be_carried_over(packed: Path, fp32: Bundle, key: Callable[[str], Path]) -> None:
    """To other content, with the hash made right again: that is what a signature is for."""
    import hashlib

    mine = key("mine")
    signed = packed.with_name("signed.pyz")
    pack([fp32], [fp32.id], None, QUICK, Contract(), signed, mine)
    forged = packed.read_bytes()[:-192] + signed.read_bytes()[-192:-64]
    packed.write_bytes(forged + hashlib.sha256(forged).hexdigest().encode())
    with pytest.raises(EdgeKitError, match="not signed by the owner"):
        verify_packed(packed, Path(f"{mine}.pub"))
    assert unpack(verify_packed(signed, Path(f"{mine}.pub")), packed.parent / "got")


def test_what_is_no_key(packed: Path, fp32: Bundle, key: Callable[..., Path], edgekit: Run) -> None:
    """One line each: another kind of key, a public one to sign with, a passphrase, nothing there."""
    rsa, locked, mine = key("rsa", "rsa"), key("locked", "ed25519", "secret"), key("mine")
    for wrong, words in (
        (rsa, "no ed25519 private key"), (f"{mine}.pub", "no ed25519 private key"), (locked, "passphrase"),
        ("nothing", "cannot read the key"),
    ):  # fmt: skip
        assert words in edgekit("pack", fp32.path, "--sign", wrong, "-o", "x.pyz", code=1).stderr
    assert not Path("x.pyz").exists()
    edgekit("pack", fp32.path, "--sign", mine, "-o", "signed.pyz", "--limit", 10)
    assert "no ed25519 public key" in edgekit("pack", "--verify", mine, "signed.pyz", code=1).stderr


def test_any_flipped_bit_of_its_first_lines_is_noticed(packed: Path) -> None:
    """Python's import from zip files checks nothing; none of these ends well having measured nothing."""
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


def test_the_users_pythonpath_stays(packed: Path) -> None:
    """What it imports is found beside the packed code."""
    with zipfile.ZipFile(packed) as archive:
        assert b"PYTHONPATH" in zlib.decompress(bytes.fromhex(archive.read("__main__.py").decode().split("'")[1]))
    folder = packed.parent / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"open({str(packed.parent / 'seen')!r}, 'a').write('x')")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, packed, "--seconds", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=packed.parent, env=environment)
    assert done.returncode == 0, done.stderr
    assert len((packed.parent / "seen").read_text()) > 3, "the processes that measure have it too"


def test_a_place_that_cannot_be_written_is_found_before_measuring(packed: Path) -> None:
    """One line, and no minute of measuring before it."""
    done = _run(packed, "--out", "/proc/nothing/result.json", code=1)
    assert "cannot write" in done.stderr
    assert "loading" not in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_a_signature_that_is_no_file_is_none(kind: str, fp32: Bundle, key: Callable[..., Path], tmp_path: Path) -> None:
    """A fifo would be waited for without end."""
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
