"""Options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

from ...deploy.devices.device import addresses
from ...deploy.runtimes.runtime import RUNTIMES
from .completion import complete_datasets, complete_devices

# The panels of --help.
MODEL, IMAGES, CONTRACT, MEASURING, DEVICE, OUTPUT = "Model", "Images", "Contract", "Measuring", "Device", "Output"
TRAINING, PREPROCESSING, QUANTIZATION = "Training", "Preprocessing", "Quantization-aware training"

Out = Annotated[
    Path | None, typer.Option(help="Folder of the new bundle. Default: the next one in runs/.", rich_help_panel=OUTPUT)
]
SkipCorrupt = Annotated[
    bool,
    typer.Option(
        "--skip-corrupt", help="Leave out images that cannot be decoded, and list them.", rich_help_panel=IMAGES
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        "--data",
        help="Images to use instead of the bundle's own data set: a folder, .npz or named set.",
        rich_help_panel=IMAGES,
        autocompletion=complete_datasets,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Largest allowed loss of top-1 accuracy in percentage points, judged on the interval's bound: exit 3 when "
        "missed, 4 when not proved. Default: 1.0; with the default, an undecided result is reported but exits 0.",
        rich_help_panel=CONTRACT,
    ),
]

MinSpeedup = Annotated[
    float | None, typer.Option(help="Minimum speed-up over the baseline (a ratio).", rich_help_panel=CONTRACT)
]
Confidence = Annotated[
    float, typer.Option(help="Confidence level of all intervals.", min=0.5, max=0.999, rich_help_panel=CONTRACT)
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Device to measure on: {addresses()}. Repeatable. Default: local.",
        rich_help_panel=DEVICE,
        autocompletion=complete_devices,
    ),
]
Runtimes = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        metavar="NAME[:OPTION=VALUE,…]",
        help=f"Runtime of the models: {', '.join(RUNTIMES)}, optionally with options, e.g. onnxruntime:threads=1. "
        "Repeatable: each model is measured on every runtime that opens its format. Default: the first that does.",
        rich_help_panel=MEASURING,
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        help="Minimum seconds for the latency blocks; the maximum is three times this.",
        min=0,
        rich_help_panel=MEASURING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads per inference. Default: the number of free cores.", min=1, rich_help_panel=MEASURING),
]
Scenario = Annotated[
    str,
    typer.Option(help="single_stream, or offline to add throughput by batch size.", rich_help_panel=MEASURING),
]
Fps = Annotated[
    float | None,
    typer.Option(help="Also offer this many images per second, and count missed deadlines.", rich_help_panel=MEASURING),
]
Sustained = Annotated[
    str | None,
    typer.Option(
        help="Also run each model without a pause for this time, e.g. 90s, 10m, 1h.", rich_help_panel=MEASURING
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        help="ONNX Runtime's provider: cpu, cuda, tensorrt, tensorrt-rtx, xnnpack, dnnl, acl. It must run every "
        "operator.",
        rich_help_panel=MEASURING,
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Let the CPU run operators that the provider does not support.",
        rich_help_panel=MEASURING,
    ),
]
Verify = Annotated[
    Path | None,
    typer.Option(
        help="Refuse bundles that are not signed by the owner of this ed25519 public key.", rich_help_panel=MODEL
    ),
]
AcrossHardware = Annotated[
    bool,
    typer.Option(
        "--across-hardware", help="Allow reports of different machines to be compared.", rich_help_panel=CONTRACT
    ),
]
