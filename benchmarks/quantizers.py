"""Quantize bundles with EdgeKit and with other tools, on the same calibration images, and compare the int8 files.

    python benchmarks/quantizers.py BUNDLE... --images FOLDER [--peer NAME=PYTHON ...] [--calibration-images 512]
                                    [--test-images 2000] [--seconds 10]

Each BUNDLE is an fp32 ONNX bundle; FOLDER has labelled images in `train` and `test`. Tools that are not installed here
run in their own environments: --peer nncf=/path/to/python --peer aimet=/path/to/python. Each tool is a process of its
own, whose time and peak memory are those of the whole process.

All files answer the same test images on ONNX Runtime with one thread. A row has the drop of top-1 in percentage points
with its paired 95 % interval, the answers that differ from fp32's, the speed-up over fp32 on ONNX Runtime and on
OpenVINO (median of interleaved blocks, and the quartiles), and the time and peak memory of the tool.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.environment import describe
from edgekit.toolkit.analysis.contract import compare_accuracy
from edgekit.toolkit.datasets import BundleImages
from edgekit.toolkit.quantize.trial import interleaved

# Each reads sys.argv[1:4]: the fp32 file, the calibration images [n, c, h, w] as .npy, and the file to write.
TOOLS = {
    "EdgeKit": """
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.quantize import quantize
from pathlib import Path
import shutil
options = QuantizeOptions(calibration_images=int(sys.argv[6]), selection_images=16)
made = quantize(Bundle.open(Path(sys.argv[4])), options, images=sys.argv[5], out=Path(sys.argv[3]).parent / "edgekit")
shutil.copy(made.bundle.model_path, sys.argv[3])
""",
    "ONNX Runtime, defaults": """
from onnxruntime.quantization import quantize_static
quantize_static(sys.argv[1], sys.argv[3], Reader())
""",
    "ONNX Runtime, u8s8 per channel": """
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
quant_pre_process(sys.argv[1], sys.argv[3] + ".pre")
quantize_static(sys.argv[3] + ".pre", sys.argv[3], Reader(), per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8)
""",
    "ONNX Runtime, u8s8 per channel, percentile": """
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
quant_pre_process(sys.argv[1], sys.argv[3] + ".pre")
quantize_static(sys.argv[3] + ".pre", sys.argv[3], Reader(), per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.Percentile)
""",
    "nncf": """
import nncf, onnx
model = onnx.load(sys.argv[1])
made = nncf.quantize(model, nncf.Dataset(list(batches()), lambda batch: {name: batch}), subset_size=len(images))
onnx.save(made, sys.argv[3])
""",
    "nncf, exact bias correction": """
import nncf, onnx
model = onnx.load(sys.argv[1])
made = nncf.quantize(model, nncf.Dataset(list(batches()), lambda batch: {name: batch}), subset_size=len(images),
                     fast_bias_correction=False)
onnx.save(made, sys.argv[3])
""",
    "nncf, accuracy-aware": """
import nncf, onnx
model = onnx.load(sys.argv[1])
def answer(session, index):
    return int(session.run(None, {name: images[index : index + 1]})[0].argmax())
reference = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
expected = [answer(reference, index) for index in range(len(images))]
def agreement(candidate, indices):
    session = onnxruntime.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(np.mean([answer(session, index) == expected[index] for index in indices])), None
data = nncf.Dataset(list(range(len(images))), lambda index: {name: images[index : index + 1]})
made = nncf.quantize_with_accuracy_control(model, data, data, agreement, max_drop=0.01, subset_size=len(images))
onnx.save(made, sys.argv[3])
""",
    "aimet": """
import onnx
from aimet_onnx.quantsim import QuantizationSimModel
sim = QuantizationSimModel(onnx.load(sys.argv[1]), param_type="int8", activation_type="int8",
                           providers=["CPUExecutionProvider"])
sim.compute_encodings([{name: batch} for batch in batches()])
onnx.save(sim.to_onnx_qdq(), sys.argv[3])
""",
    "neural-compressor": """
from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import config, quantize
class Calibration(Reader, CalibrationDataReader):
    def rewind(self):
        self.left = batches()
quantize(sys.argv[1], sys.argv[3], config.StaticQuantConfig(calibration_data_reader=Calibration()))
""",
    "quark": """
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config
quantizer = ModelQuantizer(Config(global_quant_config=get_default_config("A8W8")))
quantizer.quantize_model(sys.argv[1], sys.argv[3], Reader())
""",
}  # fmt: skip
# Tools that are not installed beside EdgeKit.
_PEERS = ("nncf", "aimet", "neural-compressor", "quark")
_COMMON = """
import sys
import numpy as np, onnxruntime
images = np.load(sys.argv[2])
name = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"]).get_inputs()[0].name
def batches():
    for index in range(len(images)):
        yield images[index : index + 1]
class Reader:
    def __init__(self):
        self.left = batches()
    def get_next(self):
        batch = next(self.left, None)
        return None if batch is None else {name: batch}
"""


class Made(NamedTuple):
    """A quantized file, with the seconds and the peak memory in bytes of the process that made it."""

    file: Path
    seconds: float
    memory: int


def _made(tool: str, python: str, bundle: Bundle, calibration: Path, images: str, count: int) -> Made | str:
    """The file of a tool, or the last line of its error."""
    file = calibration.parent / f"{tool.replace(' ', '_').replace(',', '')}.onnx"
    # getrusage would also count the memory of the process that started it
    report = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    arguments = [str(bundle.model_path), str(calibration), str(file), str(bundle.path), images, str(count)]
    begun = time.monotonic()
    done = subprocess.run(
        [python, "-c", _COMMON + TOOLS[tool] + report, *arguments], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begun
    if done.returncode or not file.exists():
        return (done.stderr.strip().splitlines() or ["no file"])[-1]
    peak = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return Made(file, seconds, int(peak.split()[1]) * 1024)


class _OnnxRuntime:
    """A session with one thread."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name

    def run(self, tensor: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._name: tensor})[0])


class _OpenVino:
    """A compiled model with one thread, in float32 where it is not int8."""

    def __init__(self, file: Path) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def run(self, tensor: np.ndarray) -> np.ndarray:
        return np.asarray(self._compiled(tensor)[0])


def _ratio(kind: type, before: Path, after: Path, tensor: np.ndarray, seconds: float) -> str:
    """The speed-up of the second file, with its quartiles."""
    try:
        pairs = interleaved(kind(before), kind(after), tensor, seconds, clock=time.process_time)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever a runtime raises about another tool's file
        return f"refused: {str(error).splitlines()[0][:60]}"
    low, middle, high = np.quantile([first / second for first, second in pairs], [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _answers(file: Path, tensors: np.ndarray) -> np.ndarray:
    session = _OnnxRuntime(file)
    return np.array([int(session.run(tensor[None])[0].argmax()) for tensor in tensors])


def _rows(bundle: Bundle, arguments: argparse.Namespace, pythons: dict[str, str]) -> Iterator[tuple[str, ...]]:
    source = BundleImages(bundle, str(arguments.images))
    train, test = source.part("train"), source.part("test")
    if train is None or test is None:
        raise SystemExit(f"{arguments.images} has no folders train and test")
    train, test = (
        part.stratified(count, 0)
        for part, count in ((train, arguments.calibration_images), (test, arguments.test_images))
    )
    preprocess = bundle.manifest.preprocess.batch
    tensors = preprocess([sample.image for sample in test])
    expected = _answers(bundle.model_path, tensors)
    accuracy = float((expected == test.targets).mean())
    yield ("fp32", f"accuracy {accuracy:.4f}", f"0 of {len(expected)}", "1", "", "", "")
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.npy"
        np.save(calibration, preprocess([sample.image for sample in train]))
        for tool in TOOLS:
            package = tool.split(",")[0]
            python = pythons.get(package, "" if package in _PEERS else sys.executable)
            if not python:
                continue
            made = _made(tool, python, bundle, calibration, str(arguments.images), len(train))
            if isinstance(made, str):
                yield (tool, f"failed: {made[:100]}", "", "", "", "", "")
                continue
            answers = _answers(made.file, tensors)
            drop = compare_accuracy(test.targets, expected, answers)
            points = f"{drop.points.value:+.2f} [{drop.points.low:+.2f}, {drop.points.high:+.2f}]" if drop else ""
            first = tensors[:1]
            yield (
                tool, points, f"{int((answers != expected).sum())} of {len(expected)}",
                _ratio(_OnnxRuntime, bundle.model_path, made.file, first, arguments.seconds),
                _ratio(_OpenVino, bundle.model_path, made.file, first, arguments.seconds),
                f"{made.seconds:.0f} s", f"{made.memory / 1e6:.0f} MB",
            )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--peer", nargs="*", action="extend", default=[])
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['isa']}, {machine['versions']}\n")
    pythons = dict(entry.split("=", 1) for entry in arguments.peer)
    for path in arguments.bundles:
        print(
            f"## {path.name}\n\n| tool | drop | answers changed | ONNX Runtime | OpenVINO | time | memory |", flush=True
        )
        print("|---|---|---|---|---|---|---|")
        for row in _rows(Bundle.open(path), arguments, pythons):
            print(f"| {' | '.join(row)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
