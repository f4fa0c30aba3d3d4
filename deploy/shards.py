"""Tar shards in WebDataset's format: consecutive files with one key are a sample, such as 0001.jpg and 0001.cls.

Opening them reads each header once, and notes the place of every image; images are then read by their place. So every
image can be reached like a file in a folder, and the archive's size does not matter for memory.

https://github.com/webdataset/webdataset#the-webdataset-format
"""

import contextlib
import io
import itertools
import logging
import re
import sys
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError
from .images import SUFFIXES, UNLABELLED, ImageSet
from .labels import index_of, read_labels
from .members import Members

_log = logging.getLogger(__name__)

SHARD = ".tar"
# Class names of numbered classes, beside the shards.
LABELS = "labels.txt"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Their first bytes: gzip, bzip2, xz, zstandard.
_COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*)\}")
_MAX_SHARDS = 100_000
# Maximum bytes of a file in a shard, of a class, and of an extended header; characters of a name.
_MAX_FILE, _MAX_CLASS, _MAX_HEADER, _MAX_NAME = 1 << 28, 1024, 1 << 16, 1024
# Classes without names must be numbers below this.
_MAX_NUMBERED = 100_000
_NUMBER = re.compile(r"-?[0-9]+")


class _Sample(NamedTuple):
    """An image in a tar file: its name, the offset and size of its content, and its class, empty without one."""

    name: str
    offset: int
    size: int
    label: str


def shard_files(source: Path) -> list[Path]:
    """The shards that a path names: a tar file, a pattern such as `train-{000..127}.tar` or `{a,b}.tar`, or a folder
    with tar files; empty if it names something else.

    Raises:
        DataError: one does not exist, or is compressed.
    """
    if source.name.endswith(_COMPRESSED):
        raise DataError(f"{source} is compressed, so its images have no place of their own", fix="unpack it to a .tar")
    if source.is_dir():
        return sorted(file for file in source.glob(f"*{SHARD}") if file.is_file() and file.name[0] != ".")
    if source.suffix != SHARD:
        return []
    shards = [source] if source.is_file() else [Path(path) for path in _expanded(str(source))]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise DataError(f"{len(missing)} of {len(shards)} shards are missing, starting with {missing[0]}",
                        fix="correct the pattern: 'train-{000..127}.tar' has 128 shards")  # fmt: skip
    return shards


def _expanded(pattern: str) -> list[str]:
    """The paths that a pattern with braces stands for, in the shell's order; bounded, as it may be another's."""
    parts: list[Sequence[str]] = []
    end, count = 0, 1
    for match in _BRACES.finditer(pattern):
        first, last, names = match.groups()
        if names is None:
            width = len(first) if first[0] == "0" or last[0] == "0" else 0
            numbers = range(int(first), int(last) + 1)
            count *= len(numbers)
            choices = [f"{number:0{width}d}" for number in numbers[: _MAX_SHARDS + 1]]
        else:
            choices = names.split(",")
            count *= len(choices)
        if not 1 <= count <= _MAX_SHARDS:
            raise DataError(f"{pattern} names {count:,} shards", fix=f"name from 1 to {_MAX_SHARDS:,}")
        parts += [[pattern[end : match.start()]], choices]
        end = match.end()
    return ["".join(chosen) for chosen in itertools.product(*parts, [pattern[end:]])]


def read_shards(shards: Sequence[Path], labels: Sequence[str] | None = None) -> ImageSet:
    """The images of some shards.

    The file KEY.cls has an image's class: its name, or its number in `labels`, else in the labels.txt beside the
    shards, else without a name. Without any .cls, the images have no labels.

    Args:
        labels: class names, which must include those of the shards; targets are then indices into this list.

    Raises:
        DataError: a shard is damaged, two shards or images have one name, or a class is missing or not in the list.
    """
    if len({shard.name for shard in shards}) < len(shards):
        raise DataError("two shards have the same file name", fix="pass the folder that contains train/ and test/")
    names: list[str] = []
    classes: list[str] = []
    table = array("q")
    for number, shard in enumerate(shards):
        for sample in _samples(shard):
            names.append(f"{shard.name}/{sample.name}")
            table.extend((number, sample.offset, sample.size))
            classes.append(sys.intern(sample.label))
    if not names:
        raise DataError(
            f"no images in {shards[0]}" + (f" and {len(shards) - 1} more shards" if shards[1:] else ""),
            fix="a sample is an image and its class: 0001.jpg, 0001.cls",
        )
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise DataError(f"the image {repeated} is twice in its shard", fix="give each sample a key of its own")
    found, targets = _targets(names, classes, labels, shards[0].with_name(LABELS))
    ids = tuple(names)
    rows = np.frombuffer(table, np.int64).reshape(-1, 3)
    return ImageSet(found, ids, targets, Members(tuple(shards), ids, rows))


def _targets(
    names: Sequence[str], classes: Sequence[str], labels: Sequence[str] | None, file: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names, int64 [n] indices into them) for the texts of .cls files."""
    if "" in classes:
        if any(classes):
            raise DataError(
                f"{names[classes.index('')]} has no .cls, unlike other images", fix="add KEY.cls with its class"
            )
        return tuple(labels or ()), np.full(len(names), UNLABELLED, np.int64)
    own = read_labels(file) if file.is_file() else None
    first = {text: row for row, text in reversed(list(enumerate(classes)))}
    numbered = all(map(_NUMBER.fullmatch, first))
    known = labels or own
    if known is None:
        known = list(map(str, range(min(max(map(int, first)), _MAX_NUMBERED) + 1))) if numbered else sorted(first)
    place = {name: index for index, name in enumerate(known)}
    targets = {}
    for text, row in first.items():
        if numbered and not 0 <= int(text) < len(own or known):
            raise DataError(
                f"{names[row]} has class {text[:20]}, but {len(own or known)} class names are known",
                fix=f"correct its .cls, or write all class names to {file}",
            )
        name = (own or known)[int(text)] if numbered else text
        targets[text] = place[name] if name in place else index_of(name, known, names[row])
    return tuple(known), np.fromiter((targets[text] for text in classes), np.int64, len(classes))


class _Headers(io.FileIO):
    """A tar file for reading headers: tarfile itself would read an extended header of any size into memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _samples(shard: Path) -> Iterator[_Sample]:
    """The samples of a shard, in its order. Only regular files count; links and devices are skipped.

    Raises:
        DataError: the archive is damaged or cut off, or a sample has two images or a class that is too long.
    """
    skipped = 0
    with _opened(shard) as (archive, stream):
        for _, files in itertools.groupby(_files(archive, stream), key=lambda file: _key(file.name)):
            image, label = None, ""
            for file in files:
                kind = file.name.rpartition("/")[2].partition(".")[2].lower()
                if not file.isreg() or file.issparse():
                    skipped += not file.isdir()
                elif kind == "cls":
                    label = _class(stream, file)
                elif f".{kind.rpartition('.')[2]}" in SUFFIXES:
                    if image is not None:
                        raise DataError(f"{shard} has two images with one key: {image.name} and {file.name}",
                                        fix="write one image per sample")  # fmt: skip
                    image = file
            if image is not None:
                yield _Sample(image.name, image.offset_data, image.size, label)
    if skipped:
        _log.info(f"{shard}: skipped {skipped} links and other entries that are no files")


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[tuple[tarfile.TarFile, _Headers]]:
    """A tar file to read header by header, and its stream; any error in its structure is raised as a DataError."""
    try:
        with _Headers(shard) as stream, tarfile.TarFile(fileobj=stream) as archive:
            yield archive, stream
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}", fix="check the file") from error
    # tarfile does not catch all errors of damaged numbers and texts
    except (tarfile.TarError, ArithmeticError, RecursionError, ValueError, LookupError) as error:
        with shard.open("rb") as stream:
            packed = stream.read(6).startswith(_COMPRESSIONS)
        raise DataError(
            f"{shard} is compressed" if packed else f"{shard} is damaged: {error or type(error).__name__}",
            fix="unpack it: images are read at their places" if packed else "copy or write it again",
        ) from error


def _files(archive: Any, stream: _Headers) -> Iterator[tarfile.TarInfo]:
    """All entries except hidden ones and WebDataset's own (`__name__`)."""
    end = 0
    while (file := archive.next()) is not None:
        archive.members.clear()  # tarfile keeps them all
        if file.offset_data <= end or file.size < 0:
            raise tarfile.ReadError("an entry lies before the previous one")
        end = file.offset_data + file.size
        if len(file.name) > _MAX_NAME or file.size > _MAX_FILE:
            raise tarfile.ReadError(
                f"the entry {file.name[:80]} has a name of {len(file.name)} characters and {file.size} bytes"
            )
        if not file.name.rpartition("/")[2].startswith((".", "__")):
            yield file
    # tarfile also stops at a damaged header, and where a file without an end is cut off
    stream.seek(archive.offset)
    if any(block := stream.read(tarfile.BLOCKSIZE)) or not block:
        raise tarfile.ReadError(f"no entry begins at byte {archive.offset}" if block else "its end is missing")


def _key(name: str) -> str:
    """What the files of a sample have in common: the name up to the first dot of its last part."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _class(stream: _Headers, file: tarfile.TarInfo) -> str:
    """The text of a .cls file."""
    stream.seek(file.offset_data)
    content = stream.read(min(file.size, _MAX_CLASS + 1))
    text = content.decode(errors="replace").strip()
    if not text or len(content) > _MAX_CLASS or not text.isprintable():
        raise DataError(f"{stream.name}: {file.name} is not a class", fix="write one number or name into it")
    return text
