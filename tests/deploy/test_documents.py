"""JSON from outside is taken as its type says, or refused in one line that names the place."""

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
class Thing:
    """One of each kind of annotation."""

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


def test_values_become_what_the_annotations_say() -> None:
    """Lists become tuples, objects become classes, and what was written is read again."""
    thing = read(Thing, GOOD)
    assert thing.size == (2, 3)
    assert thing.times == (1, 2)
    assert thing.points == (Point(1.5, 0.0),)
    assert thing.by_name == {"train": ("x",)}
    written = {**dataclasses.asdict(thing), "points": [one._asdict() for one in thing.points]}
    assert read(Thing, json.loads(json.dumps(written))) == thing


@pytest.mark.parametrize(
    ("change", "words"),
    [({"count": True}, "count: True where a whole number"), ({"count": 1.5}, "whole number"),
     ({"yes": 1}, "true or false"), ({"kind": "c"}, "kind: 'c' where one of"), ({"times": [1, "x"]}, r"times\[1\]"),
     ({"times": "12"}, "a list belongs"), ({"size": [1]}, "size: a list where"), ({"points": [{}]}, "x is missing"),
     ({"points": [{"x": "1"}]}, r"points\[0\]\.x"), ({"surprise": 1}, "unknown entry 'surprise'"),
     ({"name": "x" * (MAX_TEXT + 1)}, "at most"), ({"count": 1 << 60}, "whole number"),
     ({"facts": {"a": "x" * (MAX_TEXT + 1)}}, r"facts\.a")],
)  # fmt: skip
def test_what_is_of_another_type_is_refused_by_its_place(change: dict, words: str) -> None:
    """One line, which names where it stands."""
    with pytest.raises(DocumentError, match=words):
        read(Thing, {**GOOD, **change})


def test_missing_entries_and_depth_are_refused() -> None:
    """An Any is bounded too."""
    with pytest.raises(DocumentError, match="count is missing"):
        read(Thing, {key: value for key, value in GOOD.items() if key != "count"})
    deep: Any = 1
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    with pytest.raises(DocumentError, match="nested deeper"):
        read(Thing, {**GOOD, "facts": {"a": deep}})


@example("by_name", {"\n": None})
@given(st.sampled_from(sorted(GOOD)), plain)
def test_any_value_in_any_place_is_taken_or_refused(key: str, value: object) -> None:
    """Never another error."""
    try:
        read(Thing, {**GOOD, key: value})
    except DocumentError as error:
        assert "\n" not in str(error)[:50]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 10_000, b"nul", b'"' + b"x" * 200_001 + b'"'],
)
def test_what_is_not_json_is_refused(content: bytes) -> None:
    """Not UTF-8, cut, nested without end, numbers of thousands of digits, larger than the limit."""
    with pytest.raises(BundleError, match=r"x\.json is not a report"):
        parse(content, "x.json", "a report", limit=200_000, error=BundleError)
    with pytest.raises(EdgeKitError):
        parse(content, "x.json", "a report", limit=200_000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 11])
def test_bounds(value: float) -> None:
    """What is not finite is out of any bounds."""
    with pytest.raises(DocumentError, match="is not from 0 to 10"):
        within(value, 0, 10, "x")


def test_many_small_values_are_refused_before_they_are_made() -> None:
    """Three million empty lists are nine megabytes of text, and 200 of memory."""
    content = b"[" + b"[]," * 3_000_000 + b"[]]"
    tracemalloc.start()
    with pytest.raises(EdgeKitError, match="values"):
        parse(content, "x.json", "a document", limit=1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
