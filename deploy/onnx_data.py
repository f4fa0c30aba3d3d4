"""Find the external weight files of an ONNX file from its bytes: a device has no onnx package.

This reads protobuf's wire format (https://protobuf.dev/programming-guides/encoding), and descends only where a
TensorProto can occur (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from .errors import BundleError

# message -> {field number: submessage}
_SUBMESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# protobuf's own limit on nested messages
_MAX_DEPTH = 100


def external_files(path: Path) -> set[str]:
    """The locations of external data that the tensors of an ONNX file name, unchanged.

    Raises:
        BundleError: the file is not protobuf.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_locations(content, 0, len(content), "Model", 0))
    except (ValueError, IndexError) as error:  # an empty file cannot be mapped
        raise BundleError(f"{path} is not an ONNX file: {error}", fix="export it again") from error


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    submessages, pair = _SUBMESSAGES[message], {1: b"", 2: b""}
    at = start
    while at < end:
        key, at = _varint(content, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, at = _varint(content, at, end)
            continue
        if wire not in (_FIXED64, _LENGTH, _FIXED32):
            raise ValueError(f"a field of wire type {wire}")
        size = 8 if wire == _FIXED64 else 4
        if wire == _LENGTH:
            size, at = _varint(content, at, end)
        if size > end - at:
            raise ValueError("it is truncated")
        if wire == _LENGTH and number in submessages:
            yield from _locations(content, at, at + size, submessages[number], depth + 1)
        elif wire == _LENGTH and message == "Entry" and number in pair:
            pair[number] = content[at : at + size]
        at += size
    if message == "Entry" and pair[1] == b"location":
        yield pair[2].decode("utf-8", errors="replace")


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is truncated")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
