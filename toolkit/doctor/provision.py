"""Installing runtimes on a device. If it has no network, wheels are downloaded on this machine."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ...deploy.devices.board.probe import Facts
from ...deploy.devices.device import open_device
from ...deploy.errors import DeviceError, EdgeKitError, RecipeError
from ...deploy.progress import Progress, silent
from ...deploy.runtimes.runtime import all_runtimes, runtime_named

# glibc's minor versions that manylinux wheels are built for (PEP 600); a wheel for an older one works on a newer one.
_GLIBC_MINORS = range(17, 60)
# Platform tag from before PEP 600 -> the minor version of glibc that it requires.
_OLD_TAGS = {"manylinux2014": 17}


def provision(
    name: str, *, runtimes: Sequence[str] = (), offline: bool, progress: Progress = silent
) -> dict[str, str]:  # fmt: skip
    """Install and test the packages that the agent needs on a device; returns package -> version.

    Args:
        runtimes: names of those to install besides ONNX Runtime and those that an earlier call installed.
        offline: download the device's wheels on this machine and send them.

    Raises:
        RecipeError: a runtime is unknown, or is not installed in this way.
        DeviceError: the device cannot be reached, or the installation failed and was undone.
    """
    device = open_device(name)
    device.require("provision")
    for runtime in runtimes:
        _require_installable(runtime)
    with device:
        return device.provision(runtimes, download_wheels if offline else None, progress)


def _require_installable(name: str) -> None:
    runtime = runtime_named(name)
    if not runtime.boards:
        names = [other.name for other in all_runtimes() if other.boards and not other.by_hand]
        raise RecipeError(f"boards do not run {name}", fix=f"choose one of: {', '.join(names)}")
    if runtime.by_hand:
        raise RecipeError(f"provision does not install {name}: {runtime.by_hand.why}", fix=runtime.by_hand.how)


def remove_all(name: str) -> list[str]:
    """Remove everything that EdgeKit installed on a device; returns the removed folders."""
    device = open_device(name)
    device.require("provision")
    with device:
        return device.clean()


def download_wheels(facts: Facts, packages: Sequence[str], folder: Path) -> None:
    """Download wheels of packages, and of pip, for a device's Python into a new folder.

    pip chooses the dependencies of this machine's system and Python. If the device's need others, the installation
    there names them.

    Raises:
        EdgeKitError: pip is missing on this machine, or no such wheels exist.
    """
    if find_spec("pip") is None:
        raise EdgeKitError(
            "pip, which downloads the wheels, is not installed on this machine", fix="python -m ensurepip"
        )
    major, minor, _ = facts.python
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder),
        "--only-binary=:all:", "--implementation", "cp", "--python-version", f"{major}.{minor}",
        "--abi", f"cp{major}{minor}", "--abi", "abi3", "--abi", "none",
        *(word for tag in platform_tags(facts) for word in ("--platform", tag)), "pip", *packages,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip download failed"]
        raise EdgeKitError(
            f"no wheels for {facts.machine}, Python {major}.{minor}: {errors[-1].removeprefix('ERROR: ')}",
            fix="check this machine's network; a runtime without wheels for this device cannot be installed: "
            "leave it out, with --clean first if it was installed earlier",
        )


def platform_tags(facts: Facts) -> list[str]:
    """The wheel platforms that a device accepts, newest first (PEP 600).

    Raises:
        DeviceError: the device does not run Linux with glibc.
    """
    name, version = facts.libc
    if name != "glibc":
        raise DeviceError(
            f"the device uses {name or 'an unknown C library'} instead of glibc, and ONNX Runtime has no wheels for it",
            fix="build ONNX Runtime there, or use a system with glibc",
        )
    minor, machine = int(version.split(".")[1]), facts.machine
    tags = [f"manylinux_2_{number}_{machine}" for number in reversed(_GLIBC_MINORS) if number <= minor]
    return tags + [f"{tag}_{machine}" for tag, needed in _OLD_TAGS.items() if needed <= minor]
