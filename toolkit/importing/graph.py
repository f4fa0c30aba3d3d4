"""Check and sort ONNX files of other tools, and adapt them to take images and return logits."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...deploy.errors import BundleError, EdgeKitError, ParityError
from ...deploy.manifest import TensorSpec
from ...deploy.onnx_data import external_files
from ...deploy.parity import FLOAT_TOLERANCE
from ...deploy.session import in_batches_of
from ...export.onnx_file import sort_nodes, to_bytes
from .edit import cut, inferred, prepend, type_name
from .ending import Ending, end_in_logits
from .files import is_lfs_pointer
from .precision import parameters_of, precision_of
from .written import Written

# Allowed difference between a changed graph's answers and the original's, as a share of the largest answer; the same as
# for engines (deploy.engine).
_TOLERANCE = {"fp32": FLOAT_TOLERANCE, "fp16": 0.02, "int8": 0.2}

# Domains of ONNX's own operators; ONNX Runtime's are com.microsoft and below.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

# The IR version that the oldest supported ONNX Runtime, 1.20, reads.
_IR_VERSION = 10

# Type of the input -> Preprocess.dtype; float16 gets a cast.
_INPUTS: dict[int, Literal["float32", "uint8"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float32",
    TensorProto.UINT8: "uint8",
}


def input_dtype(path: Path) -> Literal["float32", "uint8"]:
    """Preprocess.dtype of an ONNX file's first input; float32 if it is not known yet."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # copy_onnx reports the error
        return "float32"
    inputs = _inputs(model)
    return _INPUTS.get(inputs[0].type.tensor_type.elem_type, "float32") if inputs else "float32"


def copy_onnx(path: Path, out: Path, spec: TensorSpec) -> Written:
    """Write an ONNX file with one [n, c, h, w] input of float32 or uint8 pixels, and one output of float32 logits.

    External weights are embedded and nodes are sorted. Channels-last input and float16 input or output are converted,
    and a final Softmax is removed; `Written.changes` lists these changes.

    Raises:
        BundleError: the file is not such a classifier, or not valid ONNX.
    """
    model = _load(path)
    lowered = _lower_ir_version(model, path)
    original = model.SerializeToString()
    entry = _image_input(model, path)
    kind = entry.type.tensor_type.elem_type
    shape = [side.dim_value or None for side in entry.type.tensor_type.shape.dim]
    _refuse_foreign_operators(model, path)
    _check(model, path)
    try:
        precision = precision_of(model)
    except EdgeKitError as error:
        raise BundleError(f"{path}: {error}", fix=error.fix) from error
    changes: list[str] = []
    channels_last = False
    if _fits([shape[axis] for axis in (1, 2, 3)], spec):
        pass
    elif _fits([shape[axis] for axis in (3, 1, 2)], spec):
        channels_last = True
        _transpose(model, entry, spec)
        changes.append("it takes channels last: a Transpose was added before it")
    else:
        raise BundleError(f"{path} takes {shape}, but --input is {list(spec.shape)}", fix=_input_fix(shape))
    if kind == TensorProto.FLOAT16:
        _cast_input(model, entry)
        changes.append("its input is float16: a Cast was added before it")
    ending = end_in_logits(model, path)
    changes += ending.changes
    out.write_bytes(_checked(model, path))

    def check(tensors: np.ndarray, logits: np.ndarray) -> None:
        inputs = tensors.astype(np.float16) if kind == TensorProto.FLOAT16 else tensors
        inputs = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)) if channels_last else inputs
        _compare(in_batches_of(shape[0], inputs, _runner(original)), logits, ending, _TOLERANCE[precision])

    return Written(
        shape[0], parameters_of(model), precision, _INPUTS[kind], [*lowered, *changes], check if changes else None
    )


def _check(model: onnx.ModelProto, path: Path) -> None:
    """Sort the nodes, and check that each has the inputs and attributes that its operator requires.

    Raises:
        BundleError: a node does not, or the graph has a cycle.
    """
    try:
        sort_nodes(model.graph)
        if not model.graph.output[0].type.tensor_type.HasField("shape"):
            _infer_output(model)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, EdgeKitError) as error:  # a name may not be UTF-8
        raise BundleError(
            f"{path}: the graph is not valid ONNX: {_first_line(error)}", fix="export it again, with a current exporter"
        ) from error


def _checked(model: onnx.ModelProto, path: Path) -> bytes:
    """The file's content; missing or wrong shapes, which runtimes ignore, are inferred.

    Raises:
        BundleError: the model is not valid ONNX.
    """
    try:
        return to_bytes(model)
    except EdgeKitError:
        _infer_output(model)
    try:
        return to_bytes(model)
    except EdgeKitError as error:
        raise BundleError(f"{path}: {error}", fix="export it again, with a current exporter") from error


def _infer_output(model: onnx.ModelProto) -> None:
    """Drop the recorded shapes, and record the output's inferred shape, or any [n, k] if it is unknown."""
    del model.graph.value_info[:]
    output = model.graph.output[0].type.tensor_type
    output.ClearField("shape")
    inferred_type = inferred(model).graph.output[0].type.tensor_type
    unknown = [onnx.TensorShapeProto.Dimension()] * 2
    output.shape.dim.extend(inferred_type.shape.dim if inferred_type.HasField("shape") else unknown)


def _load(path: Path) -> onnx.ModelProto:
    """The model with its external weights.

    Raises:
        BundleError: the file is not ONNX, or a file with its weights is missing or outside its folder.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        locations = sorted(external_files(path))
    except Exception as error:  # protobuf and the file system raise different types
        raise BundleError(f"{path} is not a valid ONNX model: {_first_line(error)}", fix="export it again") from error
    for location in locations:
        pure = PurePosixPath(location)
        if pure.is_absolute() or ".." in pure.parts or "\\" in location:
            raise BundleError(
                f"{path} reads weights from outside its folder: {location[:200]!r}", fix="do not use this file"
            )
        data = path.parent / location
        if not data.is_file():
            raise BundleError(f"{path} has its weights in {location}, which is missing", fix=f"put it at {data}")
        if is_lfs_pointer(data):
            raise BundleError(f"{data} is a Git LFS pointer, not the weights themselves", fix="git lfs pull")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # as above
        raise BundleError(
            f"{path}: its weights cannot be read: {_first_line(error)}",
            fix="get all of its files again, from one export",
        ) from error
    return model


def _lower_ir_version(model: onnx.ModelProto, path: Path) -> list[str]:
    """Lower the IR version for older runtimes: exporters record the newest one, which few graphs need.

    Raises:
        BundleError: this onnx package does not support the file's version.
    """
    version = model.ir_version
    if version > onnx.IR_VERSION:
        raise BundleError(
            f"{path} has IR version {version}; onnx {onnx.__version__} supports up to {onnx.IR_VERSION}",
            fix="pip install --upgrade onnx onnxruntime",
        )
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    if version <= max(needed, _IR_VERSION):
        return []
    model.ir_version = max(needed, _IR_VERSION)
    return [f"its IR version {version} was lowered to {model.ir_version}, which suffices for its operators"]


def _refuse_foreign_operators(model: onnx.ModelProto, path: Path) -> None:
    """Refuse operators that are neither ONNX's own, nor ONNX Runtime's, nor functions of the file itself."""
    known = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if not isinstance(node.domain, str) or not isinstance(node.op_type, str):  # protobuf gives bytes
            raise BundleError(f"{path} is not a valid ONNX model: a name is not UTF-8", fix="export it again")
        if node.domain in _DOMAINS or node.domain.startswith("com.microsoft") or (node.domain, node.op_type) in known:
            continue
        raise BundleError(
            f"{path} has the operator {node.domain}:{node.op_type}, which ONNX Runtime does not support",
            fix="export it with ONNX's own operators (a quantized one with QuantizeLinear and DequantizeLinear)",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs except weights, which exporters before IR version 4 list too."""
    initializers = {entry.name for entry in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in initializers]


def _image_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """The graph's only input.

    Raises:
        BundleError: the graph does not have one input and one output, or the input is not an image.
    """
    inputs, outputs = _inputs(model), list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        named = ", ".join(f"{entry.name} {_shape_text(entry)}" for entry in (*inputs, *outputs))
        command = cut(path, inputs[0].name if inputs else "INPUT", outputs[0].name if outputs else "OUTPUT")
        raise BundleError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs ({named}); a classifier has one of each",
            fix=f"keep the image and the class scores: {command}",
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _INPUTS or len(tensor.shape.dim) != 4:
        raise BundleError(
            f"{path} takes {_shape_text(inputs[0])}",
            fix="export it to take float32 (or float16, uint8) images: [n, channels, height, width]",
        )
    return inputs[0]


def _shape_text(entry: onnx.ValueInfoProto) -> str:
    tensor = entry.type.tensor_type
    sides = ", ".join(str(side.dim_value or side.dim_param or "any") for side in tensor.shape.dim)
    return f"{type_name(tensor.elem_type)} [{sides}]"


def _fits(shape: list[int | None], spec: TensorSpec) -> bool:
    return all(side in (None, expected) for side, expected in zip(shape, spec.shape, strict=True))


def _input_fix(shape: list[int | None]) -> str:
    for order in ((1, 2, 3), (3, 1, 2)):
        sides = [shape[axis] for axis in order]
        if sides[0] in (1, 3):
            return f"pass --input {'x'.join(str(side or 'ANY') for side in sides)}"
    return "EdgeKit takes images of 1 channel (grey) or 3 (RGB)"


def _transpose(model: onnx.ModelProto, entry: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    """Change the graph's input from [n, h, w, c] to [n, c, h, w]."""
    prepend(model, entry.name, "Transpose", perm=[0, 2, 3, 1])
    for side, size in zip(entry.type.tensor_type.shape.dim[1:], spec.shape, strict=True):
        side.dim_value = size


def _cast_input(model: onnx.ModelProto, entry: onnx.ValueInfoProto) -> None:
    """Change the graph's input from float16 to float32."""
    prepend(model, entry.name, "Cast", to=TensorProto.FLOAT16)
    entry.type.tensor_type.elem_type = TensorProto.FLOAT


def _runner(model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs the user's graph without optimisations: they may differ from those of the changed graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _compare(expected: np.ndarray, logits: np.ndarray, ending: Ending, tolerance: float) -> None:
    """Refuse a changed graph that is not equivalent to the user's.

    Raises:
        ParityError: its answers differ from the original's.
    """
    expected = expected.reshape(len(expected), -1).astype(np.float32)
    answers = np.minimum(ending.activation(logits), ending.ceiling)
    same = answers.shape == expected.shape and np.isfinite(expected).all()
    difference = float(np.abs(answers - expected).max()) if same else float("nan")
    if not difference <= tolerance * max(float(np.abs(expected).max()), 1e-3):
        raise ParityError(
            f"after the changes ({'; '.join(ending.changes)}) the model's answers differ by up to {difference:.3g}",
            fix="export it with float32 [n, channels, height, width] input and logits as output",
        )
