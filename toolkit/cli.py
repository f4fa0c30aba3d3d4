"""The command line: the list of commands, and what happens to errors."""

import errno
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..deploy.errors import EdgeKitError, missing_package
from ..deploy.signals import ended_by_signals
from ..deploy.visible import visible
from .commands import (
    build,
    clean,
    demo,
    doctor,
    export,
    import_,
    inspect,
    optimize,
    pack,
    predict,
    provision,
    quantize,
    report,
    runs,
    train,
    validate,
)  # fmt: skip
from .logs import logged_to_stderr


class _Commands(TyperGroup):
    """The list of commands in plain text: importing rich takes twice as long as the rest of `edgekit --help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(limit=200)) for name in self.list_commands(ctx)]
            )


app = typer.Typer(
    name="edgekit",
    cls=_Commands,
    help="Take an image classifier from PyTorch to a device, and prove there that it is faster and still right.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 # the callback handles it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        _print_first_steps()
        raise typer.Exit(2)


def _print_first_steps() -> None:
    """Print what `edgekit` without a command shows: the four commands, and the next one for this folder."""
    from .runs import next_step

    print("Take an image classifier from PyTorch to a device, and prove there that it is faster and still right.\n")
    for module in (train, export, quantize, validate):
        name, text = module.__name__.rpartition(".")[2], module.command.__doc__ or ""
        print(f"  edgekit {name:<10}{text.splitlines()[0]}")
    command, reason = next_step()
    print(f"\nNext step: {command}  ({visible(reason)})\nAll commands: edgekit --help")


# in the order of use, which --help keeps
for _module in (
    train, import_, export, quantize, optimize, build, validate, predict, inspect, doctor, pack, provision, report,
    runs, clean, demo,
):  # fmt: skip
    app.command(_module.__name__.rpartition(".")[2].rstrip("_"))(_module.command)


def main() -> None:
    """Run the command line. A user error prints one line and its fix; other exceptions are bugs with a traceback."""
    with ended_by_signals(), logged_to_stderr():
        try:
            app(prog_name="edgekit")
        except EdgeKitError as error:
            _fail(error)
        except OSError as error:
            # a path that the system rejects, in whichever command
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            _fail(EdgeKitError(f"{str(error.filename)[:80]}: {error.strerror}", fix="check the path"))
        except ModuleNotFoundError as error:
            if (missing := missing_package(error)) is None:
                raise
            _fail(missing)


def _fail(error: EdgeKitError) -> None:
    print(f"error: {visible(str(error))}\nfix: {visible(error.fix)}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
