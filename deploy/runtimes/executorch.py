"""ExecuTorch with its XNNPACK backend, on the CPU."""

from .runtime import ByHand, Package, Runtime

RUNTIME = Runtime(
    name="executorch",
    formats={"executorch": ".executorch_session:ExecuTorchSession"},
    packages=(
        Package(
            modules=("executorch",),
            distributions=("executorch",),
            purpose="exporting to ExecuTorch and running its programs",
            extra="executorch",
        ),
    ),
    also=(
        Package(
            modules=("torch",), distributions=("torch",), purpose="running ExecuTorch programs", extra="executorch"
        ),
    ),
    reports=("placement",),
    by_hand=ByHand(
        "it needs torch, which takes 5.1 GB on ARM64",
        "on the board: pip install executorch torch, in the Python that the address names",
    ),
)
