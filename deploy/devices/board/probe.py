"""The state of a board: the bootstrap's messages, checked and typed."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ...documents import DocumentError, read
from ...errors import DeviceError
from ...runtimes.runtime import all_runtimes, runtime_named

OLDEST_PYTHON = (3, 10)
# module imported by the agent and its runtime -> package that provides it
NEEDED = {
    "numpy": "numpy",
    "PIL": "pillow",
    **{package.modules[0]: package.distributions[0] for package in runtime_named("onnxruntime").packages},
}
# module of another runtime -> names of its distribution
OPTIONAL = {
    module: package.distributions
    for runtime in all_runtimes()
    if runtime.boards
    for package in (*runtime.packages, *runtime.also)
    for module in package.modules
    if module not in NEEDED
}

# A larger clock error is reported, because certificates are then rejected and file times are wrong.
_CLOCK_S = 86400.0


class Package(NamedTuple):
    """A package on a board: its version, or its import error; both None if it is missing."""

    version: str | None
    error: str | None


class Facts(NamedTuple):
    """A board's Python and free space (see bootstrap.facts)."""

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
    """A message of bootstrap.main; each has some of these keys."""

    facts: Facts | None = None
    files: dict[str, int | str] | None = None
    code: str | None = None
    collected: str | None = None
    unwritable: str | None = None
    found: dict[str, str] | None = None
    importing: str | None = None
    imported: str | None = None
    version: str | None = None
    failed: str | None = None
    missing: bool | None = None
    error: str | None = None
    cleaned: tuple[str, ...] | None = None


class Probe(NamedTuple):
    """The state of a board.

    Attributes:
        facts: its Python and free space.
        cache: the absolute path of EdgeKit's folder on the board.
        packages: import name -> its package.
        files: hash -> "whole", or the number of received bytes.
        code: the folder of EdgeKit's own code; None if not requested.
        collected: a finished result, or None.
        found: the requested modules that exist -> version; they were not imported.
    """

    facts: Facts
    cache: str
    packages: dict[str, Package]
    files: dict[str, int | str]
    code: str | None
    collected: str | None
    found: dict[str, str]


class Wanted(NamedTuple):
    """The contents of a probe's request (see bootstrap.main).

    Attributes:
        land: hashes of files to check.
        code: the hash of the code to unpack.
        collect: the name of a result to return.
        packages: import names to try.
        modules: modules to find without importing them -> names of their distribution.
    """

    land: Sequence[str] = ()
    code: str | None = None
    collect: str | None = None
    packages: Sequence[str] = ()
    modules: Mapping[str, Sequence[str]] = {}

    def request(self) -> dict[str, object]:
        """The request as bootstrap.main expects it."""
        return {
            "land": list(self.land),
            "code": self.code,
            "collect": self.collect,
            "import": list(self.packages),
            "find": {module: list(names) for module, names in self.modules.items()},
        }


def read_answer(message: dict[str, object], device: str) -> Answer:
    """Read a message of the bootstrap; JSON with other keys, such as a login script's, gives an empty answer.

    Raises:
        DeviceError: an entry has the wrong type, or a path is not absolute or not printable.
    """
    if not message.keys() <= {*Answer._fields}:
        return Answer()
    collected = message.pop("collected", None)  # a result, which may be longer than `read` allows for a text
    try:
        answer = read(Answer, message)
        paths = [answer.code, *((answer.facts.cache, answer.facts.executable) if answer.facts else ())]
        texts = [*paths, *([answer.facts.machine, answer.facts.base, *answer.facts.libc] if answer.facts else [])]
        if not all(text is None or text.isprintable() for text in texts):
            raise DocumentError("a path with control characters")
        if not all(path is None or path.startswith("/") for path in (answer.code, *paths[1:2])):
            raise DocumentError("a path that is not absolute")
        if collected is not None and not isinstance(collected, str):
            raise DocumentError("a result that is not a string")
    except DocumentError as error:
        raise DeviceError(f"{device} sent an invalid message: {error}", fix="do not trust this device") from error
    return answer._replace(collected=collected)


def read_probe(messages: Iterable[dict[str, object]], wanted: Wanted, device: str) -> Probe:
    """Combine the bootstrap's messages, and ignore anything that was not requested.

    Raises:
        DeviceError: Python is missing or too old, or no folder is writable.
    """
    answer, packages = Answer(), dict[str, Package]()
    for message in messages:
        part = read_answer(message, device)
        if not {part.imported, part.failed, part.importing} <= {None, *wanted.packages}:
            continue
        if part.imported is not None:
            packages[part.imported] = Package(part.version or "unknown", None)
        elif part.failed is not None:
            packages[part.failed] = Package(None, None if part.missing else part.error)
        elif part.importing is not None:  # the last message if the import kills the interpreter
            packages[part.importing] = Package(None, "importing it kills the interpreter")
        else:
            answer = answer._replace(**{key: value for key, value in part._asdict().items() if value is not None})
    facts = _usable(answer, device)
    assert facts.cache is not None  # noqa: S101 # as _usable checks
    files = {name: state for name, state in (answer.files or {}).items() if name in wanted.land}
    found = {name: version for name, version in (answer.found or {}).items() if name in wanted.modules}
    return Probe(facts, facts.cache, packages, files, answer.code, answer.collected, found)


def _usable(answer: Answer, device: str) -> Facts:
    """The facts of a board, after checking that EdgeKit can use it."""
    facts, needed = answer.facts, ".".join(map(str, OLDEST_PYTHON))
    if facts is None:
        raise DeviceError(
            f"{device} has no working python3",
            fix=f"install Python {needed} there, or name another in the address: {_named(device, '/usr/bin/python3')}",
        )
    if facts.python < OLDEST_PYTHON:
        raise DeviceError(
            f"{device} has Python {'.'.join(map(str, facts.python))}; EdgeKit needs {needed} or newer",
            fix=f"install a newer Python there, and name it in the address: {_named(device, '/usr/bin/python3.11')}",
        )
    if facts.cache is None:
        raise DeviceError(f"{device} has no writable folder", fix="make ~/.cache or /tmp writable there")
    if answer.unwritable is not None:
        raise DeviceError(f"{device} cannot write: {answer.unwritable}", fix="free some space there")
    return facts


def _named(device: str, python: str) -> str:
    """The option that selects another Python on a device."""
    scheme, _, location = device.partition("://")
    return f"--device {scheme}://{location.partition('/')[0]}{python}"


def lacks(probe: Probe) -> list[str]:
    """The problems that prevent measuring on a board, one sentence each."""
    problems = []
    for module, package in probe.packages.items():
        if package.error is not None:
            problems.append(f"its {NEEDED[module]} does not work on this {probe.facts.machine}: {package.error}")
        elif package.version is None:
            problems.append(f"it has no {NEEDED[module]}")
    return problems


def optional_runtimes(probe: Probe) -> list[str]:
    """The runtimes besides ONNX Runtime of which a package was found."""
    return [
        runtime.name
        for runtime in all_runtimes()
        if runtime.boards and any(module in probe.found for package in runtime.packages for module in package.modules)
    ]


def optional_packages(probe: Probe) -> dict[str, str | None]:
    """The packages of the runtimes besides ONNX Runtime -> version, None if missing."""
    packages: dict[str, str | None] = {}
    for module, distributions in OPTIONAL.items():
        packages[distributions[0]] = probe.found.get(module, packages.get(distributions[0]))
    return packages


def clock_remark(facts: Facts) -> str | None:
    """The consequence of a wrong clock; None if it is right."""
    error_s = facts.time - time.time()
    if abs(error_s) <= _CLOCK_S:
        return None
    return f"its clock is off by {error_s / 86400:+.0f} days, so it rejects certificates: provision it with --offline"
