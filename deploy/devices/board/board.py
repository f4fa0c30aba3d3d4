"""A board: files are sent once and stored by hash; the agent measures or builds, and returns its result."""

import contextlib
import getpass
import logging
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...bundle import Bundle
from ...documents import DocumentError, read
from ...engine.build import Options
from ...engine.passport import ENGINE_FORMAT
from ...environment import About
from ...errors import DeviceError, LostDeviceError
from ...files import scratch_folder, sha256
from ...images import ImageSet
from ...measuring import cargo
from ...measuring.agent import Measured, parse_message
from ...measuring.cargo import Parcel
from ...measuring.plan import Plan
from ...measuring.worker_process import megabytes
from ...progress import Progress, silent
from ...runtimes.runtime import default_runtime, runtime_named
from ..device import Description, Device, how_to_install
from ..transport import CommandError, Transport
from .attend import RECONNECT_S, attend
from .install import Download, install, restore
from .probe import (
    NEEDED,
    OPTIONAL,
    Package,
    Probe,
    Wanted,
    clock_remark,
    lacks,
    optional_packages,
    optional_runtimes,
    read_answer,
    read_probe,
)
from .remote_agent import RESULT

_log = logging.getLogger(__name__)

# A board may take long to import a runtime from a slow card.
_PROBE_S = 90.0
_TRIES = 3

_SHA256 = re.compile(r"[0-9a-f]{64}")
# An engine holds its model's weights, in fp32 at most, and some megabytes of kernels.
_MOST_GROWTH, _MOST_ENGINE_BYTES = 8, 256 << 20

_BOOTSTRAP = Path(__file__).parent / "bootstrap.py"
# The Python that provision installed, in either cache folder (see bootstrap.caches), if the user owns it: others can
# create folders in /tmp. Otherwise the system's Python.
_PYTHON = """\
for d in "${XDG_CACHE_HOME:-$HOME/.cache}/edgekit" "${TMPDIR:-/tmp}/edgekit-$(id -u)"; do
[ -O "$d" ] && [ ! -L "$d" ] && [ -x "$d/venv/bin/python3" ] && exec "$d/venv/bin/python3" -
done
exec python3 -"""


class Board(Device):
    """A device with a shell and a Python, over any transport."""

    def __init__(self, name: str, transport: Transport) -> None:
        self.name, self._transport = name, transport
        self._probe: Probe | None = None

    def __enter__(self) -> "Board":
        self._transport.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self._transport.close()

    def runtimes(self) -> set[str]:
        """ONNX Runtime, and the runtimes whose packages are installed.

        Raises:
            DeviceError: the board lacks Python, a package, or a writable folder.
        """
        self._check()
        return {"onnxruntime", *optional_runtimes(self.inspect())}

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Send the missing files, and run the agent."""
        with scratch_folder() as folder:
            parcels = list(_parcels(bundles, images, folder))
            _, result = self._run(parcels, cargo.job(bundles, plan, self.name), progress)
            return Measured.from_json(result, self.name, bundles, len(images or ()), plan)

    def build(self, bundle: Bundle, options: Options, out: Path, progress: Progress) -> None:
        """Send the model, build the engine there, and fetch it; the board keeps a copy to run."""
        if default_runtime(ENGINE_FORMAT).name not in self.runtimes():
            raise DeviceError(
                f"{self.name} has no TensorRT that its Python can import",
                fix="on a Jetson, the system Python has it: --device ssh://host/usr/bin/python3, "
                "or the Python of a venv made with --system-site-packages",
            )
        with scratch_folder() as folder:
            job = cargo.build_job(bundle, options, cargo.bundle_folder(bundle))
            probe, answer = self._run(list(_parcels([bundle], None, folder)), job, progress)
            progress("fetching", 0.0)
            digest, parcel, unpacked = answer.get("parcel"), folder / "parcel", folder / "unpacked"
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise DeviceError(
                    f"{self.name} names its engine {str(digest)[:80]!r}, which is not a hash",
                    fix="do not trust this device",
                )
            max_bytes = _MOST_GROWTH * bundle.size_bytes + _MOST_ENGINE_BYTES
            self._transport.get(f"{probe.cache}/{digest}", parcel, max_bytes)
            if sha256(parcel) != digest:
                raise DeviceError(f"{self.name}: the engine arrived damaged", fix="run the command again")
            engine, *others = cargo.unpack_bundles(parcel, unpacked, max_bytes, f"the engine from {self.name}")
            if others:
                raise DeviceError(f"{self.name} sent more than one engine", fix="do not trust this device")
            cargo.adopt(engine, bundle, out)

    def describe(self) -> Description:
        """The board's Python and packages; if nothing is missing, also its hardware and state."""
        probe = self.inspect()
        remark, missing = clock_remark(probe.facts), lacks(probe)
        packages = {NEEDED[module]: package.version for module, package in probe.packages.items()}
        about = None if missing else self._about()
        remarks = [remark] if remark else []
        return Description(probe.facts, packages, missing, remarks, about, optional_packages(probe))

    def provision(self, runtimes: Sequence[str], download: Download | None, progress: Progress) -> dict[str, str]:
        """Make a venv in EdgeKit's folder on the board."""
        probe = self.probe(Wanted(modules=OPTIONAL))
        if remark := clock_remark(probe.facts):
            _log.info(f"{self.name}: {remark}")
        restore(probe, self.run)
        before = self._venv_runtimes()
        wanted = dict.fromkeys((*runtimes, *(name for name in before if not runtime_named(name).by_hand)))
        provided = [package for name in wanted for package in runtime_named(name).packages[:1]]
        modules = {**NEEDED, **{package.modules[0]: package.distributions[0] for package in provided}}
        install(probe, [*modules.values()], self.run, self.send, download, progress)
        for name in dict.fromkeys((*before, *optional_runtimes(probe))):
            if name not in wanted:
                fix = how_to_install(self.name, name)
                _log.info(f"{self.name}: the new venv does not have {name}, which the Python before it had ({fix})")
        if self._transport.python:
            scheme, _, location = self.name.partition("://")
            address = f"{scheme}://{location.partition('/')[0]}"
            _log.info(f"installed; from now on use --device {address}, without a Python in the address")
        self._transport.python, self._probe = None, None  # the next probe uses the new Python, as validate will
        installed = self.probe(Wanted(packages=list(modules), modules={name: [modules[name]] for name in modules}))
        tried = {modules[module]: installed.packages.get(module, Package(None, None)) for module in modules}
        broken = [f"{name}: {package.error or 'missing'}" for name, package in tried.items() if not package.version]
        if broken:
            raise DeviceError(
                f"installed, but not working: {'; '.join(broken)}",
                fix=f"edgekit doctor --device {self.name}",
            )
        return {name: installed.found.get(module, "unknown") for module, name in modules.items()}

    def _venv_runtimes(self) -> list[str]:
        """The runtimes besides ONNX Runtime in EdgeKit's venv, which a new one replaces."""
        named, self._transport.python = self._transport.python, None  # finds the venv
        try:
            probe = self.probe(Wanted(modules=OPTIONAL))
        except LostDeviceError:
            raise
        except DeviceError:  # without a venv, a phone has no Python in its PATH
            return []
        finally:
            self._transport.python = named
        return optional_runtimes(probe) if probe.facts.executable.startswith(f"{probe.cache}/venv/") else []

    def clean(self) -> list[str]:
        """Remove everything that EdgeKit installed on the board; returns the removed folders."""
        answers = (read_answer(message, self.name).cleaned for message in self._ask({"clean": True}))
        return next((list(cleaned) for cleaned in answers if cleaned is not None), [])

    def inspect(self) -> Probe:
        """Probe the board's packages, once.

        Raises:
            DeviceError: Python is missing or too old, or no folder is writable.
        """
        if self._probe is None:
            self._probe = self.probe(Wanted(packages=list(NEEDED), modules=OPTIONAL))
        return self._probe

    def probe(self, wanted: Wanted) -> Probe:
        """Probe the board, and move received files into place (see bootstrap.main).

        Raises:
            DeviceError: Python is missing or too old, or no folder is writable.
        """
        return read_probe(self._ask(wanted.request()), wanted, self.name)

    def run(self, command: str, timeout: float) -> None:
        """Run a shell command on the board.

        Raises:
            DeviceError: the command failed.
        """
        try:
            for _ in self._transport.run(command, "", timeout):
                pass
        except CommandError as error:
            raise DeviceError(
                f"{self.name}: {error}", fix=f"edgekit doctor --device {self.name} reports its state"
            ) from error

    def send(self, parcels: Sequence[Parcel], progress: Progress, code: str | None = None) -> Probe:
        """Send every parcel to the board's cache and verify it; reconnect after a lost connection.

        Args:
            code: the hash of the parcel with EdgeKit's code, to be unpacked on the board.
        """
        hashes = [parcel.sha256 for parcel in parcels]
        for attempt in range(_TRIES):
            try:
                probe = self.probe(Wanted(land=hashes))
                missing = [parcel for parcel in parcels if probe.files.get(parcel.sha256) != "whole"]
                if missing:
                    self._check_room(probe, missing, parcels)
                    self._put(missing, probe, progress)
                probe = self.probe(Wanted(land=hashes, code=code))
                if all(state == "whole" for state in probe.files.values()):
                    return probe
            except LostDeviceError:
                if attempt + 1 == _TRIES:
                    raise
                progress("reconnecting", 0.0)
                self._transport.reconnect(RECONNECT_S)
        raise DeviceError(f"{self.name}: files arrived damaged {_TRIES} times", fix="check the board's memory card")

    def _run(
        self, parcels: Sequence[Parcel], job: Mapping[str, object], progress: Progress
    ) -> tuple[Probe, dict[str, object]]:  # fmt: skip
        """Send the missing files, the code first, and run the agent; returns a probe and the agent's result."""
        code, *others = parcels
        probe = self.send(parcels, progress, code.sha256)
        request = {
            "host": f"{getpass.getuser()}@{socket.gethostname()}, since {time.strftime('%H:%M')}",
            "parcels": [parcel.sha256 for parcel in others],
            "job": job,
            "result": f"{RESULT}{socket.gethostname()}-{time.time_ns()}",
        }
        agent = f"{_python(probe)} -u -m edgekit.deploy.devices.board.remote_agent {shlex.quote(probe.cache)}"

        def collect() -> str | None:
            return self.probe(Wanted(collect=request["result"])).collected

        return probe, attend(self._transport, self.name, agent, request, progress, collect)

    def _about(self) -> About:
        """Describe the board's hardware and state."""
        with scratch_folder() as folder:
            code = cargo.parcel(cargo.code("deploy"), folder)
            probe = self.send([code], silent, code.sha256)
        program = (
            "import json; from edgekit.deploy.environment import describe, state; "
            "print(json.dumps({'machine': describe(), 'state': state()}))"
        )
        for message in self._messages(f"{_python(probe)} -c {shlex.quote(program)}", ""):
            with contextlib.suppress(DocumentError):  # other output, such as a login script's
                return read(About, message)
        raise DeviceError(f"{self.name} did not describe itself", fix="run edgekit doctor --device again")

    def _check(self) -> None:
        """Raise DeviceError if the board cannot measure."""
        for problem in lacks(self.inspect()):
            raise DeviceError(
                f"{self.name}: {problem}",
                fix=f"edgekit provision --device {self.name}, or on the board: pip install {' '.join(NEEDED.values())}",
            )

    def _ask(self, request: Mapping[str, object]) -> Iterator[dict[str, object]]:
        program = f"{_BOOTSTRAP.read_text(encoding='utf-8')}\nmain({request!r})\n"
        python = self._transport.python
        return self._messages(f"exec {shlex.quote(python)} -" if python else _PYTHON, program)

    def _messages(self, command: str, text: str) -> Iterator[dict[str, object]]:
        """Run a command and yield its messages. Its exit code is ignored, because missing messages are detected."""
        with contextlib.suppress(CommandError):
            for line in self._transport.run(command, text, _PROBE_S):
                yield parse_message(line)

    def _put(self, missing: Sequence[Parcel], probe: Probe, progress: Progress) -> None:
        total, done = sum(parcel.size for parcel in missing), 0
        for parcel in missing:

            def report(share: float, done: int = done, size: int = parcel.size) -> None:
                progress("sending", (done + share * size) / total)

            report(0.0)
            remote, sent = f"{probe.cache}/{parcel.sha256}.part", int(probe.files.get(parcel.sha256, 0))
            if sent >= parcel.size:  # right length, wrong content: rsync and sftp would skip it
                self.run(f"rm {shlex.quote(remote)}", _PROBE_S)
                sent = 0
            self._transport.put(parcel.path, remote, sent, report)
            done += parcel.size

    def _check_room(self, probe: Probe, missing: Sequence[Parcel], parcels: Sequence[Parcel]) -> None:
        """Check that the parcels and their unpacked content fit."""
        needed, free = sum(parcel.size for parcel in (*missing, *parcels)), probe.facts.free_bytes
        if free < needed:
            raise DeviceError(
                f"{self.name}: {probe.cache} has {megabytes(free)} free and needs {megabytes(needed)}",
                fix=f"free some space there, or edgekit provision --device {self.name} --clean, or pass --limit",
            )


def _parcels(bundles: Sequence[Bundle], images: ImageSet | None, folder: Path) -> Iterator[Parcel]:
    """EdgeKit's code, then the bundles and the images."""
    yield cargo.parcel(cargo.code("deploy"), folder)
    for bundle in bundles:
        yield cargo.parcel(cargo.bundle_files(bundle, cargo.bundle_folder(bundle)), folder)
    if images is not None:
        yield cargo.parcel(cargo.image_files(images, folder), folder)


def _python(probe: Probe) -> str:
    """The board's Python with EdgeKit's code, as a shell command."""
    cache, code = shlex.quote(probe.cache), shlex.quote(probe.code or "")
    return f"cd {cache} && PYTHONPATH={code} exec {shlex.quote(probe.facts.executable)}"
