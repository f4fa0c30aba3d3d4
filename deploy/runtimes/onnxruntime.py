"""ONNX Runtime, on the CPU or on another of its providers."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..engine.layers import REFORMAT, Layer, summarize
from ..errors import BundleError, DeviceError, RecipeError
from ..files import scratch_folder
from ..registry import choose
from ..session import in_batches_of
from .runtime import Package, Runtime, ThreadOptions

# As `--provider` names it -> ONNX Runtime's own name.
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "acl": "ACLExecutionProvider",
}

# The providers for CPUs that only a build from source has -> the option for the number of their own threads; None if
# they use ONNX Runtime's
_BUILT: dict[str, str | None] = {"xnnpack": "intra_op_num_threads", "dnnl": "num_of_threads", "acl": None}


@dataclass(frozen=True, kw_only=True)
class OrtOptions(ThreadOptions):
    """How ONNX Runtime loads a model.

    Attributes:
        provider: a key of PROVIDERS.
        allow_fallback: let the CPU run operators that another provider does not support.
        spinning: threads without work wait actively: faster, unless other processes need their cores.
    """

    provider: str = "cpu"
    allow_fallback: bool = False
    spinning: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(PROVIDERS, self.provider, "provider")
        if self.allow_fallback and self.provider == "cpu":
            raise RecipeError("--allow-fallback requires a provider other than cpu", fix="e.g. --provider cuda")


RUNTIME = Runtime(
    name="onnxruntime",
    formats={"onnx": ".onnxruntime:OrtSession"},
    packages=(
        Package(
            modules=("onnxruntime",),
            distributions=("onnxruntime", "onnxruntime-gpu"),
            purpose="running ONNX models",
        ),
    ),
    options=OrtOptions,
    reports=("placement", "layers"),
)

_CPU = PROVIDERS["cpu"]

# Preprocess.dtype -> ONNX Runtime's name of a tensor of it
_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}
# Type in a profile -> the precision of an operator that reads it first
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
# Operators that only change a layout or a type.
_REFORMATTING = ("Cast", "Transpose", "ReorderInput", "ReorderOutput")


class OrtSession:
    """An ONNX model on ONNX Runtime.

    Raises:
        BundleError: the model cannot be loaded.
        DeviceError: the provider is not available, or it leaves operators to the CPU.
    """

    def __init__(self, bundle: Bundle, wanted: OrtOptions) -> None:
        import onnxruntime

        _require_available(wanted)
        provider = PROVIDERS[wanted.provider]
        # on CPUs without float16 arithmetic, ONNX Runtime silently computes a float16 model in float32
        half = provider == _CPU and bundle.manifest.precision == "fp16"
        events: list[dict[str, Any]] = []
        if provider == _CPU and not half:
            self._open(bundle, wanted, provider, None)
        else:
            with scratch_folder() as folder:
                self._open(bundle, wanted, provider, folder / "profile")
                events = self._profile(bundle)
        placement = read_placement(events) if provider != _CPU else {}
        if not wanted.allow_fallback:
            _refuse_fallback(bundle, provider, placement)
        self.facts = {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "providers": self._session.get_providers(),
            "placement": {name: len(nodes) for name, nodes in placement.items()},
            "layers": summarize(read_layers(events)) if half else None,
            "threads": wanted.threads,
            "spinning": wanted.spinning,
            "graph_optimization": "all",
        }

    def _open(self, bundle: Bundle, wanted: OrtOptions, provider: str, profile: Path | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        if bundle.manifest.precision == "int8-weights":  # convert the weights once, instead of at every inference
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if wanted.threads is not None:
            options.intra_op_num_threads = wanted.threads
            options.inter_op_num_threads = 1
        if not wanted.spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:  # in all versions, a profile shows where each operator runs
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        # CUDA takes operators that TensorRT does not support, before the CPU does
        providers = (provider, PROVIDERS["cuda"], _CPU) if wanted.provider == "tensorrt" else (provider, _CPU)
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.model_path), options,
                providers=[(name, _settings(wanted) if name == provider else {}) for name in dict.fromkeys(providers)],
            )  # fmt: skip
        except Exception as error:  # its errors have no common class but Exception
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {bundle.model_path}: {reason_of(error)}",
                fix="upgrade onnxruntime, or export again with a lower --opset",
            ) from error
        inputs, dtype = self._session.get_inputs(), bundle.manifest.preprocess.dtype
        if [entry.type for entry in inputs] != [_TYPES[dtype]]:
            types = ", ".join(entry.type for entry in inputs) or "nothing"
            raise BundleError(
                f"{bundle.model_path} takes {types}, but its manifest says {dtype}", fix="import the model again"
            )
        self._input = inputs[0].name
        self._batch = bundle.manifest.input.batch

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] in the manifest's Preprocess.dtype -> float32 logits [n, k]."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: batch})[0], np.float32)

    def close(self) -> None:
        """Free the model."""
        del self._session

    def _profile(self, bundle: Bundle) -> list[dict[str, Any]]:
        """The events of a profile of one run, which ends profiling."""
        self._run(np.zeros((self._batch or 1, *bundle.manifest.input.shape), bundle.manifest.preprocess.dtype))
        return json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))


def _require_available(wanted: OrtOptions) -> None:
    """Refuse a provider that this ONNX Runtime lacks."""
    import onnxruntime

    provider, present = PROVIDERS[wanted.provider], onnxruntime.get_available_providers()
    if provider not in present:
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} here has no {provider}, only {', '.join(present)}",
            fix=f"leave out --provider, or build ONNX Runtime with --use_{wanted.provider}"
            if wanted.provider in _BUILT
            else "pip install onnxruntime-gpu in place of onnxruntime (on a Jetson: the wheel for its JetPack), or "
            "leave out --provider",
        )


def _settings(wanted: OrtOptions) -> dict[str, str]:
    """The provider's own options."""
    name = _BUILT.get(wanted.provider)
    return {name: str(wanted.threads)} if name and wanted.threads is not None else {}


def reason_of(error: Exception) -> str:
    """An error of ONNX Runtime in one line, without source files and function signatures."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?", "", text)
    return re.sub(r"^\S+\.(cc|h):\d+ .*\) (?=[A-Z])", "", text) or type(error).__name__


def read_placement(events: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Provider -> its nodes, from the events of ONNX Runtime's profiler."""
    placement: dict[str, dict[str, None]] = {}
    for name, facts in _nodes(events):
        placement.setdefault(facts["provider"], {})[f"{facts.get('op_name', '?')} {name}"] = None
    return {provider: list(nodes) for provider, nodes in placement.items()}


def read_layers(events: Iterable[Mapping[str, Any]]) -> list[Layer]:
    """The operators that ran, in the precision of the tensor that each reads first, from the profiler's events."""
    layers: dict[str, Layer] = {}
    for name, facts in _nodes(events):
        operator = str(facts.get("op_name", "?"))
        read = next((kind for entry in facts.get("input_type_shape", ()) for kind in entry), "")
        layers[name] = Layer(
            name, REFORMAT if operator in _REFORMATTING else operator, _PRECISIONS.get(read, "unknown")
        )
    return list(layers.values())


def _nodes(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, facts) of each run of a node."""
    for event in events:
        if event.get("cat") == "Node" and "provider" in (facts := event.get("args", {})):
            yield str(event.get("name", "")).removesuffix("_kernel_time"), facts


def _refuse_fallback(bundle: Bundle, provider: str, placement: Mapping[str, Sequence[str]]) -> None:
    """Refuse a session with operators on an unrequested provider; CPU sessions are not checked."""
    left = placement.get(_CPU, []) if provider != _CPU else []
    if not left:
        return
    total = sum(map(len, placement.values()))
    few = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
    raise DeviceError(
        f"{provider} leaves {len(left)} of {total} operators of {bundle.path} to the CPU: {few}",
        fix="pass --allow-fallback to measure it anyway, or check that the provider's libraries are installed",
    )
