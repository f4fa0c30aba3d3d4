"""The packages of the LiteRT converter and quantizer, installed once in EdgeKit's cache.

They pin other versions of packages than EdgeKit's environment has. A child process puts this folder before the
environment's packages.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ..deploy.errors import EdgeKitError, MissingPackageError
from ..deploy.files import cache_folder, new_folder

_log = logging.getLogger(__name__)

CONVERTER = "litert-torch 0.10.0"
# What a conversion or quantization imports besides torch and its dependencies, in versions that were tested together.
_PINS = (
    "absl-py==2.5.1", "ai-edge-litert==2.3.0", "ai-edge-quantizer==0.10.0", "backports-strenum==1.3.1",
    "flatbuffers==25.12.19", "immutabledict==4.2.1", "jax==0.10.2", "jaxlib==0.10.2", "lark==1.3.1",
    "litert-converter==0.5.0", "litert-torch==0.10.0", "ml-dtypes==0.6.0", "numpy==2.4.6", "opt-einsum==3.4.0",
    "packaging==26.4", "protobuf==7.36.2", "scipy==1.17.1", "torchao==0.18.0", "tqdm==4.70.1", "xdsl==0.28.0",
)  # fmt: skip
_SIZE = "240 MB to download, 0.9 GB on the disk"
# Where litert-converter 0.5.0 has wheels: (sys.platform, machine), and versions of Python.
_PLATFORMS = {("linux", "x86_64"), ("darwin", "arm64")}
_PYTHONS = ((3, 11), (3, 14))
# Characters of a reason that are shown.
REASON = 300


def converter_packages() -> Path:
    """The folder of the converter's packages. The first call installs them.

    The folder gets its name once it is complete, so a killed installation leaves no folder of that name.

    Raises:
        EdgeKitError: there are no packages for this machine, or they cannot be installed.
        MissingPackageError: uv, which installs them, is missing.
    """
    _require_platform()
    place = packages_place()
    if place.is_dir():
        return place
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv") or shutil.which("uv", path=beside)
    if uv is None:
        raise MissingPackageError(
            "the package uv, which installs the LiteRT converter, is missing", fix="pip install uv"
        )
    _log.info("installing %s once, in %s: %s", CONVERTER, place, _SIZE)
    try:
        with new_folder(place) as folder:
            _install(uv, folder)
    except EdgeKitError as error:
        if not place.is_dir():  # else another process was faster
            raise EdgeKitError(
                f"{CONVERTER} cannot be installed: {error}",
                fix=f"check the network connection and the space in {cache_folder()} (XDG_CACHE_HOME sets it), wait "
                "for other installations to end, and export again",
            ) from error
    return place


def packages_place() -> Path:
    """The folder of the converter's packages for this Python; it may not exist yet."""
    pins = hashlib.sha256(" ".join(_PINS).encode()).hexdigest()[:16]
    return cache_folder() / "litert" / f"python{sys.version_info.major}.{sys.version_info.minor}-{pins}"


def _require_platform() -> None:
    low, high = _PYTHONS
    if (sys.platform, platform.machine()) in _PLATFORMS and low <= sys.version_info[:2] <= high:
        return
    raise EdgeKitError(
        f"{CONVERTER} has no packages for Python {sys.version_info.major}.{sys.version_info.minor} on "
        f"{sys.platform} {platform.machine()}",
        fix="export on Linux x86-64 or macOS arm64 with Python "
        f"{'.'.join(map(str, low))} to {'.'.join(map(str, high))}, or export to ONNX",
    )


def _install(uv: str, folder: Path) -> None:
    """Install the packages from wheels, which run no code while they are installed."""
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", sys.executable,
               "--target", str(folder), *_PINS]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = " ".join(done.stderr.split())[:REASON]
        raise EdgeKitError(reason or f"uv ended with {done.returncode}", fix="export again")


def run_child(script: str, packages: Path, *arguments: Path) -> str | None:
    """Run a script in a process of its own, with the packages' folder and other paths as arguments.

    Returns:
        None, or why it failed.
    """
    command = [sys.executable, "-I", script, *map(str, (packages, *arguments))]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    return (_last_line(done.stderr) or f"it ended with {done.returncode}") if done.returncode else None


def _last_line(text: str) -> str:
    """The last line of stderr, which has the reason of a failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:REASON] if lines else ""
