"""Runtimes: each opens bundles of some formats, with its own packages and options. One runtime per file.

Nothing here imports a runtime's package, because a host checks and sends options of runtimes that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, get_type_hints

from ..documents import DocumentError, read
from ..errors import DISTRIBUTION, BundleError, DeviceError, EdgeKitError, MissingPackageError, RecipeError, unknown
from ..registry import choose, resolve

if TYPE_CHECKING:
    import numpy as np

    from ..bundle import Bundle

# Runtime -> its declaration. The default of a format is the first runtime that opens it.
RUNTIMES: dict[str, str] = {
    "onnxruntime": ".onnxruntime:RUNTIME",
    "openvino": ".openvino:RUNTIME",
    "litert": ".litert:RUNTIME",
    "ncnn": ".ncnn:RUNTIME",
    "torch": ".torch:RUNTIME",
    "executorch": ".executorch:RUNTIME",
    "tensorrt": ".tensorrt:RUNTIME",
}

# Runtimes of the self-test's models. They open only models that the caller planted; no option names them.
PLANTED: dict[str, str] = {
    "null": ".null:RUNTIME",
    "slowed": ".slowed:RUNTIME",
}

# The parts of a run on a GPU, timed by sessions of runtimes that report "stages".
STAGES = ("host_to_device", "inference", "device_to_host")

# The option by which a runtime computes a float32 model in a lower precision: such a candidate counts as optimised.
PRECISION = "precision"

# No CPU has more cores.
_MAX_THREADS = 4096

OptionValue = str | int | float | bool
Report = Literal["placement", "layers", "stages"]


class Session(Protocol):
    """A loaded model.

    Attributes:
        facts: the setup (runtime, version, threads, provider), for the report.
    """

    facts: Mapping[str, Any]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] in the manifest's Preprocess.dtype -> float32 logits [n, k], for any n from 1."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class StagedSession(Session, Protocol):
    """A session of a runtime that reports stages."""

    def staged(self, batch: np.ndarray) -> dict[str, int]:
        """Nanoseconds of each of STAGES for one run of float32 [n, c, h, w], by the device's clock."""
        ...


# (bundle, an instance of the runtime's options) -> the loaded model
Opener = Callable[["Bundle", Any], Session]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that a runtime needs.

    Attributes:
        modules: import names; one of them suffices.
        distributions: names on PyPI; the first is the one to install.
        purpose: its use in EdgeKit, for `edgekit doctor`.
        extra: the extra of EdgeKit that installs it; "" for none.
    """

    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    purpose: str
    extra: str = ""

    @property
    def installed(self) -> bool:
        """Whether Python finds the package, without importing it."""
        return any(map(find_spec, self.modules))

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install '{DISTRIBUTION}[{self.extra}]'" if self.extra else f"pip install {self.distributions[0]}"


class ByHand(NamedTuple):
    """Why `edgekit provision` does not install a runtime, and how to install it on a board instead."""

    why: str
    how: str


@dataclass(frozen=True, kw_only=True)
class ThreadOptions:
    """The options of a runtime on the CPU.

    Attributes:
        threads: per inference; None for the runtime's own choice.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise RecipeError(f"threads={self.threads} is out of range", fix=f"pass 1 to {_MAX_THREADS} threads")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime, declared in its own file.

    Attributes:
        name: its key in RUNTIMES.
        formats: bundle format -> "module:object" that opens a session, taking (bundle, options).
        packages: alternatives, one of which is required; empty if none is.
        also: packages that are required as well.
        options: the dataclass of its options, each with a default.
        check: refuses a bundle that this machine cannot run, before measuring; takes the bundle and the device's name
            (None for this machine).
        reports: what its sessions report besides logits: `facts["placement"]`; layers as `facts["layers"]`, or for
            an engine in its manifest; `staged(batch)`.
        boards: whether it runs on a board, which gets only the code of `deploy`.
        by_hand: set if `edgekit provision` does not install it on a board.
    """

    name: str
    formats: Mapping[str, str]
    packages: tuple[Package, ...] = ()
    also: tuple[Package, ...] = ()
    options: type = ThreadOptions
    check: Callable[[Bundle, str | None], object] | None = None
    reports: tuple[Report, ...] = ()
    boards: bool = True
    by_hand: ByHand | None = None

    @property
    def installed(self) -> bool:
        """Whether one of its packages is installed, without importing any."""
        return not self.packages or any(package.installed for package in self.packages)

    def opener(self, format: str) -> Opener:
        """Import the runtime, and return the function that opens a session of this format.

        Raises:
            BundleError: the runtime does not open this format.
            MissingPackageError: none of its packages is installed.
            DeviceError: a package is installed but cannot be imported.
        """
        if format not in self.formats:
            raise BundleError(f"{self.name} does not open {format} bundles", fix=f"it opens {', '.join(self.formats)}")
        self._import()
        return resolve(self.formats[format], __package__ or "")

    def _import(self) -> None:
        if not self.installed:
            package = self.packages[0]
            raise MissingPackageError(f"the package {package.distributions[0]} is not installed", fix=package.install)
        failed: DeviceError | None = None
        for name in (name for package in self.packages for name in package.modules if find_spec(name)):
            try:
                import_module(name)
                return
            except (ImportError, OSError, RuntimeError) as error:
                failed = DeviceError(
                    f"{name} is installed but cannot be loaded: {error}", fix=f"pip install --force-reinstall {name}"
                )
        if failed is not None:
            raise failed

    def option_names(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(option.name for option in fields(self.options))

    def read_options(self, own: Mapping[str, OptionValue], defaults: Mapping[str, OptionValue] | None = None) -> Any:
        """Read options into an instance of `options`.

        Args:
            own: values by name; each must be an option of the runtime.
            defaults: values for options that `own` does not name; unknown ones are ignored.

        Raises:
            RecipeError: an unknown option, or a value of another type or out of range.
        """
        names = self.option_names()
        for name in own:
            if name not in names:
                raise RecipeError(
                    unknown(f"option of {self.name}", name, names)
                    if names
                    else f"{self.name} has no options, not even {name!r}",
                    fix=f"{self.name} takes {', '.join(names) or 'no options'}",
                )
        values = {name: value for name, value in (defaults or {}).items() if name in names}
        try:
            return read(self.options, {**values, **own})
        except DocumentError as error:
            raise RecipeError(f"{self.name}: {error}", fix=f"{self.name} takes {', '.join(names)}") from error


@dataclass(frozen=True)
class Choice:
    """A runtime by name, with its own options.

    Raises:
        RecipeError: an unknown runtime or option, or a value of another type or out of range.
    """

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        runtime_named(self.name).read_options(self.options)

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read NAME or NAME:OPTION=VALUE,OPTION=VALUE.

        Raises:
            RecipeError: another form, or as for the class.
        """
        name, colon, rest = text.partition(":")
        runtime = runtime_named(name)
        hints, options = get_type_hints(runtime.options), {}
        for part in rest.split(",") if colon else ():
            option, equals, value = part.partition("=")
            if not equals or not value or option in options:
                wrong = f"sets {option} twice" if option in options else "is not NAME:OPTION=VALUE,OPTION=VALUE"
                raise RecipeError(
                    f"--runtime {text} {wrong}", fix=f"{name} takes {', '.join(runtime.option_names()) or 'no options'}"
                )
            options[option] = _value(value, hints.get(option, str))
        return cls(name, options)

    def __str__(self) -> str:
        """The form that `parse` reads, with sorted options, so that equal choices have equal texts."""
        return f"{self.name}{':' if self.options else ''}{options_text(self.options)}"


def options_text(options: Mapping[str, OptionValue]) -> str:
    """Options in the form that `Choice.parse` reads."""
    return ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in sorted(options.items())
    )


def _value(text: str, kind: Any) -> OptionValue:
    """A value of an option's type; other text is returned as it is, and the strict reader refuses it."""
    kinds = get_args(kind) or (kind,)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        if number in kinds and len(text) < 20:
            try:
                return number(text)
            except ValueError:
                continue
    return text


@cache
def runtime_named(name: str, *, planted: bool = False) -> Runtime:
    """The declaration of a runtime.

    Args:
        planted: include those of PLANTED.

    Raises:
        RecipeError: no runtime has this name.
    """
    return resolve(choose({**RUNTIMES, **PLANTED} if planted else RUNTIMES, name, "runtime"), __package__ or "")


def all_runtimes(*, planted: bool = False) -> list[Runtime]:
    """All declarations, in the order of the registry."""
    return [runtime_named(name, planted=planted) for name in (*RUNTIMES, *(PLANTED if planted else ()))]


def default_runtime(format: str, *, planted: bool = False) -> Runtime:
    """The runtime that opens bundles of this format by default.

    Raises:
        BundleError: no runtime opens this format.
    """
    for runtime in all_runtimes(planted=planted):
        if format in runtime.formats:
            return runtime
    known = formats(RUNTIMES)
    raise BundleError(unknown("bundle format", format, known), fix=f"choose one of: {', '.join(known)}")


def formats(names: Iterable[str]) -> list[str]:
    """The bundle formats that these runtimes open."""
    return list(dict.fromkeys(format for name in names for format in runtime_named(name).formats))


def check_defaults(options: Mapping[str, OptionValue]) -> None:
    """Refuse options for all models that no runtime has, or whose value a runtime does not take.

    Raises:
        RecipeError: names the first such option.
    """
    having: dict[str, list[Runtime]] = {}
    for runtime in all_runtimes():
        for name in runtime.option_names():
            having.setdefault(name, []).append(runtime)
    for name in options:
        choose(having, name, "runtime option")
    for runtime in all_runtimes():
        runtime.read_options({}, options)


def require_options_used(options: Mapping[str, OptionValue], names: Iterable[str]) -> None:
    """Refuse options for all models that none of the measured runtimes has.

    Args:
        names: of the runtimes that run the models.

    Raises:
        EdgeKitError: names the first such option.
    """
    measured = [runtime_named(name) for name in names]
    for option in options:
        if not any(option in runtime.option_names() for runtime in measured):
            having = [runtime.name for runtime in all_runtimes() if option in runtime.option_names()]
            raise EdgeKitError(
                f"--{option.replace('_', '-')} is for {', '.join(having)}, but no model runs on it", fix="leave it out"
            )
