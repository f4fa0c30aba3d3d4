"""Manifests: descriptions of bundles, read strictly from manifest.json."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .documents import DocumentError, parse, read, within
from .engine.layers import Summary
from .errors import BundleError, RecipeError
from .preprocess import Preprocess

SCHEMA = 3
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

# Readable schemas: 1 lacks the checksums of the golden samples' pixels, 2 preprocess.dtype.
_READABLE = (1, 2, SCHEMA)

# A manifest has a few kilobytes, or a hundred with an engine's layers; anything much larger is not a manifest.
MAX_MANIFEST_BYTES = 16 << 20

# An input of 4096 x 4096 takes 200 MB as float32 RGB: more than any on-device classifier takes.
MAX_SIDE = 4096
_MAX_BATCH = 4096
_MAX_LABELS, _MAX_LABEL = 100_000, 512
_MAX_NAME = 100
_NAME = re.compile(rf"[\w+-][\w.+-]{{0,{_MAX_NAME - 1}}}")


@dataclass(frozen=True)
class TensorSpec:
    """The network's input: [batch, channels, height, width] in Preprocess.dtype; batch None means any."""

    channels: int
    height: int
    width: int
    batch: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle.

    Attributes:
        name: what the user calls the model.
        format: a key of RUNTIMES: which session runs the model file.
        precision: fp32, fp16, int8, or int8-weights (computed in float32), a property of the graph.
        model: the model file's name in the bundle.
        labels: class names, in the order of the logits.
        input: the network's input tensor.
        preprocess: how an image becomes that tensor.
        parameters: number of trained values in the source network.
        architecture: how to recreate the network (format torch), otherwise empty.
        data: the data set that the model was made with: source, root, seed; the ids are in `splits.json.gz`.
        details: settings and results of the step that made the bundle (export, quantization or training).
        requires: the model's requirements on the machine that runs it.
        lineage: the bundles it was made from, oldest first: id, name, format, precision.
        tools: versions of the software that made it.
        created: seconds since 1970.
        files: name -> {"sha256", "size"} of every file except the manifest.
    """

    name: str
    format: str
    precision: str
    model: str
    labels: tuple[str, ...]
    input: TensorSpec
    preprocess: Preprocess
    parameters: int = 0
    architecture: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Mapping[str, str], ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    created: float = 0.0
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as a JSON document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, source: Path) -> "Manifest":
        """Read what `to_json` wrote, in this schema or an earlier one.

        Raises:
            BundleError: it has another schema, or is not a manifest.
        """
        document = parse(text, source, "an EdgeKit manifest", limit=MAX_MANIFEST_BYTES, error=BundleError)
        try:
            data = read(dict[str, object], document)
            schema = data.pop("schema")
            if schema not in _READABLE:
                raise BundleError(
                    f"{source} has schema {str(schema)[:80]}; this EdgeKit reads {SCHEMA}",
                    fix="recreate the bundle, or upgrade EdgeKit",
                )
            manifest = read(cls, data)
            manifest._check()
            return manifest
        except (DocumentError, KeyError, TypeError, AttributeError, RecipeError) as error:
            raise BundleError(
                f"{source} is not an EdgeKit manifest: {error}", fix="pass a folder that an edgekit command wrote"
            ) from error

    def _check(self) -> None:
        """Raise DocumentError for an entry that is invalid despite its correct type."""
        check_name(self.name)
        for side in ("height", "width"):
            within(getattr(self.input, side), 1, MAX_SIDE, f"input.{side}")
        within(self.input.channels, 1, 4, "input.channels")
        within(self.input.batch or 1, 1, _MAX_BATCH, "input.batch")
        within(len(self.labels), 1, _MAX_LABELS, "the number of labels")
        if max(map(len, self.labels)) > _MAX_LABEL:
            raise DocumentError(f"labels: an entry is longer than {_MAX_LABEL} characters")
        if self.input.channels != len(self.preprocess.mean):
            raise DocumentError(f"preprocess makes {len(self.preprocess.mean)} channels, not {self.input.channels}")
        if self.preprocess.dtype != "float32" and self.format != "onnx":
            raise DocumentError(
                f"preprocess.dtype is {self.preprocess.dtype}, but a model of format {self.format} takes float32"
            )
        if self.preprocess.crop not in (None, (self.input.height, self.input.width)):
            raise DocumentError(f"preprocess.crop is {self.preprocess.crop}, but the input is {self.input.shape}")
        if "engine" in self.details:
            read(Summary, self.details["engine"], "details.engine")
        if self.data and not (
            isinstance(self.data.get("data"), str) and isinstance(self.data.get("root", 0), str | None)
        ):
            raise DocumentError("data does not name a data set and its root")
        for name, entry in self.files.items():
            if type(entry.get("size")) is not int or not isinstance(entry.get("sha256"), str):
                raise DocumentError(f"files.{name[:80]} has no size and sha256")
        for step in self.lineage:
            if not step.keys() >= {"id", "name", "format", "precision"}:
                raise DocumentError("lineage has a step without id, name, format and precision")


def check_name(name: str) -> None:
    """Refuse a model name that is not safe in file names on every system.

    Raises:
        DocumentError: it is empty, too long, starts with a dot, or has characters besides letters, digits and . _ + -
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME:
        raise DocumentError(
            f"the name {name[:80]!r} may only contain letters, digits and . _ + - (at most {_MAX_NAME} bytes, no "
            "leading dot)"
        )


def manifest_id(text: bytes) -> str:
    """A bundle's id: a hash of its manifest, which contains the hash of every file."""
    return hashlib.sha256(text).hexdigest()[:16]
