"""runs/: paths for new bundles, and the newest bundle that a command accepts."""

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

# File systems allow 255; a suffix and the marks of a draft folder are added.
_MAX_BYTES = 120
# `deploy.bundle.check_name` accepts 100 characters.
_MAX_NAME = 80
_NUMBERED = re.compile(r"(\d+)-")

# An empty file that claims a number before its bundle exists: runs/.007.taken
_CLAIM, _CLAIMED = ".{:03d}.taken", re.compile(r"\.(\d+)\.taken")


def new_path(name: str, runs: Path = RUNS) -> Path:
    """A path for a new bundle: the next number, then `name` in characters that every file system allows.

    No other process gets the number: an empty hidden file claims it until a folder with it is visible, or this process
    ends. A killed process leaves a gap in the numbers, which does no harm.

    Raises:
        EdgeKitError: `runs` is not writable.
    """
    with _writing(runs):
        return runs / f"{_take_number(runs):03d}-{safe_name(name, _MAX_BYTES)}"


def safe_name(text: str, max_bytes: int = _MAX_NAME) -> str:
    """A safe name of at most `max_bytes` bytes from any text, such as "timm:x" or "my photos"."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.").encode()[:max_bytes].decode(errors="ignore") or "model"


def make_folder(path: Path) -> None:
    """Make a new folder.

    Raises:
        EdgeKitError: it exists already, or cannot be made.
    """
    with _writing(path):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise exists(path) from None


def release(path: Path) -> None:
    """Release the number of a path from `new_path`, once a folder with that number is visible."""
    if match := _NUMBERED.match(path.name):
        (path.parent / _CLAIM.format(int(match[1]))).unlink(missing_ok=True)


def give_up(claim: Path) -> None:
    """Remove a claim, and its folder if that is empty."""
    claim.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        claim.parent.rmdir()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Release the number of a path from `new_path` immediately if the block fails."""
    try:
        yield
    except BaseException:
        if match := _NUMBERED.match(path.name):
            give_up(path.parent / _CLAIM.format(int(match[1])))
        raise


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False, shared: bool = False) -> Iterator[bool]:
    """Lock an existing folder; yields False if another process has the lock and `wait` is off.

    Several processes can have a `shared` lock, but only while none has another.

    The system frees the lock however the process ends.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
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
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # another process took it, or removed `runs`
            visible, claimed = _numbers(runs, _NUMBERED), _numbers(runs, _CLAIMED)
            for number in claimed:
                if number <= max(visible, default=0):
                    (runs / _CLAIM.format(number)).unlink(missing_ok=True)
            number = max([*visible, *claimed], default=0) + 1
            claim = (runs / _CLAIM.format(number)).absolute()
            claim.touch(exist_ok=False)
            # since the search, another run may have become visible and released its claim
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
    """The newest bundle in `runs` that `accept` accepts; logs its path.

    Args:
        kind: the kind of bundle, for the error message.
        make: the command that makes one.

    Raises:
        BundleError: there is none.
    """
    fitting = [(manifest.created, path) for path, manifest in _manifests(runs) if accept(manifest)]
    if not fitting:
        raise BundleError(f"there is no {kind} in {runs}/", fix=f"run: {make}, or pass a bundle's folder")
    path = max(fitting)[1]
    _log.info(f"using {path}")
    return Bundle.open(path)


def given_or_newest(path: Path | None, accept: Callable[[Manifest], bool], needed: str, make: str) -> Bundle:
    """The bundle that the user named, else the newest suitable one.

    Raises:
        BundleError: the named bundle is of another kind, or there is no suitable one.
    """
    if path is None:
        return newest(accept, needed, make)
    bundle = Bundle.open(path)
    if not accept(bundle.manifest):
        kind = f"{bundle.manifest.format} {bundle.manifest.precision}"
        raise BundleError(f"{path} is {kind}; expected: {needed}", fix=f"pass another bundle, or run: {make}")
    return bundle


def find(bundle_id: str, *places: Path) -> Bundle | None:
    """The bundle with this id among the folders in `places`; None if there is none."""
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
    """Every bundle's folder and manifest. Unreadable ones are skipped, because no command accepts them."""
    for path in _entries(runs):
        source = path / MANIFEST
        if path.name.endswith(REJECTED) or not source.is_file():
            continue
        try:
            manifest = Manifest.from_json(source.read_bytes(), source)
        except (BundleError, OSError) as error:
            _log.info(f"skipping {path}: {error}")
            continue
        yield path, manifest


def _entries(runs: Path) -> list[Path]:
    return sorted(entry for entry in runs.iterdir() if not entry.name.startswith(".")) if runs.is_dir() else []


def remove_runs(chosen: Sequence[Run]) -> int:
    """Remove folders and return the bytes freed. Each folder is renamed before its files are deleted.

    Raises:
        EdgeKitError: a folder cannot be removed, or a process is training in it.
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
