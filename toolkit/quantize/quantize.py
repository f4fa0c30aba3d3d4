"""Post-training quantization, one stage per file: prepare, tune, observe, emit, verify, judge."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle, create
from ...deploy.errors import BundleError, DataError, EdgeKitError
from ...deploy.files import exists
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress, silent
from ...deploy.registry import choose
from ...deploy.runtimes.runtime import runtime_named
from ..analysis.contract import Drop, Judgement, judge_drop
from ..datasets import BundleImages, place
from ..validation.overlap import used_elsewhere
from ..workspace import REJECTED, RUNS, new_path
from .methods import AUTO, METHODS
from .targets import TARGETS, this_machine

if TYPE_CHECKING:
    import onnx

    from .compare import Changed
    from .gate import SignalToNoise

# The parts of the data for calibration and for judging; the test part is left to validate.
_CALIBRATION, _SELECTION = "train", "validation"
CALIBRATION_SEED = 0

# Fewer calibration images than the first number are refused; fewer than the second cause a warning.
_FEWEST, _FEW = 8, 100
# Numbers of images whose sums are computed without ONNX Runtime's kernels, up to a second for each: calibration images
# for 7-bit weights, and golden samples for the portability.
_SUMMED_IMAGES, _PORTABLE_IMAGES = 32, 8


@dataclass(frozen=True)
class Quantized:
    """The result of quantize.

    Attributes:
        bundle: the new bundle; its folder ends in `.rejected` if its logits are too noisy or it violates the contract.
        drop: the accuracy drop on the selection part; None without labelled images.
        changed: the selection images with another answer than the source's; None without images.
        judgement: the rejection by the gate on the logits, else the contract's judgement.
        remarks: warnings before other remarks, the most important first.
    """

    bundle: Bundle
    drop: Drop | None
    changed: "Changed | None"
    judgement: Judgement
    remarks: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences to show, a rejection or warnings first."""
        verdict = (self.judgement.sentence,)
        return (*verdict, *self.remarks) if self.judgement.outcome == "fail" else (*self.remarks, *verdict)


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        precision: int8 or fp16.
        target: a key of TARGETS; None for this machine.
        calibration: the method that sets the ranges of activations: a key of METHODS, or AUTO.
        calibration_images: number of calibration images, drawn by class from the training part.
        allow_few: allow fewer than 8 calibration images.
        selection_images: judge on at most this many selection images, drawn by class; None for all.
    """

    precision: str = "int8"
    target: str | None = None
    calibration: str = AUTO
    calibration_images: int = 512
    allow_few: bool = False
    selection_images: int | None = None


def quantize(
    bundle: Bundle,
    options: QuantizeOptions | None = None,
    *,
    images: str | None = None,
    max_drop: float | None = None,
    skip_corrupt: bool = False,
    out: Path | None = None,
    runs: Path = RUNS,
    progress: Progress = silent,
) -> Quantized:
    """Lower the precision of an fp32 ONNX bundle, and judge the result on the selection images.

    int8: QDQ, per-channel weights, ranges from the calibration images (drawn by class from the training part).
    fp16: float16 weights and arithmetic; input and output stay float32.

    Args:
        images: source of calibration and selection images, instead of the bundle's own data set.
        max_drop: see contract.judge_drop.

    Raises:
        BundleError: not an fp32 ONNX bundle.
        DataError: no calibration images, or too few.
        EdgeKitError: the result is not as requested: weights stayed float.
    """
    import onnx

    from ...export.onnx_file import to_bytes
    from .compare import compare_models
    from .gate import warning
    from .prepare import prepare

    _check_request(bundle, out)
    options = options or QuantizeOptions()
    precision = options.precision
    lower = choose({"int8": _int8, "fp16": _fp16}, precision, "precision", EdgeKitError)
    path = out or new_path(f"{bundle.manifest.name}-onnx-{precision}", runs)
    source = BundleImages(bundle, images, skip_corrupt=skip_corrupt)
    request = _Request(bundle, options, images, source, progress)
    model = prepare(onnx.load(str(bundle.model_path)))
    lowered = lower(model, request)
    manifest = replace(bundle.manifest, precision=precision, requires=lowered.requires, lineage=bundle.ancestry())
    content = to_bytes(lowered.model)
    selection = _selection(source, options.selection_images)
    compared = compare_models(bundle, manifest, content, selection, lowered.runtime, lowered.timed, progress)
    judgement = _refusal(bundle, compared.noise, precision, lowered, progress) or judge_drop(compared.drop, max_drop)
    details = {**lowered.details, **compared.to_json(), "judgement": asdict(judgement)}
    if judgement.outcome == "fail":
        path = path.with_name(path.name + REJECTED)
    fingerprints = bundle.fingerprints() | used_elsewhere(source, details)
    quantized = _write(bundle, path, replace(manifest, details=details), content, fingerprints)
    warnings = (warning(compared.noise, precision) if judgement.outcome != "fail" else None, compared.slower)
    found = (*warnings, *lowered.remarks, compared.changed and compared.changed.sentence)
    remarks = tuple(text for text in found if text)
    return Quantized(quantized, compared.drop, compared.changed, judgement, remarks)


def _selection(source: BundleImages, most: int | None) -> ImageSet | None:
    """At most so many selection images, drawn by class; None if there are none."""
    images = source.part(_SELECTION)
    return images if images is None or most is None else images.stratified(most, CALIBRATION_SEED)


def _check_request(bundle: Bundle, out: Path | None) -> None:
    """Refuse bad requests before minutes are spent on quantizing."""
    if out is not None and out.exists():
        raise exists(out)
    if bundle.manifest.format != "onnx" or bundle.manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path} is {bundle.manifest.format} {bundle.manifest.precision}; quantize takes fp32 ONNX",
            fix="run: edgekit export --format onnx",
        )


def _write(
    source: Bundle, path: Path, manifest: Manifest, content: bytes, fingerprints: Mapping[str, np.ndarray]
) -> Bundle:  # fmt: skip
    """Write the quantized bundle: its model file, and the parts copied from its source."""
    with create(path) as draft:
        (draft.folder / manifest.model).write_bytes(content)
        draft.add_golden(source.golden())
        draft.add_splits(source.splits())
        draft.add_fingerprints(fingerprints)
        draft.finish(manifest, ("onnx", "onnxruntime"))
    return Bundle.open(path)


class _Request(NamedTuple):
    """A request to lower a bundle's precision."""

    bundle: Bundle
    options: QuantizeOptions
    images: str | None
    source: BundleImages
    progress: Progress


class _Lowered(NamedTuple):
    """A model of lower precision.

    Attributes:
        details: entries for the details of its manifest.
        requires: requirements on the machine.
        layers: names of the lowered nodes.
        alone: takes one of these names, and returns the model with only that node lowered.
        runtime: the runtime that it is judged on.
        timed: whether this machine is its target, so that a speed trial means something.
    """

    model: "onnx.ModelProto"
    details: dict[str, Any]
    requires: dict[str, Any]
    layers: list[str]
    alone: "Callable[[str], onnx.ModelProto]"
    runtime: str = "onnxruntime"
    timed: bool = False
    remarks: tuple[str, ...] = ()


def _int8(model: "onnx.ModelProto", request: _Request) -> _Lowered:
    from .advice import Watch, advise
    from .calibrate import calibrate
    from .emit import emit_int8, int8_layers
    from .observe import batches
    from .portability import certify, remarks
    from .saturation import Overflowing, overflowing_layers
    from .tune import tune
    from .verify import verify_int8

    name = request.options.target or this_machine()
    target = choose(TARGETS, name, "target", EdgeKitError)
    method = choose(
        {name: name for name in (AUTO, *METHODS)}, request.options.calibration, "calibration method", EdgeKitError
    )
    images, warnings = _calibration(request)
    tuned = tune(model, request.bundle, name, request.progress)
    model, form = tuned.model, tuned.form
    if tuned.runtime != target.runtime:
        own = runtime_named(target.runtime)
        warnings.append(
            f"warning: judged on ONNX Runtime, because {own.name} is not installed: {own.packages[0].install}"
        )
    watch = Watch(request.bundle.manifest.preprocess, len(images))
    calibrated = calibrate(
        model, request.bundle.manifest, images, method, target.activations,
        lambda ranges: emit_int8(model, ranges, target, form), request.progress, watch,
    )  # fmt: skip
    ranges = calibrated.ranges
    advice = advise(watch, ranges, images, request.bundle, request.source)
    quantized, overflowing = emit_int8(model, ranges, target, form), Overflowing({}, 0)
    if target.reduce_range:
        some = images.stratified(_SUMMED_IMAGES, CALIBRATION_SEED)
        parts = batches(request.bundle.manifest, some, "sums of products", request.progress)
        overflowing = overflowing_layers(quantized, (part.tensor for part in parts))
        form = replace(form, seven_bits=frozenset(overflowing.counts))
        quantized = emit_int8(model, ranges, target, form)
    portability = None
    if target.rewrites:  # for ONNX Runtime, whose kernels are known
        tensors = request.bundle.golden().tensors[:_PORTABLE_IMAGES]
        portability = certify(quantized, tensors, request.bundle.manifest.input.batch)
    calibration: dict[str, Any] = {
        "images": place(request.images) if request.images else None,
        "ids": images.ids,
        "sha256": images.sha256(),
        "seed": CALIBRATION_SEED,
        "method": calibrated.method,
        "expected_changes": calibrated.expected_changes,
        "advice": advice.to_json(),
    }
    return _Lowered(
        quantized,
        details={
            "target": name, **tuned.to_json(), "calibration": calibration, "verified": verify_int8(quantized),
            "seven_bits": overflowing.counts, "portability": portability,
        },
        requires={"isa": "vnni"} if name == "x86" else {},
        layers=int8_layers(model, form),
        alone=lambda layer: emit_int8(model, ranges, target, form, [layer]),
        runtime=tuned.runtime,
        timed=tuned.timed,
        remarks=(
            *warnings, *advice.warnings, f"target {name}: {target.why}", *tuned.remarks, *overflowing.remarks,
            *(remarks(portability) if portability else ()),
        ),
    )  # fmt: skip


def _fp16(model: "onnx.ModelProto", request: _Request) -> _Lowered:
    from .fp16 import emit_fp16, fp16_layers
    from .verify import verify_fp16

    if request.options.target is not None:
        raise EdgeKitError("fp16 is the same for every target", fix="leave out --target, or --precision int8")
    halved = emit_fp16(model)
    return _Lowered(
        halved,
        details={"verified": verify_fp16(halved)},
        requires={},
        layers=fp16_layers(model),
        alone=lambda layer: emit_fp16(model, [layer]),
    )


def _calibration(request: _Request) -> tuple[ImageSet, list[str]]:
    """The calibration images, and warnings about them.

    Raises:
        DataError: there are no images, or too few.
    """
    if request.options.calibration_images < 1:
        raise DataError(
            f"{request.options.calibration_images} calibration images are not enough", fix="--calibration-images 512"
        )
    train = request.source.part(_CALIBRATION)
    if train is None or len(train) == 0:
        raise DataError(f"{request.bundle.path} records no images for calibration", fix="pass --images with a folder")
    images = train.stratified(request.options.calibration_images, CALIBRATION_SEED)
    if len(images) < _FEWEST and not request.options.allow_few:
        raise DataError(
            f"{len(images)} calibration images are too few to set the ranges of the activations",
            fix=f"--calibration-images 512, --images with at least {_FEWEST} training images, or --allow-few",
        )
    warnings = []
    if len(images) < _FEW:
        warnings.append(f"warning: only {len(images)} calibration images; use {_FEW} or more")
    classes = len(request.bundle.manifest.labels)
    covered = len(np.unique(images.targets)) if images.labelled else min(len(images), classes)
    if covered < classes:
        warnings.append(f"warning: the calibration images cover at most {covered} of {classes} classes")
    return images, warnings


def _refusal(
    bundle: Bundle, noise: "SignalToNoise", precision: str, lowered: _Lowered, progress: Progress
) -> Judgement | None:
    """The judgement of a model whose logits are too noisy, with the costliest layers; None if they are good enough."""
    from .gate import costliest, refusal

    def layers() -> list[tuple[str, float]]:
        golden, batch = bundle.golden(), bundle.manifest.input.batch
        return costliest(lowered.layers, lowered.alone, golden.tensors, golden.logits, batch, progress)

    return refusal(noise, precision, lowered.runtime, layers)
