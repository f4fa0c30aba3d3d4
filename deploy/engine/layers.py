"""The actual contents of an engine: its layers, the type that each reads, and the copies between layouts."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

# The inspector's word for a type (in "Row major linear FP16 format", "Half" and the like) -> its name here.
_TYPES = {
    "int8": "int8", "fp8": "fp8", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "half": "fp16", "int32": "int32",
    "int64": "int64", "bool": "bool", "fp32": "fp32", "float": "fp32",
}  # fmt: skip

# A layer that reads int8 and a float32 bias computes in int8.
_NARROWEST_FIRST = ("int8", "fp8", "fp16", "bf16", "fp32")

_UNKNOWN = "unknown"
REFORMAT = "Reformat"

# A line of a builder's report: "Name: …, LayerType: …, Inputs: [ … ], …, Outputs: [ … ], TacticName: …".
_LINE = re.compile(r"^Name: (?P<name>.*), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\}\]")
_DATATYPE = re.compile(r"Datatype: (\w+)")


class Layer(NamedTuple):
    """A layer of an engine or a compiled model.

    Attributes:
        name: the runtime's name; TensorRT makes it of the ONNX nodes that became the layer.
        type: e.g. "CaskConvolution"; "Reformat" only copies from one layout or type to another.
        precision: it computes in this, e.g. "fp16", for TensorRT the narrowest type that it reads; "unknown" if that is
            not reported.
    """

    name: str
    type: str
    precision: str


class LayerEntry(TypedDict):
    """A layer of an engine or a compiled model."""

    name: str
    type: str
    precision: str


class SummaryEntry(TypedDict):
    """Layers of an engine or a compiled model, their number per precision, and the number that only reformat."""

    layers: list[LayerEntry]
    precisions: dict[str, int]
    reformats: int


class Summary(NamedTuple):
    """The output of `summarize`."""

    layers: tuple[Layer, ...]
    precisions: Mapping[str, int]
    reformats: int


def summarize(layers: Iterable[Layer]) -> SummaryEntry:
    """Convert to plain values: every layer, the number computing in each precision, the number that only reformat."""
    layers = list(layers)
    computing = Counter(layer.precision for layer in layers if layer.type != REFORMAT)
    return {
        "layers": [{"name": layer.name, "type": layer.type, "precision": layer.precision} for layer in layers],
        "precisions": dict(computing.most_common()),
        "reformats": sum(layer.type == REFORMAT for layer in layers),
    }


def parse_json(text: str) -> list[Layer]:
    """Read the layers from an engine inspector's JSON, of TensorRT 8 to 11.

    Raises:
        ValueError: the text is not such JSON.
    """
    document = json.loads(text)
    entries = document.get("Layers") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("the engine inspector's answer lists no layers")
    return [_layer(entry) for entry in entries]


def parse_text(text: str) -> list[Layer]:
    """Read the layers from a builder's log, which needs no GPU."""
    layers = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            types = {_type_name(word) for word in _DATATYPE.findall(match["inputs"])}
            layers.append(Layer(match["name"], match["type"], _narrowest(types)))
    return layers


def _layer(entry: object) -> Layer:
    if not isinstance(entry, Mapping):  # an engine built to report only names
        return Layer(str(entry), REFORMAT if str(entry).startswith("Reformatting") else _UNKNOWN, _UNKNOWN)
    types = {_type(tensor) for tensor in entry.get("Inputs", [])}
    weights = entry.get("Weights")
    if isinstance(weights, Mapping):
        types.add(_type_name(str(weights.get("Type", ""))))
    return Layer(str(entry.get("Name", "")), str(entry.get("LayerType", _UNKNOWN)), _narrowest(types))


def _type(tensor: object) -> str:
    """The type of a tensor: in "Format/Datatype" up to TensorRT 10, in "Datatype" from 11 on."""
    if isinstance(tensor, Mapping):
        for key in ("Datatype", "DataType", "Format/Datatype"):
            if key in tensor:
                return _type_name(str(tensor[key]))
    return _UNKNOWN


def _type_name(text: str) -> str:
    lowered = text.lower()
    return next((name for word, name in _TYPES.items() if word in lowered), _UNKNOWN)


def _narrowest(types: set[str]) -> str:
    return next((name for name in _NARROWEST_FIRST if name in types), min(types - {_UNKNOWN}, default=_UNKNOWN))
