"""Image files inside tar files, each read at its place: the archive is neither unpacked nor read from its start."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, overload

import numpy as np


@dataclass(frozen=True)
class Member:
    """One file inside an uncompressed tar file, with the methods of a Path that reading an image takes.

    Attributes:
        name: that of the tar file, a slash, and its own in the archive. It is shown, and never used as a path.
        offset, size: of its content in the tar file, in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return str(self.shard.parent / self.name)

    @property
    def suffix(self) -> str:
        """The end of its name, such as ".jpg"."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its content as a stream, of which only the parts that are asked for are read."""
        return io.BufferedReader(_Window(self.shard.open(mode, buffering=0), self.offset, self.size))

    def read_bytes(self) -> bytes:
        """Its content."""
        with self.open() as stream:
            return stream.read()


@dataclass(frozen=True)
class Members(Sequence[Member]):
    """Files inside tar files; each takes 24 bytes of memory and its name.

    Attributes:
        shards: the tar files.
        names: see Member, one per file.
        table: int64 [n, 3]: the tar file's number in `shards`, and the offset and size in it.
    """

    shards: tuple[Path, ...]
    names: tuple[str, ...]
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> "Members": ...
    def __getitem__(self, index: int | slice) -> "Member | Members":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        shard, offset, size = self.table[index].tolist()
        return Member(self.shards[shard], self.names[index], offset, size)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Members":
        """The files at these indices, in this order."""
        chosen = np.asarray(indices, np.int64)
        return Members(self.shards, tuple(self.names[index] for index in chosen), self.table[chosen])


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, which ends where the part or the file ends."""

    def __init__(self, stream: Any, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._position)
        content = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset)
        return self._position

    def close(self) -> None:
        self._stream.close()
        super().close()
