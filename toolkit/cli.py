"""The command line: its list of commands, and how it ends."""

import sys

import typer

from ..deploy.errors import EdgeKitError, missing_package
from ..deploy.signals import ended_by_signals
from .commands import board, look, make, measure
from .visible import visible

app = typer.Typer(
    name="edgekit",
    help="Take an image classifier from PyTorch to a device, and prove there that it is faster and still right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# in the order in which they are used, which --help keeps
app.command()(make.train)
app.command("import")(make.import_)
app.command()(make.export)
app.command()(make.quantize)
app.command()(make.build)
app.command()(measure.validate)
app.command()(look.predict)
app.command()(look.inspect)
app.command()(look.doctor)
app.command()(board.pack)
app.command()(board.provision)
app.command()(measure.report)
app.command()(measure.demo)


def main() -> None:
    """Run the command line; a user's error is one line and its fix, anything else is a bug and shows its trace."""
    with ended_by_signals():
        try:
            app()
        except EdgeKitError as error:
            _fail(error)
        except ModuleNotFoundError as error:
            if (missing := missing_package(error)) is None:
                raise
            _fail(missing)


def _fail(error: EdgeKitError) -> None:
    print(f"error: {visible(str(error))}\nfix: {visible(error.fix)}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
