"""A board over SSH: what it needs is sent once and kept by its hash, the agent measures, its answer comes back."""

import contextlib
import getpass
import json
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...bundle import Bundle
from ...documents import DocumentError, read
from ...engine.build import Options
from ...engine.passport import ENGINE_FORMAT
from ...errors import DeviceError, LostDeviceError
from ...files import scratch_folder, sha256
from ...images import ImageSet
from ...measuring import cargo
from ...measuring.agent import Measured, follow, heard
from ...measuring.cargo import Parcel
from ...measuring.plan import Plan
from ...measuring.worker_process import megabytes
from ...progress import Progress, silent
from ...session import PACKAGES
from .connection import Address, CommandError, Connection, ended
from .remote_agent import HEARTBEAT_S, PATIENCE_S, RECEIVED, RESULT

OLDEST_PYTHON = (3, 10)
# what the agent and its runtime import -> the package that brings it
NEEDED = {"numpy": "numpy", "PIL": "pillow", "onnxruntime": "onnxruntime"}

# A board may take long to import a runtime from a slow card.
_PROBE_S = 90.0
# An agent that says nothing for so long, though the line is alive, is stuck.
_SILENCE_S = 60.0
# After a cut: how long the board is tried, for the files to be sent on, or for the result.
_RECONNECT_S = 30.0
_TRIES = 3
# A clock that is off by more is worth a word: certificates are refused, file times are wrong.
_CLOCK_S = 86400.0

_SHA256 = re.compile(r"[0-9a-f]{64}")
# An engine holds its model's weights, in fp32 at most, and some megabytes of kernels.
_MOST_GROWTH, _MOST_ENGINE_BYTES = 8, 256 << 20

_BOOTSTRAP = Path(__file__).parent / "bootstrap.py"
# The Python that provision made, in either place where it may be (see bootstrap.caches), if the folder is the user's
# own: in /tmp anybody may have been first. Else the system's.
_PYTHON = """\
for d in "${XDG_CACHE_HOME:-$HOME/.cache}/edgekit" "${TMPDIR:-/tmp}/edgekit-$(id -u)"; do
[ -O "$d" ] && [ ! -L "$d" ] && [ -x "$d/venv/bin/python3" ] && exec "$d/venv/bin/python3" -
done
exec python3 -"""


class Package(NamedTuple):
    """A package on a board: its version, or why it cannot be imported; both None where it is not there."""

    version: str | None
    error: str | None


class Facts(NamedTuple):
    """A board's Python and room (see bootstrap.facts)."""

    python: tuple[int, int, int]
    executable: str
    base: str
    machine: str
    libc: tuple[str, str]
    system: str
    cache: str | None
    rsync: bool
    time: float
    free_bytes: int = 0
    cache_bytes: int = 0


class Answer(NamedTuple):
    """What bootstrap.main says: each of its messages has some of these."""

    facts: Facts | None = None
    files: dict[str, int | str] | None = None
    code: str | None = None
    collected: str | None = None
    unwritable: str | None = None
    found: tuple[str, ...] | None = None
    importing: str | None = None
    imported: str | None = None
    version: str | None = None
    failed: str | None = None
    missing: bool | None = None
    error: str | None = None
    cleaned: tuple[str, ...] | None = None


class Probe(NamedTuple):
    """What is on a board.

    Attributes:
        facts: its Python and room (see bootstrap.facts).
        packages: import name -> what is there.
        files: hash -> "whole", or how many bytes have arrived.
        code: the folder of EdgeKit's own code, None where it was not asked for.
        collected: a finished result, None where there is none.
        found: the modules asked for that are there; they were not imported.
    """

    facts: dict[str, Any]
    packages: dict[str, Package]
    files: dict[str, Any]
    code: str | None
    collected: str | None
    found: list[str]


class Board:
    """A board that is reached over SSH; connected to while its `with` block lasts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._address = Address.parse(name)
        self._connection = Connection(self._address)
        self._probe: Probe | None = None

    def __enter__(self) -> "Board":
        self._connection.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(*error)

    def formats(self) -> set[str]:
        """Those that ONNX Runtime and, where it is there, TensorRT run: no board is asked to hold torch.

        Raises:
            DeviceError: the board lacks Python, a package, or a place to write.
        """
        self._check()
        return {"onnx"} | ({ENGINE_FORMAT} if self.look().found else set())

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Send what is not there yet, and run the agent."""
        with scratch_folder() as folder:
            parcels = list(_parcels(bundles, images, folder))
            _, result = self._run(parcels, cargo.job(bundles, plan, self.name), progress)
            return Measured.from_json(result, self.name, bundles, len(images or ()))

    def build(self, bundle: Bundle, options: Options, out: Path, progress: Progress) -> None:
        """Send the model, have it built there, and fetch the engine; the board keeps its copy for running it."""
        self._check()
        if not self.look().found:
            raise DeviceError(
                f"{self.name} has no TensorRT that its Python finds",
                fix="on a Jetson it is the system's: name a Python that sees it, --device ssh://host/usr/bin/python3, "
                "or that of a venv made with --system-site-packages",
            )
        with scratch_folder() as folder:
            job = cargo.build_job(bundle, options, cargo.bundle_folder(bundle))
            probe, built = self._run(list(_parcels([bundle], None, folder)), job, progress)
            progress("fetching", 0.0)
            digest, parcel, unpacked = built.get("parcel"), folder / "parcel", folder / "unpacked"
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise DeviceError(
                    f"{self.name} names its engine {str(digest)[:80]!r}, which is no hash",
                    fix="do not trust this device",
                )
            most = _MOST_GROWTH * bundle.size_bytes + _MOST_ENGINE_BYTES
            self._connection.get(f"{probe.facts['cache']}/{digest}", parcel, most=most)
            if sha256(parcel) != digest:
                raise DeviceError(f"{self.name}: the engine arrived damaged", fix="run the command again")
            made, *others = cargo.unpack_bundles(parcel, unpacked, most, f"what {self.name} built")
            if others:
                raise DeviceError(f"{self.name} sent more than one engine", fix="do not trust this device")
            cargo.adopt(made, bundle, out)

    def _run(
        self, parcels: Sequence[Parcel], job: dict[str, Any], progress: Progress
    ) -> tuple[Probe, dict[str, Any]]:  # fmt: skip
        """Send what is not there yet, the code first, and run the agent: its result."""
        code, *others = parcels
        probe = self._deliver(parcels, code.sha256, progress)
        request = {
            "host": f"{getpass.getuser()}@{socket.gethostname()}, since {time.strftime('%H:%M')}",
            "parcels": [parcel.sha256 for parcel in others],
            "job": job,
            "result": f"{RESULT}{socket.gethostname()}-{time.time_ns()}",
        }
        return probe, self._attend(probe, request, progress)

    def look(self) -> Probe:
        """What is on the board; it is asked once.

        Raises:
            DeviceError: there is no Python, it is too old, or there is nowhere to write.
        """
        if self._probe is None:
            self._probe = self.probe(packages=list(NEEDED), modules=PACKAGES[ENGINE_FORMAT])
        return self._probe

    def probe(
        self,
        land: Sequence[str] = (),
        code: str | None = None,
        collect: str | None = None,
        packages: Sequence[str] = (),
        modules: Sequence[str] = (),
    ) -> Probe:
        """Ask what is there, and let what has arrived find its place (see bootstrap.main).

        Raises:
            DeviceError: there is no Python, it is too old, or there is nowhere to write.
        """
        request = {
            "land": list(land),
            "code": code,
            "collect": collect,
            "import": list(packages),
            "find": list(modules),
        }
        answer = Answer()
        tried: dict[str, Package] = {}
        for message in self._ask(request):
            part = self._understood(message)
            if not {part.imported, part.failed, part.importing} <= {None, *packages}:
                continue
            if part.imported is not None:
                tried[part.imported] = Package(part.version or "unknown", None)
            elif part.failed is not None:
                tried[part.failed] = Package(None, None if part.missing else part.error)
            elif part.importing is not None:  # it stays so where the import kills the interpreter
                tried[part.importing] = Package(None, "importing it ends the interpreter")
            else:
                answer = answer._replace(**{key: value for key, value in part._asdict().items() if value is not None})
        if answer.facts is None:
            raise DeviceError(f"{self.name} has no python3 that answers", fix="install Python 3.10 or newer there")
        facts = answer.facts._asdict()
        version = ".".join(map(str, facts["python"]))
        if tuple(facts["python"]) < OLDEST_PYTHON:
            raise DeviceError(
                f"{self.name} has Python {version}; EdgeKit needs {'.'.join(map(str, OLDEST_PYTHON))} or newer",
                fix="install one there, and name it in the address: --device ssh://host/usr/bin/python3.11",
            )
        if facts["cache"] is None:
            raise DeviceError(
                f"{self.name} has no folder that can be written", fix="make ~/.cache or /tmp writable there"
            )
        if answer.unwritable is not None:
            raise DeviceError(f"{self.name} cannot write: {answer.unwritable}", fix="free some room there")
        files = {name: state for name, state in (answer.files or {}).items() if name in land}
        found = [name for name in answer.found or () if name in modules]
        return Probe(facts, tried, files, answer.code, answer.collected, found)

    def _understood(self, message: dict[str, Any]) -> Answer:
        """A message of the bootstrap; what a login script prints as JSON is none of it.

        Raises:
            DeviceError: it is one with entries of another type, or with a path that is none.
        """
        if not message.keys() <= {*Answer._fields}:
            return Answer()
        collected = message.pop("collected", None)  # a result, larger than any other text
        try:
            answer = read(Answer, message)
            paths = [answer.code, *((answer.facts.cache, answer.facts.executable) if answer.facts else ())]
            texts = [*paths, *([answer.facts.machine, answer.facts.base, *answer.facts.libc] if answer.facts else [])]
            if not all(text is None or text.isprintable() for text in texts):
                raise DocumentError("a path with control characters")
            if not all(path is None or path.startswith("/") for path in (answer.code, *paths[1:2])):
                raise DocumentError("a path that is not absolute")
            if collected is not None and not isinstance(collected, str):
                raise DocumentError("a result that is not text")
        except DocumentError as error:
            raise DeviceError(
                f"{self.name} answers with what EdgeKit does not understand: {error}", fix="do not trust this device"
            ) from error
        return answer._replace(collected=collected)

    def clean(self) -> list[str]:
        """Remove all that EdgeKit put on the board: the folders that are gone."""
        answers = (self._understood(message).cleaned for message in self._ask({"clean": True}))
        return next((list(cleaned) for cleaned in answers if cleaned is not None), [])

    def describe(self) -> dict[str, Any]:
        """The machine and its state, by the same code that measures there.

        Raises:
            DeviceError: the board lacks what that code needs.
        """
        self._check()
        with scratch_folder() as folder:
            code = cargo.parcel(cargo.code("deploy"), folder)
            probe = self._deliver([code], code.sha256, silent)
        program = (
            "import json; from edgekit.deploy.environment import describe, state; "
            "print(json.dumps({'machine': describe(), 'state': state()}))"
        )
        for message in self._heard(f"{_python(probe)} -c {shlex.quote(program)}", "", _PROBE_S):
            if message.keys() == {"machine", "state"} and all(isinstance(part, dict) for part in message.values()):
                return read(dict[str, Any], message)
        raise DeviceError(f"{self.name} did not describe itself", fix="run edgekit doctor --device again")

    def run(self, command: str, timeout: float) -> None:
        """Run a shell command on the board.

        Raises:
            DeviceError: it failed.
        """
        try:
            for _ in self._connection.run(command, "", timeout):
                pass
        except CommandError as error:
            raise DeviceError(f"{self.name}: {error}", fix="edgekit doctor --device says what is there") from error

    def send(self, parcels: Sequence[Parcel], progress: Progress) -> Probe:
        """Send files that are not there yet, by their hashes; they are in the board's cache then."""
        return self._deliver(parcels, None, progress)

    def _check(self) -> None:
        """Raise DeviceError where the board cannot measure."""
        for lack in lacks(self.look()):
            raise DeviceError(
                f"{self.name}: {lack}",
                fix=f"edgekit provision --device {self.name} (or there: pip install {' '.join(NEEDED.values())})",
            )

    def _ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        program = f"{_BOOTSTRAP.read_text(encoding='utf-8')}\nmain({request!r})\n"
        path = self._address.path
        return self._heard(f"exec {shlex.quote(path)} -" if path else _PYTHON, program, _PROBE_S)

    def _heard(self, command: str, text: str, timeout: float) -> Iterator[dict[str, Any]]:
        """The messages of a command; its own failure is no matter, since what is missing then is."""
        with contextlib.suppress(CommandError):
            for line in self._connection.run(command, text, timeout):
                yield heard(line)

    def _deliver(self, parcels: Sequence[Parcel], code: str | None, progress: Progress) -> Probe:
        """See that every parcel is on the board, whole, and the code unpacked; a cut line is mended."""
        wanted = [parcel.sha256 for parcel in parcels]
        for attempt in range(_TRIES):
            try:
                probe = self.probe(land=wanted)
                missing = [parcel for parcel in parcels if probe.files.get(parcel.sha256) != "whole"]
                if missing:
                    self._check_room(probe, missing, parcels)
                    self._send(missing, probe, progress)
                probe = self.probe(land=wanted, code=code)
                if all(state == "whole" for state in probe.files.values()):
                    return probe
            except LostDeviceError:
                if attempt + 1 == _TRIES:
                    raise
                progress("reconnecting", 0.0)
                self._connection.reconnect(_RECONNECT_S)
        raise DeviceError(
            f"{self.name}: files arrive damaged, {_TRIES} times over", fix="check the board's memory card"
        )

    def _send(self, missing: Sequence[Parcel], probe: Probe, progress: Progress) -> None:
        total, done = sum(parcel.size for parcel in missing), 0
        for parcel in missing:

            def part(share: float, done: int = done, size: int = parcel.size) -> None:
                progress("sending", (done + share * size) / total)

            part(0.0)
            there, sent = f"{probe.facts['cache']}/{parcel.sha256}.part", int(probe.files[parcel.sha256])
            if sent >= parcel.size:  # of the right length and wrong: neither rsync nor sftp would touch it
                self.run(f"rm {shlex.quote(there)}", _PROBE_S)
                sent = 0
            self._connection.put(parcel.path, there, sent, rsync=probe.facts["rsync"], progress=part)
            done += parcel.size

    def _check_room(self, probe: Probe, missing: Sequence[Parcel], parcels: Sequence[Parcel]) -> None:
        """What is sent, and all of it unpacked."""
        needed = sum(parcel.size for parcel in (*missing, *parcels))
        free = probe.facts["free_bytes"]
        if free < needed:
            raise DeviceError(
                f"{self.name}: {megabytes(free)} are free in {probe.facts['cache']}, {megabytes(needed)} are needed",
                fix=f"free some room there, or edgekit provision --device {self.name} --clean, or pass --limit",
            )

    def _attend(self, probe: Probe, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Start the agent and listen; after a cut the result is asked for once more."""
        cache = probe.facts["cache"]
        process = self._connection.start(
            f"{_python(probe)} -u -m edgekit.deploy.devices.ssh.remote_agent {shlex.quote(cache)}"
        )
        with ended(process), _beating(process, request) as say:
            try:
                result = follow(self._words(process), progress)
            except LostDeviceError as lost:
                progress("reconnecting", 0.0)
                return self._collect(request["result"], lost)
            say(RECEIVED)
            return result

    def _words(self, process: Any) -> Iterator[str]:
        """What the agent says. Where it is killed, so is the measurement."""
        try:
            yield from self._connection.lines(process, _SILENCE_S)
        except CommandError as error:
            raise LostDeviceError(
                f"{self.name}: the agent was ended there ({error})",
                fix=f"edgekit doctor --device {self.name} says more",
            ) from error

    def _collect(self, name: str, lost: LostDeviceError) -> dict[str, Any]:
        """The result that the board kept, if it had one when the line was cut."""
        try:
            self._connection.reconnect(_RECONNECT_S)
            collected = self.probe(collect=name).collected
        except DeviceError:
            raise lost from None
        if collected is None:
            raise lost
        return follow([collected], silent)


def lacks(probe: Probe) -> list[str]:
    """What a board needs before it can measure, a sentence each."""
    found = []
    for module, package in probe.packages.items():
        if package.error is not None:
            found.append(f"its {NEEDED[module]} does not work on this {probe.facts['machine']}: {package.error}")
        elif package.version is None:
            found.append(f"it has no {NEEDED[module]}")
    return found


def clock_remark(probe: Probe) -> str | None:
    """What to know of a clock that is wrong; None of a right one."""
    off = probe.facts["time"] - time.time()
    if abs(off) <= _CLOCK_S:
        return None
    return f"its clock is off by {off / 86400:+.0f} days: it refuses certificates, so provision it with --offline"


def _parcels(bundles: Sequence[Bundle], images: ImageSet | None, folder: Path) -> Iterator[Parcel]:
    """EdgeKit's code first, the bundles, the images."""
    yield cargo.parcel(cargo.code("deploy"), folder)
    for bundle in bundles:
        yield cargo.parcel(cargo.bundle_files(bundle, cargo.bundle_folder(bundle)), folder)
    if images is not None:
        yield cargo.parcel(cargo.image_files(images, folder), folder)


def _python(probe: Probe) -> str:
    """The board's Python with EdgeKit's code, as a shell command."""
    cache, code = shlex.quote(probe.facts["cache"]), shlex.quote(probe.code or "")
    return f"cd {cache} && PYTHONPATH={code} exec {shlex.quote(probe.facts['executable'])}"


@contextlib.contextmanager
def _beating(process: Any, request: dict[str, Any]) -> Iterator[Callable[[str], None]]:
    """Send the request, then say every few seconds that this side is there; yields a way to say something else."""
    over, lock = threading.Event(), threading.Lock()

    def say(line: str) -> None:
        with lock, contextlib.suppress(OSError, ValueError):  # the line is dead, which the other direction tells
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            say("")

    say(json.dumps(request))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        over.set()
        thread.join(PATIENCE_S)
