"""What machine this is. Anything that cannot be read is "unavailable", never zero."""

import os
import platform
from pathlib import Path
from typing import Any

from .bundle import tool_versions

UNAVAILABLE = "unavailable"

# x86: VNNI multiplies uint8 by int8 without saturating; without it 8-bit weights overflow 16-bit sums.
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_VNNI = {"avx512_vnni", "avx_vnni"}


def describe() -> dict[str, Any]:
    """The machine, its state and its libraries, as plain values for a report."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores_allowed": allowed_cores(),
        "cores": os.cpu_count() or UNAVAILABLE,
        "isa": cpu_isa(),
        "memory_bytes": _memory_bytes(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else UNAVAILABLE,
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "versions": tool_versions(("onnxruntime", "torch", "onnx")),
    }


def allowed_cores() -> int:
    """How many cores this process may keep busy: the affinity mask, and the cgroup's CPU quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def cpu_isa() -> list[str]:
    """The instruction set extensions of this CPU that decide how fast, and how right, int8 runs."""
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            return [name for name in _ISA if name in flags]
    return []


def has_vnni() -> bool:
    """Whether an x86 CPU multiplies uint8 by int8 without saturation."""
    return bool(_VNNI & set(cpu_isa()))


def _cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or UNAVAILABLE


def _memory_bytes() -> int | str:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return UNAVAILABLE


def _first_line(path: str) -> str:
    lines = _lines(path)
    return lines[0].strip() if lines else UNAVAILABLE


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
