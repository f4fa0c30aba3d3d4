"""Devices over SSH, by the system's OpenSSH client, so that the user's configuration, keys and jump hosts apply.

The client never prompts.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DeviceError
from ..files import scratch_folder
from .board.board import Board
from .transport import CHUNK, CommandError, Transport, ended, last_line

_CONNECT_S, _ASK_S = 20.0, 20.0
# With ServerAliveInterval, these detect a dead connection after 9 to 12 seconds.
_ALIVE_S, _ALIVE_TIMES = 3, 3
# Exit codes for a broken connection: that of ssh itself, and those of rsync.
_LOST, _RSYNC_LOST = 255, (12, 30)

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^:/@]+)(?::(?P<port>\d+))?(?P<path>/.*)?"
)

# pattern in ssh's standard error -> meaning, and the fix
_REFUSALS = {
    r"REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "has a different host key than before: another machine answers there, or it was reinstalled",
        "if it was reinstalled: ssh-keygen -R {host}, then ssh {login} once to accept the new key",
    ),
    r"Host key verification failed": (
        "has an unknown host key", "ssh {login} once, and accept the key if it is the board's",
    ),
    r"Permission denied|Too many authentication failures": (
        "requires a password or another key; EdgeKit does not ask for passwords", "ssh-copy-id {login}, then try again",
    ),
    r"Could not resolve hostname": ("has a name that cannot be resolved", "check the name, or pass the address"),
    r"Connection refused": ("refuses the connection: no ssh server listens there", "check the port, start sshd there"),
    r"timed out|No route to host|Network is unreachable": ("does not answer", "check its power and its network"),
}  # fmt: skip


def open_board(name: str) -> Board:
    """The board at an address ssh://[user@]host[:port][/path/of/its/python].

    Raises:
        DeviceError: `name` is not such an address.
    """
    return Board(name, Ssh(Address.parse(name)))


class Address(NamedTuple):
    """The parts of an address ssh://[user@]host[:port][/path/of/its/python]."""

    user: str | None
    host: str
    port: str | None
    path: str | None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address.

        Raises:
            DeviceError: `text` is not such an address.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
            raise DeviceError(f"{text} is not an ssh address", fix="e.g. --device ssh://pi@raspberrypi.local")
        return cls(match["user"], match["host"], match["port"], match["path"])

    @property
    def login(self) -> str:
        """The login as typed after ssh."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"


class Ssh(Transport):
    """One login that all commands and transfers share (OpenSSH's ControlMaster)."""

    # no password dialogs
    environment = {"SSH_ASKPASS_REQUIRE": "never"}  # noqa: RUF012 # never changed

    def __init__(self, address: Address) -> None:
        self.address, self.host, self.python = address, address.host, address.path
        self._ssh = shutil.which("ssh") or ""
        self._master: subprocess.Popen[bytes] | None = None
        self._scratch = contextlib.ExitStack()
        self._folder: Path | None = None
        self._rsync: bool | None = None

    def connect(self) -> None:
        """Log in.

        Raises:
            DeviceError: ssh is missing, or the login failed.
        """
        if not self._ssh:
            raise DeviceError("ssh is not installed on this machine", fix="install the OpenSSH client")
        self._folder = self._scratch.enter_context(scratch_folder())
        options = ["-o", "ControlMaster=yes", "-o", "ControlPersist=no", *self._options()]
        # it ends with its standard input, and so with this process
        self._master = self.popen(
            [self._ssh, *options, "-T", "--", self._host(), "echo edgekit; exec cat"], stderr=subprocess.PIPE
        )
        assert self._master.stdout and self._master.stderr  # noqa: S101 # they are pipes
        greeting, timer = self._master.stdout, threading.Timer(_CONNECT_S, self._master.kill)
        timer.start()
        try:
            greeted = any(line.strip() == b"edgekit" for line in iter(lambda: greeting.readline(CHUNK), b""))
        finally:
            timer.cancel()
        if not greeted:
            self._master.kill()
            errors = self._master.stderr.read(CHUNK).decode(errors="replace")
            self.close()
            raise self._refused(errors)

    def close(self) -> None:
        """Log out."""
        if self._master is not None:
            with ended(self._master):
                pass
            self._master = None
        self._scratch.close()
        self._folder = None

    def command_line(self, command: str) -> list[str]:
        """Use a POSIX shell, whatever the user's login shell is."""
        return [self._ssh, *self._options(), "-T", "--", self._host(), f"exec sh -c {shlex.quote(command)}"]

    def outcome(self, code: int, errors: str) -> tuple[int, str]:
        """Return the command's exit code, which ssh passes on; 255 is ssh's own."""
        if code == _LOST:
            raise self.lost(last_line(errors) or "closed the connection")
        return code, errors

    def put(self, path: Path, remote: str, sent: int, progress: Callable[[float], None]) -> None:
        """Use rsync if both ends have it, else sftp; both resume."""
        if self._has_rsync():
            self._transfer([
                "rsync", "--partial", "--append-verify", "--protect-args", "--info=progress2", "--timeout=20",
                f"--rsh={shlex.join([self._ssh, *self._options()])}", "--", str(path), f"{self.host}:{remote}",
            ], "", progress)  # fmt: skip
            return
        command = ["sftp", "-S", self._ssh, "-q", "-b", "-", *self._options(), "--", self.host]
        self._transfer(command, f"put {'-a ' if sent else ''}{_quoted(str(path))} {_quoted(remote)}\n", progress)

    def _has_rsync(self) -> bool:
        if self._rsync is None and shutil.which("rsync"):
            try:
                self._rsync = any(self.run("command -v rsync", "", _ASK_S))
            except CommandError:
                self._rsync = False
        return bool(self._rsync)

    def _transfer(self, command: Sequence[str], batch: str, progress: Callable[[float], None]) -> None:
        """Run rsync, or sftp with a batch of commands."""
        # limits the size of standard error, in blocks of 512 bytes (POSIX, ulimit)
        limited = ["sh", "-c", f'ulimit -f {CHUNK // 512}; exec "$@"', "sh", *command]
        with tempfile.TemporaryFile() as errors:
            process = self.popen(limited, stderr=errors)
            with ended(process):
                assert process.stdin and process.stdout  # noqa: S101 # they are pipes
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(batch.encode())
                    process.stdin.close()
                with process.stdout as output:
                    while piece := output.read1(CHUNK):  # type: ignore[attr-defined] # it is a BufferedReader
                        if shares := re.findall(rb"(\d{1,3})%", piece):  # rsync ends its lines with "\r"
                            progress(min(1.0, int(shares[-1]) / 100))
                code = process.wait()
            errors.seek(0)
            self._check_sent(code, errors.read(CHUNK).decode(errors="replace"))

    def _check_sent(self, code: int, errors: str) -> None:
        """Raise the error for the result of rsync or sftp."""
        if code == 0:
            return
        reason = last_line(errors)
        dead = self._master is None or self._master.poll() is not None or code in (*_RSYNC_LOST, _LOST)
        if "o space left" in errors or "uota exceeded" in errors or (not dead and "write remote" in errors):
            raise DeviceError(
                f"{self.host}: the disk is full", fix="free some space there, or edgekit provision --clean"
            )
        if dead:
            raise self.lost(reason or "the connection broke")
        raise DeviceError(
            f"{self.host}: a file cannot be sent: {reason or f'exit code {code}'}",
            fix="the board requires rsync or an sftp server, and free space: edgekit doctor --device reports both",
        )

    def _options(self) -> list[str]:
        assert self._folder is not None  # noqa: S101 # used while connected
        options = {
            "BatchMode": "yes",
            "ControlPath": f"{self._folder}/c",
            "ConnectTimeout": "10",
            "ServerAliveInterval": _ALIVE_S,
            "ServerAliveCountMax": _ALIVE_TIMES,
            "LogLevel": "ERROR",
            **({"User": self.address.user} if self.address.user else {}),
            **({"Port": self.address.port} if self.address.port else {}),
        }
        return [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]

    def _host(self) -> str:
        """The host for ssh; rsync and sftp require brackets around an IPv6 address."""
        return self.host.strip("[]")

    def _refused(self, errors: str) -> DeviceError:
        login = self.address.login
        for pattern, (meaning, fix) in _REFUSALS.items():
            if re.search(pattern, errors):
                return DeviceError(f"{self.host} {meaning}", fix=fix.format(host=self.host, login=login))
        reason = last_line(errors) or f"no login within {_CONNECT_S:.0f} s"
        return DeviceError(f"{self.host} cannot be reached: {reason}", fix=f"try: ssh {login}")


def _quoted(path: str) -> str:
    """A path in sftp's batch language."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
