"""ncnn, on the CPU. Its models are a text file of layers (.param) with the weights beside it (.bin)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..bundle import Bundle
from ..engine.layers import Layer, summarize
from ..environment import allowed_cores, cpu_flags
from ..errors import BundleError, DeviceError
from ..session import in_batches_of
from .runtime import Package, Runtime, ThreadOptions


@dataclass(frozen=True, kw_only=True)
class NcnnOptions(ThreadOptions):
    """How ncnn loads a model.

    Attributes:
        threads: see ThreadOptions. ncnn's own choice ignores the process's cores, so that None is at most those.
        precision: of the layers that have it on this CPU; where no layer with weights has it, the model is refused.
    """

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"


RUNTIME = Runtime(
    name="ncnn",
    formats={"ncnn": ".ncnn:NcnnSession"},
    packages=(
        Package(modules=("ncnn",), distributions=("ncnn",), purpose="running ncnn models on the CPU", extra="ncnn"),
    ),
    options=NcnnOptions,
    reports=("layers",),
)

# Layers with weights, or that multiply matrices: they take nearly all the time, and show whether a precision is used.
_COMPUTE = re.compile(r"(De)?[Cc]onvolution(DepthWise)?|InnerProduct|Gemm|MatMul|MultiHeadAttention|SDPA")
# Layers that compute nothing.
_STILL = ("Input", "Split")
# CPU flags of Linux for multiplying bf16. Without them ncnn stores values in bf16 and computes in fp32.
_BF16 = {"avx512_bf16", "bf16"}

# The text of a .param file: a magic number, the numbers of layers and blobs, and a line per layer.
_MAGIC = "7767517"
_MAX_PARAM_BYTES = 16 << 20
# KEY=NUMBER, an array -233KEY=LENGTH,NUMBER,..., or an expression of sizes in quotes
_NUMBER = r"-?\d{1,10}(?:\.\d{1,10}(?:[eE][-+]?\d{1,2})?)?"
_PARAMETER = re.compile(
    rf'(\d{{1,2}})=({_NUMBER})|-233\d\d=\d+(?:,{_NUMBER})*|\d{{1,2}}="[\w,()+*/-]{{1,200}}"', re.ASCII
)
# Layers whose output grows with a padding or an output size, which ncnn allocates unchecked.
_GROWING = re.compile(r"(De)?[Cc]onvolution|Pooling|Padding|Interp")
# Of these, the parameters that count weights or channels, and the largest of the others.
_COUNTS, _MAX_SIZE = ("0", "6", "7"), 1024


class NcnnSession:
    """A model on ncnn, which has no batch dimension: images run one by one.

    Raises:
        BundleError: the model cannot be loaded.
        DeviceError: this CPU does not run the precision.
    """

    def __init__(self, bundle: Bundle, options: NcnnOptions) -> None:
        ncnn = library()
        if not multiplies(options.precision):
            raise DeviceError(
                f"this CPU does not multiply {options.precision}, or ncnn does not know that it does: it would compute "
                f"in fp32, some of it from values stored in {options.precision}",
                fix="leave out precision, or pass precision=fp32",
            )
        path = bundle.model_path
        check_model(path)
        if bundle.manifest.preprocess.dtype != "float32":
            raise BundleError(f"{path} takes float32 images only", fix="export the model again")
        self._net = ncnn.Net()
        _set(self._net.opt, options)
        for load, file in ((self._net.load_param, path), (self._net.load_model, path.with_suffix(".bin"))):
            if load(str(file)) != 0:
                raise BundleError(f"ncnn {ncnn.__version__} cannot load {file}", fix="export the model again")
        inputs, outputs = self._net.input_indexes(), self._net.output_indexes()
        if (len(inputs), len(outputs)) != (1, 1):
            raise BundleError(
                f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; a classifier has one of each",
                fix="export the model again",
            )
        self._input, self._output, self._tensor = inputs[0], outputs[0], ncnn.Mat
        layers = [read_layer(layer, options.precision) for layer in self._net.layers() if layer.type not in _STILL]
        check_precision(options.precision, layers)
        self.facts = {
            "runtime": "ncnn", "version": ncnn.__version__, "threads": int(self._net.opt.num_threads),
            "precision": options.precision, "layers": summarize(layers),
        }  # fmt: skip

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, c, h, w] -> float32 logits [n, k]."""
        return in_batches_of(1, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        extractor = self._net.create_extractor()
        # a copy, since ncnn crashes in a first layer that works in place on memory that is not its own
        extractor.input(self._input, self._tensor(np.ascontiguousarray(batch[0])).clone())
        code, logits = extractor.extract(self._output)
        if code != 0:
            raise BundleError(f"ncnn fails to run the model (code {code})", fix="export the model again")
        return np.array(logits, np.float32).reshape(1, -1)

    def close(self) -> None:
        """Free the model."""
        self._net.clear()


def library() -> Any:
    """The package, which has no type stubs."""
    import ncnn

    return ncnn


def _set(settings: Any, options: NcnnOptions) -> None:
    """Set an ncnn.Option, before anything is loaded; fp16 is its default."""
    settings.num_threads = options.threads or min(settings.num_threads, allowed_cores())
    settings.use_vulkan_compute = False
    settings.use_fp16_packed = settings.use_fp16_storage = settings.use_fp16_arithmetic = options.precision == "fp16"
    settings.use_bf16_packed = settings.use_bf16_storage = options.precision == "bf16"


def multiplies(precision: str) -> bool:
    """Whether this CPU multiplies values of the precision, in kernels that ncnn has; fp16 only on ARM."""
    if precision == "fp16":
        return bool(library().cpu_support_arm_asimdhp())
    return precision == "fp32" or bool(_BF16 & cpu_flags())


def read_layer(layer: Any, precision: str) -> Layer:
    """A layer of a loaded net (ncnn.Layer), with the precision of the values that it reads and writes.

    Where the CPU multiplies the precision, ncnn hands 16-bit values to the layers that declare it (src/net.cpp,
    convert_layout), and float32 to the others.
    """
    supported = {"fp16": layer.support_fp16_storage, "bf16": layer.support_bf16_storage}
    return Layer(layer.name, layer.type, precision if supported.get(precision) else "fp32")


def check_precision(precision: str, layers: Iterable[Layer]) -> None:
    """Refuse a net of which no layer with weights computes in the precision.

    Raises:
        DeviceError: it does not.
    """
    used = {layer.precision for layer in layers if _COMPUTE.fullmatch(layer.type)}
    if precision != "fp32" and precision not in used:
        raise DeviceError(
            f"ncnn computes in fp32 here, not in {precision}, which no layer with weights has on this CPU",
            fix="leave out precision, or pass precision=fp32",
        )


def check_model(path: Path) -> None:
    """Check a .param file and that its weights (.bin) exist, before ncnn reads them: it crashes on some damaged files.

    Weights that do not fit the layers are not noticed.

    Raises:
        BundleError: a file is missing or damaged, or holds unknown layers or sizes that are far too large.
    """
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise BundleError(f"{file} is missing", fix="export the model again")
    try:
        layers = read_layers(path)
        if unknown := unknown_layers(layers):
            raise ValueError(f"ncnn has no layer {unknown}")
        for kind, parameters in layers:
            _check_parameters(kind, parameters)
    except ValueError as error:
        raise BundleError(f"{path} is not a model that ncnn runs: {error}", fix="export the model again") from error


def read_layers(path: Path) -> list[tuple[str, list[str]]]:
    """The layers of a .param file: type, and parameters as KEY=VALUE.

    Raises:
        ValueError: it is none, or too large.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_PARAM_BYTES + 1)
    if len(content) > _MAX_PARAM_BYTES:
        raise ValueError(f"over {_MAX_PARAM_BYTES} bytes")
    magic, counts, *lines = [line.split() for line in content.decode("ascii").splitlines()] or [[]] * 2
    if magic != [_MAGIC] or len(counts) != 2 or counts[0] != str(len(lines)):
        raise ValueError("its first lines do not count its layers")
    return [_layer(words) for words in lines]


def unknown_layers(layers: Iterable[tuple[str, list[str]]]) -> str:
    """The types of layers that ncnn does not have, as text; "" for none."""
    return ", ".join(sorted({kind[:80] for kind, _ in layers if library().layer_to_index(kind) < 0}))


def _layer(words: list[str]) -> tuple[str, list[str]]:
    """A line: type, name, number of inputs and of outputs, their names, parameters."""
    if len(words) < 4 or not (words[2].isdecimal() and words[3].isdecimal()):
        raise ValueError(f"no layer: {' '.join(words)[:80]!r}")
    return words[0], words[4 + int(words[2]) + int(words[3]) :]


def _check_parameters(kind: str, parameters: list[str]) -> None:
    for text in parameters:
        match = _PARAMETER.fullmatch(text)
        if match is None:
            raise ValueError(f"{kind} has the parameter {text[:80]!r}")
        key, number = match.groups()
        sized = number and _GROWING.match(kind) and (key not in _COUNTS or kind == "Padding")
        if sized and abs(float(number)) > _MAX_SIZE:
            raise ValueError(f"{kind} has a size over {_MAX_SIZE}: {text}")
