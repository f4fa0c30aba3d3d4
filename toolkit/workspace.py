"""runs/: where bundles go, and the newest one that a command can take."""

import atexit
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..deploy.bundle import Bundle
from ..deploy.errors import BundleError, EdgeKitError
from ..deploy.files import exists, remove_folder
from ..deploy.manifest import MANIFEST, Manifest, manifest_id
from .runs import REJECTED, RUNS, TRAINING, Run, size_of

_log = logging.getLogger(__name__)

# File systems take 255; a suffix, and the marks of a folder that is being written, come to it.
_MAX_BYTES = 120
# `deploy.bundle.check_name` takes 100 characters.
_MAX_NAME = 80
_NUMBERED = re.compile(r"(\d+)-")

# An empty file that takes a number before its bundle is there: runs/.007.taken
_CLAIM, _CLAIMED = ".{:03d}.taken", re.compile(r"\.(\d+)\.taken")


def new_path(name: str, runs: Path = RUNS) -> Path:
    """A path for a new bundle: the next number, then `name` in characters that every file system takes.

    No other process gets the number: an empty hidden file holds it until something with it is visible, or this process
    ends. One that is killed leaves a number unused, which is in nobody's way.

    Raises:
        EdgeKitError: `runs` cannot be written.
    """
    with _writing(runs):
        return runs / f"{_take_number(runs):03d}-{safe_name(name, _MAX_BYTES)}"


def safe_name(text: str, most: int = _MAX_NAME) -> str:
    """A name of at most so many bytes out of others, which may hold any characters: "timm:x" of "my photos"."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.").encode()[:most].decode(errors="ignore") or "model"


def make_folder(path: Path) -> None:
    """Make a folder that is not there yet.

    Raises:
        EdgeKitError: it exists already, or cannot be made.
    """
    with _writing(path):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise exists(path) from None


def release(path: Path) -> None:
    """Give up the claim on the number of a path from `new_path`, once something with the number is visible."""
    if match := _NUMBERED.match(path.name):
        (path.parent / _CLAIM.format(int(match[1]))).unlink(missing_ok=True)


def give_up(claim: Path) -> None:
    """Remove a claim, and the folder where nothing else came to be."""
    claim.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        claim.parent.rmdir()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Give up the number of a path from `new_path` at once where the block fails before anything with it is visible."""
    try:
        yield
    except BaseException:
        if match := _NUMBERED.match(path.name):
            give_up(path.parent / _CLAIM.format(int(match[1])))
        raise


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock an existing folder; False where another process has it and `wait` is off.

    The system frees the lock however a process ends.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _take_number(runs: Path) -> int:
    """Claim the lowest number above all that are visible or claimed."""
    while True:
        runs.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # taken meanwhile; `runs` given up meanwhile
            visible, claimed = _numbers(runs, _NUMBERED), _numbers(runs, _CLAIMED)
            for number in claimed:
                if number <= max(visible, default=0):
                    (runs / _CLAIM.format(number)).unlink(missing_ok=True)
            number = max([*visible, *claimed], default=0) + 1
            claim = (runs / _CLAIM.format(number)).absolute()
            claim.touch(exist_ok=False)
            # between looking and claiming, another run may have become visible and given up its claim
            if number > max(_numbers(runs, _NUMBERED), default=0):
                atexit.register(give_up, claim)
                return number
            claim.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeKitError(
            f"cannot write {path}: {error.strerror}", fix="choose a writable place with enough space (--out)"
        ) from error


def _numbers(runs: Path, pattern: re.Pattern[str]) -> list[int]:
    return [int(match[1]) for entry in runs.iterdir() if (match := pattern.match(entry.name))]


def newest(accept: Callable[[Manifest], bool], kind: str, make: str, runs: Path = RUNS) -> Bundle:
    """The newest bundle in `runs` that `accept` takes; logs which.

    Args:
        kind: what kind of bundle it is, for the message.
        make: the command that makes one.

    Raises:
        BundleError: there is none.
    """
    fitting = [(manifest.created, path) for path, manifest in _manifests(runs) if accept(manifest)]
    if not fitting:
        raise BundleError(f"there is no {kind} in {runs}/", fix=f"run: {make}, or pass a bundle's folder")
    path = max(fitting)[1]
    _log.info(f"taking {path}")
    return Bundle.open(path)


def given_or_newest(path: Path | None, accept: Callable[[Manifest], bool], needed: str, make: str) -> Bundle:
    """The bundle that was named, else the newest fitting one.

    Raises:
        BundleError: the named bundle is not of the kind that is wanted, or there is none.
    """
    if path is None:
        return newest(accept, needed, make)
    bundle = Bundle.open(path)
    if not accept(bundle.manifest):
        kind = f"{bundle.manifest.format} {bundle.manifest.precision}"
        raise BundleError(f"{path} is {kind}; needed: {needed}", fix=f"run: {make}")
    return bundle


def find(bundle_id: str, *places: Path) -> Bundle | None:
    """The bundle with this id among the folders in `places`, None when it is not there."""
    for place in places:
        for path, _ in _manifests(place):
            if manifest_id((path / MANIFEST).read_bytes()) == bundle_id:
                return Bundle.open(path)
    return None


def derived(bundle_id: str, *places: Path) -> list[Bundle]:
    """The bundles that were made directly from the one with this id, the newest first."""
    bundles = {}
    for place in places:
        for path, manifest in _manifests(place):
            if manifest.lineage and manifest.lineage[-1]["id"] == bundle_id:
                bundles[path.resolve()] = (manifest.created, path)
    return [Bundle.open(path) for _, path in sorted(bundles.values(), reverse=True)]


def _manifests(runs: Path) -> Iterator[tuple[Path, Manifest]]:
    """Every bundle's folder and manifest; what cannot be read is passed over, as it is nothing that a command takes."""
    for path in _entries(runs):
        source = path / MANIFEST
        if path.name.endswith(REJECTED) or not source.is_file():
            continue
        try:
            manifest = Manifest.from_json(source.read_bytes(), source)
        except (BundleError, OSError) as error:
            _log.info(f"passing over {path}: {error}")
            continue
        yield path, manifest


def _entries(runs: Path) -> list[Path]:
    return sorted(entry for entry in runs.iterdir() if not entry.name.startswith(".")) if runs.is_dir() else []


def remove_runs(chosen: Sequence[Run]) -> int:
    """Remove folders; returns the bytes freed. A folder disappears as a whole before its files do.

    Raises:
        EdgeKitError: one cannot be removed, or a process is training in it.
    """
    freed = 0
    for run in chosen:
        is_training = run.path.name.endswith(TRAINING)
        try:
            with locked(run.path) if is_training else contextlib.nullcontext(True) as free:
                if not free:
                    raise EdgeKitError(f"a process is training in {run.path}", fix="wait for it, or stop it")
                size = size_of(run.path)
                remove_folder(run.path)
            freed += size
        except OSError as error:
            raise EdgeKitError(f"cannot remove {run.path}: {error.strerror}", fix="check who owns it") from error
    return freed
