"""Small .tflite files, written by LiteRT's own schema."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

# (channels, height, width), all different so that layouts cannot be taken for one another
IMAGE, CLASSES = (3, 4, 5), 10


class _Model:
    """One graph, tensor by tensor and operator by operator."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers, self.codes = [schema.BufferT()], []

    def tensor(self, shape: tuple[int, ...], kind: int, content: np.ndarray | None = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type, entry.buffer = f"t{len(self.graph.tensors)}", shape, kind, 0
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            entry.buffer = len(self.buffers)
            self.buffers.append(buffer)
        if kind == schema.TensorType.INT8:
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale, entry.quantization.zeroPoint = [0.1], [0]
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def operator(self, name: str, inputs: list[int], output: int) -> None:
        code, entry = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        entry.opcodeIndex, entry.inputs, entry.outputs = len(self.codes), inputs, [output]
        kind = {"FULLY_CONNECTED": "FullyConnectedOptions", "CUMSUM": "CumsumOptions"}.get(name, "ReshapeOptions")
        entry.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        entry.builtinOptions = getattr(schema, f"{kind}T")()
        self.codes.append(code)
        self.graph.operators.append(entry)

    def content(self, given: int, made: int) -> bytes:
        model = schema.ModelT()
        self.graph.inputs, self.graph.outputs = [given], [made]
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [self.graph], self.buffers, self.codes
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def linear(
    *, image: tuple[int, ...] = IMAGE, channels_last: bool = False, batch: int = 1, weights: np.ndarray | None = None,
    ends_in_cumsum: bool = False, only_cumsum: bool = False, quantized: bool = False,
) -> tuple[bytes, np.ndarray]:  # fmt: skip
    """A model that multiplies the values of an image, in the file's layout, by a matrix.

    Args:
        image: (channels, height, width), or a part of that; () for a number instead of images.
        weights: float32 [classes, values]; drawn where None.
        ends_in_cumsum: its logits are sums of the product's first ones; XNNPACK has no such operator.
        only_cumsum: it has no other operator, and returns an image.
        quantized: it takes and returns int8, and only reshapes.

    Returns:
        The file's content, and the weights.
    """
    model, kinds = _Model(), schema.TensorType
    float32, values = kinds.FLOAT32, int(np.prod(image))
    kind = kinds.INT8 if quantized else float32
    shape = (batch, *image[1:], image[0]) if channels_last else (batch, *image) if image else ()
    if weights is None:
        weights = np.random.default_rng(1).normal(size=(CLASSES, values)).astype(np.float32)
    given = model.tensor(shape, kind)
    axis = model.tensor((), kinds.INT32, np.array(1, np.int32))
    if only_cumsum:
        made = model.tensor(shape, float32)
        model.operator("CUMSUM", [given, axis], made)
        return model.content(given, made), weights
    flat = model.tensor((batch, values), kind)
    model.operator("RESHAPE", [given, model.tensor((2,), kinds.INT32, np.array([batch, values], np.int32))], flat)
    if quantized:
        return model.content(given, flat), weights
    made = model.tensor((batch, len(weights)), float32)
    model.operator("FULLY_CONNECTED", [flat, model.tensor(weights.shape, float32, weights), -1], made)
    if ends_in_cumsum:
        product, made = made, model.tensor((batch, len(weights)), float32)
        model.operator("CUMSUM", [product, axis], made)
    return model.content(given, made), weights
