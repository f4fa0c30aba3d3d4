"""edgekit doctor."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.devices.device import addresses, open_device
from ...deploy.errors import EdgeKitError
from .completion import complete_bundles, complete_devices
from .options import DEVICE, MEASURING, AsJson
from .output import show


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="With --self-test: the model to test with.", autocompletion=complete_bundles)
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Measure a model against itself, and against itself slowed by 3 %.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="With --self-test: the duration.", min=1, rich_help_panel=MEASURING)
    ] = 60.0,
    device: Annotated[
        str | None,
        typer.Option(
            help=f"Device to examine: {addresses('describe')}. Default: local.",
            rich_help_panel=DEVICE,
            autocompletion=complete_devices,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what this machine can measure, and how to install what is missing."""
    from ..console import progress_bar
    from ..doctor.diagnose import diagnose, diagnose_device
    from ..doctor.selftest import run_self_test
    from ..report.terminal import board_table, doctor_table, self_test_table

    opened = open_device(device) if device else None
    if opened is not None and self_test and not opened.here:
        raise EdgeKitError(
            "the self-test runs on this machine only", fix="run edgekit doctor --self-test on the device itself"
        )
    if not self_test:
        if bundle:
            raise EdgeKitError("a bundle requires --self-test", fix=f"edgekit doctor --self-test {bundle}")
        if opened is not None and not opened.here:
            show(diagnose_device(opened), board_table, as_json)
            return
        show(diagnose(), doctor_table, as_json)
        return
    from ...deploy.bundle import Bundle

    with progress_bar("self-test") as bar:
        self_test_result, code = run_self_test(Bundle.open(bundle) if bundle else None, seconds, progress=bar)
    show(self_test_result, self_test_table, as_json)
    raise typer.Exit(code)
