"""Limits of a case: it ends soon, uses little memory, and touches nothing outside its folder."""

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Limits of processor time, which other processes do not affect, and of elapsed time, for cases that wait.
SECONDS, WAITING_SECONDS = 10.0, 60.0
# Far more than any seed needs, less than a decompression bomb takes.
GROWTH_BYTES = 256 << 20
_HEADROOM_BYTES = 2 << 30

# The running code, and the system files that it needs.
_READABLE = (
    str(ROOT), sys.prefix, sys.base_prefix, str(Path(sysconfig.get_paths()["purelib"]).resolve()), "/usr", "/lib",
    "/proc", "/sys", "/dev", "/etc/localtime", "/etc/mime.types",
)  # fmt: skip
_CHANGING = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "shutil.rmtree", "shutil.move",
}  # fmt: skip
_LEAVING = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect",
    "socket.getaddrinfo", "socket.bind", "urllib.Request", "webbrowser.open", "pickle.find_class",
}  # fmt: skip


class Escape(BaseException):
    """A case reached outside its folder; `except Exception` does not catch this."""


class Slow(BaseException):
    """A case took too long."""


class LargeError(Exception):
    """A case took too much memory."""


_folder: str | None = None
_escaped: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _folder is None:
        return
    if event == "open":
        path, _, flags = arguments
        changing = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
        _check(event, path, () if changing else _READABLE)
    elif event in _CHANGING:
        for path in arguments[:2] if event in ("os.rename", "os.link", "shutil.move") else arguments[:1]:
            _check(event, path, ())
    elif event in _LEAVING:
        _escape(f"{event} {str(arguments)[:200]}")


def _check(event: str, path: Any, others: tuple[str, ...]) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # an open descriptor
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 # links are not followed
    if name != "/dev/null" and not f"{name}{os.sep}".startswith((str(_folder), *others)):
        _escape(f"{event} {name[:200]}")


def _escape(access: str) -> None:
    _escaped.append(access)
    raise Escape(access)


def _late(*_: Any) -> None:
    raise Slow(f"more than {SECONDS:g} s of processor time, or {WAITING_SECONDS:g} s")


class Guard:
    """Limits for this process, created once; each case runs under `case`."""

    def __init__(self) -> None:
        sys.addaudithook(_audit)
        signal.signal(signal.SIGPROF, _late)
        signal.signal(signal.SIGALRM, _late)
        self._peak = self._peak_bytes()

    def limit_memory(self) -> None:
        """Refuse more memory than any case needs, before the machine runs out of it."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _HEADROOM_BYTES, resource.RLIM_INFINITY))
        self._peak = self._peak_bytes()

    @contextlib.contextmanager
    def case(self, folder: Path) -> Iterator[None]:
        """Run one case, which may touch only this folder.

        Raises:
            Escape, Slow, LargeError: it exceeds its limits.
        """
        global _folder
        _escaped.clear()
        os.chdir(folder)  # relative paths are inside it
        _folder = f"{folder}{os.sep}"
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _folder = None
            peak, self._peak = self._peak, max(self._peak, self._peak_bytes())
        if _escaped:
            raise Escape(_escaped[0])
        if self._peak - peak > GROWTH_BYTES:
            raise LargeError(f"{(self._peak - peak) >> 20} MiB")

    @staticmethod
    def _peak_bytes() -> int:
        # not getrusage's ru_maxrss, which a process inherits from the one that started it
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
