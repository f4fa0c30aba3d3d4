"""The agent on a board: `python -m edgekit.deploy.devices.board.remote_agent CACHE`, controlled over its pipes.

The first line on standard input is the job, followed by a heartbeat line every few seconds. When these stop, all
processes started here are killed and the job's folder is removed. One job runs at a time.
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
from ...measuring.agent import BUILT, JOB, Message, run_and_report

# Heartbeat interval of either side, and the longest tolerated silence of the other.
HEARTBEAT_S, PATIENCE_S = 2.0, 15.0
# The host's acknowledgement of a result, and the prefix of the files that store results until then.
RECEIVED, RESULT = "received", "result-"

_CODE = Path(__file__).resolve()


class _Output:
    """Standard output for several threads; a broken pipe ends the job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, message: Mapping[str, object]) -> None:
        with self._lock:
            print(json.dumps(message), flush=True)


def main() -> None:
    """Run the job that standard input describes."""
    cache = Path(sys.argv[1])
    with contextlib.suppress(PermissionError):  # already a group leader
        os.setsid()
    output = _Output()
    request = json.loads(sys.stdin.readline())
    try:
        with _locked(cache, request["host"]), _folder(cache / "job") as job:
            os.environ["TMPDIR"] = str(job)  # the workers' temporary files are removed with the job
            listener = _attend(output, job, cache / request["result"])
            for name in request["parcels"]:
                with zipfile.ZipFile(cache / name) as archive:
                    archive.extractall(job)
            (job / JOB).write_text(json.dumps(request["job"]), encoding="utf-8")

            def say(message: Message) -> None:
                if BUILT in message.get("result", {}):
                    message = {"result": {"parcel": _parcel_of(job / BUILT, cache)}}
                if "result" in message:  # kept until acknowledged, in case the connection breaks now
                    (cache / request["result"]).write_text(json.dumps(message), encoding="utf-8")
                output.say(message)

            run_and_report(job, say)
            listener.join(PATIENCE_S)
    except DeviceError as error:
        output.say({"error": str(error), "fix": error.fix})
    except OSError as error:
        output.say({"error": f"the board cannot write to {cache}: {error.strerror}", "fix": "free some space there"})


def _parcel_of(folder: Path, cache: Path) -> str:
    """Store a new bundle in the cache as if the host had sent it, so that the host can run it without sending it."""
    bundle = Bundle.open(folder)
    return cargo.parcel(cargo.bundle_files(bundle, cargo.bundle_folder(bundle)), cache).sha256


@contextlib.contextmanager
def _locked(cache: Path, host: str) -> Iterator[None]:
    """Hold the board's lock, which the system releases with this process.

    Raises:
        DeviceError: another process holds it.
    """
    with (cache / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DeviceError(
                f"another EdgeKit is measuring on this board, for {lock.read().strip() or 'another user'}",
                fix="wait until it finishes, or stop it: two runs at once would disturb each other",
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
    """Make a new folder that is removed at the end; first remove leftovers of earlier jobs, and older code."""
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


def _attend(output: _Output, job: Path, result: Path) -> threading.Thread:
    """Exchange heartbeats with the host. The returned thread ends when the host is gone or has the result."""
    last_received = [time.monotonic()]

    def end(*_: object) -> None:
        shutil.rmtree(job, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    def listen() -> None:
        for line in sys.stdin:
            last_received[0] = time.monotonic()
            if line.strip() == RECEIVED:
                result.unlink(missing_ok=True)
                return
        end()

    def beat() -> None:
        while time.monotonic() - last_received[0] < PATIENCE_S:
            try:
                output.say({"alive": True})
            except OSError:  # the host is gone
                break
            time.sleep(HEARTBEAT_S)
        end()

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    threading.Thread(target=beat, daemon=True).start()
    return listener


if __name__ == "__main__":
    main()
