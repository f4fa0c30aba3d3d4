"""Install runtimes on a board, in a venv in EdgeKit's folder; nothing else is changed."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import DeviceError
from ...files import scratch_folder
from ...measuring import cargo
from ...measuring.cargo import Parcel
from ...progress import Progress
from .probe import Facts, Probe

# Time limits; a slow board unpacks a runtime from a slow card.
_INSTALL_S, _MOVE_S, _UNPACK_S = 900.0, 60.0, 300.0


Run = Callable[[str, float], None]
Send = Callable[[list[Parcel], Progress], Probe]
# (the device, packages, a new folder): fetches the wheels of the packages for the device's Python into the folder
Download = Callable[[Facts, Sequence[str], Path], None]


def restore(probe: Probe, run: Run) -> None:
    """Put back the old venv if the last attempt to replace it was interrupted."""
    run(_restore(probe), _MOVE_S)


def install(
    probe: Probe, packages: Sequence[str], run: Run, send: Send, download: Download | None, progress: Progress
) -> None:
    """Make a new venv with these packages; the old one stays until the new one is complete.

    Args:
        run: runs a shell command on the board, with a time limit in seconds.
        send: sends files to the board's cache.
        download: fetches the wheels to here; with None, the board downloads them.

    Raises:
        DeviceError: the installation failed and was undone.
    """
    wheels = shlex.quote(_send_wheels(probe, packages, run, send, download, progress)) if download else None
    venv, old = _venvs(probe)
    python = shlex.quote(probe.facts.base)
    pip = f"{venv}/bin/python3 -m pip install --no-input --disable-pip-version-check"
    progress("installing", 0.0)
    # the working venv stays until its replacement is complete, even after an interrupted attempt
    run(f"{_restore(probe)}; if [ -d {venv} ]; then mv {venv} {old}; fi", _MOVE_S)
    try:
        if wheels:
            run(f"{python} -m venv --without-pip {venv}", _INSTALL_S)
            pip = f"PYTHONPATH=$(echo {wheels}/pip-*.whl) {pip} --no-index --find-links {wheels}"
        else:
            run(f"{python} -m venv {venv}", _INSTALL_S)
        run(f"{pip} {shlex.join(packages)}", _INSTALL_S)
        run(f"rm -rf {old} {wheels or ''}", _MOVE_S)
    except DeviceError as error:
        run(f"rm -rf {venv}; {_restore(probe)}", _MOVE_S)
        raise DeviceError(
            f"{error}",
            fix="without python3-venv on the device: apt install it; without a network there: --offline; "
            f"if it has no wheel of one of {', '.join(packages)}: --clean, and provision without that runtime",
        ) from error


def _venvs(probe: Probe) -> tuple[str, str]:
    """The venv and its predecessor, for the shell."""
    return shlex.quote(f"{probe.cache}/venv"), shlex.quote(f"{probe.cache}/venv.old")


def _restore(probe: Probe) -> str:
    venv, old = _venvs(probe)
    return f"if [ -d {old} ]; then rm -rf {venv} && mv {old} {venv}; fi"


def _send_wheels(
    probe: Probe, packages: Sequence[str], run: Run, send: Send, download: Download, progress: Progress
) -> str:
    """Download wheels here and send them; returns their folder on the board."""
    with scratch_folder() as folder:
        progress("downloading", 0.0)
        download(probe.facts, packages, folder / "wheels")
        parcel = cargo.parcel(((wheel.name, wheel) for wheel in sorted((folder / "wheels").iterdir())), folder)
        send([parcel], progress)
    wheels = shlex.quote(f"{probe.cache}/wheels")
    archive = shlex.quote(f"{probe.cache}/{parcel.sha256}")
    unzip = f"{shlex.quote(probe.facts.executable)} -m zipfile -e"
    run(f"rm -rf {wheels} && {unzip} {archive} {wheels} && rm {archive}", _UNPACK_S)
    return f"{probe.cache}/wheels"
