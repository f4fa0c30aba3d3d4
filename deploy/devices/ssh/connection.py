"""The system's OpenSSH client: one connection to a board, over which commands run and files are sent.

It is the user's own ssh: their configuration, keys, agent and jump hosts count. It is never let ask a question.
"""

import contextlib
import os
import re
import selectors
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DeviceError, LostDeviceError
from ...files import scratch_folder

_CONNECT_S = 20.0
# With ServerAliveInterval these make a dead line known after 9 to 12 seconds.
_ALIVE_S, _ALIVE_TIMES = 3, 3

# A result is one line, of some megabytes with ten thousand images. An agent prints some lines a second, for hours.
_MAX_LINE_BYTES = 64 << 20
_MAX_LINES, _MAX_S = 1_000_000, 24 * 3600.0
# The end of standard error is kept for the error message, and waited for so long after standard output has ended.
_STDERR_BYTES, _STDERR_S = 4096, 5.0
# A file arrives at some speed, however slow the line.
_STALLED_S = 60.0
_CHUNK = 1 << 16

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^:/@]+)(?::(?P<port>\d+))?(?P<path>/.*)?"
)

# what ssh says -> what that means, and what to do
_REFUSALS = {
    r"REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "has another host key than when it was last seen: another machine answers there, or it was set up anew",
        "if it was set up anew: ssh-keygen -R {host}, then ssh {login} once to accept the new key",
    ),
    r"Host key verification failed": (
        "has a host key that this machine does not know", "ssh {login} once, and accept the key if it is the board's",
    ),
    r"Permission denied|Too many authentication failures": (
        "wants a password or another key; EdgeKit does not ask for passwords", "ssh-copy-id {login}, then try again",
    ),
    r"Could not resolve hostname": ("is not a name that can be resolved", "check the name, or pass the address"),
    r"Connection refused": ("refuses the connection: no ssh server listens there", "check the port, start sshd there"),
    r"timed out|No route to host|Network is unreachable": ("does not answer", "check that it is on, in this network"),
}  # fmt: skip


class Address(NamedTuple):
    """Where a board is: ssh://[user@]host[:port][/path/of/its/python]."""

    user: str | None
    host: str
    port: str | None
    path: str | None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address.

        Raises:
            DeviceError: it is none.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
            raise DeviceError(f"{text} is not an address of a board", fix="e.g. --device ssh://pi@raspberrypi.local")
        return cls(match["user"], match["host"], match["port"], match["path"])

    @property
    def login(self) -> str:
        """As one types it after ssh."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"


class Connection:
    """A connection that everything else goes through; made by `with`, and again by `reconnect` after it broke."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._ssh = shutil.which("ssh") or ""
        self._master: subprocess.Popen[bytes] | None = None
        self._scratch = contextlib.ExitStack()
        self._folder: Path | None = None

    def __enter__(self) -> "Connection":
        if not self._ssh:
            raise DeviceError("there is no ssh on this machine", fix="install the OpenSSH client")
        self._connect()
        return self

    def __exit__(self, *error: object) -> None:
        self._disconnect()

    def reconnect(self, patience_s: float) -> None:
        """Connect anew, trying for so long.

        Raises:
            DeviceError: the board cannot be reached.
        """
        end = time.monotonic() + patience_s
        while True:
            self._disconnect()
            try:
                return self._connect()
            except DeviceError:
                if time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def run(self, command: str, input: str, timeout: float) -> Iterator[str]:
        """Run a shell command on the board; the lines of its output.

        Raises:
            LostDeviceError: the line is dead, or no output came for `timeout` seconds.
            CommandError: the command failed.
        """
        process = self.start(command)
        with ended(process):
            assert process.stdin  # noqa: S101 # it is a pipe
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(input.encode())
                process.stdin.close()
            yield from self.lines(process, timeout)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a shell command on the board, with pipes for its standard input, output and error."""
        return subprocess.Popen(
            [self._ssh, *self._options(), "-T", "--", self._host(), f"exec sh -c {shlex.quote(command)}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env=_environment(),
        )  # fmt: skip

    def lines(self, process: subprocess.Popen[bytes], timeout: float) -> Iterator[str]:
        """The lines that a started command prints, until it ends well.

        Raises:
            LostDeviceError: the line is dead, or no line came for `timeout` seconds.
            DeviceError: a line is too long, or there are too many, or they take too long.
            CommandError: the command failed.
        """
        count, begun, pending = 0, time.monotonic(), bytearray()
        due = begun + timeout
        for chunk in self._output(process, timeout):
            *complete, rest = chunk.split(b"\n")
            for end in complete:
                yield (pending + end).decode(errors="replace")
                pending.clear()
                due = time.monotonic() + timeout
            pending += rest
            count += len(complete)
            if len(pending) > _MAX_LINE_BYTES or count > _MAX_LINES or time.monotonic() - begun > _MAX_S:
                raise DeviceError(
                    f"{self.address.host} does not stop printing: line {count + 1}, {len(pending)} bytes",
                    fix="look at what runs there; EdgeKit's own agent prints far less",
                )
            if time.monotonic() > due:
                raise self._lost(f"said nothing for {timeout:.0f} s")
        if pending:
            yield pending.decode(errors="replace")

    def _output(self, process: subprocess.Popen[bytes], timeout: float) -> Iterator[bytes]:
        """A started command's standard output in pieces, until it ends well; of standard error the end is kept.

        Raises:
            LostDeviceError: the line is dead, or no output came for `timeout` seconds.
            CommandError: the command failed.
        """
        assert process.stdout and process.stderr  # noqa: S101 # they are pipes
        words, due = b"", time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while streams := selector.get_map():
                ready = selector.select(max(0.0, due - time.monotonic()))
                if time.monotonic() > due:
                    if process.stdout.fileno() not in streams:
                        break  # something that was started there keeps standard error open
                    raise self._lost(f"said nothing for {timeout:.0f} s")
                for key, _ in ready:
                    content = os.read(key.fd, _CHUNK)
                    if not content:
                        selector.unregister(key.fd)
                    if key.fd == process.stderr.fileno():
                        words = (words + content)[-_STDERR_BYTES:]
                    elif content:
                        yield content
                        due = time.monotonic() + timeout
                    else:
                        due = time.monotonic() + _STDERR_S
        self._check_ended(process, timeout, words.decode(errors="replace"))

    def _check_ended(self, process: subprocess.Popen[bytes], timeout: float, words: str) -> None:
        """Raise what the end of a command means."""
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._lost("a command there does not end") from None
        if code == 255:  # ssh's own
            raise self._lost(_last_line(words) or "closed the connection")
        if code:
            raise CommandError(code, _last_line(words))

    def put(self, path: Path, remote: str, sent: int, *, rsync: bool, progress: Callable[[float], None]) -> None:
        """Send a file, of which `sent` bytes arrived in an earlier try: by rsync where the board has it, else by sftp.

        Raises:
            LostDeviceError: the line is dead.
            DeviceError: the file cannot be written there.
        """
        there = f"{self.address.host}:{remote}"
        batch = f"put {'-a ' if sent else ''}{_quoted(str(path))} {_quoted(remote)}\n"
        self._transfer([str(path), there], batch, rsync=rsync, progress=progress)

    def get(self, remote: str, path: Path, *, most: int) -> None:
        """Fetch a file of at most `most` bytes; `path` is new.

        By `cat`, since rsync and sftp leave it to the far end how much is written, and rsync under which names.

        Raises:
            LostDeviceError: the line is dead.
            DeviceError: the file cannot be read there or written here, or is larger.
        """
        process, size = self.start(f"exec cat {shlex.quote(remote)}"), 0
        try:
            with ended(process), path.open("xb") as stream:
                for chunk in self._output(process, _STALLED_S):
                    size += len(chunk)
                    if size > most:
                        raise DeviceError(
                            f"{self.address.host} sends more than {most} bytes for a file", fix="do not use this device"
                        )
                    stream.write(chunk)
        except (CommandError, OSError) as error:
            raise DeviceError(
                f"{self.address.host}: a file cannot be fetched: {error}", fix="check the room there and here"
            ) from error

    def _transfer(
        self, ends: Sequence[str], batch: str, *, rsync: bool, progress: Callable[[float], None]
    ) -> None:  # fmt: skip
        """Run rsync from one end to the other, or sftp with a batch of commands."""
        if rsync and shutil.which("rsync"):
            command = [
                "rsync", "--partial", "--append-verify", "--protect-args", "--info=progress2", "--timeout=20",
                f"--rsh={shlex.join([self._ssh, *self._options()])}", "--", *ends,
            ]  # fmt: skip
            batch = ""
        else:
            command = ["sftp", "-S", self._ssh, "-q", "-b", "-", *self._options(), "--", self.address.host]
        # of standard error a board may fill no more than this many blocks of 512 bytes (POSIX, ulimit)
        command = ["sh", "-c", f'ulimit -f {_CHUNK // 512}; exec "$@"', "sh", *command]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                env=_environment(),
            )  # fmt: skip
            with ended(process):
                assert process.stdin and process.stdout  # noqa: S101 # they are pipes
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(batch.encode())
                    process.stdin.close()
                with process.stdout as output:
                    while line := output.readline(_CHUNK):
                        if share := re.search(rb"(\d{1,3})%", line):
                            progress(min(1.0, int(share[1]) / 100))
                code = process.wait()
            errors.seek(0)
            self._check_sent(code, errors.read(_CHUNK).decode(errors="replace"))

    def _check_sent(self, code: int, words: str) -> None:
        """Raise what the end of rsync or sftp means."""
        host, said = self.address.host, _last_line(words)
        if code == 0:
            return
        if "o space left" in words or "uota exceeded" in words or (not self._dead(code) and "write remote" in words):
            raise DeviceError(f"{host}: the disk is full", fix="free some room there, or edgekit provision --clean")
        if self._dead(code):
            raise self._lost(said or "the connection broke")
        raise DeviceError(
            f"{host}: a file cannot be sent or fetched: {said or f'exit code {code}'}",
            fix="the board needs rsync or an sftp server, and room: edgekit doctor --device says more",
        )

    def _dead(self, code: int) -> bool:
        """Whether the connection is: the shared login ended, or rsync (12 and 30) or ssh (255) says so."""
        return self._master is None or self._master.poll() is not None or code in (12, 30, 255)

    def _connect(self) -> None:
        """Log in; commands share this one login."""
        self._folder = self._scratch.enter_context(scratch_folder())
        options = ["-o", "ControlMaster=yes", "-o", "ControlPersist=no", *self._options()]
        # it lives as long as its standard input, so it ends with this process however that ends
        self._master = subprocess.Popen(
            [self._ssh, *options, "-T", "--", self._host(), "echo edgekit; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env=_environment(),
        )  # fmt: skip
        assert self._master.stdout and self._master.stderr  # noqa: S101 # they are pipes
        greeting, timer = self._master.stdout, threading.Timer(_CONNECT_S, self._master.kill)
        timer.start()
        try:
            greeted = any(line.strip() == b"edgekit" for line in iter(lambda: greeting.readline(_CHUNK), b""))
        finally:
            timer.cancel()
        if not greeted:
            self._master.kill()
            words = self._master.stderr.read(_CHUNK).decode(errors="replace")
            self._disconnect()
            raise self._refused(words)

    def _disconnect(self) -> None:
        if self._master is not None:
            with ended(self._master):
                pass
            self._master = None
        self._scratch.close()
        self._folder = None

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
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def _host(self) -> str:
        """As ssh wants it; rsync and sftp want brackets around an IPv6 address."""
        return self.address.host.strip("[]")

    def _refused(self, words: str) -> DeviceError:
        host, login = self.address.host, self.address.login
        for pattern, (meaning, fix) in _REFUSALS.items():
            if re.search(pattern, words):
                return DeviceError(f"{host} {meaning}", fix=fix.format(host=host, login=login))
        said = _last_line(words) or f"it did not let in within {_CONNECT_S:.0f} s"
        return DeviceError(f"{host} cannot be reached: {said}", fix=f"try: ssh {login}")

    def _lost(self, words: str) -> LostDeviceError:
        return LostDeviceError(
            f"{self.address.host} is gone: {words}", fix="check the board and the line, then run the command again"
        )


class CommandError(Exception):
    """A command on the board failed: its exit code and last words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"exit code {code}{': ' + words if words else ''}")


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """A process that is over when the block is: it is let end by itself for a moment, for the far end's sake."""
    try:
        yield
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()
        try:
            process.wait(3.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _last_line(words: str) -> str:
    return next((line.strip()[:1000] for line in reversed(words.splitlines()) if line.strip()), "")


def _quoted(path: str) -> str:
    """A path in sftp's batch language."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _environment() -> dict[str, str]:
    """This process's, with ssh kept from asking in a window."""
    return {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
