"""JSON from outside, read strictly: typed by dataclasses, bounded, and refused in one line that names the place."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .errors import EdgeKitError

T = TypeVar("T")

# A manifest nests 6 levels, a report 8; Python's own reader gives up near 1,000.
MAX_DEPTH = 32
# A label, a path, a sentence; nothing that EdgeKit writes is longer.
MAX_TEXT = 65_536

# Values of a document, counted by their commas: as Python objects an empty list of two characters takes 56 bytes. More
# than the ids of a million images, or the times of a long measurement.
_MAX_VALUES = 2_000_000

# The largest whole number that JSON readers of other languages keep exactly (RFC 8259, section 6).
_MAX_INT = (1 << 53) - 1

# Logits are float32, up to 3.4e38; products of any two such numbers are finite.
_MAX_NUMBER = 1e40

# (value, where it stands) -> the checked value
Reader = Callable[[Any, str], Any]


class DocumentError(ValueError):
    """What is wrong, with the place in the document."""


def parse(
    content: bytes | str, where: str | Path, what: str, *, limit: int, error: type[EdgeKitError] = EdgeKitError
) -> Any:  # fmt: skip
    """Plain values of a JSON document.

    Args:
        what: it should be, for the message: "an EdgeKit manifest".
        limit: bytes, or characters, at most.

    Raises:
        EdgeKitError: `error`, where it is too large, not UTF-8, not JSON, or nested too deep.
    """
    reason = None
    if len(content) > limit:
        reason = f"it is larger than {limit} bytes"
    elif content.count(b"," if isinstance(content, bytes) else ",") > _MAX_VALUES:  # type: ignore[arg-type]
        reason = f"it holds more than {_MAX_VALUES} values"
    else:
        try:
            return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
        except RecursionError:
            reason = "it is nested too deep"
        except ValueError as wrong:  # not UTF-8, not JSON, a number of thousands of digits
            reason = str(wrong)
    raise error(f"{where} is not {what}: {reason}", fix="get it again from its maker")


def read(cls: type[T], data: Any, place: str = "") -> T:
    """A dataclass or NamedTuple of plain values, by its annotations.

    bool is no int; an int serves as a float; nan and infinity are floats; a list serves as a tuple or Sequence. Keys
    that the class does not have are refused, and missing ones without a default.

    Raises:
        DocumentError: something is of another type or out of bounds; the message names its place.
    """
    return _reader(cls)(data, place)


@cache
def _reader(kind: Any) -> Reader:
    """What reads a value of an annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, tuple) and kind is not tuple):
        return _fields_reader(kind)
    if kind is Any:
        return _anything
    if origin is Literal:
        # 1.0 and true are not 1
        allowed = {(type(one), one) for one in arguments}
        return lambda value, place: _require(
            value.__hash__ is not None and (type(value), value) in allowed, value, place, f"one of {arguments}"
        )
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return _fixed_reader(arguments)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence_reader(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_reader(arguments[1])
    return _PLAIN[kind]


def _fields_reader(cls: Any) -> Reader:
    hints, make = typing.get_type_hints(cls), cls
    if dataclasses.is_dataclass(cls):
        required = {
            one.name
            for one in dataclasses.fields(cls)
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        }
    else:
        required = {name for name in cls._fields if name not in cls._field_defaults}
    readers = {name: _reader(kind) for name, kind in hints.items()}

    def read_fields(value: Any, place: str) -> Any:
        _require(isinstance(value, Mapping), value, place, "an object")
        if unknown := value.keys() - readers.keys():
            raise DocumentError(f"{_at(place)}unknown entry {str(min(unknown))[:80]!r}")
        if missing := required - value.keys():
            raise DocumentError(f"{_at(place)}{min(missing)} is missing")
        prefix = f"{place}." if place else ""
        return make(**{name: readers[name](entry, prefix + name) for name, entry in value.items()})

    return read_fields


def _union_reader(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds if kind is not type(None)]

    def read_union(value: Any, place: str) -> Any:
        if value is None and type(None) in kinds:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value, place)
            except DocumentError:
                continue
        return readers[-1](value, place)

    return read_union


def _fixed_reader(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read_fixed(value: Any, place: str) -> Any:
        right = isinstance(value, list | tuple) and len(value) == len(readers)
        _require(right, value, place, f"a list of {len(readers)}")
        return tuple(
            reader(entry, f"{place}[{at}]") for at, (reader, entry) in enumerate(zip(readers, value, strict=True))
        )

    return read_fixed


def _sequence_reader(kind: Any) -> Reader:
    reader = _reader(kind)
    simple = kind if kind in (int, str) else None

    def read_sequence(value: Any, place: str) -> Any:
        _require(isinstance(value, list | tuple), value, place, "a list")
        if simple is int and all(type(entry) is int and -_MAX_INT <= entry <= _MAX_INT for entry in value):
            return tuple(value)  # times by the hundred thousand
        return tuple(reader(entry, f"{place}[{at}]") for at, entry in enumerate(value))

    return read_sequence


def _mapping_reader(kind: Any) -> Reader:
    reader = _reader(kind)

    def read_mapping(value: Any, place: str) -> Any:
        _require(isinstance(value, Mapping), value, place, "an object")
        return {_text(name, place): reader(entry, _within(place, name)) for name, entry in value.items()}

    return read_mapping


def _anything(value: Any, place: str, depth: int = 0) -> Any:
    """Plain JSON, its texts and numbers bounded like any other."""
    if depth > MAX_DEPTH:
        raise DocumentError(f"{_at(place[:80])}nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, Mapping):
        return {_text(name, place): _anything(entry, _within(place, name), depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_anything(entry, f"{place}[{at}]", depth + 1) for at, entry in enumerate(value)]
    return value if value is None or isinstance(value, bool) else _number(value, place)


def _text(value: Any, place: str) -> str:
    _require(type(value) is str and len(value) <= MAX_TEXT, value, place, f"a text of at most {MAX_TEXT} characters")
    try:
        value.encode(errors="surrogateescape")  # names of files that are not UTF-8 are read so (PEP 383)
    except UnicodeEncodeError:
        raise DocumentError(f"{_at(place)}half of a surrogate pair in a text") from None
    return value


def _whole(value: Any, place: str) -> int:
    return _require(type(value) is int and -_MAX_INT <= value <= _MAX_INT, value, place, "a whole number")


def _number(value: Any, place: str) -> float:
    right = type(value) is float or (type(value) is int and -_MAX_INT <= value <= _MAX_INT)
    return _require(right, value, place, "a number")


def _flag(value: Any, place: str) -> bool:
    return _require(type(value) is bool, value, place, "true or false")


def _require(right: bool, value: Any, place: str, wanted: str) -> Any:
    if not right:
        shown = "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else repr(value)[:80]
        raise DocumentError(f"{_at(place)}{shown} where {wanted} belongs")
    return value


def _within(place: str, name: Any) -> str:
    """The place of an entry; a name may hold anything, and the message is one line."""
    return f"{place}.{repr(str(name)[:80])[1:-1]}"


def _at(place: str) -> str:
    return f"{place}: " if place else ""


_PLAIN: dict[Any, Reader] = {str: _text, int: _whole, float: _number, bool: _flag}


def check_numbers(document: Any, place: str = "") -> None:
    """Refuse a document with a number, at any depth, that is not finite or far too large.

    Raises:
        DocumentError: it has one; the message names its place.
    """
    if isinstance(document, Mapping):
        for name, entry in document.items():
            check_numbers(entry, f"{place}.{name}"[:200])
    elif isinstance(document, list | tuple):
        for at, entry in enumerate(document):
            check_numbers(entry, f"{place}[{at}]"[:200])
    elif isinstance(document, int | float):
        within(document, -_MAX_NUMBER, _MAX_NUMBER, place)


def within(value: float, low: float, high: float, place: str) -> None:
    """Refuse a number that is not finite, or out of bounds.

    Raises:
        DocumentError: it is.
    """
    if not math.isfinite(value) or not low <= value <= high:
        raise DocumentError(f"{_at(place)}{value!r} is not from {low:g} to {high:g}")
