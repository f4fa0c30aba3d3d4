"""Bundles: a folder with one model file, a manifest, and golden samples; everything EdgeKit makes is one."""

import contextlib
import gzip
import hashlib
import json
import math
import os
import platform
import re
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .arrays import ARCHIVE_ERRORS, npy_header, read_npy
from .documents import DocumentError, parse, read, within
from .engine.layers import Summary
from .errors import BundleError, RecipeError
from .files import new_folder, sha256
from .fingerprints import read_fingerprints, write_fingerprints
from .images import ImageSet
from .onnx_data import external_files
from .preprocess import Preprocess, decode

SCHEMA = 3
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_GOLDEN, _GOLDEN_IMAGES, _SPLITS, _FINGERPRINTS = "golden.npz", "golden", "splits.json.gz", "fingerprints.npz"
GOLDEN_COUNT = 16

# Schemas that are read: 1 lacks the checksums of the golden samples' pixels, 2 preprocess.dtype.
_READABLE = (1, 2, SCHEMA)

# A manifest is a few kilobytes, a hundred with an engine's layers; anything much larger is not one.
_MAX_MANIFEST_BYTES = 16 << 20
# The ids of a million images.
_MAX_SPLITS_BYTES = 128 << 20
# Far above GOLDEN_COUNT, and still read in a moment.
_MAX_GOLDEN = 256

# (type, shape) of an array
_Promised = tuple[type[np.generic], tuple[int, ...]]

# An input of 4096 x 4096 takes 200 MB as float32 RGB: more than any classifier of a device.
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
    def from_json(cls, text: str | bytes, where: Path) -> "Manifest":
        """Read what `to_json` wrote, in this schema or an earlier one.

        Raises:
            BundleError: another schema, or not a manifest.
        """
        data = parse(text, where, "an EdgeKit manifest", limit=_MAX_MANIFEST_BYTES, error=BundleError)
        try:
            schema = data.pop("schema")
            if schema not in _READABLE:
                raise BundleError(
                    f"{where} has schema {str(schema)[:80]}; this EdgeKit reads {SCHEMA}",
                    fix="make the bundle again, or upgrade",
                )
            manifest = read(cls, data)
            manifest._check()
            return manifest
        except (DocumentError, KeyError, TypeError, AttributeError, RecipeError) as error:
            raise BundleError(
                f"{where} is not an EdgeKit manifest: {error}", fix="pass a folder that an edgekit command wrote"
            ) from error

    def _check(self) -> None:
        """Raise DocumentError for an entry that is of the right type and still not to be relied on."""
        check_name(self.name)
        for side in ("height", "width"):
            within(getattr(self.input, side), 1, MAX_SIDE, f"input.{side}")
        within(self.input.channels, 1, 4, "input.channels")
        within(self.input.batch or 1, 1, _MAX_BATCH, "input.batch")
        within(len(self.labels), 1, _MAX_LABELS, "the number of labels")
        if max(map(len, self.labels)) > _MAX_LABEL:
            raise DocumentError(f"labels: one is longer than {_MAX_LABEL} characters")
        if self.input.channels != len(self.preprocess.mean):
            raise DocumentError(f"preprocess makes {len(self.preprocess.mean)} channels, input {self.input.channels}")
        if self.preprocess.dtype != "float32" and self.format != "onnx":
            raise DocumentError(
                f"preprocess.dtype is {self.preprocess.dtype}, and a model of format {self.format} takes float32"
            )
        if self.preprocess.crop not in (None, (self.input.height, self.input.width)):
            raise DocumentError(f"preprocess.crop is {self.preprocess.crop}, the input {self.input.shape}")
        if "engine" in self.details:
            read(Summary, self.details["engine"], "details.engine")
        if self.data and not (
            isinstance(self.data.get("data"), str) and isinstance(self.data.get("root", 0), str | None)
        ):
            raise DocumentError("data does not name a data set and its root")
        for name, facts in self.files.items():
            if type(facts.get("size")) is not int or not isinstance(facts.get("sha256"), str):
                raise DocumentError(f"files.{name[:80]} has no size and sha256")
        for step in self.lineage:
            if not step.keys() >= {"id", "name", "format", "precision"}:
                raise DocumentError("lineage has a step without id, name, format and precision")


def check_name(name: str) -> None:
    """Refuse a model's name that could not stand in a file's name on any system.

    Raises:
        DocumentError: it is empty, too long, or has other characters than letters, digits and . _ + -
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME:
        raise DocumentError(
            f"the name {name[:80]!r} is not of letters, digits and . _ + - alone (at most {_MAX_NAME} bytes, no dot "
            "first)"
        )


class Golden(NamedTuple):
    """Golden samples: what the source model made of a few real images.

    Attributes:
        images: the image files, encoded.
        tensors: [n, c, h, w] in Preprocess.dtype, preprocessed.
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
        try:
            text = source.read_bytes()
        except OSError as error:
            raise BundleError(f"{source} cannot be read: {error.strerror}", fix="check its permissions") from error
        manifest = Manifest.from_json(text, source)
        for name, facts in manifest.files.items():
            try:
                _check_file(path, name, facts)
            except OSError as error:  # a name that is too long, a file that may not be read
                raise BundleError(
                    f"{path / name[:80]} cannot be read: {error.strerror}", fix="get the bundle again from its maker"
                ) from error
        if manifest.model not in manifest.files or _GOLDEN not in manifest.files:
            raise BundleError(f"{source} lists no model or no golden samples", fix="make the bundle again")
        _check_listed(path, manifest)
        for name in manifest.files:
            if name.endswith(".onnx"):
                _check_weights(path, name, manifest)
        bundle = cls(path, manifest, manifest_id(text))
        bundle._check_golden()
        return bundle

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.path / self.manifest.model

    @property
    def size_bytes(self) -> int:
        """Size of the model file."""
        return self.manifest.files[self.manifest.model]["size"]

    def golden(self) -> Golden:
        """The golden samples.

        Raises:
            BundleError: they are not the arrays that the manifest promises.
        """
        images = [(self.path / name).read_bytes() for name in self._golden_images()]
        pixels: list[int] = []
        with self._golden_archive() as (archive, wanted):
            if "checksums" not in wanted:  # schema 1 had none: this machine's decoder stands in
                pixels = [self.manifest.preprocess.checksum(decode(image)) for image in images]
            arrays = {name: _read_array(archive, name, *promised) for name, promised in wanted.items()}
        checksums = arrays.get("checksums", np.asarray(pixels, np.uint32))
        return Golden(images, arrays["tensors"], arrays["logits"], checksums)

    def _check_golden(self) -> None:
        """Refuse golden samples of other shapes or types than the manifest promises, by the arrays' headers alone."""
        with self._golden_archive() as (archive, wanted):
            for name, promised in wanted.items():
                with archive.open(f"{name}.npy") as stream:
                    _check_promised(name, *npy_header(stream)[:2], promised)

    def _golden_images(self) -> list[str]:
        return sorted(name for name in self.manifest.files if PurePosixPath(name).parts[0] == _GOLDEN_IMAGES)

    @contextlib.contextmanager
    def _golden_archive(self) -> "Iterator[tuple[zipfile.ZipFile, dict[str, _Promised]]]":
        """The golden samples' arrays, and the type and shape that each has to have.

        Raises:
            BundleError: what is done with them finds that they are not those.
        """
        count, path = len(self._golden_images()), self.path / _GOLDEN
        wanted: dict[str, _Promised] = {
            "tensors": (np.dtype(self.manifest.preprocess.dtype).type, (count, *self.manifest.input.shape)),
            "logits": (np.float32, (count, len(self.manifest.labels))),
            "checksums": (np.uint32, (count,)),
        }
        try:
            within(count, 1, _MAX_GOLDEN, "the number of golden images")
            with zipfile.ZipFile(path) as archive:
                if "checksums.npy" not in archive.namelist():
                    del wanted["checksums"]
                yield archive, wanted
        except ARCHIVE_ERRORS as error:
            raise BundleError(
                f"{path} does not hold the golden samples: {error}", fix="make the bundle again"
            ) from error

    def splits(self) -> dict[str, list[str]]:
        """The recorded image ids of each part of the data set; empty when none were recorded.

        Raises:
            BundleError: they cannot be read.
        """
        if _SPLITS not in self.manifest.files:
            return {}
        path = self.path / _SPLITS
        try:
            with gzip.open(path) as stream:
                content = stream.read(_MAX_SPLITS_BYTES + 1)
            found = read(
                dict[str, tuple[str, ...]],
                parse(content, path, "a list of images", limit=_MAX_SPLITS_BYTES, error=BundleError),
            )
        except (OSError, EOFError, zlib.error, DocumentError) as error:
            raise BundleError(f"{path} holds no ids of images: {error}", fix="make the bundle again") from error
        return {part: list(ids) for part, ids in found.items()}

    def fingerprints(self) -> dict[str, np.ndarray]:
        """Fingerprints, uint64 [n, 3], of each part's images and of those that quantize used; empty in older bundles.

        Raises:
            BundleError: they cannot be read, or are not as many as the recorded ids.
        """
        if _FINGERPRINTS not in self.manifest.files:
            return {}
        path = self.path / _FINGERPRINTS
        try:
            found = read_fingerprints(path)
            for part, ids in self.splits().items():
                if part in found and len(found[part]) != len(ids):
                    raise ValueError(f"{len(found[part])} for {len(ids)} images of {part}")
            return found
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, NotImplementedError) as error:
            raise BundleError(f"{path} holds no fingerprints: {error}", fix="make the bundle again") from error

    def ancestry(self) -> tuple[dict[str, str], ...]:
        """The lineage that a bundle made from this one has: its own, and itself."""
        own = {"id": self.id, **{key: getattr(self.manifest, key) for key in ("name", "format", "precision")}}
        return (*(dict(entry) for entry in self.manifest.lineage), own)


def manifest_id(text: bytes) -> str:
    """A bundle's id: of its manifest's text, which holds the hash of every file."""
    return hashlib.sha256(text).hexdigest()[:16]


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

    def add_fingerprints(self, parts: Mapping[str, np.ndarray]) -> None:
        """Write fingerprints of the images that a model has seen, where there are any."""
        if parts:
            write_fingerprints(self.folder / _FINGERPRINTS, parts)

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
        run: [n, c, h, w] in preprocess.dtype -> logits [n, k].
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


def _check_listed(folder: Path, manifest: Manifest) -> None:
    """Refuse what the manifest does not list: a runtime might load it by its name all the same."""
    listed = {MANIFEST, SIGNATURE, *manifest.files}
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    for place, below, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        names = [(inside / name).as_posix() for name in files]
        names += [name for name in ((inside / one).as_posix() for one in below) if name not in folders]
        if unlisted := sorted(set(names) - listed):
            raise BundleError(
                f"{folder} holds {unlisted[0]!r}, which its manifest does not list",
                fix="remove it if you put it there; else get the bundle again from its maker",
            )


def _check_weights(folder: Path, name: str, manifest: Manifest) -> None:
    """Refuse an ONNX file whose weights are read from a file that the manifest does not list."""
    parent = PurePosixPath(name).parent
    for location in external_files(folder / name):
        if (parent / location).as_posix() not in manifest.files:
            raise BundleError(
                f"{folder / name} reads weights from {location[:80]!r}, which its manifest does not list",
                fix="do not use this bundle",
            )


def _read_array(
    archive: zipfile.ZipFile, name: str, kind: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:  # fmt: skip
    """An array of an .npz file; no more of it is unpacked than one of this type and shape takes."""
    with archive.open(f"{name}.npy") as stream:
        array = read_npy(stream, math.prod(shape) * np.dtype(kind).itemsize)
    _check_promised(name, array.dtype, array.shape, (kind, shape))
    return array


def _check_promised(name: str, dtype: np.dtype, shape: tuple[int, ...], promised: _Promised) -> None:
    if (dtype, shape) != promised:
        raise ValueError(f"{name} is {dtype} {list(shape)}, not {np.dtype(promised[0])} {list(promised[1])}")


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
    if not stat.S_ISREG(path.stat().st_mode):
        raise BundleError(f"{path} is no regular file", fix="do not use this bundle")
    size = path.stat().st_size
    if size != facts.get("size") or sha256(path) != facts.get("sha256"):
        raise BundleError(
            f"{path} is not the file that the manifest describes (its hash or size differs)",
            fix="copy the bundle again, or make it again",
        )
