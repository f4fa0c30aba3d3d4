"""Choose the rewrites and the form of an int8 graph that run fastest here, before it is calibrated.

Its time does not depend on the ranges of its activations, so those of golden samples are enough.
"""

from typing import NamedTuple

import numpy as np
import onnx

from ...deploy.bundle import Bundle
from ...deploy.progress import Progress, silent
from ...deploy.runtimes.runtime import runtime_named
from ...export.onnx_file import to_bytes
from .emit import emit_int8, float_start
from .observe import Batch, ranges_of
from .operators import Ranges
from .rewrite import Rewritten, rewrite
from .rewrites.graph import arrays
from .targets import TARGETS, Form, Target, this_machine
from .trial import open_model, speedup

# Forms whose speeds differ by less than this factor in a trial are taken for equally fast.
_NOISE = 1.02
# The largest share of the weights that may stay float, so that the file becomes a quarter of its size.
_FLOAT_SHARE = 0.05
# Number of golden samples: for the ranges, and to compare the answers of a rewrite.
_SAMPLES = 4


class Tuned(NamedTuple):
    """A float graph that is ready to be quantized.

    Attributes:
        model: after its rewrites.
        form: where to quantize it.
        rewrites: descriptions of those that were kept.
        refused: description of a rewrite -> why it was not kept.
        gain: speed-up of the form over the target's default; None if that is taken.
        runtime: the target's, or ONNX Runtime if that is not installed.
        timed: whether it is the target's CPU that this was tried on.
    """

    model: onnx.ModelProto
    form: Form
    rewrites: list[str]
    refused: dict[str, str]
    gain: float | None
    runtime: str
    timed: bool

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        return {
            "fused": self.form.fused, "float_convolutions": self.form.float_convolutions, "rewrites": self.rewrites,
            "rewrites_refused": self.refused, "gain": self.gain,
        }  # fmt: skip

    @property
    def remarks(self) -> list[str]:
        """Lines for the user."""
        lines = [f"rewritten: {', '.join(self.rewrites)}"] if self.rewrites else []
        count = self.form.float_convolutions
        if count:
            first = "the first convolution stays" if count == 1 else f"the first {count} convolutions stay"
            lines.append(f"{first} float: more accurate, and {self.gain:.2f}x as fast in a trial")
        return lines


def tune(model: onnx.ModelProto, bundle: Bundle, name: str, progress: Progress = silent) -> Tuned:
    """Rewrite a prepared float model, and choose its form.

    If this machine is the target, each rewrite and form is kept only if it is faster in a trial.

    Args:
        bundle: which it was made from.
        name: a key of TARGETS.
    """
    target, runtime, timed = TARGETS[name], judging_runtime(name), is_timed(name)
    trial = _Trial(bundle, target, runtime)
    rewritten = Rewritten(model, [], {})
    if target.rewrites:
        rewritten = rewrite(model, trial.tensors, trial.faster if timed else None, progress)
    form, gain = trial.fastest(rewritten.model, progress) if timed else (target.forms[0], None)
    return Tuned(rewritten.model, form, rewritten.applied, rewritten.refused, gain, runtime, timed)


def judging_runtime(name: str) -> str:
    """The runtime on which a target's files are judged: its own, or ONNX Runtime if that is not installed."""
    own = runtime_named(TARGETS[name].runtime)
    return own.name if own.installed else "onnxruntime"


def is_timed(name: str) -> bool:
    """Whether the speed of a target's files can be tried on this machine."""
    return name in (this_machine(), "any") or judging_runtime(name) != "onnxruntime"


def golden_ranges(model: onnx.ModelProto, bundle: Bundle) -> Ranges:
    """The ranges of a model's activations on a few golden samples of its bundle."""
    tensors, batch = _golden_tensors(bundle), bundle.manifest.input.batch or 1
    return ranges_of(model, [Batch(part, ["the golden samples"]) for part in np.split(tensors, len(tensors) // batch)])


def _golden_tensors(bundle: Bundle) -> np.ndarray:
    """A few golden samples in Preprocess.dtype [n, c, h, w]: full batches, repeated if a batch is larger."""
    tensors, batch = bundle.golden().tensors, bundle.manifest.input.batch or 1
    return np.resize(tensors, (max(batch, _SAMPLES // batch * batch), *tensors.shape[1:]))


class _Trial:
    """Times int8 graphs on this machine.

    Attributes:
        tensors: see _golden_tensors.
    """

    def __init__(self, bundle: Bundle, target: Target, runtime: str) -> None:
        self._bundle, self._target, self._runtime = bundle, target, runtime
        self.tensors = _golden_tensors(bundle)

    def faster(self, before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
        """Whether the default form of the second graph is faster."""
        first, second = (
            emit_int8(model, golden_ranges(model, self._bundle), self._target) for model in (before, after)
        )
        return self._speedup(first, second) > 1

    def fastest(self, model: onnx.ModelProto, progress: Progress) -> tuple[Form, float | None]:
        """The fastest form, and its speed-up over the default; None if it is the default.

        Of forms that are about as fast, it is the one with the most convolutions in float.
        """
        default, *others = self._target.forms
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        forms = [
            form for form in others
            if form.float_convolutions <= convolutions and _float_share(model.graph, form) <= _FLOAT_SHARE
        ]  # fmt: skip
        if not forms:
            return default, None
        ranges = golden_ranges(model, self._bundle)
        first, speeds = emit_int8(model, ranges, self._target, default), {default: 1.0}
        for index, form in enumerate(forms):
            progress("trials", index / len(forms))
            speeds[form] = self._speedup(first, emit_int8(model, ranges, self._target, form))
        limit = max(speeds.values()) / _NOISE
        # rounding the first activations costs the most accuracy, so the largest float start that is as fast is taken
        best = max((form for form in speeds if speeds[form] >= limit), key=lambda form: form.float_convolutions)
        return best, None if best == default else speeds[best]

    def _speedup(self, first: onnx.ModelProto, second: onnx.ModelProto) -> float:
        before, after = (open_model(self._bundle, to_bytes(each), self._runtime, threads=1) for each in (first, second))
        return speedup(before, after, self.tensors[: self._bundle.manifest.input.batch or 1])


def _float_share(graph: onnx.GraphProto, form: Form) -> float:
    """The share of the constants that a form leaves float."""
    values = {name: value.nbytes for name, value in arrays(graph).items()}
    names = {name for node in float_start(graph, form.float_convolutions) for name in node.input}
    return sum(size for name, size in values.items() if name in names) / sum(values.values())
