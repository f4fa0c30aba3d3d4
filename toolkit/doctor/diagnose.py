"""What is installed, what is missing, and the command that installs it."""

import contextlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ...deploy.devices.device import Device, how_to_install
from ...deploy.documents import read
from ...deploy.environment import cores_got, describe, state
from ...deploy.runtimes.runtime import Package, Runtime, all_runtimes
from ..analysis.diagnosis import DeviceDiagnosis, Diagnosis, PackageStatus, PythonEntry, RuntimeEntry
from ..analysis.noise import threads_advised
from ..quantize.targets import TARGETS, target_for, this_machine
from .selftest import overhead

# Packages that EdgeKit uses in addition to those of the runtimes.
_PACKAGES = tuple(
    Package(modules=(module,), distributions=(name,), extra=extra, purpose=purpose)
    for name, module, extra, purpose in (
        ("numpy", "numpy", "", "everything"),
        ("pillow", "PIL", "", "decoding and preprocessing images"),
        ("onnx", "onnx", "quantize", "quantizing, importing and inspecting ONNX models"),
        ("torchvision", "torchvision", "train", "networks, augmentation, downloads"),
        ("lightning-fabric", "lightning_fabric", "train", "training"),
        ("onnxslim", "onnxslim", "train", "exporting ONNX"),
        ("onnxscript", "onnxscript", "train", "exporting ONNX by torch.export"),
        ("safetensors", "safetensors", "train", "weights"),
        ("matplotlib", "matplotlib", "train", "curves and grids"),
        ("timm", "timm", "timm", "networks called timm:NAME"),
    )
)


def diagnose() -> Diagnosis:
    """The machine and its state, the packages, the GPU that torch sees, this machine's quantization target, and the
    overhead of measuring here."""
    target, machine = this_machine(), describe()
    allowed = machine["cores_allowed"]
    got = round(cores_got(allowed), 2)
    return {
        "machine": {**machine, "cores_got": got},
        "state": state(),
        "threads_advised": threads_advised({"cores_allowed": allowed, "cores_got": got}),
        "overhead": overhead(),
        "target": {"name": target, "why": TARGETS[target].why},
        "gpu": _gpu(),
        "packages": [_status(package) for package in packages()],
        "runtimes": [_describe(runtime) for runtime in all_runtimes()],
    }


def packages() -> tuple[Package, ...]:
    """The packages that EdgeKit can use: those of the runtimes, and others; each once."""
    found: dict[str, Package] = {}
    for package in (*_PACKAGES, *(each for runtime in all_runtimes() for each in (*runtime.packages, *runtime.also))):
        found.setdefault(package.distributions[0], package)
    return tuple(found.values())


def _describe(runtime: Runtime) -> RuntimeEntry:
    """A runtime's formats, options and reports, and whether it is installed."""
    return {
        "name": runtime.name, "installed": runtime.installed, "formats": [*runtime.formats],
        "options": [*runtime.option_names()], "reports": [*runtime.reports],
    }  # fmt: skip


def diagnose_device(device: Device) -> DeviceDiagnosis:
    """Diagnose another device: its packages, missing requirements, and its hardware if it can run EdgeKit's own code.

    Raises:
        DeviceError: the device cannot be reached or cannot describe itself, or its Python is too old.
    """
    device.require("describe")
    with device:
        description = device.describe()
    install = f"edgekit provision --device {device.name}"
    purposes = {package.distributions[0]: package.purpose for package in packages()}
    optional = [
        PackageStatus(name, description.optional.get(name), package.purpose, how_to_install(device.name, runtime.name))
        for runtime in all_runtimes()
        for package in (*runtime.packages, *runtime.also)
        if runtime.boards and (name := package.distributions[0]) in description.optional
    ]
    diagnosis: DeviceDiagnosis = {
        "device": device.name,
        "python": read(PythonEntry, description.facts._asdict()),
        "packages": [
            *(PackageStatus(name, version, purposes[name], install) for name, version in description.packages.items()),
            *optional,
        ],
        "remarks": [*description.lacks, *description.remarks],
    }
    if description.about is not None:
        machine = description.about.machine
        target = target_for(machine["machine"], machine["isa"])
        diagnosis["machine"], diagnosis["state"] = machine, description.about.state
        diagnosis["target"] = {"name": target, "why": TARGETS[target].why}
    return diagnosis


def _status(package: Package) -> PackageStatus:
    return PackageStatus(package.distributions[0], _version(package), package.purpose, package.install)


def _version(package: Package) -> str | None:
    """The version of an installed package, under any of its names; None if it is missing."""
    if not package.installed:
        return None
    for name in package.distributions:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def _gpu() -> str | None:
    if not find_spec("torch"):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
