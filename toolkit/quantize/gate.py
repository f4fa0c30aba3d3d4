"""The gate on logits: how noisy the logits of a lower-precision model are, and which layers cause the noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from ...deploy.errors import EdgeKitError
from ...deploy.parity import decibels, powers
from ...deploy.progress import Progress
from ...deploy.session import in_batches_of
from ..analysis.contract import Judgement

# At 10 dB the noise is a third of what distinguishes the classes, and many answers change. Networks that quantize
# well have 25 to 40 dB (ten timm networks with attention and random weights: 20 to 39).
REFUSED_DB, WARNED_DB = 10.0, 20.0
_NAMED_LAYERS = 3
_SENSITIVITY_IMAGES = 4

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SignalToNoise:
    """Signal-to-noise ratio of the logits, in dB (see deploy.parity.powers).

    Attributes:
        golden, selection: the file as its runtime runs it, compared with the float source on the golden and the
            selection images; selection is None without images.
        unoptimised: the file as its runtime runs it, compared with the same file on ONNX Runtime without graph
            optimisations.
    """

    golden: float
    selection: float | None
    unoptimised: float

    @property
    def worst(self) -> tuple[float, str]:
        """The lowest ratio, and the comparison that it comes from."""
        ratios = {
            "on the golden images": self.golden,
            "on the selection images": self.selection,
            "compared with the same file unoptimised": self.unoptimised,
        }
        return min((value, comparison) for comparison, value in ratios.items() if value is not None)


def unoptimised(content: bytes, batch: int | None) -> Run:
    """A function that runs an ONNX file without ONNX Runtime's graph optimisations.

    Args:
        batch: the file's fixed batch size; None for any.
    """
    run = _runner(content, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return lambda tensors: in_batches_of(batch, tensors, run)


def run_float(model: onnx.ModelProto, tensors: np.ndarray) -> np.ndarray:
    """Answers [n, k] of a float model for tensors [n, c, h, w], without graph optimisations.

    Raises:
        EdgeKitError: ONNX Runtime cannot run it.
    """
    try:
        return unoptimised(model.SerializeToString(), _batch_of(model))(tensors)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise EdgeKitError(str(error), fix="report the network") from error


def run_optimised(model: onnx.ModelProto, tensors: np.ndarray) -> np.ndarray:
    """Answers [n, k] of a model for tensors [n, c, h, w], as ONNX Runtime runs it."""
    run = _runner(model.SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return in_batches_of(_batch_of(model), tensors, run)


def _batch_of(model: onnx.ModelProto) -> int:
    """The fixed batch size; 1 if the model takes any, so that memory does not grow with the number of images."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1


def refusal(
    noise: SignalToNoise, precision: str, runtime: str, layers: Callable[[], Sequence[tuple[str, float]]]
) -> Judgement | None:
    """The judgement of a model whose logits are too noisy; None if they are good enough.

    Args:
        runtime: the runtime that gave the logits.
        layers: returns the costliest layers (see `costliest`); slow, so called only if the model is rejected.
    """
    value, comparison = noise.worst
    if value >= REFUSED_DB:
        return None
    named = ", ".join(f"{name} ({db:.0f} dB alone)" for name, db in layers()[:_NAMED_LAYERS])
    remedy = {
        "int8": "try more --calibration-images, another --target, or --precision fp16",
        "fp16": "try --precision int8, or stay with fp32",
        "int8-weights": "try --precision fp16, or stay with fp32",
    }[precision]
    if noise.unoptimised < REFUSED_DB:
        name = {"onnxruntime": "ONNX Runtime"}.get(runtime, runtime)
        remedy = f"{name}'s graph optimisations change its answers: upgrade {runtime}; or {remedy}"
    costs = f"; the layers that cost most: {named}" if named else ""
    return Judgement(
        "signal_to_noise",
        "fail",
        f"the {precision} model is rejected: its logits have {value:.1f} dB {comparison}, under {REFUSED_DB:g}{costs}; "
        f"{remedy}",
    )


def warning(noise: SignalToNoise, precision: str) -> str | None:
    """The warning for an accepted model whose ratio is lower than usual; None if it is not."""
    value, comparison = noise.worst
    if value >= WARNED_DB:
        return None
    return f"warning: the {precision} logits have only {value:.1f} dB {comparison}; {WARNED_DB:g} or more is usual"


def costliest(
    layers: Sequence[str],
    lower: Callable[[str], onnx.ModelProto],
    tensors: np.ndarray,
    logits: np.ndarray,
    batch: int | None,
    progress: Progress,
) -> list[tuple[str, float]]:
    """(layer, dB of the logits with only that layer lowered) for the costly layers, worst first.

    Args:
        lower: takes a layer's name, and returns the model with only that layer lowered.
        tensors, logits: float32 [n, c, h, w] and [n, k] of the float model; only the first few images are used.
        batch: the model's fixed batch size; None for any.
    """
    subset = slice(_SENSITIVITY_IMAGES)
    costs = []
    for index, name in enumerate(layers):
        run = _runner(lower(name).SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        costs.append((name, decibels(powers(logits[subset], in_batches_of(batch, tensors[subset], run)))))
        progress("layers", (index + 1) / len(layers))
    costs.sort(key=lambda entry: entry[1])
    return [(name, db) for name, db in costs if db < 2 * WARNED_DB]


def _runner(content: bytes, level: onnxruntime.GraphOptimizationLevel) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda tensors: np.asarray(session.run(None, {name: tensors})[0])
