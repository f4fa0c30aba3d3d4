"""TensorRT or TensorRT for RTX, whichever is installed, and the differences between the two and their versions."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..errors import DISTRIBUTION, DeviceError, MissingPackageError

# flavour -> its possible module names, of which the first installed one is used
FLAVOURS = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}

# The start of the message in which a builder lists the layers of a new engine (TensorRT 11, TensorRT for RTX).
LAYERS_BEGIN = "Layers:\n"

# The first versions that build strongly typed networks from casts and Q/DQ nodes alone: JetPack 6.2 has 10.3.
_OLDEST = {"tensorrt": (10, 0), "tensorrt-rtx": (1, 0)}


class Library(NamedTuple):
    """An imported TensorRT library.

    Attributes:
        trt: the module.
        flavour: "tensorrt" or "tensorrt-rtx"; neither loads the other's engines.
        version: as the module reports it.
    """

    trt: Any
    flavour: str
    version: str


class Message(NamedTuple):
    """A message that TensorRT logged: "error", "warning", or "layers" (listed at the end of a build); and its text."""

    kind: str
    text: str


def installed() -> str | None:
    """The flavour that `load` would import; None if neither is installed."""
    return next((flavour for flavour, names in FLAVOURS.items() if _module(names)), None)


def load(flavour: str | None = None) -> Library:
    """Import TensorRT.

    Args:
        flavour: a key of FLAVOURS; None takes TensorRT, else TensorRT for RTX.

    Raises:
        MissingPackageError: it is not installed.
        DeviceError: it is too old, or its libraries cannot be loaded.
    """
    chosen = flavour or installed() or "tensorrt"
    name = _module(FLAVOURS[chosen])
    if name is None:
        raise MissingPackageError(
            f"{'TensorRT for RTX' if chosen == 'tensorrt-rtx' else 'TensorRT'} is not installed",
            fix=f"pip install '{DISTRIBUTION}[{chosen}]'; on a Jetson it comes with JetPack: create the venv with "
            "--system-site-packages",
        )
    try:
        trt = import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"{name} is installed but cannot be loaded: {error}", fix=f"pip install --force-reinstall {name}"
        ) from error
    version = str(trt.__version__)
    if version_tuple(version) < _OLDEST[chosen]:
        raise DeviceError(
            f"{name} {version} does not support strongly typed networks",
            fix="upgrade to TensorRT 10 (JetPack 6), or use the trtexec line for 8.6 from: edgekit build --plan",
        )
    return Library(trt, chosen, version)


def version_tuple(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: "10.3.0.post1" is (10, 3, 0)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def recording_logger(trt: Any, messages: list[Message]) -> Any:
    """A logger that appends errors, warnings and the layers to `messages` and prints nothing."""
    kinds = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
    }

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            kind = kinds.get(severity) or ("layers" if message.startswith(LAYERS_BEGIN) else None)
            if kind:
                messages.append(Message(kind, message))

    return Listener()


def last_error(messages: list[Message]) -> str:
    """The text of the last logged error, for use in another message."""
    return next((message.text for message in reversed(messages) if message.kind == "error"), "no reason given")


def progress_monitor(trt: Any, show: Callable[[float], None]) -> Any:
    """A monitor that reports the completed share of a build.

    TensorRT reports nested phases, each with its number of steps. A phase fills the part of the bar that belongs to the
    current step of its parent phase.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, tuple[float, float, int]] = {}  # name -> its begin, width and number of steps
            self._step: dict[str, int] = {}
            self._shown = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            begin, width = 0.0, 1.0
            if parent_phase in self._phases:
                begin, parent_width, steps = self._phases[parent_phase]
                width = parent_width / max(1, steps)
                begin += width * self._step[parent_phase]
            self._phases[phase_name], self._step[phase_name] = (begin, width, num_steps), 0

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                begin, width, steps = self._phases[phase_name]
                self._step[phase_name] = min(step + 1, steps)
                # a phase that restarts must not move the bar back
                self._shown = max(self._shown, min(1.0, begin + width * self._step[phase_name] / max(1, steps)))
                show(self._shown)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()


def _module(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if find_spec(name)), None)
