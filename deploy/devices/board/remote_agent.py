"""The agent on a board: `python -m edgekit.deploy.devices.board.remote_agent CACHE`, attended over its pipes.

The first line on standard input is the job; after it lines come every few seconds for as long as the other side is
there. Once they stop, everything that was started here ends and the job's folder is removed. One job at a time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from ...bundle import Bundle
from ...errors import DeviceError
from ...measuring import cargo
from ...measuring.agent import BUILT, JOB, Message, run_and_say

# How often either side says that it is there, and how long the silence of the other is borne.
HEARTBEAT_S, PATIENCE_S = 2.0, 15.0
# What the other side says when it has the result, and how the files are called that hold results until then.
RECEIVED, RESULT = "received", "result-"

_CODE = Path(__file__).resolve()


class _Voice:
    """Standard output, for more than one thread; a silence that nobody hears ends the job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, message: Mapping[str, object]) -> None:
        with self._lock:
            print(json.dumps(message), flush=True)


def main() -> None:
    """Run the one job that standard input describes."""
    cache = Path(sys.argv[1])
    with contextlib.suppress(PermissionError):  # it leads a group of its own already
        os.setsid()
    voice = _Voice()
    request = json.loads(sys.stdin.readline())
    try:
        with _alone(cache, request["host"]), _folder(cache / "job") as job:
            os.environ["TMPDIR"] = str(job)  # what the workers leave goes with the job
            listener = _attend(voice, job, cache / request["result"])
            for name in request["parcels"]:
                with zipfile.ZipFile(cache / name) as archive:
                    archive.extractall(job)
            (job / JOB).write_text(json.dumps(request["job"]), encoding="utf-8")

            def say(message: Message) -> None:
                if BUILT in message.get("result", {}):
                    message = {"result": {"parcel": _parcel_of(job / BUILT, cache)}}
                if "result" in message:  # kept until it is known to have arrived: a cut just now must not cost it
                    (cache / request["result"]).write_text(json.dumps(message), encoding="utf-8")
                voice.say(message)

            run_and_say(job, say)
            listener.join(PATIENCE_S)
    except DeviceError as error:
        voice.say({"error": str(error), "fix": error.fix})
    except OSError as error:
        voice.say({"error": f"the board cannot write to {cache}: {error.strerror}", "fix": "free some room there"})


def _parcel_of(folder: Path, cache: Path) -> str:
    """Put a new bundle into the cache, as it would be sent from the host: the host need not send it back to run it."""
    bundle = Bundle.open(folder)
    return cargo.parcel(cargo.bundle_files(bundle, cargo.bundle_folder(bundle)), cache).sha256


@contextlib.contextmanager
def _alone(cache: Path, host: str) -> Iterator[None]:
    """Hold the board's lock, which ends with this process however it ends.

    Raises:
        DeviceError: another holds it.
    """
    with (cache / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DeviceError(
                f"another EdgeKit is measuring on this board, for {lock.read().strip() or 'somebody'}",
                fix="wait until it is done, or end it: two at once would disturb each other",
            ) from None
        _write(lock, host)
        yield
        _write(lock, "")


def _write(lock: IO[str], text: str) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(text)
    lock.flush()


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A new folder, removed in the end; what an earlier job left behind goes first, and older code."""
    shutil.rmtree(path, ignore_errors=True)
    for code in path.parent.glob("code-*"):
        if code not in _CODE.parents:
            shutil.rmtree(code, ignore_errors=True)
    for result in path.parent.glob(f"{RESULT}*"):
        result.unlink()
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _attend(voice: _Voice, job: Path, result: Path) -> threading.Thread:
    """Watch that the other side is there, and say that this one is. The thread returned ends when the other side does,
    or has the result."""
    heard = [time.monotonic()]

    def end(*_: object) -> None:
        shutil.rmtree(job, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    def listen() -> None:
        for line in sys.stdin:
            heard[0] = time.monotonic()
            if line.strip() == RECEIVED:
                result.unlink(missing_ok=True)
                return
        end()

    def beat() -> None:
        while time.monotonic() - heard[0] < PATIENCE_S:
            try:
                voice.say({"alive": True})
            except OSError:  # nobody listens any more
                break
            time.sleep(HEARTBEAT_S)
        end()

    for what in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(what, end)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    threading.Thread(target=beat, daemon=True).start()
    return listener


if __name__ == "__main__":
    main()
