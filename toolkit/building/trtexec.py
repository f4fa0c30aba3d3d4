"""The trtexec command lines equivalent to `edgekit build`, for three generations of TensorRT."""

import shlex

from ...deploy.bundle import Bundle
from ...deploy.engine.build import Options

# Release -> its version. Before 10, networks are weakly typed, and flags allow the types in the graph. 10 has an option
# for strong typing; 11 always uses it and dropped the flags.
RELEASES: dict[str, tuple[int, int]] = {"8.6": (8, 6), "10.x": (10, 3), "11.x": (11, 0)}


def command_lines(bundle: Bundle, options: Options, input_name: str) -> dict[str, str]:
    """Release -> its command line, or a sentence about an option that it does not support."""
    return {release: _command_line(bundle, options, input_name, version) for release, version in RELEASES.items()}


def _command_line(bundle: Bundle, options: Options, input_name: str, version: tuple[int, int]) -> str:
    if options.compute_capabilities:
        return "builds for the local GPU only: --compute-capability requires TensorRT for RTX"
    if options.strip_weights and version < (10, 0):
        return "cannot build engines without weights: leave out --strip-weights"
    arguments = ["trtexec", f"--onnx={bundle.model_path}", "--saveEngine=model.engine", "--noTF32"]
    if version < (10, 0):
        arguments += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8"]}[bundle.manifest.precision]
    elif version < (11, 0):
        arguments.append("--stronglyTyped")
    if options.batch:
        shape = "x".join(map(str, bundle.manifest.input.shape))
        names = ("minShapes", "optShapes", "maxShapes")
        arguments += [f"--{name}={input_name}:{size}x{shape}" for name, size in zip(names, options.batch, strict=True)]
    if options.workspace_mb is not None:
        arguments.append(f"--memPoolSize=workspace:{options.workspace_mb}")
    if options.optimization_level is not None:
        arguments.append(f"--builderOptimizationLevel={options.optimization_level}")
    flags = {
        "--versionCompatible": options.version_compatible,
        "--hardwareCompatibilityLevel=ampere+": options.hardware_compatible,
        "--refit": options.refit and not options.strip_weights,
        "--stripWeights": options.strip_weights,
    }
    arguments += [flag for flag, enabled in flags.items() if enabled]
    return shlex.join([*arguments, "--timingCacheFile=timing.cache"])
