"""Bundles: folders with one model file, a manifest, and golden samples. Everything EdgeKit makes is a bundle."""

import contextlib
import gzip
import json
import math
import os
import platform
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from .arrays import ARCHIVE_ERRORS, npy_header, read_npy
from .documents import DocumentError, parse, read, within
from .errors import BundleError
from .files import new_folder, sha256
from .fingerprints import read_fingerprints, write_fingerprints
from .images import ImageSet
from .manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Manifest, manifest_id
from .onnx_data import external_files
from .preprocess import Preprocess, decode

_GOLDEN, _GOLDEN_IMAGES, _SPLITS, _FINGERPRINTS = "golden.npz", "golden", "splits.json.gz", "fingerprints.npz"
GOLDEN_COUNT = 16

# Enough for the ids of a million images.
_MAX_SPLITS_BYTES = 128 << 20
# Far above GOLDEN_COUNT, yet quick to read.
_MAX_GOLDEN = 256

# (type, shape) of an array
_ArraySpec = tuple[type[np.generic], tuple[int, ...]]


class Golden(NamedTuple):
    """Golden samples: a few real images with the source model's logits.

    Attributes:
        images: the image files, encoded.
        tensors: [n, c, h, w] in Preprocess.dtype, preprocessed.
        logits: float32 [n, k], by the source model.
        checksums: uint32 [n], Preprocess.checksum of each decoded image; it differs if the decoder does.
    """

    images: list[bytes]
    tensors: np.ndarray
    logits: np.ndarray
    checksums: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest has been read and every file's hash checked."""

    path: Path
    manifest: Manifest
    id: str

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Open a bundle and check every file's size and SHA-256, before anything in it is loaded.

        Raises:
            BundleError: it is not a bundle, has another schema, or a file (named in the message) is damaged, missing or
                suspicious.
        """
        path = Path(path)
        source = path / MANIFEST
        if not source.is_file():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}", fix="pass a folder under runs/")
        if source.is_symlink() or source.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{source} is a symbolic link or too large", fix="get a new copy from its author")
        try:
            text = source.read_bytes()
        except OSError as error:
            raise BundleError(f"{source} cannot be read: {error.strerror}", fix="check its permissions") from error
        manifest = Manifest.from_json(text, source)
        for name, entry in manifest.files.items():
            try:
                _check_file(path, name, entry)
            except OSError as error:  # e.g. the name is too long, or read permission is missing
                raise BundleError(
                    f"{path / name[:80]} cannot be read: {error.strerror}", fix="get a new copy from its author"
                ) from error
        if manifest.model not in manifest.files or _GOLDEN not in manifest.files:
            raise BundleError(f"{source} lists no model or no golden samples", fix="recreate the bundle")
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
    def model_files(self) -> list[Path]:
        """The model file, and the weights beside it: files of the same name with another suffix."""
        stem = PurePosixPath(self.manifest.model).stem
        return [self.path / name for name in self.manifest.files if PurePosixPath(name).stem == stem]

    @property
    def size_bytes(self) -> int:
        """Size of the model files."""
        return sum(self.manifest.files[path.relative_to(self.path).as_posix()]["size"] for path in self.model_files)

    def golden(self) -> Golden:
        """The golden samples.

        Raises:
            BundleError: they do not match the manifest.
        """
        images = [(self.path / name).read_bytes() for name in self._golden_images()]
        local_checksums: list[int] = []
        with self._golden_archive() as (archive, specs):
            if "checksums" not in specs:  # schema 1 has none: this machine's decoder is used instead
                local_checksums = [self.manifest.preprocess.checksum(decode(image)) for image in images]
            arrays = {name: _read_array(archive, name, *expected) for name, expected in specs.items()}
        checksums = arrays.get("checksums", np.asarray(local_checksums, np.uint32))
        return Golden(images, arrays["tensors"], arrays["logits"], checksums)

    def _check_golden(self) -> None:
        """Refuse golden samples whose shapes or types do not match the manifest, reading only the arrays' headers."""
        with self._golden_archive() as (archive, specs):
            for name, expected in specs.items():
                with archive.open(f"{name}.npy") as stream:
                    _check_array(name, *npy_header(stream)[:2], expected)

    def _golden_images(self) -> list[str]:
        return sorted(name for name in self.manifest.files if PurePosixPath(name).parts[0] == _GOLDEN_IMAGES)

    @contextlib.contextmanager
    def _golden_archive(self) -> "Iterator[tuple[zipfile.ZipFile, dict[str, _ArraySpec]]]":
        """The archive of the golden samples, and the required type and shape of each array.

        Raises:
            BundleError: the archive cannot be read, or the caller's block finds an array that does not match.
        """
        count, path = len(self._golden_images()), self.path / _GOLDEN
        specs: dict[str, _ArraySpec] = {
            "tensors": (np.dtype(self.manifest.preprocess.dtype).type, (count, *self.manifest.input.shape)),
            "logits": (np.float32, (count, len(self.manifest.labels))),
            "checksums": (np.uint32, (count,)),
        }
        try:
            within(count, 1, _MAX_GOLDEN, "the number of golden images")
            with zipfile.ZipFile(path) as archive:
                if "checksums.npy" not in archive.namelist():
                    del specs["checksums"]
                yield archive, specs
        except ARCHIVE_ERRORS as error:
            raise BundleError(
                f"{path} does not contain the golden samples: {error}", fix="recreate the bundle"
            ) from error

    def splits(self) -> dict[str, list[str]]:
        """The recorded image ids of each part of the data set; empty if none were recorded.

        Raises:
            BundleError: the file of ids cannot be read.
        """
        if _SPLITS not in self.manifest.files:
            return {}
        path = self.path / _SPLITS
        try:
            with gzip.open(path) as stream:
                content = stream.read(_MAX_SPLITS_BYTES + 1)
            parts = read(
                dict[str, tuple[str, ...]],
                parse(content, path, "a list of image ids", limit=_MAX_SPLITS_BYTES, error=BundleError),
            )
        except (OSError, EOFError, zlib.error, DocumentError) as error:
            raise BundleError(f"{path} does not contain image ids: {error}", fix="recreate the bundle") from error
        return {part: list(ids) for part, ids in parts.items()}

    def fingerprints(self) -> dict[str, np.ndarray]:
        """Fingerprints, uint64 [n, 3], of each part's images and of those that quantize used; empty in older bundles.

        Raises:
            BundleError: they cannot be read, or their number differs from that of the recorded ids.
        """
        if _FINGERPRINTS not in self.manifest.files:
            return {}
        path = self.path / _FINGERPRINTS
        try:
            prints = read_fingerprints(path)
            for part, ids in self.splits().items():
                if part in prints and len(prints[part]) != len(ids):
                    raise ValueError(f"{len(prints[part])} fingerprints for {len(ids)} images of {part}")
            return prints
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, NotImplementedError) as error:
            raise BundleError(f"{path} contains no valid fingerprints: {error}", fix="recreate the bundle") from error

    def ancestry(self) -> tuple[dict[str, str], ...]:
        """The lineage of a bundle made from this one: this bundle's own lineage, then itself."""
        own = {"id": self.id, **{key: getattr(self.manifest, key) for key in ("name", "format", "precision")}}
        return (*(dict(entry) for entry in self.manifest.lineage), own)


class Draft:
    """A bundle being written: a folder for the model file, and methods for the parts that every bundle has."""

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
        """Write the fingerprints, if any, of the images that a model has seen."""
        if parts:
            write_fingerprints(self.folder / _FINGERPRINTS, parts)

    def finish(self, manifest: Manifest, packages: Iterable[str] = ()) -> None:
        """Hash every file and write the manifest, which makes the folder a bundle; a second call rewrites it."""
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
    """Write a bundle atomically: `with create(path) as draft: …; draft.finish(manifest)`.

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
    """Versions of Python, EdgeKit, numpy, Pillow and `packages`, omitting those that are not installed."""
    versions = {"python": platform.python_version()}
    for package in ("edgekit-vision", "numpy", "pillow", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _check_listed(folder: Path, manifest: Manifest) -> None:
    """Refuse files that the manifest does not list, because a runtime might still load them by name."""
    listed = {MANIFEST, SIGNATURE, *manifest.files}
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    for directory, subfolders, files in os.walk(folder):
        inside = Path(directory).relative_to(folder)
        names = [(inside / name).as_posix() for name in files]
        names += [name for name in ((inside / sub).as_posix() for sub in subfolders) if name not in folders]
        if unlisted := sorted(set(names) - listed):
            raise BundleError(
                f"{folder} contains {unlisted[0]!r}, which its manifest does not list",
                fix="remove it if you put it there; otherwise get a new copy of the bundle from its author",
            )


def _check_weights(folder: Path, name: str, manifest: Manifest) -> None:
    """Refuse an ONNX file that reads weights from a file that the manifest does not list."""
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
    """Read an array from an .npz file, unpacking no more than this type and shape take."""
    with archive.open(f"{name}.npy") as stream:
        array = read_npy(stream, math.prod(shape) * np.dtype(kind).itemsize)
    _check_array(name, array.dtype, array.shape, (kind, shape))
    return array


def _check_array(name: str, dtype: np.dtype, shape: tuple[int, ...], expected: _ArraySpec) -> None:
    if (dtype, shape) != expected:
        raise ValueError(f"{name} is {dtype} {list(shape)}, not {np.dtype(expected[0])} {list(expected[1])}")


def _check_file(folder: Path, name: str, entry: Mapping[str, object]) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in pure.parts) or "\\" in name:
        raise BundleError(f"{folder} lists a file outside itself: {name}", fix="do not use this bundle")
    path = folder / name
    inside = [folder.joinpath(*pure.parts[: depth + 1]) for depth in range(len(pure.parts))]
    if any(os.path.islink(part) for part in inside):
        raise BundleError(f"{path} is a symbolic link", fix="do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{path} is missing", fix="copy the complete bundle again, or recreate it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise BundleError(f"{path} is not a regular file", fix="do not use this bundle")
    size = path.stat().st_size
    if size != entry.get("size") or sha256(path) != entry.get("sha256"):
        raise BundleError(
            f"{path} does not match the manifest (its hash or size differs)",
            fix="copy the bundle again, or recreate it",
        )
