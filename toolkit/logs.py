"""The library's log messages on standard error, as the command line and the processes that it starts show them."""

import contextlib
import logging
from collections.abc import Iterator


class _Handler(logging.Handler):
    """Prints the library's log messages; rich is imported only for the first one."""

    def emit(self, record: logging.LogRecord) -> None:
        from .console import show_record

        show_record(record)


@contextlib.contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Show the messages of the logger "edgekit" during the block."""
    logger, handler = logging.getLogger("edgekit"), _Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
