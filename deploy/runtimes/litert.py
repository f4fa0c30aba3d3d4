"""LiteRT (formerly TensorFlow Lite) on the CPU, with XNNPACK."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, DeviceError
from ..session import in_batches_of
from .runtime import Package, Runtime, ThreadOptions

RUNTIME = Runtime(
    name="litert",
    formats={"litert": ".litert:LiteRtSession"},
    packages=(
        Package(
            modules=("ai_edge_litert",), distributions=("ai-edge-litert",), purpose="running LiteRT models (.tflite)",
            extra="litert",
        ),
    ),
    reports=("placement",),
)  # fmt: skip

# LiteRT's name for a node that replaces the operators of a delegate.
_DELEGATE = "DELEGATE"
_XNNPACK, _BUILT_IN = "XNNPACK", "built-in kernels"
# Characters of a reason that are shown.
_REASON = 300


class Interpreter:
    """A .tflite model in LiteRT's interpreter, with one input and one output.

    The model's input may be [n, c, h, w] or [n, h, w, c]; its shape tells which.

    Args:
        xnnpack: apply XNNPACK, the only delegate that LiteRT applies by default; otherwise its built-in kernels run.
        keep_tensors: do not reuse the memory of activations, so that all of them can be read after a run.

    Attributes:
        operators: those of the file, and one "DELEGATE" for each part of the graph that XNNPACK runs.
        tensors: name, index, shape and dtype of each tensor.
        input, output: indices of tensors.

    Raises:
        BundleError: the model cannot be loaded, or its input or output differs from the manifest.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, *, xnnpack: bool = True, keep_tensors: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        resolver: dict[str, Any] = {} if xnnpack else {"experimental_op_resolver_type": without}
        try:
            with warnings.catch_warnings():  # of the memory that keeping all tensors takes
                warnings.simplefilter("ignore", UserWarning)
                self._interpreter = Interpreter(
                    model_path=str(bundle.model_path), num_threads=threads, **resolver,
                    experimental_preserve_all_tensors=keep_tensors,
                )  # fmt: skip
            self._interpreter.allocate_tensors()
            # private, but the only source for what the delegate runs; tests/deploy/test_litert.py covers it
            self.operators: Sequence[Mapping[str, Any]] = self._interpreter._get_ops_details()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            self.tensors: Sequence[Mapping[str, Any]] = self._interpreter.get_tensor_details()
        except (ValueError, RuntimeError) as error:
            raise BundleError(
                f"LiteRT {version('ai-edge-litert')} cannot load {bundle.model_path}: {reason_of(error)}",
                fix="export the model again",
            ) from error
        self._channels_last = _check_tensors(inputs, outputs, bundle)
        self._batch = int(inputs[0]["shape"][0])
        self.input, self.output = int(inputs[0]["index"]), int(outputs[0]["index"])

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[n, c, h, w] float32 -> float32 logits [n, k]; the batch size of each call is the model's own."""
        return in_batches_of(self._batch, batch, self._run)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self.input, batch.transpose(0, 2, 3, 1) if self._channels_last else batch)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self.output)

    def value(self, index: int) -> np.ndarray:
        """A copy of a tensor after a run, by its index; of an activation only with `keep_tensors`."""
        return self._interpreter.get_tensor(index)


class LiteRtSession:
    """A .tflite model on XNNPACK.

    Operators that XNNPACK does not support run on LiteRT's built-in kernels; `facts["placement"]` counts both.

    Raises:
        BundleError: the model cannot be loaded, or its input or output differs from the manifest.
        DeviceError: XNNPACK runs none of its operators, so LiteRT would run all of them on its slower kernels.
    """

    def __init__(self, bundle: Bundle, options: ThreadOptions) -> None:
        threads = options.threads or 1  # LiteRT's default
        self._interpreter = Interpreter(bundle, threads)
        placement = read_placement(self._interpreter.operators)
        name = version("ai-edge-litert")
        if _XNNPACK not in placement:
            raise DeviceError(
                f"XNNPACK runs none of the {placement.total()} operators of {bundle.path}: LiteRT {name} would run "
                "them on its slow built-in kernels",
                fix="export the network to ONNX, or reinstall LiteRT: pip install --force-reinstall ai-edge-litert",
            )
        self.run = self._interpreter.run
        self.facts = {"runtime": "litert", "version": name, "threads": threads, "placement": dict(placement)}

    def close(self) -> None:
        """Free the model."""
        del self.run, self._interpreter


def _check_tensors(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], bundle: Bundle) -> bool:
    """Refuse a model whose input is not the manifest's; returns whether its channels come last.

    Raises:
        BundleError: the number, shape or type of the inputs or outputs differs.
    """
    batch, (channels, height, width) = bundle.manifest.input.batch, bundle.manifest.input.shape
    if [entry["dtype"] for entry in (*inputs, *outputs)] == [np.float32, np.float32] and len(inputs) == 1:
        shape = tuple(int(size) for size in inputs[0]["shape"])
        if shape[:1] >= (1,) and batch in (None, *shape[:1]):
            if shape[1:] == (channels, height, width):
                return False
            if shape[1:] == (height, width, channels):
                return True
    found = [_described(entry) for entry in (*inputs, *outputs)]
    raise BundleError(
        f"{bundle.model_path} takes {', '.join(found[: len(inputs)]) or 'nothing'} and returns "
        f"{', '.join(found[len(inputs) :]) or 'nothing'}; its manifest says float32 "
        f"[{'n' if batch is None else batch}, {channels}, {height}, {width}], and a classifier returns float32 logits",
        fix="export the model again",
    )


def _described(entry: Mapping[str, Any]) -> str:
    return f"{np.dtype(entry['dtype']).name} [{', '.join(str(size) for size in entry['shape'])}]"


def read_placement(operators: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many operators XNNPACK and LiteRT's built-in kernels run; zeros are omitted.

    Args:
        operators: see Interpreter.
    """
    operators = list(operators)
    built_in = len(built_in_operators(operators))
    own = sum(operator["op_name"] != _DELEGATE for operator in operators)
    return Counter({place: count for place, count in ((_XNNPACK, own - built_in), (_BUILT_IN, built_in)) if count})


def built_in_operators(operators: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the operators that LiteRT's built-in kernels run, one for each operator.

    A "DELEGATE" has the inputs and outputs of its part of the graph; walking back from its outputs to its inputs visits
    the operators inside.

    Args:
        operators: see Interpreter.
    """
    operators = list(operators)
    own = [operator for operator in operators if operator["op_name"] != _DELEGATE]
    makers = {int(tensor): operator for operator in own for tensor in operator["outputs"]}
    taken: set[int] = set()
    for part in operators:
        if part["op_name"] != _DELEGATE:
            continue
        ends, waiting = {int(tensor) for tensor in part["inputs"]}, [int(tensor) for tensor in part["outputs"]]
        while waiting:
            tensor = waiting.pop()
            maker = makers.get(tensor)
            if tensor not in ends and maker is not None and maker["index"] not in taken:
                taken.add(maker["index"])
                waiting += [int(each) for each in maker["inputs"]]
    return [str(operator["op_name"]) for operator in own if operator["index"] not in taken]


def reason_of(error: Exception) -> str:
    """LiteRT's message in one line, without its source file names."""
    words = " ".join(str(error).split()).split(" ")
    return " ".join(word for word in words if ".cc:" not in word)[:_REASON] or type(error).__name__
