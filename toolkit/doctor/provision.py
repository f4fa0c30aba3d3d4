"""Installing the runtime on a board: in a venv in EdgeKit's folder there, nothing else is touched."""

import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ...deploy.devices.ssh.board import NEEDED, Board, clock_remark
from ...deploy.errors import DeviceError, EdgeKitError
from ...deploy.files import scratch_folder
from ...deploy.measuring import cargo
from ...deploy.progress import Progress, silent

_log = logging.getLogger(__name__)

# A slow board unpacks a runtime from a slow card.
_INSTALL_S = 900.0

# glibc's minor versions that manylinux wheels are built for (PEP 600); a wheel for an older one works on a newer.
_GLIBC_MINORS = range(17, 60)
# The tags from before PEP 600, and the glibc that each means.
_OLD_TAGS = {"manylinux2014": 17}


def provision(device: str, *, offline: bool, progress: Progress = silent) -> dict[str, str]:
    """Make a venv on a board, install what the agent needs, and try it: package -> version.

    Args:
        offline: the board's wheels are downloaded on this machine and sent.

    Raises:
        DeviceError: it cannot be reached, or the installation failed; then all is as it was before.
    """
    with Board(device) as board:
        probe = board.probe()
        if remark := clock_remark(probe):
            _log.info(f"{device}: {remark}")
        wheels = shlex.quote(_send_wheels(board, probe.facts, progress)) if offline else None
        venv, old = (shlex.quote(f"{probe.facts['cache']}/{name}") for name in ("venv", "venv.old"))
        python = shlex.quote(probe.facts["base"])
        install = f"{venv}/bin/python3 -m pip install --no-input --disable-pip-version-check"
        wanted = " ".join(NEEDED.values())
        put_back = f"if [ -d {old} ]; then rm -rf {venv} && mv {old} {venv}; fi"
        progress("installing", 0.0)
        # what works stays until there is something better, also where an earlier try was cut off
        board.run(f"{put_back}; if [ -d {venv} ]; then mv {venv} {old}; fi", 60.0)
        try:
            if wheels:
                board.run(f"{python} -m venv --without-pip {venv}", _INSTALL_S)
                install = f"PYTHONPATH=$(echo {wheels}/pip-*.whl) {install} --no-index --find-links {wheels}"
            else:
                board.run(f"{python} -m venv {venv}", _INSTALL_S)
            board.run(f"{install} {wanted}", _INSTALL_S)
            board.run(f"rm -rf {old} {wheels or ''}", 60.0)
        except DeviceError as error:
            board.run(f"rm -rf {venv}; {put_back}", 60.0)
            raise DeviceError(
                f"{error}", fix="on Debian: apt install python3-venv there; without a network: --offline"
            ) from error
    with Board(device) as board:  # again, as validate will
        packages = board.look().packages
    broken = [f"{NEEDED[module]}: {package.error}" for module, package in packages.items() if not package.version]
    if broken:
        raise DeviceError(f"installed, but it does not work there: {'; '.join(broken)}", fix="edgekit doctor --device")
    return {NEEDED[module]: package.version or "" for module, package in packages.items()}


def remove_all(device: str) -> list[str]:
    """Remove all that EdgeKit put on a board: the folders that are gone."""
    with Board(device) as board:
        return board.clean()


def _send_wheels(board: Board, facts: Mapping[str, Any], progress: Progress) -> str:
    """Download wheels for the board's platform and Python here, and send them; their folder there."""
    if find_spec("pip") is None:
        raise EdgeKitError("there is no pip here to download wheels with", fix="python -m ensurepip")
    with scratch_folder() as folder:
        wheels = folder / "wheels"
        progress("downloading", 0.0)
        major, minor, _ = facts["python"]
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(wheels),
            "--only-binary=:all:", "--implementation", "cp", "--python-version", f"{major}.{minor}",
            "--abi", f"cp{major}{minor}", "--abi", "abi3", "--abi", "none",
            *(word for tag in platform_tags(facts) for word in ("--platform", tag)), "pip", *NEEDED.values(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip download failed"]
            raise EdgeKitError(
                f"no wheels for {facts['machine']}, Python {major}.{minor}: {words[-1].removeprefix('ERROR: ')}",
                fix="check this machine's network; ONNX Runtime has wheels for glibc, not for musl",
            )
        files = ((wheel.name, wheel) for wheel in sorted(wheels.iterdir()))
        parcel = cargo.parcel(files, folder)
        board.send([parcel], progress)
        there = f"{facts['cache']}/wheels"
        unzip = f"{shlex.quote(facts['executable'])} -m zipfile -e"
        archive = shlex.quote(f"{facts['cache']}/{parcel.sha256}")
        board.run(f"rm -rf {shlex.quote(there)} && {unzip} {archive} {shlex.quote(there)} && rm {archive}", 300.0)
        return there


def platform_tags(facts: Mapping[str, Any]) -> list[str]:
    """The wheel platforms that a board takes, the newest first (PEP 600).

    Args:
        facts: "machine", and "libc" as platform.libc_ver gives it.

    Raises:
        DeviceError: not a Linux with glibc.
    """
    name, version = facts["libc"]
    if name != "glibc":
        raise DeviceError(
            f"the board has no glibc ({name or 'unknown C library'}), and ONNX Runtime has no wheels for it",
            fix="build ONNX Runtime there, or use a system with glibc",
        )
    minor, machine = int(version.split(".")[1]), facts["machine"]
    tags = [f"manylinux_2_{number}_{machine}" for number in reversed(_GLIBC_MINORS) if number <= minor]
    return tags + [f"{tag}_{machine}" for tag, needed in _OLD_TAGS.items() if needed <= minor]
