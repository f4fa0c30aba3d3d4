"""ExecuTorch with its XNNPACK backend, on the CPU."""

from .runtime import Package, Runtime

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
    reports=("placement",),
)
