"""Building TensorRT engines: lint, the ONNX of each precision, and the device that compiles it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ...deploy.bundle import Bundle
from ...deploy.devices.device import Device, open_device
from ...deploy.engine.build import Options
from ...deploy.engine.library import installed, load, version_tuple
from ...deploy.engine.passport import ENGINE_FORMAT
from ...deploy.errors import BundleError, EdgeKitError, EngineError
from ...deploy.files import exists
from ...deploy.progress import Progress, silent, titled
from ...deploy.registry import choose
from ..quantize.options import QuantizeOptions
from ..quantize.quantize import quantize
from ..signing import check_key, sign_bundle
from ..workspace import REJECTED, RUNS, derived, new_path
from .lint import Finding, lint
from .trtexec import RELEASES, command_lines

if TYPE_CHECKING:
    import onnx

_log = logging.getLogger(__name__)

# For an fp32 source; "auto" builds all of them, since only measuring shows which one is fastest.
PRECISIONS = ("fp32", "fp16", "int8")
_TARGET = "tensorrt"


class FindingEntry(TypedDict):
    """A finding of the lint (see lint.Finding), with the releases it applies to (empty for all)."""

    rule: str
    severity: str
    node: str
    message: str
    fix: str
    releases: list[str]


@dataclass(frozen=True)
class BuildPlan:
    """A build as far as it can be planned without a GPU.

    Attributes:
        findings: the lint's findings, each once, with the releases it applies to (empty for all).
        commands: release of TensorRT -> the equivalent trtexec command line.
    """

    bundle: str
    findings: Sequence[FindingEntry]
    commands: dict[str, str]


def plan_build(bundle: Bundle, options: Options | None = None) -> BuildPlan:
    """Lint an ONNX bundle for three generations of TensorRT, with the trtexec command lines.

    Raises:
        BundleError: not an ONNX bundle.
    """
    model, options = _graph(bundle), options or Options()
    releases_of: dict[Finding, list[str]] = {}
    for release, version in RELEASES.items():
        for finding in lint(model, version, options.batch):
            releases_of.setdefault(finding, []).append(release)
    return BuildPlan(
        str(bundle.path),
        [
            _entry(finding, releases if len(releases) < len(RELEASES) else [])
            for finding, releases in releases_of.items()
        ],
        command_lines(bundle, options, model.graph.input[0].name),
    )


def build(
    bundle: Bundle,
    *,
    precision: str | None = None,
    options: Options | None = None,
    device: str = "local",
    sign: Path | None = None,
    out: Path | None = None,
    runs: Path = RUNS,
    progress: Progress = silent,
) -> list[Bundle]:
    """Build engines from an ONNX bundle, on the device that runs them.

    Args:
        precision: fp32, fp16, int8, or "auto" for all three. From an fp32 bundle, ONNX files of lower precision are
            taken from `runs` or made. None builds the bundle as it is.
        device: the name of a device that builds engines (see deploy.devices.device.DEVICES).
        sign: an ed25519 private key to sign the engines with.
        out: the new bundle's folder; for a single engine only.

    Returns:
        The engines, in the order of their precision.

    Raises:
        BundleError: not an ONNX bundle, or not of the requested precision.
        EngineError: TensorRT rejects, would silently change, or cannot build the graph.
        DeviceError: there is no GPU to build for.
    """
    options = options or Options()
    precisions = PRECISIONS if precision == "auto" else (precision or bundle.manifest.precision,)
    if out is not None and len(precisions) > 1:
        raise EdgeKitError("--precision auto builds several engines", fix="leave out --out: they are written to runs/")
    if out is not None and out.exists():
        raise exists(out)
    for name in precisions:
        choose(dict.fromkeys(PRECISIONS), name, "precision")
    if sign is not None:
        check_key(sign)
    engines = []
    _graph(bundle)
    opened = open_device(device)
    opened.require("build")
    with opened:
        for name in precisions:
            source = _of_precision(bundle, name, runs, progress)
            if source is None:
                continue
            check(source, options, opened)
            path = out or new_path(f"{source.manifest.name}-{ENGINE_FORMAT}-{name}", runs)
            opened.build(source, options, path, titled(progress, f"build {name}"))
            if sign is not None:
                sign_bundle(path, sign)
            engines.append(Bundle.open(path))
    return engines


def check(bundle: Bundle, options: Options, device: Device) -> None:
    """Refuse a graph with errors; log its warnings.

    Raises:
        EngineError: the lint found errors.
    """
    model = _graph(bundle)
    findings = lint(model, _version(options) if device.here else None, options.batch)
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in [finding for finding in findings if finding.severity == "warning"]:
        _log.warning(f"{finding.node}: {finding.message} ({finding.fix})")
    if errors:
        others = f", and {len(errors) - 1} more: edgekit build {bundle.path} --plan" if len(errors) > 1 else ""
        raise EngineError(f"{bundle.path}: {errors[0].node}: {errors[0].message}{others}", fix=errors[0].fix)


def _entry(finding: Finding, releases: list[str]) -> FindingEntry:
    return {
        "rule": finding.rule, "severity": finding.severity, "node": finding.node, "message": finding.message,
        "fix": finding.fix, "releases": releases,
    }  # fmt: skip


def _version(options: Options) -> tuple[int, ...] | None:
    """The version of the installed TensorRT; None without one, or for another product with its own numbering."""
    if options.compute_capabilities or installed() != "tensorrt":
        return None
    return version_tuple(load("tensorrt").version)


def _graph(bundle: Bundle) -> "onnx.ModelProto":
    import onnx

    if bundle.manifest.format != "onnx":
        raise BundleError(
            f"{bundle.path} is {bundle.manifest.format}; engines are built from ONNX",
            fix="run: edgekit export --format onnx",
        )
    if bundle.manifest.preprocess.dtype != "float32":
        raise BundleError(
            f"{bundle.path} takes {bundle.manifest.preprocess.dtype} pixels; engines take float32",
            fix="export without --uint8-input",
        )
    return onnx.load(str(bundle.model_path))


def _of_precision(bundle: Bundle, precision: str, runs: Path, progress: Progress) -> Bundle | None:
    """The bundle itself, or its derived bundle of lower precision, made if necessary; None if that is rejected.

    Raises:
        BundleError: the bundle has another precision, and is not the fp32 one that others are made from.
    """
    manifest = bundle.manifest
    if manifest.precision == precision:
        return bundle
    if manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path} is {manifest.precision} already",
            fix=f"pass the fp32 one it was made from, or --precision {manifest.precision}",
        )
    for candidate in derived(bundle.id, runs, bundle.path.parent):
        target = candidate.manifest.details.get("target")
        if (
            candidate.manifest.precision == precision
            and candidate.manifest.format == "onnx"
            and target in (None, _TARGET)
        ):
            return candidate
    target = _TARGET if precision == "int8" else None
    result = quantize(
        bundle, QuantizeOptions(precision=precision, target=target), runs=runs, progress=titled(progress, "quantize")
    )
    if result.bundle.path.name.endswith(REJECTED):
        _log.info(f"no {precision} engine: {result.judgement.sentence}")
        return None
    for sentence in result.remarks:
        _log.info(sentence)
    return result.bundle
