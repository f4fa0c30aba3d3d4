"""The interface of devices, and the registry of their kinds. One kind per file or folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import DeviceError
from ..registry import choose, resolve
from ..runtimes.runtime import runtime_named

if TYPE_CHECKING:  # --help shows the registry, and must load nothing heavy
    from ..bundle import Bundle
    from ..engine.build import Options
    from ..environment import About
    from ..images import ImageSet
    from ..measuring.agent import Measured
    from ..measuring.plan import Plan
    from ..progress import Progress
    from .board.install import Download
    from .board.probe import Facts

# Abilities of a kind of device in addition to measuring: build engines, describe itself, install packages.
Ability = Literal["build", "describe", "provision"]

# ability -> message about a device without it, and the fix
_UNABLE: dict[Ability, tuple[str, str]] = {
    "build": ("cannot build engines", "build on the machine that runs them: {others}"),
    "describe": ("can be examined only during a measurement", "validate on it, or name another device: {others}"),
    "provision": ("does not support installing packages", "name another device: {others}"),
}


class Kind(NamedTuple):
    """A kind of device.

    Attributes:
        opens: import path of the function or class that makes a Device from its name.
        address: form of the name in help texts (where rich interprets [word] as markup).
        can: its abilities.
        settings: keyword arguments of `opens` in addition to the name.
    """

    opens: str
    address: str
    can: frozenset[Ability] = frozenset()
    settings: tuple[str, ...] = ()


_BOARD: frozenset[Ability] = frozenset(("build", "describe", "provision"))

# this machine's name as a device
_HERE = "local"

# prefix of a device's name, up to "://" -> its kind
DEVICES: dict[str, Kind] = {
    _HERE: Kind(".local:LocalDevice", "local", frozenset(("build", "describe")), ("planted",)),
    "ssh": Kind(".ssh:open_board", "ssh://user@host[:port]", _BOARD),
    "adb": Kind(".adb:open_board", "adb://SERIAL", _BOARD),
    "browser": Kind(".browser.device:BrowserDevice", "browser", settings=("ort_web", "invite")),
    "browser+webgpu": Kind(".browser.device:BrowserDevice", "browser+webgpu", settings=("ort_web", "invite")),
}


class Description(NamedTuple):
    """A device's state, and the requirements that it does not meet.

    Attributes:
        facts: its Python and free space.
        packages: the packages required for measuring -> version on the device, None if missing or broken.
        lacks: the unmet requirements for measuring, one sentence each.
        remarks: other notes, one sentence each.
        about: its hardware and state; None if a requirement is not met.
        optional: the packages of its other runtimes -> version, None if missing. They were not imported.
    """

    facts: "Facts"
    packages: Mapping[str, str | None]
    lacks: Sequence[str]
    remarks: Sequence[str]
    about: "About | None"
    optional: Mapping[str, str | None]


class Device:
    """A machine to measure models on; connected while its `with` block lasts.

    A kind implements `runtimes` and `measure`, and the methods of its abilities.

    Attributes:
        name: the device's name as the user wrote it.
        here: whether the device is this machine.
    """

    name: str
    here: bool = False

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect."""

    def require(self, ability: Ability) -> None:
        """Check that this kind of device has an ability; requires no connection.

        Raises:
            DeviceError: this kind lacks it; the fix names the kinds that have it.
        """
        if ability not in kind_of(self.name).can:
            message, fix = _UNABLE[ability]
            raise DeviceError(f"{self.name} {message}", fix=fix.format(others=addresses(ability)))

    def runtimes(self) -> set[str]:
        """The installed runtimes (keys of runtimes.runtime.RUNTIMES).

        Raises:
            DeviceError: the device cannot run anything; the message names the missing requirement.
        """
        raise NotImplementedError

    def measure(
        self, bundles: "Sequence[Bundle]", plan: "Plan", images: "ImageSet | None", progress: "Progress"
    ) -> "Measured":
        """Measure the bundles together on the device, each on the runtimes in the plan.

        Raises:
            EdgeKitError: a model cannot be run, or the device did not answer.
            LostDeviceError: the connection was lost; the error contains the measurements so far.
        """
        raise NotImplementedError

    def build(self, bundle: "Bundle", options: "Options", out: Path, progress: "Progress") -> None:
        """Build a TensorRT engine from an ONNX bundle on the device, and write it here as the new bundle `out`.

        Raises:
            EdgeKitError: it cannot be built (see engine.build.build), or the device did not answer.
        """
        raise NotImplementedError

    def describe(self) -> Description:
        """The device's state, and the requirements that it does not meet.

        Raises:
            DeviceError: the device has no suitable Python, or did not answer.
        """
        raise NotImplementedError

    def provision(
        self, runtimes: Sequence[str], download: "Download | None", progress: "Progress"
    ) -> dict[str, str]:  # fmt: skip
        """Install and test the packages for measuring, in EdgeKit's folder on the device; returns package -> version.

        Args:
            runtimes: names of those to install besides ONNX Runtime and those that an earlier call installed.
            download: fetches the device's wheels to here, to be sent; with None, the device fetches them itself.

        Raises:
            DeviceError: the installation failed and was undone.
        """
        raise NotImplementedError

    def clean(self) -> list[str]:
        """Remove everything that EdgeKit installed on the device; returns the removed folders."""
        raise NotImplementedError


def kind_of(name: str) -> Kind:
    """The kind of the device called `name`.

    Raises:
        DeviceError: no kind has this name.
    """
    return choose(DEVICES, name.partition("://")[0], "device", DeviceError)


def how_to_install(name: str, runtime: str) -> str:
    """How to install a runtime on the device called `name`; "" if that is impossible, as in a browser."""
    kind, declared = DEVICES.get(name.partition("://")[0]), runtime_named(runtime)
    if kind is not None and declared.boards and "provision" in kind.can:
        return declared.by_hand.how if declared.by_hand else f"edgekit provision --device {name} --runtime {runtime}"
    return declared.packages[0].install if is_here(name) else ""


def is_here(name: str) -> bool:
    """Whether a device's name in a report means this machine."""
    return name == _HERE


def addresses(ability: Ability | None = None) -> str:
    """The forms of device names, for all kinds or those with an ability: "local, ssh://…, …"."""
    return ", ".join(kind.address for kind in DEVICES.values() if ability is None or ability in kind.can)


def open_device(name: str, **settings: Any) -> Device:
    """The device called `name`: "local", "browser", or an address such as "ssh://user@host". It is not connected yet.

    Args:
        settings: each kind receives those that its DEVICES entry lists. None selects the kind's default.

    Raises:
        DeviceError: no such kind of device, or an invalid address.
    """
    kind = kind_of(name)
    accepted = {key: settings[key] for key in kind.settings if settings.get(key) is not None}
    return resolve(kind.opens, __package__ or "")(name, **accepted)
