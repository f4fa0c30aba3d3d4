"""Post-training quantization, one stage per file: prepare, tune, observe, emit, verify, judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle, create
from ...deploy.errors import BundleError, EdgeKitError
from ...deploy.files import exists
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress, silent
from ...deploy.registry import choose
from ..analysis.contract import PASS, Contract, Drop, Judgement, overall
from ..datasets import BundleImages
from ..validation.overlap import used_elsewhere
from ..workspace import REJECTED, RUNS, new_path
from .options import PRECISIONS, SEED, QuantizeOptions

if TYPE_CHECKING:
    from .compare import Changed, Compared
    from .int8 import Int8
    from .lowered import Lowered, Request
    from .mixed_precision import MixedPrecision
    from .sensitivity import NoiseSource

# The part of the data for judging; the test part is left to validate.
_SELECTION = "validation"
# The packages whose versions are recorded, by format.
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "litert": ("ai-edge-litert",)}
# Number of golden samples that are computed for other CPUs, up to a second for each.
_PORTABLE_IMAGES = 8


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


def quantize(
    bundle: Bundle,
    options: QuantizeOptions | None = None,
    *,
    images: str | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    out: Path | None = None,
    runs: Path = RUNS,
    progress: Progress = silent,
) -> Quantized:
    """Lower the precision of an fp32 ONNX or LiteRT bundle, and judge the result on the selection images.

    int8: per-channel weights, ranges from the calibration images (drawn by class from the training part); QDQ in ONNX.
    fp16, of ONNX: float16 weights and arithmetic; input and output stay float32.
    int8-weights, of ONNX: per-channel int8 weights, which the runtime converts to float32 when it loads the model.

    Args:
        images: source of calibration and selection images, instead of the bundle's own data set.
        max_drop: see contract.judge_drop. If it is not fulfilled, layers stay float (see mixed_precision.keep_float).
        min_speedup: the smallest speed-up over fp32 in a short trial on this machine, a ratio; None for no limit.

    Raises:
        BundleError: not an fp32 bundle of the target's format.
        DataError: no calibration images, or too few.
        EdgeKitError: the result is not as requested: weights stayed float; or min_speedup for another machine; or
            options about int8 layers for fp16.
        RecipeError: min_speedup is not positive.
    """
    from .lowered import Request

    options = options or QuantizeOptions()
    contract = Contract(max_drop, min_speedup)
    _check_request(bundle, options, contract, out)
    path = out or new_path(f"{bundle.manifest.name}-{bundle.manifest.format}-{options.precision}", runs)
    source = BundleImages(bundle, images, skip_corrupt=options.skip_corrupt)
    return lower(Request(bundle, options, images, source, progress), contract, path)


def lower(
    request: "Request", contract: Contract, path: Path, retrain: "Callable[[Int8, Request], Int8] | None" = None
) -> Quantized:
    """Lower the precision of a bundle, judge the result and write it; see `quantize`.

    Args:
        path: of the new bundle; `.rejected` is added if it violates the contract.
        retrain: changes the weights of the int8 network before it is judged.
    """
    from .portability import certify, remarks
    from .sensitivity import noise_to_json

    bundle, options, source = request.bundle, request.options, request.source
    selection = _selection(source, options.selection_images)
    judged = _lowered(request, selection, contract, retrain)
    lowered, compared, judgement, mixed, noise = judged
    tensors, batch = bundle.golden().tensors[:_PORTABLE_IMAGES], bundle.manifest.input.batch
    portability = certify(lowered.portable, tensors, batch) if lowered.portable else None
    elsewhere = remarks(portability, lowered.details["target"]) if portability else ()
    lines = _remarks(judged, options, elsewhere)
    details = {
        **lowered.details, **compared.to_json(), "portability": portability, "contract": asdict(contract),
        "judgement": asdict(judgement), "remarks": list(lines), "mixed_precision": mixed and mixed.to_json(),
        "sensitivity": noise and noise_to_json(noise),
    }  # fmt: skip
    if judgement.outcome == "fail":
        path = path.with_name(path.name + REJECTED)
    fingerprints = bundle.fingerprints() | used_elsewhere(source, details)
    manifest = replace(_manifest(request, lowered), details=details)
    quantized = _write(bundle, path, manifest, lowered.content, fingerprints)
    return Quantized(quantized, compared.drop, compared.changed, judgement, lines)


class _Judged(NamedTuple):
    """A model of lower precision, and how it compares with its source.

    Attributes:
        mixed: the search for its float layers, if it ran.
        noise: where its noise comes from without float layers; None if that was neither needed nor asked for.
    """

    lowered: "Lowered"
    compared: "Compared"
    judgement: Judgement
    mixed: "MixedPrecision | None" = None
    noise: "list[NoiseSource] | None" = None


def _remarks(judged: _Judged, options: QuantizeOptions, elsewhere: Sequence[str]) -> tuple[str, ...]:
    """Lines for the user: what to keep, warnings, and the rest; `elsewhere` are those about other CPUs."""
    from .gate import warning
    from .sensitivity import noise_sentence

    lowered, compared, judgement, mixed, noise = judged
    precision = options.precision
    speed = compared.speed(precision)
    found = (
        mixed.failure if mixed else None, speed if compared.slower else None,
        warning(compared.noise, precision) if judgement.outcome != "fail" else None, *lowered.remarks,
        noise_sentence(noise) if noise else None, *(mixed.sentences if mixed else ()), *elsewhere,
        None if compared.slower else speed, compared.changed and compared.changed.sentence,
    )  # fmt: skip
    return tuple(text for text in found if text)


def _lowered(
    request: "Request", selection: ImageSet | None, contract: Contract,
    retrain: "Callable[[Int8, Request], Int8] | None",
) -> _Judged:  # fmt: skip
    """Lower the precision; if the contract is not fulfilled, keep the fewest layers float with which it is."""
    if request.bundle.manifest.format == "litert":
        from .litert import lower_litert

        return _judge(lower_litert(request), request, selection, contract)
    import onnx

    from .fp16 import lower_fp16
    from .int8 import Int8
    from .int8_weights import lower_int8_weights
    from .mixed_precision import find_sources, keep_float, provable
    from .prepare import prepare

    model = prepare(onnx.load(str(request.bundle.model_path)))
    if request.options.precision != "int8":
        lower = lower_fp16 if request.options.precision == "fp16" else lower_int8_weights
        return _judge(lower(model, request), request, selection, contract)
    int8 = Int8(model, request)
    if retrain is not None:
        int8 = retrain(int8, request)
    judged = _judge(int8.lowered(), request, selection, contract)
    failed = judged.judgement.exit_code != PASS
    if not (failed and request.options.float_layers and provable(selection, contract)):
        return judged._replace(noise=find_sources(int8, request) if request.options.sensitivity else None)
    mixed = keep_float(int8, request, selection, contract, judged.compared)
    if mixed.chosen is not None and mixed.chosen.layers:
        judged = _judge(int8.lowered(mixed.chosen.layers), request, selection, contract)
    return judged._replace(mixed=mixed, noise=mixed.sources)


def _judge(lowered: "Lowered", request: "Request", selection: ImageSet | None, contract: Contract) -> _Judged:
    from .compare import compare_models
    from .gate import costliest, refusal

    bundle, progress = request.bundle, request.progress
    compared = compare_models(bundle, _manifest(request, lowered), lowered, selection, progress)

    def layers() -> list[tuple[str, float]]:
        if lowered.alone is None:
            return []
        golden, batch = bundle.golden(), bundle.manifest.input.batch
        return costliest(lowered.layers, lowered.alone, golden.tensors, golden.logits, batch, progress)

    refused = refusal(compared.noise, request.options.precision, lowered.runtime, layers)
    judgements = contract.judge(compared.drop, compared.speedup, "fp32")
    combined = replace(overall(judgements), sentence="; ".join(entry.sentence for entry in judgements))
    return _Judged(lowered, compared, refused or combined)


def _manifest(request: "Request", lowered: "Lowered") -> Manifest:
    """The manifest of a new bundle, without its details."""
    bundle = request.bundle
    return replace(
        bundle.manifest, precision=request.options.precision, requires=lowered.requires, lineage=bundle.ancestry()
    )


def _selection(source: BundleImages, most: int | None) -> ImageSet | None:
    """At most so many selection images, drawn by class; None if there are none."""
    images = source.part(_SELECTION)
    return images if images is None or most is None else images.stratified(most, SEED)


def _check_request(bundle: Bundle, options: QuantizeOptions, contract: Contract, out: Path | None) -> None:
    """Refuse bad requests before minutes are spent on quantizing."""
    from .targets import FORMATS, TARGETS, default_target
    from .tune import is_timed

    if out is not None and out.exists():
        raise exists(out)
    precision = choose({name: name for name in PRECISIONS}, options.precision, "precision", EdgeKitError)
    if precision != "int8" and options.target is not None:
        raise EdgeKitError(f"{precision} is the same for every target", fix="leave out --target, or --precision int8")
    found = bundle.manifest.format
    name = options.target or default_target(found)
    target = choose(TARGETS, name, "target", EdgeKitError)
    if (found, bundle.manifest.precision) != (target.format, "fp32"):
        raise BundleError(
            f"{bundle.path} is {found} {bundle.manifest.precision}; for {name}, quantize takes fp32 "
            f"{FORMATS[target.format]}",
            fix=f"run: edgekit export --format {target.format}",
        )
    if precision != "int8" and found != "onnx":
        raise EdgeKitError(
            f"--precision {precision} is for ONNX bundles, and {bundle.path} is {found}", fix="leave it out"
        )
    searched = options.sensitivity or options.budget_s is not None
    if searched and (precision != "int8" or found != "onnx"):
        raise EdgeKitError("--sensitivity and --budget are about int8 layers of ONNX", fix="leave them out")
    if contract.min_speedup is not None and (precision != "int8" or not is_timed(name)):
        reason = f"{precision} has none" if precision != "int8" else "this machine is not the target"
        raise EdgeKitError(
            f"--min-speedup needs a trial, and {reason}",
            fix="leave it out, and run on the target: edgekit validate --min-speedup",
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
        draft.finish(manifest, _PACKAGES[manifest.format])
    return Bundle.open(path)
