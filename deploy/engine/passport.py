"""An engine's passport: what it was built with and for, checked before any of it is loaded.

An engine is native code that the library runs as is. So an engine for another version or GPU is refused by its manifest
and the first bytes of its header, without trying to load it.
"""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError, EngineError
from .gpu import Gpu
from .library import Library, version_tuple

ENGINE_FORMAT = "tensorrt"

# The ONNX file beside an engine that was built without weights.
WEIGHTS = "weights.onnx"

# The position in a plan's header of the version of the library that wrote it, one byte per number.
_VERSION_AT = slice(24, 28)

# Major version -> those whose runtime loads its version-compatible engines (support matrix of TensorRT 11.4).
_LOADED_BY = {8: (8, 10), 10: (10, 11)}


@dataclass(frozen=True)
class Passport:
    """What an engine requires of the machine that loads it.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        version: of the library that built it.
        compute_capabilities: GPUs that it was built for, e.g. ("8.6", "8.9").
        hardware_compatible: it runs on any GPU from Ampere (8.0) on.
        version_compatible: newer libraries load it too.
        system, machine: operating system and processor that run it, e.g. "Linux", "aarch64".
        cuda, driver, gpu: of the machine where it was built; "unavailable" if it had no GPU.
        flags: the builder's flags that were set.
        onnx_sha256: of the model that it was built from.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    system: str
    machine: str
    cuda: str
    driver: str
    gpu: str
    flags: tuple[str, ...]
    onnx_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, for the manifest's `requires`."""
        return {
            ENGINE_FORMAT: {
                **asdict(self),
                "compute_capabilities": [*self.compute_capabilities],
                "flags": [*self.flags],
            }
        }

    @classmethod
    def of(cls, bundle: Bundle) -> "Passport":
        """The passport in a bundle's manifest.

        Raises:
            BundleError: the passport is missing or unreadable.
        """
        entry = bundle.manifest.requires.get(ENGINE_FORMAT)
        try:
            return cls._from_json(entry)  # type: ignore[arg-type] # it raises TypeError if this is not a mapping
        except (TypeError, ValueError, KeyError) as error:
            raise BundleError(
                f"{bundle.path} is an engine without a readable passport: {error!r}", fix=rebuild(bundle)
            ) from error

    @classmethod
    def _from_json(cls, entry: Mapping[str, Any]) -> "Passport":
        values = dict(entry)
        for name in ("compute_capabilities", "flags"):
            values[name] = tuple(str(value) for value in values[name])
        passport = cls(**values)
        for name, value in asdict(passport).items():
            wanted = (
                bool if name.endswith("_compatible") else tuple if name in ("compute_capabilities", "flags") else str
            )
            if type(value) is not wanted:
                raise TypeError(f"{name} is {value!r}")
        return passport


def check_system(bundle: Bundle, device: str | None = None) -> Passport:
    """Refuse an engine that this operating system and processor cannot load; only its header is read.

    Raises:
        EngineError: the engine is for another system, or its header contradicts the passport.
    """
    passport = Passport.of(bundle)
    system, machine = platform.system(), platform.machine()
    if (passport.system, passport.machine) != (system, machine):
        raise EngineError(
            f"{bundle.path} was built for {passport.system} on {passport.machine}; this is {system} on {machine}",
            fix=rebuild(bundle, device),
        )
    with bundle.model_path.open("rb") as stream:
        header = stream.read(_VERSION_AT.stop)
    written = ".".join(map(str, header[_VERSION_AT]))
    claimed = ".".join(map(str, version_tuple(passport.version)))
    # TensorRT 10.3.0 writes 10.3.0.30, its module may report 10.3.0
    if len(header) < _VERSION_AT.stop or not f"{written}.".startswith(f"{claimed}."):
        raise EngineError(
            f"{bundle.path}: the engine's header says version {written or 'nothing'}, its passport {passport.version}",
            fix=f"do not use it; {rebuild(bundle, device)}",
        )
    return passport


def check(bundle: Bundle, library: Library, gpu: Gpu | None, device: str | None = None) -> Passport:
    """Refuse an engine that was not built for this library and this GPU.

    Raises:
        EngineError: the engine does not fit this machine; the fix is the command that rebuilds it.
    """
    passport = check_system(bundle, device)
    fix = rebuild(bundle, device)
    if passport.flavour != library.flavour:
        raise EngineError(f"{bundle.path} requires {passport.flavour}, but {library.flavour} is installed", fix=fix)
    if not _loads(passport, library):
        raise EngineError(
            f"{bundle.path} was built with {passport.flavour} {passport.version}; {library.version} is installed",
            fix=fix,
        )
    if gpu is None:
        raise EngineError(
            f"{bundle.path} needs an NVIDIA GPU of compute capability {_listed(passport)}, but this machine has none",
            fix="validate it on the machine with the GPU: --device ssh://user@host",
        )
    if not _runs_on(passport, gpu.compute_capability):
        raise EngineError(
            f"{bundle.path} was built for compute capability {_listed(passport)}; the {gpu.name} here has "
            f"{gpu.compute_capability}",
            fix=fix,
        )
    if passport.cuda != "unavailable" and version_tuple(gpu.cuda) < version_tuple(passport.cuda)[:1]:
        raise EngineError(
            f"{bundle.path} was built under a driver for CUDA {passport.cuda}; the driver here supports {gpu.cuda}",
            fix=f"upgrade the driver, or {fix}",
        )
    return passport


def rebuild(bundle: Bundle, device: str | None = None) -> str:
    """The command that rebuilds an engine, on the device of this name or on this machine."""
    details = bundle.manifest.details.get("build")
    details = details if isinstance(details, Mapping) else {}
    command = ["edgekit", "build", str(details.get("source", "BUNDLE")), *map(str, details.get("arguments", []))]
    return shlex.join([*command, *(["--device", device] if device else [])])


def _loads(passport: Passport, library: Library) -> bool:
    """Whether a library loads an engine of the passport's version."""
    built, installed = version_tuple(passport.version), version_tuple(library.version)
    if built == installed[: len(built)] or installed == built[: len(installed)]:
        return True
    # engines of TensorRT for RTX load in one release only, whatever their flags
    if not passport.version_compatible or passport.flavour != "tensorrt":
        return False
    return installed >= built and installed[0] in _LOADED_BY.get(built[0], (built[0],))


def _runs_on(passport: Passport, compute_capability: str) -> bool:
    if passport.hardware_compatible and version_tuple(compute_capability) >= (8, 0):
        return True
    return compute_capability in passport.compute_capabilities


def _listed(passport: Passport) -> str:
    return "8.0 or newer" if passport.hardware_compatible else " or ".join(passport.compute_capabilities)


def onnx_hash(bundle: Bundle) -> str:
    """The SHA-256 of a bundle's model file, which opening the bundle has checked."""
    return str(bundle.manifest.files[bundle.manifest.model]["sha256"])


def machine_facts(gpu: Gpu | None) -> dict[str, str]:
    """A passport's facts about the machine where the engine was built."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cuda": gpu.cuda if gpu else "unavailable",
        "driver": gpu.driver if gpu else "unavailable",
        "gpu": gpu.name if gpu else "unavailable",
    }
