"""Writing files and folders whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import EdgeKitError

_PARTIAL = ".partial"

# What a person can mend by choosing another place; any other OSError is not about writing.
_UNWRITABLE = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
}  # fmt: skip


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        EdgeKitError: the folder is read-only or the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(_partial_name(path.name))
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """See that a file can be written, before the work whose result it is to hold; an old one stays as it is.

    Raises:
        EdgeKitError: its folder is read-only or cannot be made, or `path` is a folder.
    """
    if path.is_dir():
        raise EdgeKitError(f"{path} is a folder", fix="name a file in it")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=_PARTIAL):
            pass


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends well, and is removed when it does not.

    Raises:
        EdgeKitError: `path` exists already, its parent is read-only, or the disk is full.
    """
    if path.exists():
        raise EdgeKitError(f"{path} exists already", fix="choose another --out, or remove it first")
    partial = path.with_name(_partial_name(path.name))
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            os.rename(partial, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _partial_name(name: str) -> str:
    return f".{name}.{socket.gethostname()}.{os.getpid()}{_PARTIAL}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what processes of this host that are gone (killed in the middle of writing) left behind."""
    for leftover in parent.glob(f".*{_PARTIAL}"):
        *_, pid = leftover.name.removesuffix(_PARTIAL).split(".")
        if f".{socket.gethostname()}." not in leftover.name or not pid.isdigit() or _alive(int(pid)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # a place like /proc takes no new entry, and says that there is none
        where = Path(str(error.filename or ""))
        no_entry = error.errno == errno.ENOENT and (where.name.endswith(_PARTIAL) or where in path.parents)
        if error.errno not in _UNWRITABLE and not no_entry:
            raise
        raise EdgeKitError(
            f"cannot write {path}: {error.strerror}", fix="choose a writable place with room for it (--out)"
        ) from error
