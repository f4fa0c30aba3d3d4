"""Bundles: a folder with one model file, a manifest, and golden samples; everything EdgeKit makes is one."""

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

# The ids of a million images.
_MAX_SPLITS_BYTES = 128 << 20
# Far above GOLDEN_COUNT, and still read in a moment.
_MAX_GOLDEN = 256

# (type, shape) of an array
_Promised = tuple[type[np.generic], tuple[int, ...]]


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
        if source.is_symlink() or source.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{source} is a link, or far too large", fix="get the bundle again from its maker")
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
    """Versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in ("edgekit-vision", "numpy", "pillow", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_listed(folder: Path, manifest: Manifest) -> None:
    """Refuse files that the manifest does not list, because a runtime might still load them by name."""
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


def _check_file(folder: Path, name: str, facts: Mapping[str, object]) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in pure.parts) or "\\" in name:
        raise BundleError(f"{folder} lists a file outside itself: {name}", fix="do not use this bundle")
    path = folder / name
    inside = [folder.joinpath(*pure.parts[: depth + 1]) for depth in range(len(pure.parts))]
    if any(os.path.islink(part) for part in inside):
        raise BundleError(f"{path} is a symbolic link", fix="do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{path} is missing", fix="copy the complete bundle again, or make it again")
    if not stat.S_ISREG(path.stat().st_mode):
        raise BundleError(f"{path} is not a regular file", fix="do not use this bundle")
    size = path.stat().st_size
    if size != facts.get("size") or sha256(path) != facts.get("sha256"):
        raise BundleError(
            f"{path} is not the file that the manifest describes (its hash or size differs)",
            fix="copy the bundle again, or make it again",
        )
