"""Devices: where models are measured. One kind a file."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..bundle import Bundle
from ..errors import DeviceError
from ..images import ImageSet
from ..measure import Progress
from ..measurement import Measurement
from ..plan import Plan
from ..registry import choose, resolve


class Measured(NamedTuple):
    """What a device reports: itself, and one measurement a bundle, in their order."""

    environment: dict[str, Any]
    measurements: list[Measurement]


class Device(Protocol):
    """A machine that can run the agent."""

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Measure the bundles together there.

        Raises:
            EdgeKitError: a model cannot be run there, or the device did not answer.
        """
        ...


DEVICES: dict[str, str] = {
    "local": ".local:LocalDevice",
}


def open_device(name: str) -> Device:
    """The device called `name`.

    Raises:
        DeviceError: no such kind of device.
    """
    return resolve(choose(DEVICES, name, "device", DeviceError), __name__)()
