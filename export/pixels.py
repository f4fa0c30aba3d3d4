"""An ONNX graph that takes uint8 pixels: the bundle's normalization, inside the graph."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ..deploy.bundle import Golden
from ..deploy.errors import ParityError
from ..deploy.parity import TENSOR_TOLERANCE
from ..deploy.preprocess import Preprocess, decode

# The names of the nodes and tensors start with this.
_PREFIX = "normalization/"
_LEVELS = 256


def pixels_of(preprocess: Preprocess) -> Preprocess:
    """The same preprocessing up to the uint8 pixels, for a network that normalizes them itself."""
    channels = len(preprocess.mean)
    return replace(preprocess, mean=(0.0,) * channels, std=(1.0,) * channels, dtype="uint8")


def golden_pixels(golden: Golden, preprocess: Preprocess) -> Golden:
    """The golden samples with their pixels, uint8 [n, c, h, w], in place of the normalized tensors.

    Raises:
        ParityError: the images decode to other pixels here than those that the recorded logits belong to.
    """
    images = [decode(image) for image in golden.images]
    if not np.abs(preprocess.batch(images) - golden.tensors).max() <= TENSOR_TOLERANCE:
        raise ParityError(
            "the golden images have other pixels here than where the network was trained or imported",
            fix="export there, or leave out --uint8-input",
        )
    return golden._replace(tensors=pixels_of(preprocess).batch(images))


def take_pixels(model: onnx.ModelProto, preprocess: Preprocess) -> None:
    """Put a normalization before a graph of float32 [n, c, h, w], in place: it then takes uint8 [n, c, h, w].

    The operators are the steps of Preprocess.normalize in their order, each rounded once as IEEE 754 requires. Folded
    into one product and one sum they would differ from it (by 4.8e-7), and be rounded to eight bits by `quantize`.

    Raises:
        ParityError: on some value of a pixel ONNX Runtime here computes other bits than Preprocess does.
    """
    _check_every_value(preprocess)
    graph = model.graph
    entry = graph.input[0]
    nodes, constants = _steps(preprocess, entry.name)
    for node in graph.node:
        node.input[:] = [nodes[-1].output[0] if name == entry.name else name for name in node.input]
    entry.type.tensor_type.elem_type = TensorProto.UINT8
    graph.initializer.extend(constants)
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _steps(preprocess: Preprocess, pixels: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """The nodes, whose last output is the normalized image, and their constants."""
    steps: list[tuple[str, str, np.ndarray]] = [("scale", "Div", np.asarray(_LEVELS - 1, np.float32))]
    if any(preprocess.mean):
        steps.append(("mean", "Sub", np.asarray(preprocess.mean, np.float32)[:, None, None]))
    if set(preprocess.std) != {1.0}:
        steps.append(("std", "Div", np.asarray(preprocess.std, np.float32)[:, None, None]))
    name = f"{_PREFIX}float"
    nodes = [helper.make_node("Cast", [pixels], [name], name, to=TensorProto.FLOAT)]
    constants = []
    for step, operator, values in steps:
        before, name, constant = name, f"{_PREFIX}{step}", f"{_PREFIX}{step}/value"
        nodes.append(helper.make_node(operator, [before, constant], [name], name))
        constants.append(numpy_helper.from_array(values, constant))
    return nodes, constants


def _check_every_value(preprocess: Preprocess) -> None:
    """Compare the graph's normalization with Preprocess.normalize for every value of every channel."""
    values = np.arange(_LEVELS, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(values).convert(preprocess.mode)
    expected = preprocess.normalize(picture)[None]
    nodes, constants = _steps(preprocess, "pixels")
    graph = helper.make_graph(
        nodes, "normalization",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, expected.shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, expected.shape)], constants,
    )  # fmt: skip
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = pixels_of(preprocess).normalize(picture)[None]
    computed = np.asarray(session.run(None, {"pixels": pixels})[0])
    if not np.array_equal(computed, expected):
        difference = float(np.abs(computed - expected).max())
        raise ParityError(
            f"ONNX Runtime normalizes pixels otherwise than EdgeKit here, by up to {difference:.3g}",
            fix="export without --uint8-input",
        )
