"""A server of the Android Debug Bridge and the devices behind it: the real `adb` talks to it as to its own.

The server's side of the smart socket protocol, as far as EdgeKit's transport uses it (system/core/adb: OVERVIEW.TXT,
SERVICES.TXT, SYNC.TXT, shell_protocol.h). A device is a folder of this machine, whose shell runs commands there.
"""

import contextlib
import os
import shutil
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.needs import need

# adb 1.0.41: a client with another number would end this server and start its own
_VERSION = "0029"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_DATA_MAX = 64 * 1024

# state of a device -> what the server answers to whoever wants to use it
_ANSWERS = {
    "unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nTry 'adb kill-server' if "
    "that seems wrong.\nOtherwise check for a confirmation dialog on your device.",
    "offline": "device offline",
    "authorizing": "device still authorizing",
    "no permissions": "insufficient permissions for device: user in plugdev group; are your udev rules wrong?",
}


def need_adb() -> None:
    """Skip the test where there is no adb."""
    need(shutil.which("adb"), "adb, the Android Debug Bridge", "apt-get install adb", "EDGEKIT_ADB")


class Bridge(socketserver.ThreadingTCPServer):
    """The server, on a port of this machine.

    Attributes:
        devices: serial -> state ("device" where it is ready, or see above).
        features: of each device.
        connectable: addresses that `adb connect` finds.
        shell_lines: the commands that its shells ran.
        pushed: how many files arrived.
        full: whether the devices' disks are.
        cut_after: bytes of a file after which its connection breaks, once.
        answer: what every request about a device fails with; None is the protocol's own.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.folder = folder
        self.devices: dict[str, str] = {"PHONE1": "device"}
        self.connectable: list[str] = []
        self.features = "shell_v2,cmd"
        self.shell_lines: list[str] = []
        self.full = False
        self.pushed = 0
        self.cut_after: int | None = None
        self.answer: str | None = None
        self._open: set[socket.socket] = set()
        (folder / "tmp").mkdir(parents=True)

    @property
    def socket_name(self) -> str:
        """For ADB_SERVER_SOCKET."""
        return f"tcp:127.0.0.1:{self.server_address[1]}"

    def process_request(self, request, client_address) -> None:
        """Remember the connection, to be cut."""
        self._open.add(request)
        super().process_request(request, client_address)

    def cut(self) -> None:
        """All cables are pulled: what runs over them breaks off without a word."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def environment(self) -> dict[str, str]:
        """That of a device's shell."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        return {**kept, "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp")}


@contextlib.contextmanager
def bridge(folder: Path) -> Iterator[Bridge]:
    """A server that runs while the block lasts."""
    with Bridge(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.cut()
            server.shutdown()


class _Client(socketserver.BaseRequestHandler):
    """One connection of a client: requests until one of them takes the connection over."""

    server: Bridge
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                service = self._read(int(self._read(4), 16)).decode()
                if not self._host(service):
                    return

    def _host(self, service: str) -> bool:
        """Answer a request to the server; True where another one may follow."""
        name = service.partition(":")[2]
        if service == "host:version":
            self._answer(_VERSION)
        elif service.startswith(("host:transport", "host:tport")):
            chosen = name.removeprefix("transport:").removeprefix("tport:serial:")
            serial = self._chosen("" if chosen.endswith("any") else chosen)
            if serial is None:
                return False
            self.request.sendall(b"OKAY" + (struct.pack("<Q", 1) if service.startswith("host:tport") else b""))
            self._device(self._read(int(self._read(4), 16)).decode())
        elif service.startswith("host:connect:"):
            address = name.removeprefix("connect:")
            if address in self.server.connectable:
                self.server.devices[address] = "device"
            self._answer(f"connected to {address}" if address in self.server.devices else "failed to connect")
        elif service.startswith("host"):
            return self._about(service)
        return False

    def _about(self, service: str) -> bool:
        """A question about a device: host:QUESTION, or host-serial:SERIAL:QUESTION."""
        kind, _, rest = service.partition(":")
        serial, _, question = rest.rpartition(":") if kind == "host-serial" else ("", "", rest)
        serial = self._chosen(serial)
        if serial is not None:
            self._answer({"get-serialno": serial, "get-state": self.server.devices[serial],
                          "features": self.server.features}.get(question, ""))  # fmt: skip
        return False

    def _chosen(self, serial: str) -> str | None:
        """The device of this serial, or the only one; None where there is none to use, which is answered."""
        devices = self.server.devices
        if self.server.answer is not None:
            self._fail(self.server.answer)
        elif not serial and len(devices) != 1:
            self._fail("more than one device/emulator" if devices else "no devices/emulators found")
        elif serial and serial not in devices:
            self._fail(f"device '{serial}' not found")
        else:
            found = serial or next(iter(devices))
            if devices[found] not in _ANSWERS:
                return found
            self._fail(_ANSWERS[devices[found]])
        return None

    def _device(self, service: str) -> None:
        """A service of the device: its shell, or sending files."""
        kind, _, argument = service.partition(":")
        if kind.startswith("shell,v2,") and kind.endswith(",raw"):
            self.request.sendall(b"OKAY")
            self._shell(argument)
        elif service == "sync:":
            self.request.sendall(b"OKAY")
            while self._sync():
                pass
        else:
            self._fail(f"unknown service {service}")

    def _shell(self, command: str) -> None:
        self.server.shell_lines.append(command)
        pipe, lock = subprocess.PIPE, threading.Lock()
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.server.folder,
            env=self.server.environment(), start_new_session=True,
        )  # fmt: skip
        assert process.stdin and process.stdout and process.stderr

        def packet(kind: int, content: bytes) -> None:
            with lock, contextlib.suppress(OSError):
                self.request.sendall(struct.pack("<BI", kind, len(content)) + content)

        def forward(kind: int, stream) -> None:
            while content := os.read(stream.fileno(), _DATA_MAX):
                packet(kind, content)

        def listen() -> None:
            with contextlib.suppress(OSError, EOFError, ValueError):
                while True:
                    kind, size = struct.unpack("<BI", self._read(5))
                    content = self._read(size)
                    if kind == _STDIN:
                        process.stdin.write(content)
                        process.stdin.flush()
                    elif kind == _CLOSE_STDIN:
                        break
            with contextlib.suppress(OSError):
                process.stdin.close()

        threads = [threading.Thread(target=forward, args=pair, daemon=True)
                   for pair in ((_STDOUT, process.stdout), (_STDERR, process.stderr))]  # fmt: skip
        for thread in (*threads, threading.Thread(target=listen, daemon=True)):
            thread.start()
        for thread in threads:
            thread.join()
        packet(_EXIT, bytes([process.wait() & 0xFF]))
        process.stdout.close()
        process.stderr.close()

    def _sync(self) -> bool:
        """One request of the sync protocol; False at its end."""
        kind, size = struct.unpack("<4sI", self._read(8))
        if kind == b"QUIT":
            return False
        path = self._read(size).decode()
        if kind in (b"STAT", b"LSTAT"):
            found = Path(path).stat() if Path(path).exists() else None
            facts = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime)) if found else (0, 0, 0)
            self.request.sendall(struct.pack("<4sIII", b"STAT", *facts))
        elif kind == b"SEND":
            return self._receive(Path(path.rpartition(",")[0]))
        return True

    def _receive(self, path: Path) -> bool:
        """A file that is sent, up to its end."""
        error = "No space left on device" if self.server.full else None
        content = bytearray()
        while True:
            kind, size = struct.unpack("<4sI", self._read(8))
            if kind == b"DONE":
                break
            content += self._read(size)
            if self.server.cut_after is not None and len(content) > self.server.cut_after:
                self.server.cut_after = None
                self.request.shutdown(socket.SHUT_RDWR)
                return False
        try:
            if error is None:
                path.write_bytes(content)
                self.server.pushed += 1
        except OSError as wrong:
            error = f"couldn't create file: {wrong.strerror}"
        if error is not None:
            self.request.sendall(struct.pack("<4sI", b"FAIL", len(error)) + error.encode())
            time.sleep(0.1)
            return False
        self.request.sendall(struct.pack("<4sI", b"OKAY", 0))
        return True

    def _read(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            part = self.request.recv(min(_DATA_MAX, size - len(content)))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def _answer(self, text: str) -> None:
        self.request.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())

    def _fail(self, text: str) -> None:
        self.request.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())
