"""Transports: ways to reach a device with a shell and a Python. They share the code in board/.

A transport uses a local client program (ssh, adb) to run shell commands on the device.
"""

import contextlib
import os
import selectors
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DeviceError, LostDeviceError

# A result is one line, a few megabytes for ten thousand images. An agent prints a few lines per second, for hours.
_MAX_LINE_BYTES = 64 << 20
_MAX_LINES, _MAX_S = 1_000_000, 24 * 3600.0
# Bytes of standard error kept for messages, and how long to wait for them after standard output ends.
_STDERR_BYTES, _STDERR_S = 4096, 5.0
# A file transfer that receives nothing for this long has stalled.
_STALLED_S = 60.0
# Time for a client program to exit by itself.
_ENDING_S = 3.0
CHUNK = 1 << 16


class CommandError(Exception):
    """A command on the device failed: its exit code and the last line of its standard error."""

    def __init__(self, code: int, errors: str) -> None:
        last = last_line(errors)
        super().__init__(f"exit code {code}{': ' + last if last else ''}")


class Transport(ABC):
    """A way to reach one device; connected while its `with` block lasts.

    A transport implements `connect`, `close`, `command_line`, `outcome` and `put`; the rest is built on them.

    Attributes:
        host: the device's name in messages.
        python: path of the device's Python, if the address contains one; else None.
        environment: variables for the client program, in addition to those of this process.
    """

    host: str
    python: str | None = None
    environment: Mapping[str, str] = {}

    @abstractmethod
    def connect(self) -> None:
        """Connect to the device.

        Raises:
            DeviceError: the client program is missing, or the device cannot be reached.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect; harmless without a connection."""

    @abstractmethod
    def command_line(self, command: str) -> list[str]:
        """The client program and its arguments, which run a shell command on the device."""

    @abstractmethod
    def outcome(self, code: int, errors: str) -> tuple[int, str]:
        """Derive a command's exit code and standard error from those of the client program.

        Args:
            errors: the last 4096 bytes of the client's standard error.

        Raises:
            LostDeviceError: the client program lost the connection.
        """

    @abstractmethod
    def put(self, path: Path, remote: str, sent: int, progress: Callable[[float], None]) -> None:
        """Write a file of this machine to an absolute path on the device.

        Args:
            sent: bytes that already arrived in an earlier attempt; a transport may send them again.

        Raises:
            LostDeviceError: the device is gone.
            DeviceError: the file cannot be written there.
        """

    def __enter__(self) -> "Transport":
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reconnect(self, patience_s: float) -> None:
        """Reconnect, and retry for `patience_s` seconds.

        Raises:
            DeviceError: the device cannot be reached.
        """
        end = time.monotonic() + patience_s
        while True:
            self.close()
            try:
                return self.connect()
            except DeviceError:
                if time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def run(self, command: str, input: str, timeout: float) -> Iterator[str]:
        """Run a shell command on the device; yields the lines of its output.

        Raises:
            LostDeviceError: the device is gone, or printed nothing for `timeout` seconds.
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
        """Start a shell command on the device, with pipes for its standard input, output and error."""
        return self.popen(self.command_line(command), stderr=subprocess.PIPE)

    def popen(self, command: list[str], *, stderr: Any) -> subprocess.Popen[bytes]:
        """Start a client program with pipes, protected from Ctrl-C."""
        pipe = subprocess.PIPE
        environment = {**os.environ, "LC_ALL": "C", **self.environment}
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, start_new_session=True, env=environment
        )

    def lines(self, process: subprocess.Popen[bytes], timeout: float) -> Iterator[str]:
        """The lines that a started command prints, until it ends with exit code 0.

        Raises:
            LostDeviceError: the device is gone, or printed no line for `timeout` seconds.
            DeviceError: a line is too long, or there are too many lines, or they take too long.
            CommandError: the command failed.
        """
        count, begun, pending = 0, time.monotonic(), bytearray()
        due = begun + timeout
        for chunk in self._output(process, timeout):
            *complete, partial = chunk.split(b"\n")
            for end in complete:
                yield (pending + end).decode(errors="replace")
                pending.clear()
                due = time.monotonic() + timeout
            pending += partial
            count += len(complete)
            if len(pending) > _MAX_LINE_BYTES or count > _MAX_LINES or time.monotonic() - begun > _MAX_S:
                raise DeviceError(
                    f"{self.host} prints too much: line {count + 1}, {len(pending)} bytes",
                    fix="check what runs there; EdgeKit's own agent prints far less",
                )
            if time.monotonic() > due:
                raise self.lost(f"no output for {timeout:.0f} s")
        if pending:
            yield pending.decode(errors="replace")

    def get(self, remote: str, path: Path, max_bytes: int) -> None:
        """Fetch a file of at most `max_bytes` bytes into the new file `path`.

        Uses `cat`, because sftp, rsync and adb pull let the device control the amount written, and partly the names.

        Raises:
            LostDeviceError: the device is gone.
            DeviceError: the file cannot be read there or written here, or is larger.
        """
        process, size = self.start(f"exec cat {shlex.quote(remote)}"), 0
        try:
            with ended(process), path.open("xb") as stream:
                for chunk in self._output(process, _STALLED_S):
                    size += len(chunk)
                    if size > max_bytes:
                        raise DeviceError(
                            f"{self.host} sends more than the allowed {max_bytes} bytes for a file",
                            fix="do not use this device",
                        )
                    stream.write(chunk)
        except (CommandError, OSError) as error:
            raise DeviceError(
                f"{self.host}: a file cannot be fetched: {error}", fix="check the free space there and here"
            ) from error

    def lost(self, reason: str) -> LostDeviceError:
        """The error for a device that is gone."""
        return LostDeviceError(
            f"{self.host} is gone: {reason}", fix="check the device and its connection, then run the command again"
        )

    def _output(self, process: subprocess.Popen[bytes], timeout: float) -> Iterator[bytes]:
        """A started command's standard output in pieces, until it ends with exit code 0.

        Raises:
            LostDeviceError: the device is gone, or printed nothing for `timeout` seconds.
            CommandError: the command failed.
        """
        assert process.stdout and process.stderr  # noqa: S101 # they are pipes
        errors, due = b"", time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while streams := selector.get_map():
                ready = selector.select(max(0.0, due - time.monotonic()))
                if time.monotonic() > due:
                    if process.stdout.fileno() not in streams:
                        break  # a background process there keeps standard error open
                    raise self.lost(f"no output for {timeout:.0f} s")
                for key, _ in ready:
                    content = os.read(key.fd, CHUNK)
                    if not content:
                        selector.unregister(key.fd)
                    if key.fd == process.stderr.fileno():
                        errors = (errors + content)[-_STDERR_BYTES:]
                    elif content:
                        yield content
                        due = time.monotonic() + timeout
                    else:
                        due = time.monotonic() + _STDERR_S
        self._check_ended(process, timeout, errors.decode(errors="replace"))

    def _check_ended(self, process: subprocess.Popen[bytes], timeout: float, errors: str) -> None:
        """Raise the error for the result of a command."""
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.lost("a command does not end") from None
        code, errors = self.outcome(code, errors)
        if code:
            raise CommandError(code, errors)


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process after the block: close its input, and kill it after 3 s."""
    try:
        yield
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def last_line(text: str) -> str:
    """The last line that is not empty, at most a thousand characters."""
    return next((line.strip()[:1000] for line in reversed(text.splitlines()) if line.strip()), "")
