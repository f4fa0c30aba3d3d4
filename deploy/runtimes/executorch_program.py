"""What an ExecuTorch program (.pte) consists of, read from its bytes without running it.

A program is a FlatBuffer (executorch/schema/program.fbs) with data behind it. Its steps call a backend, which computes
a part of the network (executorch/backends/xnnpack/serialization/schema.fbs), or one of ExecuTorch's own kernels.

Identifiers and names are checked, because ExecuTorch 1.5 aborts the process where it logs one that is not UTF-8.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

_PROGRAM, _HEADER, _GRAPH = b"ET12", b"XH00", b"XN01"
# Where the program's header says at which byte the data begins, and XNNPACK's where its graph begins.
_DATA_AT, _GRAPH_AT = 24, 10
# Kinds of a step, and the place of a backend's data.
_KERNEL, _DELEGATE, _SEGMENT = 1, 2, 1
# The longest name that ExecuTorch 1.5 writes is a hash of 64 digits.
_MAX_NAME = 200

XNNPACK = "XnnpackBackend"
# The kernels of ExecuTorch that multiply and add.
_COMPUTE = {"convolution", "linear", "addmm", "mm", "bmm"}


class Steps(NamedTuple):
    """What runs a program's operators.

    Attributes:
        delegated: operators that XNNPACK computes, after it has fused some at export.
        kernels: own kernel of ExecuTorch -> how often it runs, such as "aten::mul.out".
    """

    delegated: int
    kernels: Mapping[str, int]

    @property
    def placement(self) -> dict[str, int]:
        """Who computes how many operators."""
        own = sum(self.kernels.values())
        return {"XNNPACK": self.delegated, **({"ExecuTorch's own kernels": own} if own else {})}

    @property
    def undelegated(self) -> dict[str, int]:
        """The kernels that convolve or multiply matrices."""
        return {
            name: count for name, count in self.kernels.items() if name.partition("::")[2].partition(".")[0] in _COMPUTE
        }


def read_steps(content: bytes) -> Steps:
    """Read which operators XNNPACK computes, and which are left to ExecuTorch's own kernels.

    Args:
        content: of a .pte file; hostile.

    Raises:
        ValueError: it is not a program with one method, or calls another backend than XNNPACK.
    """
    try:
        return _read(content)
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged ({error})") from error


def _read(content: bytes) -> Steps:
    if _identifier(content, 0) != _PROGRAM:
        raise ValueError("it is not an ExecuTorch program")
    program = _Table.root(content)
    plans = program.tables(1)
    if len(plans) != 1:
        raise ValueError(f"it has {len(plans)} methods")
    (plan,) = plans
    for data in program.tables(7):
        data.name(0)
    names = [".".join(filter(None, (operator.name(0), operator.name(1)))) for operator in plan.tables(6)]
    kernels, delegated = Counter[str](), 0
    graphs = [_operators(content, program, delegate) for delegate in plan.tables(7)]
    for chain in plan.tables(5):
        for step in chain.tables(2):
            kind = step.number(0, "B")
            if kind == _KERNEL:
                kernels[names[step.table(1).number(0, "i")]] += 1
            elif kind == _DELEGATE:
                delegated += graphs[step.table(1).number(0, "i")]
    return Steps(delegated, dict(kernels.most_common()))


def _operators(content: bytes, program: "_Table", delegate: "_Table") -> int:
    """The operators of a part that XNNPACK computes."""
    if (name := delegate.name(0)) != XNNPACK:
        raise ValueError(f"it calls the backend {name!r}, not {XNNPACK}")
    data = delegate.table(1)
    if data.number(0, "b") != _SEGMENT:
        raise ValueError("its part for XNNPACK is damaged")
    segment = program.tables(4)[data.number(1, "I")]
    start = struct.unpack_from("<Q", content, _DATA_AT)[0] + segment.number(0, "Q")
    graph = start + struct.unpack_from("<I", content, start + _GRAPH_AT)[0]
    if _identifier(content, start) != _HEADER or _identifier(content, graph) != _GRAPH:
        raise ValueError("its part for XNNPACK is damaged")
    root = _Table.root(content, graph)
    for constant in root.tables(8):
        constant.name(2)
    return len(root.tables(1))


def _identifier(content: bytes, at: int) -> bytes:
    """The four bytes after the first offset of a FlatBuffer that begins at `at`."""
    return content[at + 4 : at + 8]


class _Table(NamedTuple):
    """A table of a FlatBuffer; its fields are numbered in the order of the schema."""

    content: bytes
    at: int

    @classmethod
    def root(cls, content: bytes, at: int = 0) -> "_Table":
        return cls(content, at)._follow(at)

    def number(self, field: int, kind: str) -> int:
        """A field of a `struct` kind; 0 where it is left out."""
        place = self._place(field)
        return self._unpack(kind, place) if place else 0

    def table(self, field: int) -> "_Table":
        return self._follow(self._required(field))

    def tables(self, field: int) -> list["_Table"]:
        """A vector of tables; empty where it is left out."""
        if not (place := self._place(field)):
            return []
        vector = self._follow(place)
        first = vector.at + 4
        count = self._unpack("I", vector.at)
        if count > len(self.content) // 4:
            raise ValueError("it is damaged")
        return [self._follow(first + 4 * index) for index in range(count)]

    def name(self, field: int) -> str:
        """A field of printable ASCII; empty where it is left out."""
        if not (place := self._place(field)):
            return ""
        text = self._follow(place)
        length = self._unpack("I", text.at)
        name = self.content[text.at + 4 : text.at + 4 + min(length, _MAX_NAME)].decode("ascii")
        if length > _MAX_NAME or not name.isprintable():
            raise ValueError("it is damaged")
        return name

    def _place(self, field: int) -> int:
        """Where a field is; 0 where it is left out."""
        layout = self.at - self._unpack("i", self.at)
        slot = 4 + 2 * field
        if slot >= self._unpack("H", layout):
            return 0
        offset = self._unpack("H", layout + slot)
        return self.at + offset if offset else 0

    def _required(self, field: int) -> int:
        if not (place := self._place(field)):
            raise ValueError("it is damaged")
        return place

    def _follow(self, place: int) -> "_Table":
        return _Table(self.content, place + self._unpack("I", place))

    def _unpack(self, kind: str, place: int) -> int:
        if place < 0:
            raise ValueError("it is damaged")
        return struct.unpack_from("<" + kind, self.content, place)[0]
