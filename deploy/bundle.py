"""Bundles: a folder with one model file, a manifest, and golden samples; everything EdgeKit makes is one."""

import contextlib
import gzip
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .errors import BundleError, RecipeError
from .files import new_folder, sha256
from .images import ImageSet
from .preprocess import Preprocess

SCHEMA = 2
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_GOLDEN, _GOLDEN_IMAGES, _SPLITS = "golden.npz", "golden", "splits.json.gz"
GOLDEN_COUNT = 16

# A manifest is a few kilobytes; anything much larger is not one.
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorSpec:
    """The network's input: float32 [batch, channels, height, width]; batch None means any."""

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
    """What a bundle is.

    Attributes:
        name: what the person calls the model.
        format: a key of RUNTIMES: which session runs the model file.
        precision: fp32, fp16 or int8, a property of the graph.
        model: the model file's name in the bundle.
        labels: class names, in the order of the logits.
        input: what the network takes.
        preprocess: how an image becomes that.
        parameters: trained values in the source network.
        architecture: how to make the network again (format torch), else empty.
        data: the data set that the model was made with: source, root, seed; the ids are in `splits.json.gz`.
        details: what the step that made the bundle wants remembered (export, quantization or training settings).
        requires: what the model needs of the machine that runs it.
        lineage: the bundles it was made from, the first one first: id, name, format, precision.
        tools: versions of what made it.
        created: seconds since 1970.
        files: name -> {"sha256", "size"} of every file but the manifest.
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
    def from_json(cls, text: str, where: Path) -> "Manifest":
        """Read what `to_json` wrote.

        Raises:
            BundleError: another schema, or not a manifest.
        """
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema != SCHEMA:
                raise BundleError(
                    f"{where} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="make the bundle again, or upgrade"
                )
            unexpected = data.keys() - {entry.name for entry in fields(cls)}
            if unexpected:
                raise ValueError(f"unknown entry {min(unexpected)}")
            data["input"] = TensorSpec(**data["input"])
            data["preprocess"] = Preprocess.from_json(data["preprocess"])
            data["labels"] = tuple(data["labels"])
            data["lineage"] = tuple(data["lineage"])
            manifest = cls(**data)
            manifest._check_types()
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
            raise BundleError(
                f"{where} is not an EdgeKit manifest: {error}", fix="pass a folder that an edgekit command wrote"
            ) from error

    def _check_types(self) -> None:
        """Raise TypeError for an entry that is not what the code below relies on."""
        texts = (self.name, self.format, self.precision, self.model, *self.labels)
        sides = (*self.input.shape, *([] if self.input.batch is None else [self.input.batch]))
        mappings = (self.architecture, self.data, self.details, self.requires, self.tools, self.files)
        numbers = [*(facts["size"] for facts in self.files.values())]
        hashes = [*(facts["sha256"] for facts in self.files.values())]
        steps = [step[key] for step in self.lineage for key in ("id", "name", "format", "precision")]
        for kind, entries in ((str, [*texts, *hashes, *steps]), (int, [*sides, *numbers]), (dict, mappings)):
            for entry in entries:
                if type(entry) is not kind:
                    raise TypeError(f"{entry!r} where a {kind.__name__} belongs")
        if min(sides) < 1 or not isinstance(self.created, (int, float)):
            raise ValueError(f"an input of {sides}, made at {self.created!r}")


class Golden(NamedTuple):
    """Golden samples: what the source model made of a few real images.

    Attributes:
        images: the image files, encoded.
        tensors: float32 [n, c, h, w], preprocessed.
        logits: float32 [n, k], by the source model.
        checksums: uint32 [n], Preprocess.checksum of each decoded image: where they differ the decoder does.
    """

    images: list[bytes]
    tensors: np.ndarray
    logits: np.ndarray
    checksums: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest is read and every file's hash was checked."""

    path: Path
    manifest: Manifest
    id: str

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Open a bundle and check every file's size and SHA-256, before anything in it is loaded.

        Raises:
            BundleError: no bundle, another schema, a damaged, missing or suspicious file; the message names it.
        """
        path = Path(path)
        source = path / MANIFEST
        if not source.is_file():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}", fix="pass a folder under runs/")
        if source.is_symlink() or source.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{source} is a link or far too large", fix="get the bundle again from its maker")
        text = source.read_text(encoding="utf-8", errors="replace")
        manifest = Manifest.from_json(text, source)
        for name, facts in manifest.files.items():
            _check_file(path, name, facts)
        if manifest.model not in manifest.files or _GOLDEN not in manifest.files:
            raise BundleError(f"{source} lists no model or no golden samples", fix="make the bundle again")
        return cls(path, manifest, manifest_id(text))

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.path / self.manifest.model

    @property
    def size_bytes(self) -> int:
        """Size of the model file."""
        return self.manifest.files[self.manifest.model]["size"]

    def golden(self) -> Golden:
        """The golden samples."""
        with np.load(self.path / _GOLDEN, allow_pickle=False) as archive:
            tensors, logits, checksums = (archive[name] for name in ("tensors", "logits", "checksums"))
        names = sorted(name for name in self.manifest.files if PurePosixPath(name).parts[0] == _GOLDEN_IMAGES)
        return Golden([(self.path / name).read_bytes() for name in names], tensors, logits, checksums)

    def splits(self) -> dict[str, list[str]]:
        """The recorded image ids of each part of the data set; empty when none were recorded."""
        if _SPLITS not in self.manifest.files:
            return {}
        return json.loads(gzip.decompress((self.path / _SPLITS).read_bytes()))

    def ancestry(self) -> tuple[dict[str, str], ...]:
        """The lineage that a bundle made from this one has: its own, and itself."""
        own = {"id": self.id, **{key: getattr(self.manifest, key) for key in ("name", "format", "precision")}}
        return (*(dict(entry) for entry in self.manifest.lineage), own)


def manifest_id(text: str) -> str:
    """A bundle's id: of its manifest's text, which holds the hash of every file."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Draft:
    """A bundle being written: a folder to put the model file into, and the parts that every bundle has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add_golden(self, golden: Golden) -> None:
        """Write the golden samples."""
        folder = self.folder / _GOLDEN_IMAGES
        folder.mkdir()
        for index, image in enumerate(golden.images):
            (folder / f"{index:03d}.img").write_bytes(image)
        np.savez_compressed(
            self.folder / _GOLDEN, tensors=golden.tensors, logits=golden.logits, checksums=golden.checksums
        )

    def add_splits(self, splits: Mapping[str, Sequence[str]]) -> None:
        """Write the ids of the data set's parts."""
        text = json.dumps({name: list(ids) for name, ids in splits.items()}, ensure_ascii=False)
        (self.folder / _SPLITS).write_bytes(gzip.compress(text.encode(), mtime=0))

    def finish(self, manifest: Manifest, packages: Iterable[str] = ()) -> None:
        """Hash every file and write the manifest, which makes the folder a bundle; a second call writes it anew."""
        files = {
            file.relative_to(self.folder).as_posix(): {"sha256": sha256(file), "size": file.stat().st_size}
            for file in sorted(self.folder.rglob("*"))
            if file.is_file() and file != self.folder / MANIFEST
        }
        complete = {entry.name: getattr(manifest, entry.name) for entry in fields(Manifest)}
        complete |= {"files": files, "created": time.time(), "tools": tool_versions(packages)}
        (self.folder / MANIFEST).write_text(Manifest(**complete).to_json(), encoding="utf-8")


@contextlib.contextmanager
def create(path: Path) -> Iterator[Draft]:
    """Write a bundle whole or not at all: `with create(path) as draft: …; draft.finish(manifest)`.

    Raises:
        EdgeKitError: `path` exists, or cannot be written.
    """
    with new_folder(path) as folder:
        yield Draft(folder)


def make_golden(
    images: ImageSet, preprocess: Preprocess, run: Callable[[np.ndarray], np.ndarray], count: int = GOLDEN_COUNT
) -> Golden:
    """Run the source model on up to `count` images, spread over the classes.

    Args:
        run: float32 [n, c, h, w] -> logits [n, k].
    """
    chosen = images.stratified(count, seed=0)
    pictures = [sample.image for sample in chosen]
    tensors = preprocess.batch(pictures)
    logits = np.asarray(run(tensors), np.float32)
    checksums = np.asarray([preprocess.checksum(picture) for picture in pictures], np.uint32)
    return Golden([chosen.encoded(index)[0] for index in range(len(chosen))], tensors, logits, checksums)


def tool_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in ("edgekit-vision", "numpy", "pillow", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in pure.parts) or "\\" in name:
        raise BundleError(f"{folder} lists a file outside itself: {name}", fix="do not use this bundle")
    path = folder / name
    inside = [folder.joinpath(*pure.parts[: depth + 1]) for depth in range(len(pure.parts))]
    if any(os.path.islink(part) for part in inside):
        raise BundleError(f"{path} is a symbolic link", fix="do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{path} is missing", fix="copy the whole bundle again, or make it again")
    size = path.stat().st_size
    if size != facts.get("size") or sha256(path) != facts.get("sha256"):
        raise BundleError(
            f"{path} is not the file that the manifest describes (its hash or size differs)",
            fix="copy the bundle again, or make it again",
        )
