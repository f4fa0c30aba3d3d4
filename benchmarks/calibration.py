"""Seconds and peak memory of EdgeKit's calibration, and of ONNX Runtime's min-max calibration.

    python benchmarks/calibration.py BUNDLE... [--calibration-images 128] [--repeats 3]

Each BUNDLE is an fp32 ONNX bundle with its own images. Both read the same images, decode and preprocess them, and write
an int8 file from the same prepared float file. Each row is a process of its own, with one thread; it has the processor
time of its part without imports, the median of the repeats, and the peak of the whole process's memory:

- EdgeKit, ranges: one pass over the images, and the int8 file.
- EdgeKit, auto: the ranges, histograms, and the comparison of the three methods; and the int8 file.
- ONNX Runtime, min-max: quantize_static, which also runs the float file on each image.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.toolkit.quantize.prepare import prepare

# Each reads sys.argv[1:5]: the bundle, the prepared file, the number of images, and the file to write.
_COMMON = """
import sys, time
from pathlib import Path
import onnx, onnxruntime
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.quantize.observe import batches, observe
bundle = Bundle.open(Path(sys.argv[1]))
images = part_of(bundle, "train").stratified(int(sys.argv[3]), 0)
def silent(stage, share):
    pass
"""
_EDGEKIT = """
from edgekit.export.onnx_file import to_bytes
from edgekit.toolkit.quantize.advice import Watch
from edgekit.toolkit.quantize.calibrate import calibrate
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.float_model import OnnxFloat
from edgekit.toolkit.quantize.gate import run_optimised
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.targets import TARGETS
target = TARGETS["x86"]
begun = time.process_time()
model = onnx.load(sys.argv[2])
emit = lambda ranges: emit_int8(model, ranges, target)
watch = Watch(bundle.manifest.preprocess, len(images))
made = calibrate(OnnxFloat(model), bundle.manifest, images, QuantizeOptions(calibration=METHOD), target.activations,
                 lambda ranges, tensors: run_optimised(emit(ranges), tensors), silent, watch)
Path(sys.argv[4]).write_bytes(to_bytes(emit(made.ranges)))
"""
TOOLS = {
    "EdgeKit, ranges": _EDGEKIT.replace("METHOD", '"minmax"'),
    "EdgeKit, auto": _EDGEKIT.replace("METHOD", '"auto"'),
    "ONNX Runtime, min-max": """
from onnxruntime.quantization import QuantType, quantize_static
begun = time.process_time()
name = onnx.load(sys.argv[2]).graph.input[0].name
class Reader:
    left = (batch.tensor for batch in batches(bundle.manifest, images, "", silent))
    def get_next(self):
        tensor = next(self.left, None)
        return None if tensor is None else {name: tensor}
quantize_static(sys.argv[2], sys.argv[4], Reader(), per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8)
""",
}
# getrusage would also count the memory of the process that started it
_REPORT = """
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - begun, peak.split()[1])
"""


def _measured(tool: str, bundle: Path, prepared: Path, images: int) -> tuple[float, float]:
    """(seconds, megabytes) of one process."""
    program = _COMMON + TOOLS[tool] + _REPORT
    arguments = [str(bundle), str(prepared), str(images), str(prepared.with_name("int8.onnx"))]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), float(kilobytes) * 1024 / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    print("| network | tool | seconds | memory |\n|---|---|---|---|")
    for path in arguments.bundles:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            onnx.save(prepare(onnx.load(str(Bundle.open(path).model_path))), str(prepared))
            runs = {tool: list[tuple[float, float]]() for tool in TOOLS}
            for _ in range(arguments.repeats):  # in turns, because a shared machine drifts
                for tool, found in runs.items():
                    found.append(_measured(tool, path, prepared, arguments.calibration_images))
        for tool, found in runs.items():
            seconds, memory = statistics.median(each[0] for each in found), max(each[1] for each in found)
            print(f"| {path.name} | {tool} | {seconds:.1f} | {memory:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
