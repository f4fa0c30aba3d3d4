"""Run the agent on a board: start it, send heartbeats every few seconds, and read its messages."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping

from ...errors import DeviceError, LostDeviceError
from ...measuring.agent import follow
from ...progress import Progress
from ..transport import CommandError, Transport, ended
from .remote_agent import HEARTBEAT_S, PATIENCE_S, RECEIVED

# An agent that is silent for this long on a live connection is stuck.
_SILENCE_S = 60.0
# How long to try to reconnect after a lost connection.
RECONNECT_S = 30.0


def attend(
    transport: Transport, name: str, agent: str, request: Mapping[str, object], progress: Progress,
    collect: Callable[[], str | None],
) -> dict[str, object]:  # fmt: skip
    """Start the agent and follow it to its result.

    Args:
        agent: the shell command that starts it.
        request: the first line of its input.
        collect: fetches the result that the board kept after a lost connection, or None.

    Raises:
        EdgeKitError: the agent reported an error.
        LostDeviceError: the connection was lost, and the board kept no result.
    """
    process = transport.start(agent)
    with ended(process), _heartbeats(process, request) as send:
        try:
            result = follow(_lines(transport, name, process), progress)
        except LostDeviceError as lost:
            progress("reconnecting", 0.0)
            try:
                transport.reconnect(RECONNECT_S)
                collected = collect()
            except DeviceError:
                raise lost from None
            if collected is None:
                raise
            return follow([collected], progress)
        send(RECEIVED)
        return result


def _lines(transport: Transport, name: str, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines that the agent prints. If the agent is killed, the measurement is lost."""
    try:
        yield from transport.lines(process, _SILENCE_S)
    except CommandError as error:
        raise LostDeviceError(
            f"{name}: the agent was killed on the device ({error})", fix=f"edgekit doctor --device {name} reports more"
        ) from error


@contextlib.contextmanager
def _heartbeats(process: subprocess.Popen[bytes], request: Mapping[str, object]) -> Iterator[Callable[[str], None]]:
    """Send the request, then an empty line every few seconds; yields a function that sends another line."""
    stopped, lock = threading.Event(), threading.Lock()
    assert process.stdin  # noqa: S101 # it is a pipe
    stream = process.stdin

    def send(line: str) -> None:
        with lock, contextlib.suppress(OSError, ValueError):  # the reading side notices a dead connection
            stream.write(f"{line}\n".encode())
            stream.flush()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_S):
            send("")

    send(json.dumps(request))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield send
    finally:
        stopped.set()
        thread.join(PATIENCE_S)
