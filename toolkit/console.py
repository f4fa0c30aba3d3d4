"""Talking to the user: standard output is for results, standard error for everything else.

A string is always plain text here: names, labels and messages come from outside, so markup in them is not interpreted
and control characters are shown as escapes. What is to be styled is a `Text`, made by `styled`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..deploy.visible import visible

# As many different stages are announced where there is no terminal for a bar; a device that has more is not heard.
_MAX_STAGES = 100


class PlainConsole(Console):
    """A console that shows strings as they are, in tables too: no markup, no emoji codes, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, with the style and justification that were asked for."""
        layout = {key: options[key] for key in ("style", "justify", "overflow") if key in options}
        return Text(visible(text), **layout)


def styled(text: str, style: str) -> Text:
    """Plain text in a style."""
    return Text(visible(text), style)


class Line:
    """A line that a narrow terminal shows in several, broken at spaces, in longer words at - _ . / : alone."""

    def __init__(self, text: str | Text) -> None:
        self._text = text if isinstance(text, Text) else Text(visible(text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._text if options.no_wrap else Text("\n").join(broken(self._text, options.max_width))


def broken(text: Text, width: int) -> list[Text]:
    """The text in pieces that are no wider than so many characters."""
    rest, starts = text.plain, [0]
    while len(rest) > width:
        cut = rest.rfind(" ", 1, width + 1) + 1
        cut = cut or max(rest.rfind(sign, 0, width) for sign in "-_./:") + 1
        starts.append(starts[-1] + (cut or width))
        rest = rest[cut or width :]
    pieces = list(text.divide(starts[1:]))
    for piece in pieces:
        piece.rstrip()
    return pieces


stdout = PlainConsole(highlight=False, soft_wrap=True)
stderr = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def print_parts(parts: Iterable[Any], console: Console = stdout) -> None:
    """Print lines and tables, as narrow as a terminal is; a file or a pipe has no width, unless COLUMNS says so."""
    wide = not console.is_terminal and "COLUMNS" not in os.environ
    for part in parts:
        console.print(Line(part) if isinstance(part, (str, Text)) else part, soft_wrap=wide)


def say(message: str) -> None:
    """One line for the user."""
    stderr.print(message)


# show(stage, share from 0 to 1)
Show = Callable[[str, float], None]


def invite(url: str) -> None:
    """Show an address to be opened on a phone, as a QR code too where one can be made."""
    say(f"open this address on the phone: {url}")
    try:
        import segno
    except ModuleNotFoundError:
        say("(for a QR code: pip install 'edgekit-vision[phone]')")
        return
    segno.make(url, error="l").terminal(out=sys.stderr, compact=True)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Show]:
    """A bar on a terminal, a line for each new stage elsewhere."""
    with progress_bars([title]) as (show,):
        yield show


@contextlib.contextmanager
def progress_bars(titles: Sequence[str]) -> Iterator[list[Show]]:
    """A bar a title, for work that goes on side by side."""
    if not sys.stderr.isatty():
        yield [_announcer(title) for title in titles]
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr, transient=True) as bars:

        def shower(title: str) -> Show:
            task, seen = bars.add_task(visible(title), total=1.0), [""]

            def show(stage: str, share: float) -> None:
                if stage != seen[0]:
                    seen[0] = stage
                    bars.reset(task, description=visible(f"{title}: {stage}"))
                bars.update(task, completed=share)

            return show

        yield [shower(title) for title in titles]


def _announcer(title: str) -> Show:
    stages: set[str] = set()

    def announce(stage: str, share: float) -> None:
        del share
        if stage not in stages and len(stages) < _MAX_STAGES:
            stages.add(stage)
            say(f"{title}: {stage}")

    return announce


class TrainingBar:
    """A bar with images/s and time left on a terminal; a line an epoch everywhere."""

    def __init__(self, epochs: int, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"), BarColumn(),
            TextColumn("{task.fields[speed]:.0f} images/s"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._bar.add_task("train", total=epochs * steps, epoch=1, epochs=epochs, speed=0.0)
        self._start, self._images = time.monotonic(), 0

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, images: int) -> None:
        """One batch of this many images is done."""
        self._images += images
        self._bar.update(self._task, advance=1, speed=self._images / (time.monotonic() - self._start))

    def epoch(self, row: Mapping[str, float]) -> None:
        """One epoch is done; `row` has its metrics."""
        self._bar.update(self._task, epoch=int(row["epoch"]) + 1)
        say(
            f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.3f}  "
            f"validation {row['validation_loss']:.3f}, {row['validation_accuracy']:.3f}  "
            f"{row['images_per_s']:.0f} images/s"
        )
