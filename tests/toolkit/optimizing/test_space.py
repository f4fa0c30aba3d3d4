"""What a device can run: files, runtimes, precisions and threads, for machines of different kinds."""

from typing import Any

import pytest
from edgekit.deploy.devices.device import Description, Device, open_device
from edgekit.deploy.environment import About, describe
from edgekit.deploy.errors import DeviceError
from edgekit.deploy.runtimes.runtime import RUNTIMES, all_runtimes, runtime_named
from edgekit.toolkit.optimizing.space import (
    SEARCHED,
    SOURCE,
    Place,
    Variant,
    contenders_for,
    examine,
    precisions,
    variants_for,
)


def _place(*runtimes: str, machine: str = "x86_64", isa: list[str] | None = None, cores: int = 4) -> Place:
    facts: Any = {**describe(), "machine": machine, "isa": isa or ["avx2", "avx512_vnni"], "cores_allowed": cores}
    threads = tuple(sorted({1, cores} | ({2} if cores > 2 else set())))
    return Place("ssh://board", runtimes, facts, threads)


class _Board(Device):
    """A board with these runtimes; `describe` says nothing about the hardware if `silent`."""

    def __init__(self, *runtimes: str, silent: bool = False, name: str = "ssh://board") -> None:
        self.name, self._runtimes, self._silent = name, set(runtimes), silent

    def runtimes(self) -> set[str]:
        return self._runtimes

    def describe(self) -> Description:
        about = None if self._silent else About({**describe(), "machine": "aarch64", "isa": ["asimd"]}, {})  # type: ignore[typeddict-item]
        return Description(None, {}, (), (), about, {})  # type: ignore[arg-type]


def test_an_x86_machine() -> None:
    """int8 for its CPU on both runtimes, int8 for OpenVINO only there, float32 in each precision of OpenVINO."""
    place = _place("onnxruntime", "openvino")
    variants = variants_for(place, small=False)
    assert variants == [SOURCE, Variant("onnx", "int8", "x86"), Variant("onnx", "int8", "openvino")]
    contenders = contenders_for(place, variants, streams=False)
    assert contenders[0] == place.reference
    assert len(set(map(str, contenders))) == len(contenders), "each is named once"
    shown = {(contender.variant.target, contender.choice.name) for contender in contenders}
    assert shown == {(None, "onnxruntime"), (None, "openvino"), ("x86", "onnxruntime"), ("x86", "openvino"),
                     ("openvino", "openvino")}  # fmt: skip
    assert {contender.choice.options["threads"] for contender in contenders} == {1, 2, 4}
    of_openvino = {contender.choice.options.get("precision") for contender in contenders if contender.variant == SOURCE}
    assert of_openvino == {None, "bf16", "fp16"}


def test_a_board_with_arm_and_few_runtimes() -> None:
    """int8 and fp16 for ARM; ncnn needs its own file."""
    place = _place("onnxruntime", "ncnn", machine="aarch64", isa=["asimd", "asimddp"], cores=3)
    variants = variants_for(place, small=False)
    assert variants == [SOURCE, Variant("onnx", "int8", "arm"), Variant("onnx", "fp16"), Variant("ncnn", "fp32")]
    names = [contender.name for contender in contenders_for(place, variants, streams=False)]
    assert "ncnn fp32 on ncnn:precision=fp16,threads=3" in names
    assert not any("onnx int8 (arm) on ncnn" in name for name in names)


def test_a_small_file_is_wanted() -> None:
    """fp16 halves the file and int8 weights quarter it even where they compute in float32."""
    for precision in ("fp16", "int8-weights"):
        assert Variant("onnx", precision) in variants_for(_place("onnxruntime"), small=True)
        assert Variant("onnx", precision) not in variants_for(_place("onnxruntime"), small=False)


def test_streams_where_batches_matter() -> None:
    """One per thread."""
    place = _place("openvino", "onnxruntime", cores=2)
    streams = {entry.choice.options.get("streams") for entry in contenders_for(place, [SOURCE], streams=True)}
    assert streams == {None, 2}


@pytest.mark.parametrize("runtime", [runtime.name for runtime in all_runtimes()])
def test_precisions_are_those_of_the_options(runtime: str) -> None:
    """Each can be asked for."""
    for precision in precisions(runtime_named(runtime)):
        if precision != "fp32":
            assert runtime_named(runtime).read_options({"precision": precision}).precision == precision


def test_searched_runtimes_exist() -> None:
    """A renamed runtime is noticed."""
    assert set(SEARCHED) <= set(RUNTIMES)


def test_this_machine() -> None:
    """Its installed runtimes take part, in the order of the search."""
    place = examine(open_device("local"), ())
    assert [name for name in SEARCHED if name in place.runtimes] == list(place.runtimes)
    assert place.machine["cores_allowed"] >= 1
    assert examine(open_device("local"), ["onnxruntime"]).runtimes == ("onnxruntime",)


def test_devices_that_cannot_be_searched() -> None:
    """One line, and what to type next."""
    with pytest.raises(DeviceError, match="does not have ncnn: it has onnxruntime") as caught:
        examine(_Board("onnxruntime"), ["ncnn"])
    assert caught.value.fix == "edgekit provision --device ssh://board --runtime ncnn"
    with pytest.raises(DeviceError, match="does not have onnxruntime: it has no runtime"):
        examine(_Board(), ())
    with pytest.raises(DeviceError, match="cannot describe its hardware"):
        examine(_Board("onnxruntime", silent=True), ())
    with pytest.raises(DeviceError, match="can be examined only during a measurement"):
        examine(_Board("onnxruntime", name="browser"), ())
    board = examine(_Board("onnxruntime"), ())
    assert board.machine["machine"] == "aarch64"
    cores = board.machine["cores_allowed"]
    assert board.threads[0] == 1
    assert board.threads[-1] == cores
    assert examine(_Board("onnxruntime"), (), [cores]).reference.choice.options["threads"] == cores
    with pytest.raises(DeviceError, match=f"has {cores} cores, not 4096"):
        examine(_Board("onnxruntime"), (), [1, 4096])
