"""Run an int8 graph with its integer layers computed here, and everything else by ONNX Runtime, node by node."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime

from ...deploy.files import scratch_folder
from ...export.onnx_file import reads
from .integer_layer import IntegerLayer, integer_layer
from .rewrites.graph import arrays

# Takes a layer and its columns; returns sums of products as IntegerLayer.sums does.
Sums = Callable[[IntegerLayer, np.ndarray], np.ndarray]


def exact(layer: IntegerLayer, columns: np.ndarray) -> np.ndarray:
    """Sums as the kernels for VNNI and ARM compute them: in 32 bits, exactly.

    vpdpbusd(s) adds four products to 32 bits at once (amd64/QgemmU8X8KernelAvx2.asm and QgemmU8S8KernelAvx512Vnni.asm
    in onnxruntime/core/mlas/lib), sdot and udot of ARM do the same (aarch64/QgemmS8S8KernelSdot.S,
    QgemmU8X8KernelUdot.S). Without them, ARM adds two int8 products in 16 bits, at most 2 * 128 * 127
    (aarch64/ConvSymS8KernelNeon.S), which does not overflow: no stored weight is -128.
    """
    return layer.sums(columns)


class IntegerRun:
    """An int8 graph with QuantizeLinear/DequantizeLinear nodes, ready to be run on tensors.

    Attributes:
        fused: the graph as ONNX Runtime runs it.
        layers: its layers that run on integers, in order.
    """

    def __init__(self, model: onnx.ModelProto, *, signed: bool) -> None:
        """Fuse the graph as ONNX Runtime does.

        Args:
            signed: int8 activations stay int8, as on ARM. On x86 they become uint8, and layers between which ONNX
                Runtime cannot convert them stay float (its option session.qdqisint8allowed).
        """
        self.fused = _fuse(model, signed)
        self._constants = arrays(self.fused.graph)
        found = ((node.name, integer_layer(node, self._constants)) for node in self.fused.graph.node)
        self._by_name = {name: layer for name, layer in found if layer is not None}
        self.layers = list(self._by_name.values())
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}

    def run(self, tensors: np.ndarray, sums: Sums = exact) -> np.ndarray:
        """The first output, [n, k] logits.

        Args:
            tensors: the input, [n, c, h, w].
            sums: computes the products of each layer.
        """
        graph = self.fused.graph
        values = {graph.input[0].name: tensors}
        for place, node in enumerate(graph.node):
            layer = self._by_name.get(node.name)
            if layer is not None:
                columns, shape = layer.columns(values[layer.source])
                # image by image: the columns of a large convolution take hundreds of megabytes
                parts = [sums(layer, columns[index : index + 1]) for index in range(len(columns))]
                values[layer.result] = layer.finish(np.concatenate(parts), shape)
            else:
                values |= self._run_node(place, node, values)
        return np.asarray(values[graph.output[0].name])

    def _run_node(self, place: int, node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        needed = [name for name in dict.fromkeys(reads(node)) if name in values]
        outputs = [name for name in node.output if name]
        if place not in self._sessions:
            self._sessions[place] = self._session(node, {name: values[name].dtype for name in needed})
        answers = self._sessions[place].run(outputs, {name: values[name] for name in needed})
        return dict(zip(outputs, map(np.asarray, answers), strict=True))

    def _session(self, node: onnx.NodeProto, types: Mapping[str, np.dtype]) -> onnxruntime.InferenceSession:
        """One node as a model, which computes what it does in the graph."""
        needed = set(reads(node))
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(kind), None)
            for name, kind in types.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        constants = [
            onnx.numpy_helper.from_array(self._constants[name], name) for name in needed & self._constants.keys()
        ]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "node", inputs, outputs, constants),
            opset_imports=self.fused.opset_import, ir_version=self.fused.ir_version,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _fuse(model: onnx.ModelProto, signed: bool) -> onnx.ModelProto:
    """The graph after ONNX Runtime's fusions, but before the changes of layout that depend on the machine."""
    with scratch_folder() as folder:
        path = folder / "fused.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.qdqisint8allowed", "1" if signed else "0")
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(path))
