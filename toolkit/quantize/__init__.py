"""Post-training quantization: prepare, observe, emit, verify, judge: a stage a file."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle, Manifest, create
from ...deploy.errors import BundleError, DataError, EdgeKitError
from ...deploy.files import scratch_folder
from ...deploy.images import ImageSet
from ...deploy.parity import Parity, compare
from ...deploy.registry import choose
from ...deploy.session import open_session
from ..console import progress_bar, say
from ..contract import Drop, Judgement, compare_accuracy, judge_drop
from ..datasets import part_of, place
from ..overlap import used_elsewhere
from ..targets import TARGETS, this_machine
from ..workspace import REJECTED, RUNS, new_path

if TYPE_CHECKING:
    import onnx

# Which part of the data calibrates, and which one judges: the test part is not touched before validate.
_CALIBRATION, _SELECTION = "train", "validation"
_SEED = 0


@dataclass(frozen=True)
class Quantized:
    """What quantize made.

    Attributes:
        bundle: the new bundle; its folder ends in `.rejected` when the contract was missed.
        drop: on the selection part; None without labelled images.
        judgement: the contract's outcome.
    """

    bundle: Bundle
    drop: Drop | None
    judgement: Judgement


def quantize(
    bundle: Bundle,
    *,
    precision: str = "int8",
    target: str | None = None,
    images: str | None = None,
    calibration_images: int = 512,
    max_drop: float | None = None,
    skip_corrupt: bool = False,
    out: Path | None = None,
    runs: Path = RUNS,
) -> Quantized:
    """Write an fp32 ONNX bundle with its precision lowered, and judge it on the selection images.

    int8: QDQ, per-channel weights, ranges from the calibration images (drawn by class from the training part).
    fp16: weights and arithmetic by casts; input and output stay float32.

    Args:
        target: a key of TARGETS; None is this machine.
        images: another place for calibration and selection images than the bundle's own data set.
        max_drop: see contract.judge_drop.

    Raises:
        BundleError: not an fp32 ONNX bundle.
        DataError: no calibration images.
        EdgeKitError: the result is not what was asked for (weights left float).
    """
    import onnx

    from ...export.onnx_file import to_bytes
    from .prepare import prepare

    if out is not None and out.exists():
        raise EdgeKitError(f"{out} exists already", fix="choose another --out, or remove it first")
    if bundle.manifest.format != "onnx" or bundle.manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path} is {bundle.manifest.format} {bundle.manifest.precision}; quantize takes fp32 ONNX",
            fix="run: edgekit export --format onnx",
        )
    lower = choose({"int8": _int8, "fp16": _fp16}, precision, "precision", EdgeKitError)
    path = out or new_path(f"{bundle.manifest.name}-onnx-{precision}", runs)
    request = _Request(bundle, target, images, calibration_images, skip_corrupt)
    model, details, requires = lower(prepare(onnx.load(str(bundle.model_path))), request)
    manifest = replace(bundle.manifest, precision=precision, requires=requires, lineage=bundle.ancestry())
    content = to_bytes(model)
    parity, drop = _compare(bundle, manifest, content, part_of(bundle, _SELECTION, images, skip_corrupt=skip_corrupt))
    judgement = judge_drop(drop, max_drop)
    details |= {"parity": asdict(parity), "selection": drop and asdict(drop), "judgement": asdict(judgement)}
    if judgement.outcome == "fail":
        path = path.with_name(path.name + REJECTED)
    with create(path) as draft:
        (draft.folder / manifest.model).write_bytes(content)
        draft.add_golden(bundle.golden())
        draft.add_splits(bundle.splits())
        draft.add_fingerprints(bundle.fingerprints() | used_elsewhere(bundle, images, details, skip_corrupt))
        draft.finish(replace(manifest, details=details), ("onnx", "onnxruntime"))
    return Quantized(Bundle.open(path), drop, judgement)


class _Request(NamedTuple):
    """What lowering the precision may need to know."""

    bundle: Bundle
    target: str | None
    images: str | None
    calibration_images: int
    skip_corrupt: bool


# The new model, what its manifest remembers of the making, and what it requires of the machine.
_Lowered = tuple["onnx.ModelProto", dict[str, Any], dict[str, Any]]


def _int8(model: "onnx.ModelProto", request: _Request) -> _Lowered:
    from .emit import emit_int8
    from .observe import observe
    from .verify import verify_int8

    name = request.target or this_machine()
    target = choose(TARGETS, name, "target", EdgeKitError)
    say(f"target {name}: {target.why}")
    images = _calibration(request)
    with progress_bar("quantize") as show:
        ranges = observe(model, request.bundle.manifest, images, lambda share: show("calibration", share))
    quantized = emit_int8(model, ranges, target)
    calibration = {
        "images": place(request.images) if request.images else None,
        "ids": images.ids,
        "sha256": images.sha256(),
        "seed": _SEED,
        "method": "minmax",
    }
    details = {"target": name, "calibration": calibration, "verified": verify_int8(quantized)}
    return quantized, details, {"isa": "vnni"} if name == "x86" else {}


def _fp16(model: "onnx.ModelProto", request: _Request) -> _Lowered:
    from .emit import emit_fp16
    from .verify import verify_fp16

    if request.target is not None:
        raise EdgeKitError("fp16 is the same for every target", fix="leave out --target, or --precision int8")
    halved = emit_fp16(model)
    return halved, {"verified": verify_fp16(halved)}, {}


def _calibration(request: _Request) -> ImageSet:
    if request.calibration_images < 1:
        raise DataError(
            f"{request.calibration_images} calibration images are not enough", fix="--calibration-images 512"
        )
    train = part_of(request.bundle, _CALIBRATION, request.images, skip_corrupt=request.skip_corrupt)
    if train is None or len(train) == 0:
        raise DataError(
            f"{request.bundle.path} knows of no images to calibrate with", fix="pass --images with a folder"
        )
    return train.stratified(request.calibration_images, _SEED)


def _compare(
    source: Bundle, manifest: Manifest, content: bytes, selection: ImageSet | None
) -> tuple[Parity, Drop | None]:
    """Run the new model and its source: parity on the golden samples, top-1 on the selection images."""
    with scratch_folder() as folder:
        (folder / manifest.model).write_bytes(content)
        sessions = [open_session(source), open_session(Bundle(folder, manifest, id=""))]
        golden = source.golden()
        parity = compare(golden, sessions[1].run(golden.tensors))
        if selection is None or not selection.labelled:
            return parity, None
        predictions: list[list[int]] = [[], []]
        with progress_bar("quantize") as show:
            for done, sample in enumerate(selection):
                tensor = manifest.preprocess(sample.image)[None]
                for session, answers in zip(sessions, predictions, strict=True):
                    answers.append(int(session.run(tensor)[0].argmax()))
                show("selection images", done / len(selection))
    return parity, compare_accuracy(selection.targets, np.asarray(predictions[0]), np.asarray(predictions[1]))
