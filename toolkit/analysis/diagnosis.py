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
    """The quantization target that a machine is, and why."""

    name: str
    why: str


class RuntimeEntry(TypedDict):
    """What a runtime opens, takes and reports, and whether it is installed."""

    name: str
    installed: bool
    formats: list[str]
    options: list[str]
    reports: list[str]


class BusyMachine(Machine):
    """A machine, and how many cores as many busy threads got (see environment.cores_got)."""

    cores_got: float


class Overhead(TypedDict):
    """Nanoseconds that a timed call of a model that does nothing takes."""

    in_process_ns: float
    through_agent_ns: float


class Diagnosis(TypedDict):
    """This machine: `gpu` is the one that torch sees."""

    machine: BusyMachine
    state: State
    threads_advised: int
    overhead: Overhead
    target: TargetEntry
    gpu: str | None
    packages: Sequence[PackageStatus]
    runtimes: Sequence[RuntimeEntry]


class PythonEntry(TypedDict):
    """A device's Python, EdgeKit's folder there, and bytes (see deploy.devices.board.probe.Facts, which has more)."""

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
    """Another device: what is known of its machine only where it can run EdgeKit's own code."""

    device: str
    python: PythonEntry
    packages: Sequence[PackageStatus]
    remarks: Sequence[str]
