"""Make the files of a search, or find them among earlier bundles that were made in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ... import __version__
from ...deploy.bundle import Bundle
from ...deploy.errors import BundleError, EdgeKitError
from ...deploy.manifest import Manifest
from ...deploy.progress import Progress
from ..datasets import BundleImages, calibration_of
from ..quantize.options import SEED, QuantizeOptions
from ..quantize.quantize import quantize
from ..workspace import RUNS, derived, find, new_path
from .space import SOURCE, Variant

# Formats that a network in torch can be exported from (see export.eager.TORCH_FORMATS, which imports torch).
_TORCH_FORMATS = ("torch", "exported-program", "torchscript")


@dataclass(frozen=True)
class MakingOptions:
    """How files are made.

    Attributes:
        images: source of calibration and selection images; None for the bundle's own.
        calibration_images, selection_images: their numbers, drawn by class.
        install: install the converter of a format if it is missing; otherwise such a file is not made.
        max_drop: a file that certainly loses more is not made (see contract.judge_drop).
        skip_corrupt: leave out images that cannot be decoded.
    """

    images: str | None = None
    calibration_images: int = 512
    selection_images: int = 500
    max_drop: float | None = None
    skip_corrupt: bool = False
    install: bool = False


class Made(NamedTuple):
    """A file, and whether it was found instead of made."""

    bundle: Bundle
    found: bool


def is_source(manifest: Manifest) -> bool:
    """Whether a search can start from a bundle."""
    return (manifest.format, manifest.precision) == ("onnx", "fp32") or manifest.format in _TORCH_FORMATS


def source_of(bundle: Bundle, progress: Progress) -> Bundle:
    """The float32 ONNX bundle of a network: the bundle itself, or its export.

    Raises:
        BundleError: the bundle is neither.
        EdgeKitError: it cannot be exported.
    """
    manifest = bundle.manifest
    if not is_source(manifest):
        raise BundleError(
            f"{bundle.path} is {manifest.format} {manifest.precision}; optimize starts from the original model",
            fix="pass the fp32 ONNX bundle, or the one that train or import made",
        )
    return onnx_of(bundle) or export(bundle, SOURCE.format, progress).bundle


def onnx_of(bundle: Bundle) -> Bundle | None:
    """The float32 ONNX bundle of a network: the bundle itself, or an earlier export; None if there is none."""
    if (bundle.manifest.format, bundle.manifest.precision) == ("onnx", "fp32"):
        return bundle
    return exported(bundle, SOURCE.format)


def export(network: Bundle, format: str, progress: Progress) -> Made:
    """Export a network in another format, or find its export.

    Raises:
        EdgeKitError: it cannot be exported.
    """
    if (earlier := exported(network, format)) is not None:
        return Made(earlier, found=True)
    from ...export.export_bundle import export_bundle

    progress(f"export to {format}", 0.0)
    return Made(export_bundle(network, format, new_path(f"{network.manifest.name}-{format}-fp32")), found=False)


def exported(network: Bundle, format: str) -> Bundle | None:
    """An earlier export of a network in another format; None if there is none."""
    wanted = format, "fp32", network.manifest.preprocess
    for earlier in _derived(network):
        manifest = earlier.manifest
        if (manifest.format, manifest.precision, manifest.preprocess) == wanted:
            return earlier
    return None


def make(variant: Variant, source: Bundle, options: MakingOptions, progress: Progress) -> Made:
    """Make a file from the source, or find it.

    Raises:
        EdgeKitError: it cannot be made; the message says why.
    """
    if variant == SOURCE:
        return Made(source, found=True)
    if variant.precision == "fp32":
        if variant.format == "litert" and not options.install:
            _require_litert_converter()
        return export(network_of(source), variant.format, progress)
    images = BundleImages(source, options.images, skip_corrupt=options.skip_corrupt)
    if (earlier := _quantized(variant, source, images, options)) is not None:
        return Made(earlier, found=True)

    def show(stage: str, share: float) -> None:
        progress(f"{variant.name}: {stage}", share)

    result = quantize(
        source,
        QuantizeOptions(
            precision=variant.precision, target=variant.target, calibration_images=options.calibration_images,
            allow_few=True, selection_images=options.selection_images,
            skip_corrupt=options.skip_corrupt, float_layers=False,
        ),
        images=options.images, max_drop=options.max_drop, progress=show,
    )  # fmt: skip
    if result.judgement.outcome == "fail":
        raise EdgeKitError(result.judgement.sentence, fix="see edgekit quantize")
    return Made(result.bundle, found=False)


def _require_litert_converter() -> None:
    """A search does not download a gigabyte unasked.

    Raises:
        EdgeKitError: the converter is not installed yet.
    """
    from ...export.litert_packages import CONVERTER, packages_place

    if not packages_place().is_dir():
        raise EdgeKitError(
            f"{CONVERTER}, which takes 0.9 GB, is not installed",
            fix="run: edgekit export --format litert, which installs it",
        )


def _quantized(variant: Variant, source: Bundle, images: BundleImages, options: MakingOptions) -> Bundle | None:
    """An earlier bundle with the same precision, target and calibration images, by this version of EdgeKit."""
    calibration = None
    for earlier in _derived(source):
        manifest = earlier.manifest
        if (manifest.precision, manifest.details.get("target")) != (variant.precision, variant.target):
            continue
        if manifest.tools.get("edgekit-vision") != __version__:
            continue
        if variant.precision != "int8":  # made without calibration images
            return earlier
        if calibration is None:
            train = images.part("train")
            drawn = train and train.stratified(options.calibration_images, SEED)
            calibration = drawn.sha256() if drawn else ""
        if calibration_of(manifest).get("sha256") == calibration:
            return earlier
    return None


def network_of(source: Bundle) -> Bundle:
    """The network in torch that the source was exported from.

    Raises:
        BundleError: it was not, or it was not found.
    """
    for entry in reversed(source.manifest.lineage):
        if entry["format"] in _TORCH_FORMATS:
            network = find(entry["id"], source.path.parent, RUNS)
            if network is not None:
                return network
    raise BundleError(
        f"{source.path} has no network in torch beside it, which other formats are exported from",
        fix="optimize the bundle that train or import made",
    )


def _derived(bundle: Bundle) -> Sequence[Bundle]:
    return derived(bundle.id, bundle.path.parent, RUNS)
