"""The int8 models of a network for a target: calibrated once, written for any choice of float layers."""

import copy
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ...deploy.errors import EdgeKitError
from ...deploy.registry import choose
from ...deploy.runtimes.runtime import runtime_named
from ...export.onnx_file import to_bytes
from .advice import Watch, advise
from .calibrate import calibrate, calibration_images, calibration_to_json
from .emit import emit_int8, int8_layers
from .float_model import OnnxFloat
from .gate import run_optimised, unoptimised
from .lowered import Lowered, Request
from .methods import AUTO, METHODS
from .observe import batches
from .operators import Ranges
from .options import SEED
from .rewrites.graph import with_constants
from .saturation import Overflowing, overflowing_layers
from .targets import TARGETS, this_machine
from .tune import tune
from .verify import verify_int8

# Number of calibration images whose sums are computed for 7-bit weights: without ONNX Runtime's kernels, up to a second
# for each.
_SUMMED_IMAGES = 32


class Int8:
    """A network that is ready to be written in int8 for a target.

    Attributes:
        source: the float graph after its rewrites.
        form: where it is quantized, without float layers of a contract.
        target: a key of TARGETS.
        timed: whether this machine is the target.
        runtime: the target's, or ONNX Runtime if that is not installed.
    """

    def __init__(self, model: onnx.ModelProto, request: Request) -> None:
        """Rewrite, calibrate and choose the form.

        Raises:
            DataError: there are no calibration images, or too few.
            EdgeKitError: the target or the method is unknown; or an activation is not finite.
        """
        options, bundle, progress = request.options, request.bundle, request.progress
        self.target = options.target or this_machine()
        target = choose(TARGETS, self.target, "target", EdgeKitError)
        methods = {name: name for name in (AUTO, *METHODS)}
        choose(methods, options.calibration, "calibration method", EdgeKitError)
        images, warnings = calibration_images(request)
        tuned = tune(model, bundle, self.target, progress)
        self.source, self.form, self.timed, self.runtime = tuned.model, tuned.form, tuned.timed, tuned.runtime
        if self.runtime != target.runtime:
            own = runtime_named(target.runtime)
            warnings.append(
                f"warning: judged on ONNX Runtime, because {own.name} is not installed: {own.packages[0].install}"
            )
        watch = Watch(bundle.manifest.preprocess, len(images))

        def run_int8(ranges: Ranges, tensors: np.ndarray) -> np.ndarray:
            return run_optimised(emit_int8(self.source, ranges, target, self.form), tensors)

        calibrated = calibrate(
            OnnxFloat(self.source), bundle.manifest, images, options, target.activations, run_int8, progress, watch
        )
        self._ranges, self._batch = calibrated.ranges, bundle.manifest.input.batch
        advice = advise(watch, calibrated.halves, self._ranges, images, bundle, request.source)
        self._images, self._overflowing = images, Overflowing({}, 0)
        self._limit_sums(request)
        self._remarks = (*warnings, *advice.warnings, f"target {self.target}: {target.why}", *tuned.remarks)
        self._details: dict[str, Any] = {
            "target": self.target, **tuned.to_json(),
            "calibration": calibration_to_json(request, images, calibrated, advice),
        }  # fmt: skip

    def _limit_sums(self, request: Request) -> None:
        """Give 7-bit weights to the layers whose sums overflow, if the target has 16-bit sums."""
        if not TARGETS[self.target].reduce_range:
            return
        some = self._images.stratified(_SUMMED_IMAGES, SEED)
        parts = batches(request.bundle.manifest, some, "sums of products", request.progress)
        found = overflowing_layers(self.graph(), (part.tensor for part in parts))
        self._overflowing = Overflowing({**self._overflowing.counts, **found.counts}, found.layers)
        self.form = replace(self.form, seven_bits=frozenset(self._overflowing.counts))

    def retrained(
        self, weights: Mapping[str, np.ndarray], request: Request, record: dict[str, Any], remark: str
    ) -> "Int8":
        """The same network with other weights and biases; ranges and form stay.

        Layers whose sums overflow only now get 7-bit weights, too.

        Args:
            weights: name of a constant of the float graph -> its new value.
            record: of the training, for the details of the manifest.
            remark: about it, a line for the user.
        """
        other = copy.copy(self)
        other.source = with_constants(self.source, weights)
        other._details, other._remarks = {**self._details, "training": record}, (*self._remarks, remark)
        other._limit_sums(request)
        return other

    def graph(self, float_layers: Set[str] = frozenset()) -> onnx.ModelProto:
        """The int8 graph in which these layers stay float."""
        form = replace(self.form, float_layers=frozenset(float_layers))
        return emit_int8(self.source, self._ranges, TARGETS[self.target], form)

    def lowered(self, float_layers: Set[str] = frozenset()) -> Lowered:
        """The int8 model in which these layers stay float.

        Raises:
            EdgeKitError: most of the other layers are not int8.
        """
        target, model = TARGETS[self.target], self.graph(float_layers)
        content = to_bytes(model)
        return Lowered(
            content,
            unoptimised(content, self._batch),
            details={
                **self._details, "seven_bits": self._overflowing.counts, "verified": verify_int8(model, float_layers),
                "float_layers": sorted(float_layers),
            },
            requires={"isa": "vnni"} if self.target == "x86" else {},
            layers=int8_layers(self.source, self.form),
            alone=lambda layer: emit_int8(self.source, self._ranges, target, self.form, [layer]),
            runtime=self.runtime,
            timed=self.timed,
            portable=model if target.rewrites else None,  # written for ONNX Runtime, whose kernels are known
            remarks=(*self._remarks, *self._overflowing.remarks),
        )  # fmt: skip
