"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.devices.device import addresses

Out = Annotated[Path | None, typer.Option(help="Folder of the new bundle; default: the next one in runs/.")]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be decoded; lists them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Images = Annotated[
    str | None,
    typer.Option(
        "--images", "--data", help="Images from elsewhere than the bundle's own data set: a folder, .npz or named set."
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Largest allowed loss of top-1 accuracy in percentage points, judged on the interval's bound: exit 3 when "
        "missed, 4 when not proved. Without it 1.0 is held, and not proved is said and exits 0."
    ),
]

MinSpeedup = Annotated[float | None, typer.Option(help="Least allowed speed-up over the baseline (a ratio).")]
Confidence = Annotated[float, typer.Option(help="Of every interval.", min=0.5, max=0.999)]
Devices = Annotated[
    list[str] | None,
    typer.Option(help=f"Where: {addresses()}. Repeatable. Default: local."),
]
Verify = Annotated[
    Path | None, typer.Option(help="Refuse bundles that the owner of this ed25519 public key did not sign.")
]
AcrossHardware = Annotated[bool, typer.Option("--across-hardware", help="Compare reports of different machines.")]
