"""The parent's side of a worker process (see worker.py)."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..environment import memory_cap
from ..errors import DeviceError, EdgeKitError


class WorkerProcess:
    """A worker process, from its parent's side. It starts at once and imports its runtime while other workers do."""

    def __init__(
        self, bundle: Path, images: Path | None, runtime: str | None = None, *, planted: bool = False
    ) -> None:  # fmt: skip
        self._bundle = bundle
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 # closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )
        self._send(
            "start", bundle=str(bundle), images=str(images) if images else None, runtime=runtime, planted=planted
        )  # fmt: skip
        self._started = False

    def ask(self, request: str, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            EdgeKitError: the worker reported an error.
            DeviceError: the worker process ended; the message has its last output.
        """
        if not self._started:
            self._started = True
            self._receive("start", None)
        self._send(request, **arguments)
        return self._receive(request, on_progress)

    def _send(self, request: str, **arguments: Any) -> None:
        assert self._process.stdin  # noqa: S101 # it is a pipe
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": request, **arguments}) + "\n")
            self._process.stdin.flush()

    def _receive(self, request: str, on_progress: Callable[[int], None] | None) -> dict[str, Any]:
        assert self._process.stdout  # noqa: S101 # it is a pipe
        for line in self._process.stdout:
            answer = json.loads(line)
            if "progress" not in answer:
                break
            if on_progress:
                on_progress(answer["progress"])
        else:
            raise self._crash(request)
        if "error" in answer:
            raise EdgeKitError(answer["error"], fix=answer["fix"])
        return answer

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        with contextlib.suppress(ValueError, BrokenPipeError):  # already closed
            self._process.communicate()
        self._stderr.close()

    def _crash(self, request: str) -> DeviceError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        message = f"the process of {self._bundle} {reason} during {request}{': ' + lines[-1] if lines else ''}"
        if code == -signal.SIGKILL:
            limit, peak = memory_cap()
            return DeviceError(
                f"{message}, most likely by the kernel for lack of memory: the limit is {megabytes(limit)}, the "
                f"peak was {megabytes(peak)}",
                fix="free memory, or use a smaller model",
            )
        return DeviceError(message, fix="run edgekit doctor; if the model is valid, please report a bug")


def megabytes(size: int | str) -> str:
    """Bytes as MB (10^6), for a message."""
    return f"{size / 1e6:.0f} MB" if isinstance(size, int) else size
