"""Strict reading of untrusted JSON: typed by annotations, bounded, with one-line errors that name the place."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, Union, cast, runtime_checkable

from .errors import EdgeKitError

T = TypeVar("T")

# A manifest has 6 levels, a report 8; Python's json module fails near 1,000.
MAX_DEPTH = 32
# EdgeKit writes no label, path or sentence longer than this.
MAX_TEXT = 65_536

# Maximum number of values in a document, counted by commas, because an empty list of two characters takes 56 bytes as a
# Python object. The ids of a million images and the times of a long measurement are fewer.
_MAX_VALUES = 2_000_000

# The largest whole number that JSON readers of other languages keep exactly (RFC 8259, section 6).
_MAX_INT = (1 << 53) - 1

# Above every float32 logit (3.4e38); the product of any two such numbers is still finite.
_MAX_NUMBER = 1e40

# (value, its place in the document) -> the checked value
Reader = Callable[[object, str], object]


class DocumentError(ValueError):
    """An invalid value; the message names its place in the document."""


def parse(
    content: bytes | str, source: str | Path, expected: str, *, limit: int, error: type[EdgeKitError] = EdgeKitError
) -> object:  # fmt: skip
    """Parse a JSON document into plain values.

    Args:
        expected: the kind of document, for the message: "an EdgeKit manifest".
        limit: maximum length in bytes or characters.

    Raises:
        EdgeKitError: (of class `error`) it is too large, not UTF-8, not JSON, or nested too deeply.
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
            reason = "it is nested too deeply"
        except ValueError as invalid:  # not UTF-8, not JSON, or a number of thousands of digits
            reason = str(invalid)
    raise error(f"{source} is not {expected}: {reason}", fix="get a new copy from its author")


def read(cls: type[T], data: object, place: str = "") -> T:
    """Convert plain values to a dataclass, NamedTuple, TypedDict, or any other type that their fields may have.

    A bool is not an int; an int is accepted as a float; nan and infinity are floats; a list is accepted as a tuple or
    Sequence. A dataclass or NamedTuple refuses unknown keys, and missing ones without a default. A TypedDict is open:
    it keeps unknown keys, with their values bounded like all others. `Annotated` adds Bounds and Length. A dataclass's
    method `check` validates its fields against each other.

    Raises:
        DocumentError: a value is of another type or out of bounds; the message names its place.
    """
    return cast("T", _reader(cls)(data, place))


def plain(value: object) -> Any:
    """The inverse of `read`: dataclasses, NamedTuples and mappings become dicts, other sequences become lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())  # type: ignore[attr-defined]
    if isinstance(value, list | tuple):
        simple = all(entry is None or type(entry) in (int, float, str, bool) for entry in value)
        return list(value) if simple else [plain(entry) for entry in value]
    return value


class Bounds(NamedTuple):
    """Smallest and largest allowed number: `Annotated[float, Bounds(0, 1)]`."""

    low: float
    high: float

    def check(self, value: object, place: str) -> None:
        """Refuse a number out of bounds."""
        within(cast("float", value), self.low, self.high, place)


class Length(NamedTuple):
    """Minimum and maximum length of a list: `Annotated[list[int], Length(1)]`."""

    low: int
    high: int | None = None

    def check(self, value: object, place: str) -> None:
        """Refuse a list with fewer or more entries."""
        count = len(cast("Sequence[object]", value))
        if count < self.low or (self.high is not None and count > self.high):
            expected = f"{self.low}" if self.high == self.low else f"at least {self.low}"
            raise DocumentError(f"{_at(place)}expected {expected} entries, got {count}")


@runtime_checkable
class _Checked(Protocol):
    """A dataclass whose fields must agree."""

    def check(self) -> None:
        """Raise DocumentError if they do not."""
        ...


@cache
def _reader(kind: object) -> Reader:
    """The function that reads a value of this annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _annotated_reader(arguments[0], arguments[1:])
    if is_record(kind):
        return _fields_reader(kind)
    if kind is Any or kind is object:
        return _anything
    if origin is Literal:
        # 1.0 and true are not 1
        return _literal_reader(arguments)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return _fixed_reader(arguments)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence_reader(arguments[0], list if origin is list else tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_reader(arguments[1])
    return _PLAIN[kind]


def is_record(kind: object) -> bool:
    """Whether an annotation has named fields: a dataclass, NamedTuple or TypedDict."""
    named_tuple = isinstance(kind, type) and issubclass(kind, tuple) and kind is not tuple
    return dataclasses.is_dataclass(kind) or named_tuple or typing.is_typeddict(kind)


class Fields(NamedTuple):
    """The fields of a dataclass, NamedTuple or TypedDict: their annotations, the required ones, and whether unknown
    fields are allowed."""

    kinds: Mapping[str, object]
    required: frozenset[str]
    is_open: bool


def fields_of(kind: Any) -> Fields:
    """The fields that `read` expects of a dataclass, NamedTuple or TypedDict."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        return Fields(hints, kind.__required_keys__, True)
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(kind)
        names = {field.name for field in fields if field.default is missing and field.default_factory is missing}
        return Fields({field.name: hints[field.name] for field in fields}, frozenset(names), False)
    return Fields(hints, frozenset(kind._fields) - kind._field_defaults.keys(), False)


def _fields_reader(cls: Any) -> Reader:
    fields = fields_of(cls)
    readers = {name: _reader(kind) for name, kind in fields.kinds.items()}

    def read_fields(value: object, place: str) -> object:
        entries = _mapping(value, place)
        if not fields.is_open and (unknown := entries.keys() - readers.keys()):
            raise DocumentError(f"{_at(place)}unknown entry {str(min(unknown))[:80]!r}")
        if missing := fields.required - entries.keys():
            raise DocumentError(f"{_at(place)}{min(missing)} is missing")
        prefix = f"{place}." if place else ""
        values = {
            name: readers[name](entry, prefix + name)
            if name in readers
            else _anything(entry, _within(place, _text(name, place)))
            for name, entry in entries.items()
        }
        record = cls(**values) if not fields.is_open else values
        if isinstance(record, _Checked):
            record.check()
        return record

    return read_fields


def _annotated_reader(kind: object, rules: Sequence[object]) -> Reader:
    reader = _reader(kind)
    checks = [rule for rule in rules if isinstance(rule, Bounds | Length)]

    def read_annotated(value: object, place: str) -> object:
        result = reader(value, place)
        for rule in checks:
            rule.check(result, place)
        return result

    return read_annotated


def _literal_reader(arguments: Sequence[object]) -> Reader:
    allowed = {(type(literal), literal) for literal in arguments}

    def read_literal(value: object, place: str) -> object:
        if value.__hash__ is None or (type(value), value) not in allowed:
            raise _wrong(value, place, f"one of {arguments}")
        return value

    return read_literal


def _union_reader(kinds: Sequence[object]) -> Reader:
    readers = [_reader(kind) for kind in kinds if kind is not type(None)]

    def read_union(value: object, place: str) -> object:
        if value is None and type(None) in kinds:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value, place)
            except DocumentError:
                continue
        return readers[-1](value, place)

    return read_union


def _fixed_reader(kinds: Sequence[object]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read_fixed(value: object, place: str) -> object:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise _wrong(value, place, f"a list of {len(readers)}")
        return tuple(
            reader(entry, f"{place}[{index}]") for index, (reader, entry) in enumerate(zip(readers, value, strict=True))
        )

    return read_fixed


def _sequence_reader(kind: object, make: type[list[object]] | type[tuple[object, ...]]) -> Reader:
    reader = _reader(kind)

    def read_sequence(value: object, place: str) -> object:
        if not isinstance(value, list | tuple):
            raise _wrong(value, place, "a list")
        if kind is int and all(type(entry) is int and -_MAX_INT <= entry <= _MAX_INT for entry in value):
            return make(value)  # fast path for hundreds of thousands of times
        return make(reader(entry, f"{place}[{index}]") for index, entry in enumerate(value))

    return read_sequence


def _mapping_reader(kind: object) -> Reader:
    reader = _reader(kind)

    def read_mapping(value: object, place: str) -> object:
        entries = _mapping(value, place)
        return {_text(name, place): reader(entry, _within(place, name)) for name, entry in entries.items()}

    return read_mapping


def _anything(value: object, place: str, depth: int = 0) -> object:
    """Read plain JSON, with its texts and numbers bounded like any others."""
    if depth > MAX_DEPTH:
        raise DocumentError(f"{_at(place[:80])}nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, Mapping):
        return {_text(name, place): _anything(entry, _within(place, name), depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_anything(entry, f"{place}[{index}]", depth + 1) for index, entry in enumerate(value)]
    return value if value is None or isinstance(value, bool) else _number(value, place)


def _mapping(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(value, place, "an object")
    return value


def _text(value: object, place: str) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise _wrong(value, place, f"a text of at most {MAX_TEXT} characters")
    try:
        value.encode(errors="surrogateescape")  # for file names that are not UTF-8 (PEP 383)
    except UnicodeEncodeError:
        raise DocumentError(f"{_at(place)}an unpaired surrogate in a text") from None
    return value


def _whole(value: object, place: str) -> int:
    if type(value) is not int or not -_MAX_INT <= value <= _MAX_INT:
        raise _wrong(value, place, "a whole number")
    return value


def _number(value: object, place: str) -> float:
    if type(value) is float or (type(value) is int and -_MAX_INT <= value <= _MAX_INT):
        return value
    raise _wrong(value, place, "a number")


def _flag(value: object, place: str) -> bool:
    if type(value) is not bool:
        raise _wrong(value, place, "true or false")
    return value


def _wrong(value: object, place: str, expected: str) -> DocumentError:
    shown = "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else repr(value)[:80]
    return DocumentError(f"{_at(place)}expected {expected}, got {shown}")


def _within(place: str, name: object) -> str:
    """The place of an entry; its name may contain anything, so it is escaped to keep the message on one line."""
    return f"{place}.{repr(str(name)[:80])[1:-1]}"


def _at(place: str) -> str:
    return f"{place}: " if place else ""


_PLAIN: dict[object, Reader] = {str: _text, int: _whole, float: _number, bool: _flag}


def check_numbers(document: object, place: str = "") -> None:
    """Refuse a document that contains, at any depth, a number that is not finite or is far too large.

    Raises:
        DocumentError: it contains such a number; the message names its place.
    """
    if isinstance(document, Mapping):
        for name, entry in document.items():
            check_numbers(entry, f"{place}.{name}"[:200])
    elif isinstance(document, list | tuple):
        for index, entry in enumerate(document):
            check_numbers(entry, f"{place}[{index}]"[:200])
    elif isinstance(document, int | float):
        within(document, -_MAX_NUMBER, _MAX_NUMBER, place)


def within(value: float, low: float, high: float, place: str) -> None:
    """Check that a number is finite and within bounds.

    Raises:
        DocumentError: it is not.
    """
    if not math.isfinite(value) or not low <= value <= high:
        raise DocumentError(f"{_at(place)}{value!r} is not between {low:g} and {high:g}")
