"""Android devices over USB or TCP, through `adb`, the client of the Android Debug Bridge.

Not yet tried on a phone: the tests use the real client and a server that speaks the protocol. The device needs a
Python that the bridge's user (`shell`) may run; adb://SERIAL/path/of/its/python names it.
"""

import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import DeviceError
from .board.board import Board
from .transport import CHUNK, Transport, last_line

# adb first starts its server, and waits for a device that is still connecting.
_CONNECT_S = 20.0
# A push reports no progress; its time limit is this plus the time of the slowest connection.
_PUSH_S, _SLOWEST_BYTES_S = 60.0, 100_000
# messages of adb push if the device rejects the file
_REFUSED_FILE = re.compile("failed to copy .*: remote |Permission denied|Read-only file system|[Ii]s a directory")

# A serial number as adb prints it, including devices over TCP or Wi-Fi: 0123456789ABCDEF, emulator-5554, 10.0.0.7:5555,
# adb-XYZ._adb-tls-connect._tcp. It never looks like an option.
_SERIAL = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9._:%\[\]-]{0,127}")
_ADDRESS = re.compile(rf"adb://(?P<serial>{_SERIAL.pattern})?(?P<path>/.*)?")
_TCP = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[A-Za-z0-9._-]+):\d+")

# pattern in adb's standard error -> meaning, and the fix
_REFUSALS = {
    r"unauthorized|still authorizing": (
        "does not trust this machine yet", "unlock it and allow USB debugging; then try again",
    ),
    r"more than one": ("is not the only one connected", "choose one from adb devices: --device adb://SERIAL"),
    r"no devices|no emulators": (
        "is not connected", "plug it in and enable USB debugging in its developer options; adb devices must list it",
    ),
    r"offline|still connecting": ("is offline", "plug it in again, or restart it; adb reconnect may suffice"),
    r"not found": ("is not connected", "adb devices lists connected devices; over TCP: adb connect HOST:PORT"),
    r"no permissions|insufficient permissions": (
        "may not be used by this account", "Debian: apt install android-sdk-platform-tools-common (udev rules)",
    ),
    r"PTY args|allocating a pty": (
        "has no shell that reports exit codes", "Android 7 or newer is required",
    ),
    r"cannot connect to daemon|failed to (start|check)": (
        "cannot be reached: adb's server is not running", "adb kill-server, then adb start-server",
    ),
}  # fmt: skip


def open_board(name: str) -> Board:
    """The board at an address adb://[serial][/path/of/its/python]; without a serial, the only connected device.

    Raises:
        DeviceError: `name` is not such an address.
    """
    match = _ADDRESS.fullmatch(name)
    if match is None:
        raise DeviceError(f"{name} is not an adb address", fix="e.g. --device adb://0123456789ABCDEF, or adb://")
    return Board(name, Adb(match["serial"], match["path"]))


class Adb(Transport):
    """One device that adb's server can reach."""

    def __init__(self, serial: str | None, python: str | None) -> None:
        self.host, self.python = f"adb://{serial}" if serial else "the Android device", python
        self._wanted, self._serial = serial, serial or ""
        self._adb = ""
        # some versions of adb report success on a broken connection; a line on standard error marks the real end
        self._mark = f"edgekit-ended-{secrets.token_hex(8)}"

    def connect(self) -> None:
        """Find the device.

        Raises:
            DeviceError: adb is not installed, or the device is not ready.
        """
        self._adb = _program()
        # the server outlives this command, so it must not inherit its pipes
        self._ask("start-server")
        if self._wanted and _TCP.fullmatch(self._wanted):
            self._ask("connect", self._wanted)
        selection = ["-s", self._wanted] if self._wanted else []
        state = self._checked(*selection, "get-state")
        if state != "device":
            raise DeviceError(f"{self.host} is not running Android: its state is {state[:40]!r}", fix="adb reboot")
        serial = self._wanted or self._checked("get-serialno")
        if not _SERIAL.fullmatch(serial):
            raise DeviceError(f"adb lists a device {serial[:80]!r}, which is not a serial number", fix="adb devices")
        self._serial = serial
        code, _, errors = self._ask("-s", serial, "shell", "-T", "true")
        if code:
            raise self._refused(errors)

    def close(self) -> None:
        """Do nothing: no connection is open between commands, and adb's server keeps running as usual."""

    def command_line(self, command: str) -> list[str]:
        """Use `adb shell` without a terminal, so that bytes pass unchanged."""
        marked = f"sh -c {shlex.quote(command)}; echo {self._mark} $? >&2"
        return [self._adb, "-s", self._serial, "shell", "-T", "-e", "none", marked]

    def outcome(self, code: int, errors: str) -> tuple[int, str]:
        """Read the exit code from the marker; if the marker is missing, the connection broke."""
        match = re.search(rf"{self._mark} (\d{{1,3}})\s*", errors)
        if match is None:
            raise self.lost(last_line(errors) or f"adb ended with exit code {code}")
        return int(match[1]), errors[: match.start()] + errors[match.end() :]

    def put(self, path: Path, remote: str, sent: int, progress: Callable[[float], None]) -> None:
        """Use `adb push`, which cannot resume, but is far faster than a shell's standard input."""
        del sent
        limit_s = _PUSH_S + path.stat().st_size / _SLOWEST_BYTES_S
        code, output, errors = self._ask("-s", self._serial, "push", str(path), remote, timeout=limit_s)
        errors = f"{output}\n{errors}"  # some versions print errors as output
        if code == 0:
            progress(1.0)
            return
        reason = last_line(errors)
        if "o space left" in errors or "uota exceeded" in errors:
            raise DeviceError(f"{self.host}: the disk is full", fix="free space there, or edgekit provision --clean")
        if _REFUSED_FILE.search(errors):
            raise DeviceError(f"{self.host}: a file cannot be sent: {reason}", fix="check where its user may write")
        raise self.lost(reason or f"adb push ended with exit code {code}")

    def _checked(self, *arguments: str) -> str:
        """Run adb and return its output.

        Raises:
            DeviceError: adb failed.
        """
        code, output, errors = self._ask(*arguments)
        if code:
            raise self._refused(errors)
        return output.strip()

    def _ask(self, *arguments: str, timeout: float = _CONNECT_S) -> tuple[int, str, str]:
        """Run adb; returns its exit code and the first 64 KiB of standard output and standard error.

        Raises:
            LostDeviceError: adb does not end within `timeout` seconds.
        """
        # files, because a server that adb starts would keep pipes open
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                code = subprocess.run(
                    [self._adb, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                    timeout=timeout, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                raise self.lost(f"adb did not finish within {timeout:.0f} s") from None
            texts = []
            for stream in (output, errors):
                stream.seek(0)
                texts.append(stream.read(CHUNK).decode(errors="replace"))
        return code, texts[0], texts[1]

    def _refused(self, errors: str) -> DeviceError:
        for pattern, (meaning, fix) in _REFUSALS.items():
            if re.search(pattern, errors):
                return DeviceError(f"{self.host} {meaning}", fix=fix)
        return DeviceError(
            f"{self.host} cannot be reached: {last_line(errors) or 'adb gives no reason'}", fix="adb devices"
        )


def _program() -> str:
    """Find the client in PATH or in the Android SDK.

    Raises:
        DeviceError: it is in neither.
    """
    if program := shutil.which("adb"):
        return program
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        path = Path(os.environ.get(variable, "")) / "platform-tools" / "adb"
        if variable in os.environ and path.is_file():
            return str(path)
    raise DeviceError(
        "adb is not installed: it is neither in PATH nor in ANDROID_HOME",
        fix="install it: apt install adb, brew install android-platform-tools, or the Android SDK's platform-tools",
    )
