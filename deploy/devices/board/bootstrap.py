"""The first program on a board: reports its state, checks received files, and cleans up.

This file is sent over standard input, followed by a call of `main`, before EdgeKit's own code. It requires only
Python, and runs on any Python 3, so that it can report a Python that is too old.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path


def main(request):
    """Answer one request with lines of JSON. Its keys, all optional:

    land: hashes of files to check; complete ones get their final names.
    code: the hash of the code, to be unpacked.
    collect: the name of a result to return.
    clean: remove everything that EdgeKit installed here.
    find: module to find, without importing it -> names of its distribution.
    import: packages to try to import.
    """
    # not the home folder, where a clone called ncnn would pass for the package
    sys.path = [entry for entry in sys.path if entry]
    if request.get("clean"):
        say({"cleaned": [str(folder) for folder in caches() if remove(folder)]})
        return
    cache = choose_cache()
    say({"facts": facts(cache)})
    if cache is not None:
        try:
            say({"files": {name: land(cache / name) for name in request.get("land", [])}})
            if request.get("code"):
                say({"code": str(unpack(cache, request["code"]))})
            if request.get("collect"):
                say({"collected": collect(cache / request["collect"])})
        except OSError as error:
            say({"unwritable": str(error)})
    if request.get("find"):
        found = [module for module in request["find"] if importlib.util.find_spec(module) is not None]
        say({"found": {module: version(request["find"][module]) for module in found}})
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in deploy/__init__.py
    for package in request.get("import", []):
        say({"importing": package})
        try:
            module = __import__(package)
            say({"imported": package, "version": str(getattr(module, "__version__", "unknown"))})
        except BaseException as error:  # a broken package may raise anything
            missing = isinstance(error, ImportError) and error.name == package
            say(
                {"failed": package, "missing": missing, "error": (str(error).strip().splitlines() or [repr(error)])[-1]}
            )


def say(message):
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def caches():
    """Folders for EdgeKit's files: the user's cache folder, or the temporary one if that is not writable."""
    home = os.environ.get("XDG_CACHE_HOME")
    return [
        (Path(home) if home else Path.home() / ".cache") / "edgekit",
        Path(tempfile.gettempdir()) / ("edgekit-" + str(os.getuid())),
    ]


def choose_cache():
    """The first of these folders that is writable and belongs to this user, or None."""
    for folder in caches():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
                (folder / ".writable").write_text("x")
                (folder / ".writable").unlink()
                return folder
        except OSError:
            continue
    return None


def facts(cache):
    """The board's Python and free space."""
    values = {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "base": getattr(sys, "_base_executable", sys.executable),  # in a venv, the Python that created it
        "machine": platform.machine(),
        "libc": list(platform.libc_ver()),
        "system": platform.system(),
        "cache": cache and str(cache),
        "rsync": shutil.which("rsync") is not None,
        "time": time.time(),
    }
    if cache is not None:
        room = os.statvfs(str(cache))
        values["free_bytes"] = room.f_bavail * room.f_frsize
        values["cache_bytes"] = sum(path.lstat().st_size for path in cache.rglob("*") if path.is_file())
    return values


def land(path):
    """Check a file by its hash: returns "whole", or the number of received bytes. Removes a damaged file."""
    part = path.with_name(path.name + ".part")
    for candidate in (path, part):
        if candidate.is_file() and digest(candidate) == path.name:
            candidate.rename(path)
            return "whole"
    if path.is_file():
        path.unlink()
    return part.stat().st_size if part.is_file() else 0


def digest(path):
    """SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha256.update(block)
    return sha256.hexdigest()


def unpack(cache, name):
    """Unpack the code once and atomically; returns its folder."""
    folder = cache / ("code-" + name)
    if not folder.is_dir():
        partial = Path(tempfile.mkdtemp(prefix="code-", dir=str(cache)))
        with zipfile.ZipFile(str(cache / name)) as archive:
            archive.extractall(str(partial))
        partial.rename(folder)
    return folder


def collect(path):
    """Return and remove the text of a finished result, or None."""
    if not path.is_file():
        return None
    text = path.read_text()
    path.unlink()
    return text


def version(distributions):
    """The version of the first of these distributions that is installed, or "unknown"."""
    from importlib import metadata  # Python 3.8

    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def remove(folder):
    """Remove a folder if it exists and belongs to this user; returns whether it does."""
    removable = folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    if removable:
        shutil.rmtree(str(folder))
    return removable
