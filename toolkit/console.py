"""Output for the user: results go to standard output, everything else to standard error.

A string is always plain text here: names, labels and messages come from outside, so markup in them is not interpreted
and control characters are shown as escapes. Styled output is a `Text`, made by `styled`.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import progress as rich_progress
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..deploy.progress import Progress, silent
from ..deploy.visible import visible

# Maximum number of stages announced if there is no terminal for a bar: a hostile device may send any number.
_MAX_STAGES = 100


class PlainConsole(Console):
    """A console that shows strings as they are, in tables too: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, in the requested style and justification."""
        layout = {key: options[key] for key in ("style", "justify", "overflow") if key in options}
        return Text(visible(text), **layout)


def styled(text: str, style: str) -> Text:
    """Plain text in a style."""
    return Text(visible(text), style)


class Line:
    """A line that wraps on a narrow terminal: at spaces, and within longer words only after - _ . / or a colon."""

    def __init__(self, text: str | Text) -> None:
        self._text = text if isinstance(text, Text) else Text(visible(text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._text if options.no_wrap else Text("\n").join(broken(self._text, options.max_width))


def broken(text: Text, width: int) -> list[Text]:
    """Split the text into pieces of at most `width` characters."""
    remaining, starts = text.plain, [0]
    while len(remaining) > width:
        cut = remaining.rfind(" ", 1, width + 1) + 1
        cut = cut or max(remaining.rfind(sign, 0, width) for sign in "-_./:") + 1
        starts.append(starts[-1] + (cut or width))
        remaining = remaining[cut or width :]
    pieces = list(text.divide(starts[1:]))
    for piece in pieces:
        piece.rstrip()
    return pieces


stdout = PlainConsole(highlight=False, soft_wrap=True)
stderr = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def print_parts(parts: Iterable[object], console: Console = stdout) -> None:
    """Print lines and tables, wrapped to the terminal. A file or pipe has no width unless COLUMNS sets one."""
    unwrapped = not console.is_terminal and "COLUMNS" not in os.environ
    for part in parts:
        console.print(Line(part) if isinstance(part, (str, Text)) else part, soft_wrap=unwrapped)


def say(message: str) -> None:
    """Print one line to standard error."""
    stderr.print(message)


def show_record(record: logging.LogRecord) -> None:
    """Print a log record. If it has an address, also show it as a QR code, provided segno is installed."""
    warning = "warning: " if record.levelno == logging.WARNING else ""
    say(warning + record.getMessage())
    if address := getattr(record, "address", None):
        _show_qr_code(address)


def _show_qr_code(address: str) -> None:
    try:
        import segno
    except ModuleNotFoundError:
        say("(for a QR code: pip install 'edgekit-vision[phone]')")
        return
    segno.make(address, error="l").terminal(out=sys.stderr, compact=True)


@contextlib.contextmanager
def progress_bar(title: str = "", *, announced: bool = True) -> Iterator[Progress]:
    """Show a bar on a terminal; elsewhere, print a line for each new stage.

    Args:
        title: name of the work, shown before each stage.
        announced: print the stages if there is no terminal; if False, nothing is printed there.
    """
    with progress_bars([title], announced=announced) as (show,):
        yield show


@contextlib.contextmanager
def progress_bars(titles: Sequence[str], *, announced: bool = True) -> Iterator[list[Progress]]:
    """Show one bar per title, for work that runs in parallel; see `progress_bar`."""
    if not sys.stderr.isatty():
        yield [_announcer(title) if announced else silent for title in titles]
        return
    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False), rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(), rich_progress.TextColumn("elapsed"), rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"), rich_progress.TimeRemainingColumn(),
        console=stderr, transient=True,
    ) as bars:  # fmt: skip
        yield [_bar(bars, title) for title in titles]


def _bar(bars: "rich_progress.Progress", title: str) -> Progress:
    task, done = bars.add_task(visible(title), total=1.0), 0.0

    def show(stage: str, share: float) -> None:
        nonlocal done
        description = visible(_labelled(title, stage))
        if share < done:  # a new stage: its remaining time is estimated anew
            bars.reset(task, description=description)
        bars.update(task, description=description, completed=share)
        done = share

    return show


def _announcer(title: str) -> Progress:
    stages: set[str] = set()

    def announce(stage: str, share: float) -> None:
        del share
        if stage not in stages and len(stages) < _MAX_STAGES:
            stages.add(stage)
            say(_labelled(title, stage))

    return announce


def _labelled(title: str, stage: str) -> str:
    return ": ".join(part for part in (title, stage) if part)
