"""The entry point of a packed model: checks the file, the version of Python and the installed packages.

It is `__main__.py` of the file that `edgekit pack` writes. It runs before the rest is loaded, on any Python 3.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# The file ends in a signature (or as many dashes) and the SHA-256 of all before it, both in hexadecimal digits.
SIGNATURE_DIGITS, HASH_DIGITS = 128, 64

# An entry of the file: the modules that it imports, each with the package that provides it.
NEEDS = "needs.json"


def check_undamaged(path):
    """Exit with one line if any byte of the file has changed."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content[:-HASH_DIGITS]).hexdigest().encode() != content[-HASH_DIGITS:]:
        sys.exit("error: " + str(path) + " is damaged: it has changed since it was packed\nfix: copy it again")


def main():
    """Check, unpack into a temporary folder, run."""
    path = Path(sys.argv[0]).resolve()
    check_undamaged(path)
    if sys.version_info < (3, 10):  # noqa: UP036 # an older Python may run it
        sys.exit("error: this is Python " + sys.version.split()[0] + "; 3.10 or newer is required\nfix: install one")
    with zipfile.ZipFile(str(path)) as archive:
        needs = json.loads(archive.read(NEEDS).decode())
    missing = [package for modules, package in needs if not any(map(find_spec, modules))]
    if missing:
        fix = sys.executable + " -m pip install " + " ".join(missing)
        sys.exit("error: not installed here: " + ", ".join(missing) + "\nfix: " + fix)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        folder = Path(tempfile.mkdtemp(prefix="edgekit-tmp-"))
    except OSError as error:
        sys.exit("error: cannot write temporary files: " + str(error) + "\nfix: set TMPDIR to a folder with space")
    try:
        with lock(folder):
            run(path, folder / "content")
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def end(number, _):
    """On a signal, end the process after its temporary files are removed."""
    sys.exit(128 + number)


def lock(folder):
    """Lock a scratch folder as deploy/files.py does, so that it is not removed as abandoned."""
    stream = (folder / "unlocked").open("x")
    try:
        fcntl = import_module("fcntl")
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        pass
    (folder / "unlocked").rename(folder / "lock")
    return stream


def run(path, folder):
    """Unpack and measure; the caller removes the folder afterwards."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            archive.extractall(str(folder))
    except OSError as error:
        sys.exit("error: not enough space to unpack: " + str(error) + "\nfix: set TMPDIR to a folder with space")
    sys.path[0] = str(folder)
    # the measuring processes need it too, in addition to the user's own setting
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["TMPDIR"] = str(folder)  # the files that they leave are removed with the folder
    sys.exit(import_module("edgekit.toolkit.packing.on_device").main(path, folder))


if __name__ == "__main__":
    main()
