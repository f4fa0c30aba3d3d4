"""The contents of a bundle: manifest, operators, parameters, multiply-accumulates, sizes, lineage."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

from ..deploy.bundle import Bundle
from ..deploy.documents import plain
from ..deploy.engine.layers import SummaryEntry
from ..deploy.errors import BundleError
from .analysis.quantization_record import quantization_record

if TYPE_CHECKING:
    import onnx


class GraphFacts(TypedDict):
    """Facts that only an ONNX file provides; `macs` is null if a shape is unknown."""

    opset: int
    operators: dict[str, int]
    macs: int | None
    weight_bytes: dict[str, int]
    quantized_share: float


def inspect_bundle(bundle: Bundle) -> dict[str, object]:
    """Facts about a bundle, as plain values; those of the graph only for ONNX.

    Raises:
        BundleError: the graph, or what the manifest records of its quantization, is not valid.
    """
    manifest = bundle.manifest
    facts: dict[str, object] = {
        "id": bundle.id,
        "name": manifest.name,
        "format": manifest.format,
        "precision": manifest.precision,
        "input": [manifest.input.batch or "any", *manifest.input.shape],
        "labels": list(manifest.labels),
        "preprocess": plain(manifest.preprocess),
        "parameters": manifest.parameters,
        "size_bytes": bundle.size_bytes,
        "data": dict(manifest.data),
        "requires": dict(manifest.requires),
        "details": _without_ids(manifest.details),
        "tools": dict(manifest.tools),
        "lineage": [*map(dict, bundle.ancestry())],
        "files": {name: facts["sha256"] for name, facts in manifest.files.items()},
    }
    if manifest.format == "onnx":
        facts |= _graph(bundle)
    facts |= _quantization(bundle)
    if "engine" in manifest.details:
        facts["engine"] = engine_facts(manifest.details["engine"])
    return facts


def engine_facts(engine: SummaryEntry) -> dict[str, object]:
    """An engine's summary by deploy.engine.layers.summarize, with one line per layer."""
    layers = [f"{layer['precision']} {layer['type']} {layer['name']}" for layer in engine["layers"]]
    return {**engine, "layers": layers}


def _quantization(bundle: Bundle) -> dict[str, object]:
    """The search for float layers, and where the noise of the int8 model comes from, with one line each."""
    record, facts = quantization_record(bundle), dict[str, object]()
    if (search := record.get("mixed_precision")) is not None:
        facts["mixed_precision"] = {
            "points": [point["sentence"] for point in search["points"]], "reason": search["reason"],
        }  # fmt: skip
    if sources := record.get("sensitivity"):
        total = sum(entry["noise"] for entry in sources) or 1.0
        facts["sensitivity"] = [f"{entry['noise'] / total:6.1%} {entry['name']} {entry['kind']}" for entry in sources]
    return facts


def _without_ids(details: Mapping[str, object]) -> dict[str, object]:
    """The manifest's details, with lists of ids replaced by their length."""
    shown = {}
    for key, value in details.items():
        if key in ("engine", "mixed_precision", "sensitivity"):  # shown separately
            continue
        if isinstance(value, Mapping):
            value = _without_ids(value)
        shown[key] = f"{len(value)} ids" if key == "ids" and isinstance(value, list) else value
    return shown


def _graph(bundle: Bundle) -> GraphFacts:
    """Read the facts that only the ONNX file provides.

    Raises:
        BundleError: the file is not a valid model.
    """
    import onnx

    try:
        model = onnx.load(str(bundle.model_path))
        return _graph_facts(model, onnx.shape_inference.infer_shapes(model))
    except Exception as error:  # protobuf, the file system and shape inference raise different types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BundleError(f"{bundle.model_path} is not a valid ONNX model: {reason}", fix="export it again") from error


def _graph_facts(model: "onnx.ModelProto", inferred: "onnx.ModelProto") -> GraphFacts:
    from .quantize.prepare import opset_of
    from .quantize.verify import weight_bytes

    counts = Counter(node.op_type for node in model.graph.node)
    sizes = weight_bytes(model)
    total = sum(sizes.values())
    return {
        "opset": opset_of(model),
        "operators": dict(counts.most_common()),
        "macs": _macs(inferred),
        "weight_bytes": sizes,
        "quantized_share": (sizes.get("int8", 0) + sizes.get("uint8", 0)) / total if total else 0.0,
    }


def _macs(model: "onnx.ModelProto") -> int | None:
    """Multiply-accumulates of Conv, Gemm and MatMul, quantized or not, for one image; None if a shape is unknown."""
    from ..export.onnx_file import multiplications
    from .importing.precision import WEIGHTS

    graph = model.graph
    shapes = {
        entry.name: [dim.dim_value or 1 for dim in entry.type.tensor_type.shape.dim]
        for entry in (*graph.input, *graph.output, *graph.value_info)
    }
    shapes |= {entry.name: list(entry.dims) for entry in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in WEIGHTS:
            continue
        if len(node.input) <= WEIGHTS[node.op_type] or not node.output:
            return None
        output, weight = shapes.get(node.output[0]), shapes.get(node.input[WEIGHTS[node.op_type]])
        if not output or not weight:
            return None
        total += multiplications(node, output, weight)
    return total
