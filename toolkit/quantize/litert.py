"""int8 for LiteRT: the ranges are EdgeKit's, and ai-edge-quantizer writes the file in a child process.

Operators that XNNPACK runs in float but not in int8, such as HARD_SWISH, stay float. In int8 they would leave XNNPACK,
which makes MobileNetV3-Small 2.8 times as slow as in float32.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.errors import EdgeKitError
from ...deploy.files import scratch_folder
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress
from ...deploy.runtimes.litert import Interpreter, built_in_operators, read_placement
from ...deploy.runtimes.runtime import runtime_named
from ...export.litert_packages import converter_packages, run_child
from . import litert_child
from .advice import Watch as AdviceWatch
from .advice import advise
from .calibrate import calibrate, calibration_images, calibration_to_json
from .histogram import Histogram, count, empty_histograms
from .lowered import Lowered, Request
from .observe import Batch, Watch, batches, require_finite, shuffled
from .operators import Ranges
from .targets import TARGETS

TARGET = "litert"
# Operators with weights, whose second input they are.
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_MIN_SHARE = 0.9
# Number of golden samples whose ranges are enough to see where int8 operators run.
_SAMPLES = 4


def lower_litert(request: Request) -> Lowered:
    """The int8 model of a float32 LiteRT bundle.

    Raises:
        DataError: there are no calibration images, or too few.
        EdgeKitError: an activation is not finite; or the file cannot be written, or most of its weights are not int8.
        MissingPackageError: ai-edge-litert is not installed.
    """
    bundle, options, progress = request.bundle, request.options, request.progress
    runtime_named(TARGET).opener(bundle.manifest.format)
    writer, target = _Writer(bundle), TARGETS[TARGET]
    images, remarks = calibration_images(request)
    model = _LiteRtFloat(bundle)
    samples = [Batch(sample[None], ["the golden samples"]) for sample in bundle.golden().tensors[:_SAMPLES]]
    float_operators = _float_operators(writer, model.ranges_of(samples), bundle)

    def run_int8(ranges: Ranges, tensors: np.ndarray) -> np.ndarray:
        return writer.open(writer.write(ranges, float_operators)).run(tensors)

    watch = AdviceWatch(bundle.manifest.preprocess, len(images))
    calibrated = calibrate(model, bundle.manifest, images, options, target.activations, run_int8, progress, watch)
    advice = advise(watch, calibrated.halves, calibrated.ranges, images, bundle, request.source)
    content = writer.write(calibrated.ranges, float_operators)
    left = [f"XNNPACK does not run {', '.join(float_operators)} in int8: left float"] if float_operators else []
    return Lowered(
        content,
        writer.open(content, xnnpack=False).run,
        details={
            "target": TARGET, "float_operators": float_operators, "verified": verify(writer.open(content)),
            "calibration": calibration_to_json(request, images, calibrated, advice),
        },
        requires={},
        runtime=TARGET,
        timed=True,
        remarks=(*remarks, *advice.warnings, f"target {TARGET}: {target.why}", *left),
    )  # fmt: skip


def verify(interpreter: Interpreter) -> dict[str, Any]:
    """The share of int8 weights, and the operators by the kernels that run them.

    Raises:
        EdgeKitError: less than 90 % of the weights are int8.
    """
    tensors = {int(tensor["index"]): tensor for tensor in interpreter.tensors}
    weights = [
        tensors[int(operator["inputs"][1])] for operator in interpreter.operators if operator["op_name"] in _WEIGHTED
    ]
    sizes = [math.prod(int(size) for size in tensor["shape"]) for tensor in weights]
    int8 = sum(size for size, tensor in zip(sizes, weights, strict=True) if tensor["dtype"] is np.int8)
    share = int8 / max(1, sum(sizes))
    if share < _MIN_SHARE:
        raise EdgeKitError(
            f"only {share:.0%} of the weights became int8", fix="quantize the ONNX bundle: edgekit export --format onnx"
        )
    return {"int8_share": share, "placement": dict(read_placement(interpreter.operators))}


def _float_operators(writer: "_Writer", ranges: Ranges, bundle: Bundle) -> list[str]:
    """The names of operators that XNNPACK runs in float, but not in int8."""
    known, found = set(built_in_operators(Interpreter(bundle).operators)), list[str]()
    while True:
        operators = built_in_operators(writer.open(writer.write(ranges, found)).operators)
        new = sorted(set(operators) - known - set(found))
        if not new:
            return found
        found += new


class _LiteRtFloat:
    """A float32 LiteRT model on the built-in kernels, with all activations in memory."""

    def __init__(self, bundle: Bundle) -> None:
        self._path = bundle.path
        self._interpreter = Interpreter(bundle, xnnpack=False, keep_tensors=True)
        written = {int(index) for operator in self._interpreter.operators for index in operator["outputs"]}
        written.add(self._interpreter.input)
        found = [
            (str(tensor["name"]), int(tensor["index"]))
            for tensor in self._interpreter.tensors
            if tensor["dtype"] is np.float32 and int(tensor["index"]) in written
        ]
        self._activations = dict(found)
        if len(self._activations) < len(found):  # the quantizer takes ranges by name
            (name, _), *_ = Counter(name for name, _ in found).most_common(1)
            raise EdgeKitError(f"{bundle.path} has two tensors with the name {name!r}", fix="export the model again")

    def groups(self, compared: int, limit: int | None) -> list[list[str]]:
        """See FloatModel: one group, because LiteRT keeps all activations of an image or none.

        Raises:
            EdgeKitError: there is a limit of memory.
        """
        del compared
        if limit is not None:
            raise EdgeKitError(
                f"--memory-limit is for ONNX bundles, and {self._path} is litert", fix="leave out --memory-limit"
            )
        return [list(self._activations)]

    def ranges(self, manifest: Manifest, images: ImageSet, progress: Progress, watch: Watch | None) -> Ranges:
        """See FloatModel."""
        return self.ranges_of(batches(manifest, shuffled(images), "calibration", progress), watch)

    def ranges_of(self, batches: Iterable[Batch], watch: Watch | None = None) -> Ranges:
        """See observe.ranges_of."""
        names = list(self._activations)
        limits = np.tile([np.inf, -np.inf], (len(names), 1))
        for batch in batches:
            self._interpreter.run(batch.tensor)
            activations = [self._interpreter.value(index) for index in self._activations.values()]
            values = np.array([(each.min(), each.max()) for each in activations], np.float64)
            require_finite(values, names, batch.ids)
            limits = np.stack([np.minimum(limits[:, 0], values[:, 0]), np.maximum(limits[:, 1], values[:, 1])], axis=1)
            if watch is not None:
                watch(batch, values)
        return {name: (float(low), float(high)) for name, (low, high) in zip(names, limits, strict=True)}

    def histograms(self, ranges: Ranges, batches: Iterable[Batch]) -> dict[str, Histogram]:
        """See FloatModel."""
        found = empty_histograms(ranges)
        for batch in batches:
            self._interpreter.run(batch.tensor)
            for name, histogram in found.items():
                count(histogram, self._interpreter.value(self._activations[name]))
        return found

    def answers(self, tensors: np.ndarray) -> np.ndarray:
        """See FloatModel."""
        return self._interpreter.run(tensors)


class _Writer:
    """Writes int8 files of a float32 LiteRT bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._packages = bundle, converter_packages()
        interpreter = Interpreter(bundle)
        names = {int(tensor["index"]): str(tensor["name"]) for tensor in interpreter.tensors}
        self._logits = names[interpreter.output]

    def write(self, ranges: Ranges, float_operators: Sequence[str]) -> bytes:
        """The int8 file with these ranges.

        Raises:
            EdgeKitError: the quantizer fails.
        """
        with scratch_folder() as folder:
            request, out = folder / "request.json", folder / "model.tflite"
            wanted = {"ranges": ranges, "float_operators": list(float_operators), "logits": self._logits}
            request.write_text(json.dumps(wanted))
            reason = run_child(litert_child.__file__, self._packages, self._bundle.model_path, request, out)
            if reason or not out.is_file():
                raise EdgeKitError(
                    f"ai-edge-quantizer cannot quantize this network: {reason or 'it wrote no file'}",
                    fix="quantize the ONNX bundle: edgekit export --format onnx",
                )
            return out.read_bytes()

    def open(self, content: bytes, *, xnnpack: bool = True) -> Interpreter:
        """An int8 file in LiteRT."""
        with scratch_folder() as folder:
            (folder / self._bundle.manifest.model).write_bytes(content)
            return Interpreter(Bundle(folder, self._bundle.manifest, id=""), xnnpack=xnnpack)
