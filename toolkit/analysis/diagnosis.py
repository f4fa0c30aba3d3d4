"""What `edgekit doctor` reports, as JSON objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from ...deploy.environment import Machine, State


@dataclass(frozen=True)
class PackageStatus:
    """A package that EdgeKit can use: its version (None if missing), its purpose, and the command that installs it."""

    name: str
    version: str | None
    purpose: str
    install: str


class TargetEntry(TypedDict):
    """A machine's quantization target, and the reason."""

    name: str
    why: str


class RuntimeEntry(TypedDict):
    """A runtime's formats, options and reported facts, and whether it is installed."""

    name: str
    installed: bool
    formats: list[str]
    options: list[str]
    reports: list[str]


class BusyMachine(Machine):
    """A machine, and the number of cores that busy threads obtained (see environment.cores_got)."""

    cores_got: float


class Overhead(TypedDict):
    """Nanoseconds per timed call of a model that does nothing."""

    in_process_ns: float
    through_agent_ns: float


class Diagnosis(TypedDict):
    """The diagnosis of this machine; `gpu` is the GPU that torch sees."""

    machine: BusyMachine
    state: State
    threads_advised: int
    overhead: Overhead
    target: TargetEntry
    gpu: str | None
    packages: Sequence[PackageStatus]
    runtimes: Sequence[RuntimeEntry]


class PythonEntry(TypedDict):
    """A device's Python, EdgeKit's folder there, and its size (deploy.devices.board.probe.Facts has more)."""

    python: Sequence[int]
    executable: str
    machine: str
    system: str
    cache: str | None
    rsync: bool
    free_bytes: int
    cache_bytes: int


class _Able(TypedDict, total=False):
    machine: Machine
    state: State
    target: TargetEntry


class DeviceDiagnosis(_Able):
    """The diagnosis of another device; the machine's details are missing if it cannot run EdgeKit's own code."""

    device: str
    python: PythonEntry
    packages: Sequence[PackageStatus]
    remarks: Sequence[str]
