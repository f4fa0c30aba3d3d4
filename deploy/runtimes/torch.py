"""PyTorch on the CPU: TorchScript, torch.export programs, and networks run eagerly."""

from .runtime import Package, Runtime

RUNTIME = Runtime(
    name="torch",
    formats={
        "torchscript": ".torchscript:open_session",
        "exported-program": ".exported_program:open_session",
        "torch": "...export.eager:open_session",  # needs the network's code in models/
    },
    packages=(
        Package(
            modules=("torch",),
            distributions=("torch",),
            purpose="training, exporting, measuring the original",
            extra="train",
        ),
    ),
    boards=False,
)
