"""The gate on logits: how noisy a lowered model's logits are, and which layers cause it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from ...deploy.parity import decibels, powers
from ...deploy.progress import Progress
from ...deploy.session import in_batches_of
from ..analysis.contract import Judgement

# At 10 dB the noise is a third of what distinguishes the classes, and many answers change; networks that quantize
# well have 25 to 40 (ten of timm's with attention, random weights: 20 to 39).
REFUSED_DB, WARNED_DB = 10.0, 20.0
_NAMED_LAYERS = 3
_SENSITIVITY_IMAGES = 4

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SignalToNoise:
    """Signal-to-noise ratio of the logits, in dB (see deploy.parity.powers).

    Attributes:
        golden, selection: as ONNX Runtime runs the file, against the float source; selection is None without images.
        unoptimised: as ONNX Runtime runs the file, against the same file without its graph optimisations.
    """

    golden: float
    selection: float | None
    unoptimised: float

    @property
    def worst(self) -> tuple[float, str]:
        """The lowest ratio, and the comparison it comes from."""
        places = {
            "on the golden images": self.golden,
            "on the selection images": self.selection,
            "as run, against the same file unoptimised": self.unoptimised,
        }
        return min((value, place) for place, value in places.items() if value is not None)


def unoptimised(content: bytes, batch: int | None) -> Run:
    """A function that runs an ONNX file without ONNX Runtime's graph optimisations.

    Args:
        batch: its fixed batch size; None for any.
    """
    run = _runner(content, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return lambda tensors: in_batches_of(batch, tensors, run)


def refusal(
    noise: SignalToNoise, precision: str, layers: Callable[[], Sequence[tuple[str, float]]]
) -> Judgement | None:
    """The judgement of a model with too noisy logits; None if they are good enough.

    Args:
        layers: finds the costliest layers (see `costliest`), which is slow.
    """
    value, place = noise.worst
    if value >= REFUSED_DB:
        return None
    named = ", ".join(f"{name} ({db:.0f} dB alone)" for name, db in layers()[:_NAMED_LAYERS])
    remedy = {
        "int8": "try more --calibration-images, another --target, or --precision fp16",
        "fp16": "try --precision int8, or stay with fp32",
    }[precision]
    if noise.unoptimised < REFUSED_DB:
        remedy = f"ONNX Runtime's graph optimisations change its answers: upgrade onnxruntime; or {remedy}"
    costs = f"; the layers that cost most: {named}" if named else ""
    return Judgement(
        "signal_to_noise",
        "fail",
        f"the {precision} model is rejected: its logits have {value:.1f} dB {place}, under {REFUSED_DB:g}{costs}; "
        f"{remedy}",
    )


def warning(noise: SignalToNoise, precision: str) -> str | None:
    """The warning for a model that is kept with a lower ratio than usual."""
    value, place = noise.worst
    if value >= WARNED_DB:
        return None
    return f"warning: the {precision} logits have only {value:.1f} dB {place}; {WARNED_DB:g} and more is usual"


def costliest(
    layers: Sequence[str],
    lower: Callable[[str], onnx.ModelProto],
    tensors: np.ndarray,
    logits: np.ndarray,
    batch: int | None,
    progress: Progress,
) -> list[tuple[str, float]]:
    """(layer, dB of the logits with only that layer lowered) of the costly layers, the worst first.

    Args:
        lower: the model with one layer lowered, by its name.
        tensors, logits: float32 [n, c, h, w] and [n, k] of the float model; only a few are used.
        batch: the model's fixed batch size; None for any.
    """
    few = slice(_SENSITIVITY_IMAGES)
    costs = []
    for index, name in enumerate(layers):
        run = _runner(lower(name).SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        costs.append((name, decibels(powers(logits[few], in_batches_of(batch, tensors[few], run)))))
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
