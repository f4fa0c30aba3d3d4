"""Writing files and folders completely or not at all, and scratch folders that do not outlive their process.

Incomplete output is in a hidden folder beside its destination, with a random name and a lock that its writer holds. An
unlocked folder was left by a dead process, and the next writer removes it.
"""

import atexit
import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import EdgeKitError

try:
    import fcntl
except ImportError:  # Windows: without locks, leftovers are not removed
    fcntl = None

# Parts of the names of drafts (with their start time) and scratch folders. The cache of ssh:// has another name.
_DRAFT, _PARTIAL, _SCRATCH = ".edgekit-", ".partial", "edgekit-tmp-"
# Inside a draft or scratch folder: its lock file, which contains the draft's final name, and its content.
_LOCK, _UNLOCKED, _CONTENT = "lock", "unlocked", "content"
# Folders that this process has not removed yet.
_HELD: set[Path] = set()
# A folder without a lock and older than this was left by a process that was killed before it could lock it.
_UNLOCKED_S = 3600.0

_FULL = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}
# Errors that a user can fix by choosing another place; other OSErrors are not about writing.
_UNWRITABLE = {
    *_FULL, errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
}  # fmt: skip


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, content: bytes | str, *, replace: bool = True) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content, never a part.

    Args:
        replace: overwrite an existing file, instead of refusing to.

    Raises:
        EdgeKitError: the folder is read-only, the disk is full, or `path` exists and `replace` is false.
    """
    data = content.encode() if isinstance(content, str) else content
    with _explained(path), _draft(path) as draft:
        with (draft / _CONTENT).open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            os.replace(stream.name, path)
        else:
            _link(Path(stream.name), path)


def require_writable(path: Path) -> None:
    """Check that a file can be written before starting the work for it; an existing file stays unchanged.

    Raises:
        EdgeKitError: its folder is read-only or cannot be created, or `path` is a folder.
    """
    if path.is_dir():
        raise EdgeKitError(f"{path} is a folder", fix="pass a file name inside it")
    with _explained(path), _draft(path):
        pass


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` if the block succeeds, and is removed if it fails.

    Raises:
        EdgeKitError: `path` exists already, another process is writing it, its parent is read-only, or the disk is
            full.
    """
    if os.path.lexists(path):
        raise exists(path)
    with _explained(path), _draft(path) as draft:
        if _begun_before(draft, path.name):
            raise EdgeKitError(f"{path} is being written by another process", fix="choose another --out, or wait")
        content = draft / _CONTENT
        content.mkdir()
        yield content
        for file in content.rglob("*"):
            if file.is_file():
                _sync(file)
        _rename(content, path)
        _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder atomically: rename it, then delete it. After an interruption, the next writer deletes the rest.

    Raises:
        OSError: the folder, or something in it, cannot be removed.
    """
    with _draft(path) as draft:
        os.rename(path, draft / _CONTENT)
        shutil.rmtree(draft / _CONTENT)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR that is removed when the block ends. Leftovers of dead processes are removed first.

    Raises:
        EdgeKitError: TMPDIR is not writable, or is full.
    """
    # gettempdir alone would silently choose another folder if TMPDIR is not writable
    place = os.environ.get("TMPDIR")
    with contextlib.ExitStack() as stack:
        try:
            parent = Path(place or tempfile.gettempdir())
            sweep_scratch(parent)
            folder = stack.enter_context(_locked(parent, _SCRATCH, "", "")) / _CONTENT
            folder.mkdir()
        except OSError as error:
            raise _no_scratch(place or "the temporary folder", error) from error
        try:
            yield folder
        except OSError as error:
            ours = error.errno in _UNWRITABLE and str(error.filename).startswith(str(folder))
            if not ours and error.errno not in _FULL:
                raise
            raise _no_scratch(parent, error) from error


def sweep_scratch(parent: Path) -> None:
    """Remove the scratch folders in TMPDIR that dead processes of this user left."""
    for leftover in _entries(parent, _SCRATCH, ""):
        _sweep(leftover)


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that exists only during the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _entries(path.parent, _DRAFT, _PARTIAL):
        _sweep(leftover)
    with _locked(path.parent, f"{_DRAFT}{time.time_ns():020d}-", _PARTIAL, path.name) as folder:
        yield folder


@contextlib.contextmanager
def _locked(parent: Path, prefix: str, suffix: str, purpose: str) -> Iterator[Path]:
    """A new folder with an unpredictable name, private to this user, with a lock that ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent.absolute()))
    # a thread that ends together with the process, by a signal, does not reach its own finally
    _HELD.add(folder)
    try:
        with (folder / _UNLOCKED).open("x", encoding="utf-8", errors="surrogateescape") as lock:
            _take(lock.fileno())
            lock.write(purpose)
            lock.flush()
            # named only once it is locked, so that no other process finds it unlocked
            os.rename(folder / _UNLOCKED, folder / _LOCK)
            yield folder
    finally:
        _remove(folder)
        _HELD.discard(folder)


def _begun_before(draft: Path, purpose: str) -> bool:
    """Whether a living process began a draft for the same purpose before this one."""
    for other in _entries(draft.parent, _DRAFT, _PARTIAL):
        if other.name < draft.name and _holder(other) == purpose:
            return True
    return False


def _holder(folder: Path) -> str | None:
    """The purpose of a folder that a living process holds; None if its lock is free or cannot be tried."""
    with _opened_lock(folder) as lock:
        if lock is None or fcntl is None or _take(lock):
            return None
        return os.read(lock, 4096).decode("utf-8", errors="surrogateescape")


def _sweep(leftover: Path) -> None:
    """Remove a folder of this user if its process is gone; the process that gets the lock removes it."""
    with contextlib.suppress(OSError), _opened_lock(leftover) as lock:
        if lock is None:
            if not (leftover / _LOCK).exists() and time.time() - leftover.lstat().st_mtime > _UNLOCKED_S:
                shutil.rmtree(leftover, ignore_errors=True)
        elif _take(lock):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _opened_lock(folder: Path) -> Iterator[int | None]:
    """The descriptor of a folder's lock; None if the lock is missing or not accessible to this user."""
    try:
        # follow no links, and do not block
        lock = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield None
        return
    try:
        yield lock if stat.S_ISREG(os.fstat(lock).st_mode) else None
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _entries(parent: Path, prefix: str, suffix: str) -> list[Path]:
    """This user's folders with such names; links are ignored."""
    if fcntl is None:
        return []
    folders = []
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(suffix):
                with contextlib.suppress(OSError):  # gone in the meantime
                    if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        folders.append(Path(entry.path))
    return sorted(folders)


@atexit.register
def _remove_all() -> None:
    for folder in list(_HELD):
        _remove(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:  # interrupted: remove the rest nevertheless
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _rename(folder: Path, path: Path) -> None:
    """Rename a folder to an unused name; os.rename alone would replace an empty folder of another process."""
    try:
        if os.name == "posix":
            path.mkdir()
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise exists(path) from error
        raise


def _link(file: Path, path: Path) -> None:
    """Give a file an unused name."""
    try:
        os.link(file, path)
    except OSError as error:
        if os.path.lexists(path):
            raise exists(path) from error
        os.replace(file, path)  # a file system without hard links


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where EdgeKit keeps data sets and timing caches on this machine (XDG Base Directory Specification).

    A board chooses its own by devices/board/bootstrap.caches, which runs without this package.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def exists(path: Path) -> EdgeKitError:
    """The error for an output that already exists."""
    return EdgeKitError(f"{path} already exists", fix="choose another --out, or remove it first")


def _no_scratch(place: Path | str, error: OSError) -> EdgeKitError:
    return EdgeKitError(
        f"cannot write temporary files in {place}: {error.strerror or error}",
        fix="free some space there, or set TMPDIR to a folder with space",
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explain why `path` cannot be written; errors about other files pass through."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        # folders like /proc refuse new entries with ENOENT
        ours = error.errno in _UNWRITABLE and (_DRAFT in name or Path(name) in (path, *path.parents))
        if not ours and error.errno not in _FULL:
            raise
        raise EdgeKitError(
            f"cannot write {path}: {error.strerror}", fix="choose a writable place with enough space (--out)"
        ) from error
