"""This machine and its state. Values that cannot be read are "unavailable", never zero."""

import hashlib
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypedDict

from .bundle import tool_versions
from .engine.gpu import find_gpu
from .runtimes.runtime import all_runtimes

UNAVAILABLE = "unavailable"

# x86: VNNI multiplies uint8 by int8 without saturating; without it 8-bit weights overflow 16-bit sums.
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_VNNI = {"avx512_vnni", "avx_vnni"}

# MIDR_EL1's implementer and part numbers, from the kernel's arch/arm64/include/asm/cputype.h.
_ARM_LIMITED = "0x41"
_ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720", "0xd82": "Cortex-X4",
}  # fmt: skip

# A cgroup without a memory limit reports the largest multiple of a page (version 1) or "max" (version 2).
_NO_LIMIT = 1 << 60

_SYSTEM = Path("/sys")
_CGROUP = _SYSTEM / "fs/cgroup"


class Machine(TypedDict):
    """A machine and its libraries; a string instead of a number is UNAVAILABLE or "no limit"."""

    machine: str
    system: str
    board: str
    soc: str
    cpu: str
    cores_allowed: int
    cores: int | str
    affinity: list[int] | str
    isa: list[str]
    memory_bytes: int | str
    memory_cap_bytes: int | str
    governor: str
    cgroup_cores: float | str
    power: str
    timer_ns: int
    gpu: Mapping[str, object] | str
    versions: Mapping[str, str]


class State(TypedDict):
    """A machine's state at one moment; a string instead of a number is UNAVAILABLE."""

    load: list[float] | str
    mhz: list[int] | str
    temperature_c: float | str
    throttled: int | str
    cgroup_throttled: int | str
    swap_used_bytes: int | str
    power: str


class About(NamedTuple):
    """A machine and its state."""

    machine: Machine
    state: State


def describe() -> Machine:
    """The machine and its libraries, as plain values for a report; they do not change during a measurement."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "board": _device_tree("model")[0],
        "soc": _device_tree("compatible")[-1],
        "cpu": _cpu_model(),
        "cores_allowed": allowed_cores(),
        "cores": os.cpu_count() or UNAVAILABLE,
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else UNAVAILABLE,
        "isa": cpu_isa(),
        "memory_bytes": _meminfo("MemTotal"),
        "memory_cap_bytes": memory_cap()[0],
        "governor": _first_line(_SYSTEM / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cgroup_cores": _cgroup_quota() or "no limit",
        "power": _power_source(),
        "timer_ns": timer_ns(),
        "gpu": asdict(gpu) if (gpu := find_gpu()) else UNAVAILABLE,
        "versions": tool_versions(
            (
                *(
                    name
                    for runtime in all_runtimes()
                    for package in (*runtime.packages, *runtime.also)
                    for name in package.distributions
                ),
                "onnx",
            )
        ),
    }


def state() -> State:
    """The machine's current state, read before and after a measurement.

    "throttled" counts events since the machine started; "cgroup_throttled" counts those of this cgroup's CPU quota.
    """
    swap = _meminfo("SwapTotal"), _meminfo("SwapFree")
    return {
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else UNAVAILABLE,
        "mhz": _mhz(),
        "temperature_c": temperature(),
        "throttled": _throttled(),
        "cgroup_throttled": _cgroup_throttled(),
        "swap_used_bytes": UNAVAILABLE if UNAVAILABLE in swap else int(swap[0]) - int(swap[1]),
        "power": _power_source(),
    }


def allowed_cores() -> int:
    """Number of cores that the affinity mask and the cgroup's CPU quota (rounded up) allow this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return cores if quota is None else min(cores, max(1, int(-(-quota // 1))))


def cores_got(threads: int, seconds: float = 0.3) -> float:
    """Number of cores that `threads` busy threads get right now: their processor time over the elapsed time.

    If other processes keep b of n cores busy, n threads get about n * n / (n + b).
    """
    end = time.perf_counter() + seconds

    def spin() -> None:
        while time.perf_counter() < end:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2000)  # about a millisecond outside the interpreter's lock

    spinners = [threading.Thread(target=spin) for _ in range(threads)]
    processor, wall = time.process_time(), time.perf_counter()
    for spinner in spinners:
        spinner.start()
    for spinner in spinners:
        spinner.join()
    return (time.process_time() - processor) / (time.perf_counter() - wall)


def busy_cores(allowed: int, got: float) -> float:
    """Number of cores that other processes kept busy, if `allowed` threads got `got` cores (see cores_got)."""
    return max(0.0, allowed * (allowed / got - 1))


def free_cores(allowed: int, got: float) -> int:
    """Number of threads that get a core each, at least 1. More threads wait for one another and slow down sharply."""
    return max(1, allowed - round(busy_cores(allowed, got)))


def fastest_cores(count: int, seconds: float = 0.05) -> list[int] | None:
    """The `count` fastest cores right now, by timing each; None if all are needed, or the system cannot pin processes.

    Models must be compared on the same cores. Cores differ: big and little ones, busy ones, ones that share a physical
    core with another virtual machine. The system tends to leave each process on the core where it started.
    """
    if not hasattr(os, "sched_setaffinity") or count >= len(allowed := os.sched_getaffinity(0)):
        return None
    done = {}
    try:
        for core in sorted(allowed):
            os.sched_setaffinity(0, {core})
            done[core], end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 200)
                done[core] += 1
    finally:
        os.sched_setaffinity(0, allowed)
    return sorted(sorted(done, key=lambda core: -done[core])[:count])


def timer_ns() -> int:
    """Nanoseconds that reading the clock takes: the median of 1,000 readings in a row."""
    clock = time.perf_counter_ns
    readings = [clock() for _ in range(1001)]
    return int(median(after - before for before, after in pairwise(readings)))


def temperature() -> float | str:
    """Temperature of the hottest sensor, in degrees Celsius."""
    temps = [value for path in _SYSTEM.glob("class/thermal/thermal_zone*/temp") if (value := _number(path)) is not None]
    return max(temps) / 1000 if temps else UNAVAILABLE


def cpu_flags() -> set[str]:
    """The instruction set extensions of this CPU by their names in Linux; empty on other systems."""
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def cpu_isa() -> list[str]:
    """The instruction set extensions of this CPU that affect the speed and accuracy of int8."""
    flags = cpu_flags()
    return [name for name in _ISA if name in flags]


def has_vnni(isa: Sequence[str]) -> bool:
    """Whether an x86 CPU with these extensions multiplies uint8 by int8 without saturation."""
    return bool(_VNNI & set(isa))


def memory_cap() -> tuple[int | str, int | str]:
    """The tightest memory limit of this process's cgroups (or else all memory) and the peak use under it, in bytes."""
    capped = []
    for folder in _cgroups("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            peak = _number(folder / "memory.peak") or _number(folder / "memory.max_usage_in_bytes")
            capped.append((int(limit), UNAVAILABLE if peak is None else int(peak)))
    return min(capped, key=lambda pair: pair[0]) if capped else (_meminfo("MemTotal"), UNAVAILABLE)


def _cpu_model() -> str:
    """The CPU's name; for ARM, where the kernel reports part numbers, the name of each kind of core."""
    entries: dict[str, list[str]] = {"CPU implementer": [], "CPU part": [], "model name": []}
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in entries:
            entries[key.strip()].append(value.strip())
    vendors, parts, names = entries.values()
    cores = [
        _ARM_PARTS.get(part, f"part {part}") if vendor == _ARM_LIMITED else f"implementer {vendor} part {part}"
        for vendor, part in zip(vendors, parts, strict=False)
    ]
    return " + ".join(dict.fromkeys(cores or names[:1])) or platform.processor() or UNAVAILABLE


def _device_tree(entry: str) -> list[str]:
    """The strings of an entry of the board's device tree (Devicetree Specification 0.4, 2.3.1 and 2.3.2)."""
    text = _first_line(_SYSTEM / "firmware/devicetree/base" / entry)
    return [part for part in text.split("\0") if part] or [UNAVAILABLE]


def _meminfo(entry: str) -> int | str:
    """An entry of /proc/meminfo, in bytes."""
    for line in _lines("/proc/meminfo"):
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return UNAVAILABLE


def _mhz() -> list[int] | str:
    """The frequency of each core, in MHz."""
    files = sorted(_SYSTEM.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    speeds = [int(value // 1000) for path in files if (value := _number(path)) is not None]
    if not speeds:
        speeds = [int(float(line.split(":")[1])) for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    return speeds or UNAVAILABLE


def _throttled() -> int | str:
    """Thermal events: x86's counters, the Raspberry Pi firmware's flags, and cooling devices that limit a CPU."""
    events = [
        value
        for path in _SYSTEM.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (value := _number(path)) is not None
    ]
    flags = _first_line(_SYSTEM / "devices/platform/soc/soc:firmware/get_throttled")
    if flags != UNAVAILABLE:
        events.append(bin(int(flags, 16)).count("1"))
    for cooler in _SYSTEM.glob("class/thermal/cooling_device*"):
        if "cpufreq" in _first_line(cooler / "type") and (value := _number(cooler / "cur_state")) is not None:
            events.append(value)
    return int(sum(events)) if events else UNAVAILABLE


def _power_source() -> str:
    supplies = list(_SYSTEM.glob("class/power_supply/*"))
    mains = [path for path in supplies if _first_line(path / "type") in ("Mains", "USB")]
    if any(_first_line(path / "online") == "1" for path in mains):
        return "mains"
    return "battery" if any(_first_line(path / "type") == "Battery" for path in supplies) else UNAVAILABLE


def _cgroups(controller: str) -> Iterator[Path]:
    """This process's cgroup folder and its parents, of version 2 or of version 1's `controller`."""
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP / controller if controllers else _CGROUP
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder == root or root in folder.parents)


def _cgroup_quota() -> float | None:
    """Number of cores that the tightest CPU quota of this process's cgroups allows; None without a quota."""
    limits = []
    for folder in _cgroups("cpu"):
        quota, _, period = _first_line(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _first_line(folder / "cpu.cfs_quota_us"), _first_line(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits) if limits else None


def _cgroup_throttled() -> int | str:
    """How often the CPU quotas of this process's cgroups stopped it."""
    counts = [
        int(line.split()[1])
        for folder in _cgroups("cpu")
        for line in _lines(folder / "cpu.stat")
        if line.startswith("nr_throttled ")
    ]
    return sum(counts) if counts else UNAVAILABLE


def _number(path: Path) -> float | None:
    try:
        return float(_first_line(path))
    except ValueError:
        return None


def _first_line(path: Path | str) -> str:
    lines = _lines(path)
    return lines[0].strip() if lines else UNAVAILABLE


def _lines(path: Path | str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
