"""What a device can run: the files to make, and each file on each runtime, in each precision, with threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from ...deploy.devices.device import Device, how_to_install
from ...deploy.environment import Machine, describe
from ...deploy.errors import DeviceError
from ...deploy.runtimes.runtime import PRECISION, Choice, OptionValue, Runtime, default_runtime, runtime_named
from ..quantize.targets import target_for

# Runtimes that are searched unless the user names some. torch is for hosts, and an engine is built by `edgekit build`.
SEARCHED = ("onnxruntime", "openvino", "litert", "ncnn", "executorch")


class Variant(NamedTuple):
    """A file made from the source.

    Attributes:
        format: of the bundle.
        precision: fp32, int8, fp16 or int8-weights.
        target: of an int8 file (see quantize.targets); None for other files.
    """

    format: str
    precision: str
    target: str | None = None

    @property
    def name(self) -> str:
        """As in tables: "onnx int8 (openvino)"."""
        return f"{self.format} {self.precision}" + (f" ({self.target})" if self.target else "")


SOURCE = Variant("onnx", "fp32")


@dataclass(frozen=True)
class Place:
    """A device to search on.

    Attributes:
        name: the device's name.
        runtimes: those that take part, in the order of SEARCHED.
        machine: the hardware.
        threads: numbers of threads to try, ascending.
    """

    name: str
    runtimes: tuple[str, ...]
    machine: Machine
    threads: tuple[int, ...]

    @property
    def reference(self) -> "Contender":
        """The first contender, to which the others' times are relative: few threads vary least on a busy machine."""
        return Contender(SOURCE, Choice(default_runtime(SOURCE.format).name, {"threads": self.threads[0]}))


def examine(opened: Device, wanted: Sequence[str], threads: Sequence[int] = ()) -> Place:
    """Connect to a device, and list its runtimes that take part.

    Args:
        wanted: names of runtimes; empty for those of SEARCHED.
        threads: numbers to try; empty for the powers of two up to the device's cores, and all cores.

    Raises:
        DeviceError: the device cannot describe itself, has fewer cores than threads are wanted, or lacks a wanted
            runtime or ONNX Runtime, which runs the reference.
    """
    opened.require("describe")
    with opened as device:
        installed = device.runtimes()
        about = None if device.here else device.describe().about
        machine = describe() if device.here else about and about.machine
    for name in (*wanted, "onnxruntime"):
        if name not in installed:
            raise DeviceError(
                f"{device.name} does not have {name}: it has {', '.join(sorted(installed)) or 'no runtime'}",
                fix=how_to_install(device.name, name),
            )
    if machine is None:
        raise DeviceError(
            f"{device.name} cannot describe its hardware",
            fix=f"edgekit doctor --device {device.name}",
        )
    cores = machine["cores_allowed"]
    if threads and max(threads) > cores:
        raise DeviceError(f"{device.name} has {cores} cores, not {max(threads)}", fix=f"pass --threads {cores}")
    tried = threads or (*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores)
    runtimes = tuple(name for name in (wanted or SEARCHED) if name in installed)
    return Place(device.name, runtimes, machine, tuple(sorted(set(tried))))


def variants_for(place: Place, *, small: bool) -> list[Variant]:
    """The files that may be the best on a device, the source first.

    Args:
        small: the size of the file matters, so that fp16 and int8 weights are worth a trial where they compute in
            float32.
    """
    machine, isa = place.machine["machine"], place.machine["isa"]
    variants = [SOURCE]
    if "onnxruntime" in place.runtimes:
        variants.append(Variant("onnx", "int8", target_for(machine, isa)))
    if "openvino" in place.runtimes:
        variants.append(Variant("onnx", "int8", "openvino"))
    if small or target_for(machine, isa) == "arm":
        variants.append(Variant("onnx", "fp16"))
    if small:
        variants.append(Variant("onnx", "int8-weights"))
    for name in place.runtimes:
        formats = runtime_named(name).formats
        if SOURCE.format not in formats:
            variants.append(Variant(next(iter(formats)), "fp32"))
    return variants


class Contender(NamedTuple):
    """A file on a runtime with its options."""

    variant: Variant
    choice: Choice

    @property
    def name(self) -> str:
        """As in tables: "onnx int8 (openvino) on openvino:threads=2"."""
        return f"{self.variant.name} on {self.choice}"


def contenders_for(place: Place, variants: Sequence[Variant], *, streams: bool) -> list[Contender]:
    """What to race on a device, the reference first.

    Args:
        streams: batches matter, so that runtimes with several streams try them.
    """
    found = [
        Contender(variant, choice)
        for variant in variants
        for name in place.runtimes
        if variant.format in (runtime := runtime_named(name)).formats and _suits(runtime, variant)
        for choice in _choices(runtime, variant, place, streams=streams)
    ]
    return [place.reference, *(contender for contender in found if contender != place.reference)]


def _suits(runtime: Runtime, variant: Variant) -> bool:
    """OpenVINO's int8 has symmetric activations, which ONNX Runtime runs slowly; the other way round it may be fast."""
    return variant.target != "openvino" or runtime.name == "openvino"


def _choices(runtime: Runtime, variant: Variant, place: Place, *, streams: bool) -> list[Choice]:
    choices = []
    for precision in precisions(runtime) if variant.precision != "fp16" else ("fp32",):
        for threads in place.threads:
            options: dict[str, OptionValue] = {"threads": threads}
            if precision != "fp32":
                options[PRECISION] = precision
            choices.append(Choice(runtime.name, options))
            if streams and threads > 1 and "streams" in runtime.option_names():
                choices.append(Choice(runtime.name, {**options, "streams": threads}))
    return choices


def precisions(runtime: Runtime) -> tuple[str, ...]:
    """The precisions in which a runtime can be asked to compute a float32 model."""
    hint: Any = get_type_hints(runtime.options).get(PRECISION, Literal["fp32"])
    return get_args(hint)
