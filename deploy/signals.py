"""Ending on a signal: temporary files are removed, and the exit code tells which signal it was."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator

# Ctrl-C, kill and a closed terminal; Windows has no SIGHUP.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")

# Repeats within this time are ignored: a supervisor may signal a parent and its children at once. Later ones count.
_REPEATED_S = 2.0


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread on SIGINT, SIGTERM and SIGHUP, then exit with 128 + the signal.

    A signal that this process was started to ignore (nohup, a background job) stays ignored.
    """
    received: dict[int, float] = {}

    def end(number: int, _: object) -> None:
        now = time.monotonic()
        if now - received.get(number, -_REPEATED_S) >= _REPEATED_S:
            received[number] = now
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number, handler in previous.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if received:
            sys.exit(128 + next(iter(received)))
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
