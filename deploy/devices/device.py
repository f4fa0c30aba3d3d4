"""Devices: where models are measured. One kind a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..bundle import Bundle
from ..engine.build import Options
from ..errors import DeviceError
from ..images import ImageSet
from ..measuring.agent import Measured
from ..measuring.plan import Plan
from ..progress import Progress
from ..registry import choose, resolve


class Device(Protocol):
    """A machine that can run the agent; connected to while its `with` block lasts.

    Attributes:
        name: as the user wrote it.
    """

    name: str

    def __enter__(self) -> "Device": ...

    def __exit__(self, *error: object) -> None: ...

    def formats(self) -> set[str]:
        """The bundle formats that can run there.

        Raises:
            DeviceError: the device cannot run anything; the message says what it lacks.
        """
        ...

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Measure the bundles together there.

        Raises:
            EdgeKitError: a model cannot be run there, or the device did not answer.
            LostDeviceError: the device went away; the error has what was measured so far.
        """
        ...

    def build(self, bundle: Bundle, options: Options, out: Path, progress: Progress) -> None:
        """Build a TensorRT engine from an ONNX bundle there, and write it here as the new bundle `out`.

        Raises:
            EdgeKitError: it cannot be built there (see engine.build.build), or the device did not answer.
        """
        ...


# what a device's name begins with, up to "://" -> what opens it, taking the name
DEVICES: dict[str, str] = {
    "local": ".local:LocalDevice",
    "ssh": ".ssh.board:Board",
    "browser": ".browser.device:BrowserDevice",
    "browser+webgpu": ".browser.device:BrowserDevice",
}


def open_device(name: str, **settings: Any) -> Device:
    """The device called `name`: "local", "browser", or an address such as "ssh://user@host".

    Args:
        settings: what this kind of device alone has (see its class).

    Raises:
        DeviceError: no such kind of device, or not an address of that kind.
    """
    return resolve(choose(DEVICES, name.partition("://")[0], "device", DeviceError), __package__ or "")(
        name, **settings
    )
