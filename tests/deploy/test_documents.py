"""JSON from outside is converted to its declared type, or refused in one line that names the location."""

import dataclasses
import json
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pytest
from edgekit.deploy.documents import MAX_DEPTH, MAX_TEXT, DocumentError, parse, read, within
from edgekit.deploy.errors import BundleError, EdgeKitError
from hypothesis import example, given
from hypothesis import strategies as st


class Point(NamedTuple):
    """A pair."""

    x: float
    y: float = 0.0


@dataclasses.dataclass(frozen=True)
class Document:
    """A field for each kind of annotation."""

    name: str
    kind: Literal["a", "b"]
    count: int
    share: float
    yes: bool
    size: int | tuple[int, int] | None
    times: tuple[int, ...]
    points: Sequence[Point]
    facts: Mapping[str, Any]
    by_name: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


GOOD = {
    "name": "n", "kind": "a", "count": 3, "share": 1, "yes": True, "size": [2, 3], "times": [1, 2], "facts": {"a": [1]},
    "points": [{"x": 1.5}], "by_name": {"train": ["x"]},
}  # fmt: skip

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


def test_values_get_the_annotated_types() -> None:
    """Lists become tuples, objects become classes, and a written document reads back the same."""
    document = read(Document, GOOD)
    assert document.size == (2, 3)
    assert document.times == (1, 2)
    assert document.points == (Point(1.5, 0.0),)
    assert document.by_name == {"train": ("x",)}
    written = {**dataclasses.asdict(document), "points": [point._asdict() for point in document.points]}
    assert read(Document, json.loads(json.dumps(written))) == document


@pytest.mark.parametrize(
    ("change", "message"),
    [({"count": True}, "count: expected a whole number, got True"), ({"count": 1.5}, "whole number"),
     ({"yes": 1}, "true or false"), ({"kind": "c"}, "kind: expected one of .*, got 'c'"),
     ({"times": [1, "x"]}, r"times\[1\]"), ({"times": "12"}, "expected a list"),
     ({"size": [1]}, "size: expected .*, got a list"), ({"points": [{}]}, "x is missing"),
     ({"points": [{"x": "1"}]}, r"points\[0\]\.x"), ({"surprise": 1}, "unknown entry 'surprise'"),
     ({"name": "x" * (MAX_TEXT + 1)}, "at most"), ({"count": 1 << 60}, "whole number"),
     ({"facts": {"a": "x" * (MAX_TEXT + 1)}}, r"facts\.a")],
)  # fmt: skip
def test_a_wrong_type_is_refused_with_its_location(change: dict, message: str) -> None:
    """The error is one line that names the location."""
    with pytest.raises(DocumentError, match=message):
        read(Document, {**GOOD, **change})


def test_missing_entries_and_depth_are_refused() -> None:
    """The depth of an Any is bounded too."""
    with pytest.raises(DocumentError, match="count is missing"):
        read(Document, {key: value for key, value in GOOD.items() if key != "count"})
    deep: Any = 1
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    with pytest.raises(DocumentError, match="nested deeper"):
        read(Document, {**GOOD, "facts": {"a": deep}})


@example("by_name", {"\n": None})
@given(st.sampled_from(sorted(GOOD)), plain)
def test_any_value_anywhere_is_accepted_or_refused(key: str, value: object) -> None:
    """No other error is raised."""
    try:
        read(Document, {**GOOD, key: value})
    except DocumentError as error:
        assert "\n" not in str(error)[:50]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 10_000, b"nul", b'"' + b"x" * 200_001 + b'"'],
)
def test_invalid_json_is_refused(content: bytes) -> None:
    """Not UTF-8, truncated, nested too deep, numbers with thousands of digits, larger than the limit."""
    with pytest.raises(BundleError, match=r"x\.json is not a report"):
        parse(content, "x.json", "a report", limit=200_000, error=BundleError)
    with pytest.raises(EdgeKitError):
        parse(content, "x.json", "a report", limit=200_000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 11])
def test_bounds(value: float) -> None:
    """NaN and infinity are out of any bounds."""
    with pytest.raises(DocumentError, match="is not between 0 and 10"):
        within(value, 0, 10, "x")


def test_many_small_values_are_refused_before_they_are_parsed() -> None:
    """Three million empty lists are 9 MB of text and 200 MB of memory."""
    content = b"[" + b"[]," * 3_000_000 + b"[]]"
    tracemalloc.start()
    with pytest.raises(EdgeKitError, match="values"):
        parse(content, "x.json", "a document", limit=1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
