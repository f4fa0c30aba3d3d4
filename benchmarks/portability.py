"""Run int8 graphs on emulated CPUs, and compare their answers with those that the portability certificate computes.

    python benchmarks/portability.py [BUNDLE...] [--images 60] [--board DIR]

Each BUNDLE is an int8 ONNX bundle made for x86, x86-avx2 or arm; its golden samples are run. Without one, networks of
one convolution each are run on random images: one network for each way in which ONNX Runtime multiplies, with weights
whose sums overflow, once with 8-bit and once with 7-bit weights.

`qemu-x86_64 -cpu max` runs this Python on a CPU with AVX2 and without VNNI (Debian: apt-get install qemu-user). With
--board, a virtual board that tests/board/make.sh made also runs them on ARM64 with and without dot products.

Prints one row per network and CPU: the number of images whose logits differ at all from exact integer arithmetic, the
largest difference as a share of the largest logit, and the same for what EdgeKit computes for this kind of CPU.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.integer_run import IntegerRun, exact
from edgekit.toolkit.quantize.observe import Batch, ranges_of
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.saturation import saturated_sums
from edgekit.toolkit.quantize.targets import TARGETS, Form
from onnx import TensorProto, helper, numpy_helper

_CHANNELS, _OUTPUTS, _CLASSES, _SIZE = 16, 16, 10, 12
# way to multiply -> channels of the image, shape of the weight, attributes of the convolution
_PATHS: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "indirection buffer": (_CHANNELS, (_OUTPUTS, _CHANNELS, 3, 3), {"pads": [1, 1, 1, 1]}),
    "pointwise": (_CHANNELS, (_OUTPUTS, _CHANNELS, 1, 1), {}),
    "im2col, odd length": (3, (_OUTPUTS, 3, 3, 3), {"strides": [2, 2]}),
    "im2col, dilated": (6, (7, 6, 3, 3), {"dilations": [2, 2]}),
    "pointwise, odd length": (5, (7, 5, 1, 1), {}),
    "groups": (_CHANNELS, (_OUTPUTS, 4, 3, 3), {"group": 4}),
    "depthwise": (_CHANNELS, (_OUTPUTS, 1, 3, 3), {"group": 16}),
    "depthwise, 12 channels": (12, (12, 1, 3, 3), {"group": 12}),
}
_RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name, images = session.get_inputs()[0].name, numpy.load(sys.argv[2])
size = int(sys.argv[4])
parts = [session.run(None, {name: images[i : i + size]})[0] for i in range(0, len(images), size)]
numpy.save(sys.argv[3], numpy.concatenate(parts))
"""


class _Cpu(NamedTuple):
    """An emulated CPU: the command of its Python, variables for it, and whether its sums saturate."""

    name: str
    python: list[str]
    variables: dict[str, str]
    saturates: bool


def planted(path: str, seven_bits: bool, images: np.ndarray) -> onnx.ModelProto:
    """An int8 graph of a convolution and a classifier, calibrated on the images [n, c, h, w]."""
    channels, shape, given = _PATHS[path]
    generator = np.random.default_rng(0)
    weight = np.abs(generator.normal(size=shape)).astype(np.float32)
    weight[::2] *= -1
    constants = {"conv_w": weight, "fc_w": generator.normal(size=(shape[0], _CLASSES)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "conv_w"], ["conv"], "conv", **given),
        helper.make_node("GlobalAveragePool", ["conv"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "fc_w"], ["logits"], "fc"),
    ]
    graph = helper.make_graph(
        nodes, "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, _SIZE, _SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", _CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    ranges = ranges_of(model, [Batch(images, ["random"])])
    form = Form(seven_bits=frozenset({"conv", "fc"} if seven_bits else ()))
    return emit_int8(model, ranges, TARGETS["x86-avx2"], form)


def emulated(board: Path | None) -> list[_Cpu]:
    """The CPUs that can be emulated here."""
    cpus = []
    if shutil.which("qemu-x86_64"):
        cpus.append(_Cpu("AVX2, no VNNI", ["qemu-x86_64", "-cpu", "max", sys.executable], {}, True))
    else:
        print("qemu-x86_64 is missing: apt-get install qemu-user", file=sys.stderr)
    if board is not None:
        python = board / "root/usr/bin/python3.11"
        packages = {"PYTHONPATH": str(board / "root/usr/local/lib/python3.11/dist-packages")}
        for name, core in (("ARM64", "cortex-a53"), ("ARM64, dot products", "cortex-a76")):
            command = [str(board / "bin/qemu-aarch64"), "-L", str(board / "root"), "-cpu", core, str(python)]
            cpus.append(_Cpu(name, command, packages, False))
    return cpus


def answers(model: onnx.ModelProto, images: np.ndarray, batch: int, cpu: _Cpu) -> np.ndarray:
    """Logits [n, k] of ONNX Runtime on an emulated CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, str(folder / "model.onnx"))
        np.save(folder / "images.npy", images)
        arguments = [str(folder / file) for file in ("model.onnx", "images.npy", "logits.npy")]
        command = [*cpu.python, "-c", _RUN, *arguments, str(batch)]
        subprocess.run(command, check=True, env=os.environ | cpu.variables, stderr=subprocess.DEVNULL)
        return np.load(folder / "logits.npy")


def rows(name: str, model: onnx.ModelProto, images: np.ndarray, batch: int, cpus: list[_Cpu]) -> None:
    """Print a row for each CPU."""
    on_x86, on_arm = IntegerRun(model, signed=False), IntegerRun(model, signed=True)

    def computed(run: IntegerRun, saturates: bool) -> np.ndarray:
        sums = saturated_sums if saturates else exact
        return np.concatenate([run.run(images[i : i + batch], sums) for i in range(0, len(images), batch)])

    reference = computed(on_arm, saturates=False)

    def difference(logits: np.ndarray) -> str:
        apart = np.abs(logits - reference).max(axis=1)
        return f"{(apart > 0).sum():4} of {len(images)} {apart.max() / np.abs(reference).max():9.2g}"

    for cpu in cpus:
        seen = answers(model, images, batch, cpu)
        expected = computed(on_x86 if cpu.saturates else on_arm, cpu.saturates)
        equal = f"{(seen == expected).all(axis=1).sum()} of {len(images)}"
        print(f"{name:34} {cpu.name:20} {difference(seen)} {difference(expected)}   {equal}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--board", type=Path, help="folder of a virtual board")
    arguments = parser.parse_args()
    cpus = emulated(arguments.board and arguments.board.resolve())
    print(f"emulated on {describe()['cpu']}")
    print(f"{'network':34} {'CPU':20} {'ONNX Runtime differs':21} {'EdgeKit computes':21} equal")
    for folder in arguments.bundles:
        bundle = Bundle.open(folder)
        batch = bundle.manifest.input.batch or 1
        images = bundle.golden().tensors[: arguments.images]
        images = images[: len(images) // batch * batch]
        rows(bundle.manifest.name, onnx.load(str(bundle.model_path)), images, batch, cpus)
    for path, (channels, _, _) in _PATHS.items() if not arguments.bundles else ():
        shape = (arguments.images, channels, _SIZE, _SIZE)
        images = np.random.default_rng(1).uniform(0, 1, size=shape).astype(np.float32)
        for bits in (8, 7):
            rows(f"{path}, {bits} bits", planted(path, bits == 7, images), images, 1, cpus)


if __name__ == "__main__":
    main()
