"""What is here, what is missing, and the line that installs it."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ...deploy.devices.device import Device
from ...deploy.environment import cores_got, describe, state
from ...deploy.errors import DISTRIBUTION
from ..analysis.noise import threads_advised
from ..quantize.targets import TARGETS, target_for, this_machine
from .selftest import overhead

# package on PyPI -> (import name, extra that brings it, what it is for)
_PACKAGES = {
    "numpy": ("numpy", "", "everything"),
    "pillow": ("PIL", "", "decoding and preprocessing images"),
    "onnxruntime": ("onnxruntime", "", "running ONNX models"),
    "onnx": ("onnx", "quantize", "quantizing, importing and inspecting ONNX models"),
    "torch": ("torch", "train", "training, exporting, the original as a baseline"),
    "torchvision": ("torchvision", "train", "networks, augmentation, downloads"),
    "lightning-fabric": ("lightning_fabric", "train", "training"),
    "onnxslim": ("onnxslim", "train", "exporting ONNX"),
    "onnxscript": ("onnxscript", "train", "exporting ONNX by torch.export"),
    "safetensors": ("safetensors", "train", "weights"),
    "matplotlib": ("matplotlib", "train", "curves and grids"),
    "timm": ("timm", "timm", "networks called timm:NAME"),
    "tensorrt": ("tensorrt", "tensorrt", "building and running TensorRT engines"),
    "tensorrt-rtx-cu13-bindings": ("tensorrt_rtx_bindings", "tensorrt-rtx", "engines for GPUs that are not here"),
    "cuda-bindings": ("cuda", "tensorrt", "running engines"),
}


@dataclass(frozen=True)
class Package:
    """A package EdgeKit can use: its version (None when it is missing), what it is for, what installs it."""

    name: str
    version: str | None
    purpose: str
    install: str


def diagnose() -> dict[str, Any]:
    """The machine and its state, the packages, the GPU that torch sees, the quantization target that this machine is,
    and what measuring costs here."""
    target, machine = this_machine(), describe()
    allowed: int = machine["cores_allowed"]
    machine["cores_got"] = got = round(cores_got(allowed), 2)
    return {
        "machine": machine,
        "state": state(),
        "threads_advised": threads_advised({"cores_allowed": allowed, "cores_got": got}),
        "overhead": overhead(),
        "target": {"name": target, "why": TARGETS[target].why},
        "gpu": _gpu(),
        "packages": [_package(name) for name in _PACKAGES],
    }


def diagnose_device(device: Device) -> dict[str, Any]:
    """What is on another device and what it lacks; all about the machine where it can run EdgeKit's own code.

    Raises:
        DeviceError: it cannot describe itself, be reached, or has no Python that is new enough.
    """
    device.require("describe")
    with device:
        description = device.describe()
    install = f"edgekit provision --device {device.name}"
    found: dict[str, Any] = {
        "device": device.name,
        "python": description.facts._asdict(),
        "packages": [
            Package(name, version, _PACKAGES[name][2], install) for name, version in description.packages.items()
        ],
        "remarks": [*description.lacks, *description.remarks],
    }
    if not description.lacks:
        target = target_for(description.machine["machine"], description.machine["isa"])
        found |= {"machine": description.machine, "state": description.state}
        found["target"] = {"name": target, "why": TARGETS[target].why}
    return found


def _package(name: str) -> Package:
    module, extra, purpose = _PACKAGES[name]
    try:
        found = version(name) if find_spec(module) else None
    except PackageNotFoundError:
        found = "unknown"
    return Package(name, found, purpose, f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {name}")


def _gpu() -> str | None:
    if not find_spec("torch"):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
