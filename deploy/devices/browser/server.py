"""The page's server: it serves the chosen models and images, under a secret path, to the first browser only."""

import hmac
import queue
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ...measuring.agent import parse_message

# function that returns the content, content type
Page = tuple[Callable[[], bytes], str]
# path under the secret -> the page there
Pages = Mapping[str, Page]

# a server's connection; the tuple is socketserver's datagram
Request = socket.socket | tuple[bytes, socket.socket]

# Size limit of a body (a result takes a few megabytes for ten thousand images), and time limit for receiving it.
_MAX_BYTES, _BODY_S = 64 << 20, 120.0
# Limits of connections (a browser opens six to a server), and of unread messages.
_MAX_CONNECTIONS, _MAX_WAITING = 64, 16

# The first two isolate the page from others, which enables threads and a finer clock if the browser trusts the address
# (HTML Standard, 7.1.3). WebAssembly counts as evaluation.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class _BoundedServer(ThreadingHTTPServer):
    """One thread per connection; connections above the limit are closed at once."""

    daemon_threads = True

    def __init__(self, page: "Server", address: str, port: int) -> None:
        self.page = page
        self._free = threading.Semaphore(_MAX_CONNECTIONS)
        super().__init__((address, port), _Handler)

    def process_request(self, request: Request, client_address: object) -> None:  # see socketserver.ThreadingMixIn
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore broken connections, whose traceback the standard library would print."""


class Server:
    """Serves the page while its `with` block lasts; the page's messages arrive in `messages`."""

    def __init__(self, address: str, port: int, pages: Pages) -> None:
        self.messages: queue.Queue[dict[str, object]] = queue.Queue(_MAX_WAITING)
        self.pages = pages
        self.secret = secrets.token_urlsafe(16)
        self.guest: str | None = None
        self._server = _BoundedServer(self, address, port)
        host, port = self._server.server_address[:2]
        name = own_address() if host == "0.0.0.0" else host  # noqa: S104 # as requested
        # as a browser writes it in the Host header (RFC 9110, section 7.2)
        self.host = name if port == 80 else f"{name}:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{self.host}/{self.secret}/"


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: _BoundedServer  # pyright: ignore[reportIncompatibleVariableOverride] # no other class creates it
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:  # a name that the standard library requires
        path = self._path()
        if path is None or path not in self.server.page.pages:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content, content_type = self.server.page.pages[path]
        self._answer(HTTPStatus.OK, content(), content_type)

    def do_POST(self) -> None:  # a name that the standard library requires
        self.close_connection = True  # unless the complete request has been read
        length = self.headers.get("Content-Length", "")
        if self._path() != "message":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,18}", length):
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > _MAX_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif (message := self._message(int(length))) is None:
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
            self._deliver(message)

    def _deliver(self, message: dict[str, object]) -> None:
        """Pass a message on when the queue has room."""
        try:
            self.server.page.messages.put(message, timeout=_BODY_S)
        except queue.Full:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.close_connection = False
        self._answer(HTTPStatus.NO_CONTENT, b"", "text/plain")

    def _message(self, length: int) -> dict[str, object] | None:
        """The body; None if it is not a JSON object, or does not arrive completely in time."""
        end, parts = time.monotonic() + _BODY_S, []
        while length > 0 and time.monotonic() < end:
            part = self.rfile.read1(min(length, 1 << 16))  # type: ignore[attr-defined] # it is a BufferedReader
            if not part:
                return None
            parts.append(part)
            length -= len(part)
        return parse_message(b"".join(parts).decode(errors="replace")) or None if length == 0 else None

    def _path(self) -> str | None:
        """The requested path; None if the secret is wrong, or for a second browser.

        The Host must be the announced address, to prevent DNS rebinding.
        """
        if self.headers.get("Host") != self.server.page.host:
            return None
        secret, _, path = self.path.partition("?")[0].lstrip("/").partition("/")
        if not hmac.compare_digest(secret.encode(), self.server.page.secret.encode()):
            return None
        guest = self.client_address[0]
        self.server.page.guest = self.server.page.guest or guest
        return path if guest == self.server.page.guest else None

    def _answer(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": content_type, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged; the terminal has a progress bar."""


def own_address() -> str:
    """The address from which this machine reaches its network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737)
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
