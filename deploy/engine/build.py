"""Building an engine from an ONNX bundle, on the machine whose GPU runs it, or for named GPUs."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..bundle import Bundle, create
from ..errors import BundleError, DeviceError, EdgeKitError, EngineError, ParityError, RecipeError
from ..files import cache_folder, sha256, write_file
from ..parity import FLOAT_TOLERANCE, compare, replay
from ..progress import Progress
from ..runtimes.tensorrt import TrtOptions, TrtSession
from ..session import open_session
from .gpu import Gpu, find_gpu
from .layers import parse_json, parse_text, summarize
from .library import Library, Message, last_error, load, progress_monitor, recording_logger
from .passport import ENGINE_FORMAT, WEIGHTS, Passport, machine_facts, onnx_hash
from .protocols import Builder, Config, Network, Parser

MODEL = "model.engine"

# How far an engine's logits may be from ONNX Runtime's for the same file, as a share of the largest. float32 differs by
# rounding only; fp16 arithmetic has 11 bits; an int8 rounding that goes the other way moves a value by 1/127, and a
# network has many. A wrong scale or a swapped tensor moves logits by more than their own size.
_TOLERANCE = {"fp32": FLOAT_TOLERANCE, "fp16": 0.02, "int8": 0.2}


@dataclass(frozen=True)
class Options:
    """How an engine is built; the defaults are the library's own.

    Attributes:
        batch: smallest, most frequent and largest number of images at once, for a model that accepts any number.
        workspace_mb: maximum scratch memory of a layer, in MiB.
        optimization_level: 0 (fast to build) to 5 (fast to run); None is the library's, 3.
        version_compatible: newer libraries load it too.
        hardware_compatible: it runs on any GPU from Ampere on, not just on this one.
        refit: its weights can be replaced.
        strip_weights: it contains no weights; they are added from the ONNX file when it is loaded.
        compute_capabilities: GPUs to build for, e.g. ("8.6", "8.9"), which need not be present (TensorRT for RTX).
    """

    batch: tuple[int, int, int] | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise RecipeError(
                f"a batch of {', '.join(map(str, self.batch))} is not in the order smallest, usual, largest",
                fix="e.g. --batch 1,8,32",
            )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise RecipeError(f"a workspace of {self.workspace_mb} MiB is not valid", fix="e.g. --workspace 1024")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise RecipeError(
                f"the optimisation level {self.optimization_level} does not exist", fix="pass one from 0 to 5"
            )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise RecipeError(
                    f"{capability} is not a compute capability", fix="e.g. --compute-capability 8.6 or 8.6,8.9"
                )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise RecipeError("a compute capability is listed twice", fix="list each once")

    def arguments(self) -> list[str]:
        """The options as arguments of `edgekit build`."""
        flags = ("version_compatible", "hardware_compatible", "refit", "strip_weights")
        return [
            *(["--batch", ",".join(map(str, self.batch))] if self.batch else []),
            *(["--workspace", str(self.workspace_mb)] if self.workspace_mb is not None else []),
            *(["--opt-level", str(self.optimization_level)] if self.optimization_level is not None else []),
            *(f"--{name.replace('_', '-')}" for name in flags if getattr(self, name)),
            *(["--compute-capability", ",".join(self.compute_capabilities)] if self.compute_capabilities else []),
        ]


def build(source: Bundle, path: Path, options: Options, progress: Progress, named: str | None = None) -> None:
    """Build an engine from an ONNX bundle and write it as a bundle.

    If its GPU is on this machine, the engine is run before the bundle is complete. Its answers on the golden samples
    are compared with the source's, and an image must get the same answer anywhere in a batch.

    Args:
        path: the new bundle's folder.
        named: the user's name for the ONNX bundle, for the command that rebuilds the engine; None is its path.

    Raises:
        BundleError: not an ONNX bundle, or a free batch without `options.batch`.
        EngineError: TensorRT cannot parse or build the model; the message names the node.
        DeviceError: there is no GPU to build for, or the library does not support an option.
        MissingPackageError: no TensorRT is installed.
        ParityError: the engine answers differently from its source.
    """
    if source.manifest.format != "onnx":
        raise BundleError(
            f"{source.path} is {source.manifest.format}; engines are built from ONNX",
            fix="edgekit export --format onnx",
        )
    library = load("tensorrt-rtx" if options.compute_capabilities else None)
    gpu = find_gpu()
    _refuse_unsupported(library, options, gpu)
    targets = _targets(library, options, gpu)
    messages: list[Message] = []
    with create(path) as draft:
        engine, flags, timing = _compile(library, source, options, targets, messages, progress)
        (draft.folder / MODEL).write_bytes(engine)
        if options.strip_weights:
            (draft.folder / WEIGHTS).write_bytes(source.model_path.read_bytes())
        draft.add_golden(source.golden())
        draft.add_splits(source.splits())
        draft.add_fingerprints(source.fingerprints())
        passport = Passport(
            library.flavour, library.version, targets, options.hardware_compatible, options.version_compatible,
            **machine_facts(gpu), flags=flags, onnx_sha256=onnx_hash(source),
        )  # fmt: skip
        details: dict[str, object] = {
            "build": {
                "source": named or str(source.path), "arguments": options.arguments(), "timing_cache": timing,
                "batch": list(options.batch or (source.manifest.input.batch,) * 3),
                "warnings": list(dict.fromkeys(message.text for message in messages if message.kind == "warning")),
            }
        }  # fmt: skip
        manifest = replace(
            source.manifest, format=ENGINE_FORMAT, model=MODEL, requires=passport.to_json(), lineage=source.ancestry(),
            details=details,
        )  # fmt: skip
        draft.finish(manifest)
        layer_list = next((message.text for message in messages if message.kind == "layers"), None)
        if gpu is not None and gpu.compute_capability in targets:
            details |= _run(source, Bundle.open(draft.folder), progress)
        elif layer_list is not None:
            details["engine"] = summarize(parse_text(layer_list))
        draft.finish(replace(manifest, details=details))


def _refuse_unsupported(library: Library, options: Options, gpu: Gpu | None) -> None:
    """Refuse options that TensorRT for RTX fails on; its compiler is Myelin."""
    if library.flavour != "tensorrt-rtx":
        return
    if options.strip_weights:
        raise DeviceError(
            "TensorRT for RTX cannot build engines without weights (its compiler, Myelin, fails on them)",
            fix="leave out --strip-weights",
        )
    if options.refit and gpu is None:
        raise DeviceError(
            "TensorRT for RTX cannot build refittable engines without a GPU (its compiler, Myelin, fails on them)",
            fix="leave out --refit, or build on the machine that has the GPU",
        )


def _targets(library: Library, options: Options, gpu: Gpu | None) -> tuple[str, ...]:
    """The compute capabilities to build for.

    Raises:
        DeviceError: there is no GPU, or the library does not build for one that is named.
    """
    if not options.compute_capabilities:
        if gpu is None:
            raise DeviceError(
                "there is no NVIDIA GPU here to build for",
                fix="build on the machine with the GPU: --device ssh://user@host; or, with TensorRT for RTX, name it: "
                "--compute-capability 8.6",
            )
        return (gpu.compute_capability,)
    known = library.trt.ComputeCapability.__members__
    offered = [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]
    for capability in options.compute_capabilities:
        if capability not in offered:
            raise DeviceError(
                f"TensorRT for RTX {library.version} does not build for compute capability {capability}",
                fix=f"it builds for {', '.join(offered)}; for others build on the device itself, with TensorRT",
            )
    return options.compute_capabilities


def _compile(
    library: Library, source: Bundle, options: Options, targets: tuple[str, ...], messages: list[Message],
    progress: Progress,
) -> tuple[bytes, tuple[str, ...], "_Timings | None"]:  # fmt: skip
    """Compile the engine; returns its bytes, the builder's flags, and the metadata of the timing cache, if used."""
    trt = library.trt
    logger = recording_logger(trt, messages)
    builder = trt.Builder(logger)
    progress("parsing", 0.0)
    # TensorRT 11 has only strongly typed networks, and some releases dropped the flag
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.model_path.read_bytes()):
        raise EngineError(_parser_errors(library, source, parser), fix=_PARSER_FIX)
    config = builder.create_builder_config()
    _add_profile(builder, network, config, source, options)
    flags = _configure(library, config, options, targets)
    cache, timing = _timing_cache_path(library, targets), None  # TensorRT for RTX chooses kernels when it runs
    if library.flavour == "tensorrt":
        timing = _reuse_timings(config, cache)
    config.progress_monitor = progress_monitor(trt, lambda share: progress("building", share))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(
            f"{library.flavour} {library.version} cannot build {source.path}: {last_error(messages)}",
            fix="edgekit build --plan lists known problems; a larger --workspace may help",
        )
    return bytes(engine), flags, timing and _save_timings(config, cache, timing)


_PARSER_FIX = "edgekit build --plan names what to change; for int8: edgekit quantize --target tensorrt"


def _parser_errors(library: Library, source: Bundle, parser: Parser) -> str:
    """Every error of the parser, with its node."""
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} {error.node_name()}".strip() or f"node {error.node()}"
        errors.append(f"{node}: {' '.join(error.desc().split())}")
    return f"{library.flavour} {library.version} cannot parse {source.path}: {'; '.join(errors)}"


def _add_profile(builder: Builder, network: Network, config: Config, source: Bundle, options: Options) -> None:
    """Add the optimisation profile of a network that accepts any batch size."""
    tensor, fixed = network.get_input(0), source.manifest.input.batch
    free = [axis for axis, size in enumerate(tensor.shape) if size < 0]
    if not free:
        if options.batch and options.batch != (tensor.shape[0],) * 3:
            raise BundleError(
                f"{source.path} has a fixed batch size of {tensor.shape[0]}, so --batch does not apply",
                fix="leave out --batch, or: edgekit export --format onnx --dynamic-batch",
            )
        return
    if free != [0] or fixed is not None:
        raise BundleError(
            f"{source.path} leaves axes {free} of its input free", fix="export it with a fixed image size"
        )
    if options.batch is None:
        raise BundleError(
            f"{source.path} accepts any batch size, but an engine requires a range",
            fix="pass smallest, usual and largest: --batch 1,8,32",
        )
    profile = builder.create_optimization_profile()
    shapes = [(size, *source.manifest.input.shape) for size in options.batch]
    profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def _configure(library: Library, config: Config, options: Options, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Apply the options; returns the names of the builder's flags that were set.

    Raises:
        DeviceError: this version does not support an option.
    """
    trt = library.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports types and formats
    # precision is a property of the graph: float32 is float32, not TensorFloat-32's 10 bits of mantissa
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = [
        name
        for name, wanted in (
            ("VERSION_COMPATIBLE", options.version_compatible),
            ("REFIT", options.refit and not options.strip_weights),
            ("STRIP_PLAN", options.strip_weights),
        )
        if wanted
    ]
    if library.flavour == "tensorrt-rtx" and options.version_compatible:
        raise DeviceError(
            "engines of TensorRT for RTX run only on the release that built them", fix="leave out --version-compatible"
        )
    for name in flags:
        if not hasattr(trt.BuilderFlag, name):
            raise DeviceError(
                f"{library.flavour} {library.version} cannot build {name.lower().replace('_', '-')} engines",
                fix="upgrade it, or leave out the option",
            )
        config.set_flag(getattr(trt.BuilderFlag, name))
    if options.hardware_compatible:
        if library.flavour == "tensorrt-rtx":
            raise DeviceError(
                "TensorRT for RTX builds only for the GPUs that are named",
                fix="leave out --hardware-compatible: --compute-capability 8.6,8.9",
            )
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if library.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
    return tuple(flags)


class _Timings(TypedDict, total=False):
    """Metadata of the timing cache: hashes of the content read and written; null if there was none."""

    reused_sha256: str | None
    kept_sha256: str | None


def _timing_cache_path(library: Library, targets: tuple[str, ...]) -> Path:
    """The timing cache of one version for one kind of GPU."""
    return cache_folder() / "timings" / f"{library.flavour}-{library.version}-{'-'.join(targets)}.cache"


def _reuse_timings(config: Config, path: Path) -> "_Timings":
    """Give the builder the timings of earlier builds; returns their metadata."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    cache = config.create_timing_cache(content)
    used = bool(content) and cache is not None and config.set_timing_cache(cache, False)
    if not used:
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return {"reused_sha256": sha256(path) if used else None}


def _save_timings(config: Config, path: Path, timing: "_Timings") -> "_Timings":
    """Save the timings for the next build; if they cannot be written, that build takes longer."""
    cache = config.get_timing_cache()
    content = bytes(cache.serialize()) if cache is not None else b""
    try:
        write_file(path, content)
    except EdgeKitError:
        return {**timing, "kept_sha256": None}
    return {**timing, "kept_sha256": sha256(path)}


def _run(source: Bundle, built: Bundle, progress: Progress) -> dict[str, object]:
    """Run a new engine on its GPU; returns the details for its manifest.

    Raises:
        ParityError: its answers differ from its ONNX file's, or depend on the place in a batch.
    """
    progress("checking", 0.0)
    with contextlib.closing(TrtSession(built, TrtOptions())) as session:
        golden = built.golden()
        allowed = _TOLERANCE[built.manifest.precision]
        scale = float(np.abs(golden.logits).max())
        spread = batch_spread(session.run, golden.tensors[:1], built.manifest.details["build"]["batch"])
        if not spread <= allowed * scale:
            raise ParityError(
                f"the engine's answer to an image depends on its place in the batch: logits differ by up to "
                f"{spread:.3g} (largest {scale:.3g})",
                fix="no engine was written; try another --opt-level or a fixed batch, and report it with this version",
            )
        progress("checking", 0.5)
        logits = session.run(golden.tensors)
        with contextlib.closing(open_session(source)) as reference:
            parity = compare(golden._replace(logits=reference.run(golden.tensors)), logits)
        if not parity.logits_max_abs <= allowed * parity.scale:  # also refuses NaN
            raise ParityError(
                f"the engine differs from the model it was built from: its logits differ from ONNX Runtime's by up to "
                f"{parity.logits_max_abs:.3g} (largest {parity.scale:.3g}), with the same top-1 on "
                f"{parity.top1_agreement:.0%} of the golden images",
                fix="no engine was written; try another --opt-level, and report the network with this version",
            )
        layers = parse_json(session.layers())
    return {
        "parity": asdict(replay(built, lambda _: logits)),
        "parity_onnxruntime": asdict(parity),
        "batch_spread": spread,
        "engine": summarize(layers),
    }


def batch_spread(run: Callable[[np.ndarray], np.ndarray], tensor: np.ndarray, batches: Sequence[int]) -> float:
    """The largest deviation of answers to an image, float32 [1, c, h, w], over all places in batches of these sizes."""
    rows = [run(np.repeat(tensor, size, axis=0)) for size in sorted(set(batches))]
    answers = np.concatenate(rows)
    return float(np.abs(answers - answers[:1]).max()) if np.isfinite(answers).all() else float("nan")
