"""A test server of the Android Debug Bridge with its devices; the real `adb` client talks to it.

It implements the server's side of the smart socket protocol, as far as EdgeKit's transport uses it (system/core/adb:
OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT, shell_protocol.h). A device is a folder of this machine, where its shell runs.
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

# adb 1.0.41: a client with another number would stop this server and start its own
_VERSION = "0029"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_DATA_MAX = 64 * 1024

# state of a device -> the server's answer to requests that use the device
_ANSWERS = {
    "unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nTry 'adb kill-server' if "
    "that seems wrong.\nOtherwise check for a confirmation dialog on your device.",
    "offline": "device offline",
    "authorizing": "device still authorizing",
    "no permissions": "insufficient permissions for device: user in plugdev group; are your udev rules wrong?",
}


def need_adb() -> None:
    """Skip the test if adb is not installed."""
    need(shutil.which("adb"), "adb, the Android Debug Bridge", "apt-get install adb", "EDGEKIT_ADB")


class Bridge(socketserver.ThreadingTCPServer):
    """The server, on a port of this machine.

    Attributes:
        devices: serial -> state ("device" if it is ready, or a key of _ANSWERS).
        features: those of each device.
        connectable: addresses that `adb connect` finds.
        shell_lines: the commands that its shells ran.
        pushed: number of files received.
        full: whether the devices' disks are full.
        cut_after: number of bytes of a file after which its connection breaks, once.
        answer: the error of every request about a device, or None for the protocol's answers.
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
        """The value of ADB_SERVER_SOCKET."""
        return f"tcp:127.0.0.1:{self.server_address[1]}"

    def process_request(self, request, client_address) -> None:
        """Record the connection, so that `cut` can close it."""
        self._open.add(request)
        super().process_request(request, client_address)

    def cut(self) -> None:
        """Pull all cables: close every connection without notice."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def environment(self) -> dict[str, str]:
        """The environment of a device's shell."""
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        return {**inherited, "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp")}


@contextlib.contextmanager
def bridge(folder: Path) -> Iterator[Bridge]:
    """A server that runs during the `with` block."""
    with Bridge(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.cut()
            server.shutdown()


class _Client(socketserver.BaseRequestHandler):
    """One client connection: requests until one of them takes over the connection."""

    server: Bridge
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                service = self._read(int(self._read(4), 16)).decode()
                if not self._host(service):
                    return

    def _host(self, service: str) -> bool:
        """Answer a request to the server; return whether another one may follow."""
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
        """Answer a question about a device: host:QUESTION, or host-serial:SERIAL:QUESTION."""
        kind, _, argument = service.partition(":")
        serial, _, question = argument.rpartition(":") if kind == "host-serial" else ("", "", argument)
        serial = self._chosen(serial)
        if serial is not None:
            self._answer({"get-serialno": serial, "get-state": self.server.devices[serial],
                          "features": self.server.features}.get(question, ""))  # fmt: skip
        return False

    def _chosen(self, serial: str) -> str | None:
        """The device with this serial, or the only device; None, after an error answer, if it is not usable."""
        devices = self.server.devices
        if self.server.answer is not None:
            self._fail(self.server.answer)
        elif not serial and len(devices) != 1:
            self._fail("more than one device/emulator" if devices else "no devices/emulators found")
        elif serial and serial not in devices:
            self._fail(f"device '{serial}' not found")
        else:
            chosen = serial or next(iter(devices))
            if devices[chosen] not in _ANSWERS:
                return chosen
            self._fail(_ANSWERS[devices[chosen]])
        return None

    def _device(self, service: str) -> None:
        """Run a service of the device: its shell or file transfer."""
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
        """Answer one request of the sync protocol; return False at the end."""
        kind, size = struct.unpack("<4sI", self._read(8))
        if kind == b"QUIT":
            return False
        path = self._read(size).decode()
        if kind in (b"STAT", b"LSTAT"):
            stat = Path(path).stat() if Path(path).exists() else None
            facts = (stat.st_mode, stat.st_size & 0xFFFFFFFF, int(stat.st_mtime)) if stat else (0, 0, 0)
            self.request.sendall(struct.pack("<4sIII", b"STAT", *facts))
        elif kind == b"SEND":
            return self._receive(Path(path.rpartition(",")[0]))
        return True

    def _receive(self, path: Path) -> bool:
        """Receive one file and answer; return whether requests may follow."""
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
        except OSError as failure:
            error = f"couldn't create file: {failure.strerror}"
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
