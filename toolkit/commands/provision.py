"""edgekit provision."""

from typing import Annotated

import typer

from ...deploy.devices.device import addresses
from ...deploy.errors import EdgeKitError
from .completion import complete_devices
from .options import DEVICE


def command(
    device: Annotated[
        str,
        typer.Option(
            help=f"Device to set up: {addresses('provision')}.", rich_help_panel=DEVICE, autocompletion=complete_devices
        ),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Also install this runtime, e.g. openvino. Repeatable. Those that were installed in this way before "
            "are always kept.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Download the wheels on this machine and send them, for a device without a network.",
            rich_help_panel=DEVICE,
        ),
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove everything that EdgeKit installed there.", rich_help_panel=DEVICE)
    ] = False,
) -> None:
    """Install ONNX Runtime and others in EdgeKit's own venv on a device, or remove EdgeKit from it."""
    from ..console import progress_bar, stdout
    from ..doctor.provision import provision, remove_all

    if clean:
        if offline or runtime:
            raise EdgeKitError("--clean installs nothing", fix="leave out --offline and --runtime")
        for folder in remove_all(device):
            stdout.print(f"removed {folder}")
        return
    with progress_bar(f"provision {device}") as show:
        versions = provision(device, runtimes=runtime or (), offline=offline, progress=show)
    for name, version in versions.items():
        stdout.print(f"{name} {version}")
