"""Mutations that keep a document's form, so that they get past the parser: JSON, zip, arrays, protobuf, bytes."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

# (generator, seed) -> a case
Mutation = Callable[[Random, bytes], bytes]

_NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 4096, 65_536, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 53) + 1, 1 << 63, 1 << 64,
    10**30, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
_TEXTS = (
    "", " ", ".", "..", "/", "../../outside", "/etc/hostname", "a\\b", "C:\\x", "\0", "\n", "\x1b[31m", "[/red]",
    "=1+1", "<script>", "\ud800", "\u202e", "é" * 40, "x" * 300, "x" * 70_000, "None", "nan", "1e999", "model.onnx",
    "digits", "onnx", "torch", "tensorrt", "int8", "golden", "golden/000.img", "manifest.json", "%s%n", "{0.__class__}",
)  # fmt: skip
# JSON, valid or not, that Python's writer does not produce.
_RAW = (
    b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 3000, b'{"a":' * 3000, b"1e999", b"-", b"0x10", b'"\\ud800"', b"NaN",
    b"9" * 5000, b'{"a":1,"a":2}', b"{}", b"[]", b"null", b"true", b"0", b'""',
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(16,)", "(1000000, 1000000)", "(-1,)", "(2, 3", f"({1 << 62},)", "(16, 1, 32, 32, 1)", "(1e3,)",
    "'x'", "(" + "1, " * 200 + ")",
)  # fmt: skip
_SIZES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Flip, insert, remove, repeat or replace bytes."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        at = random.randrange(len(changed) + 1)
        length = random.choice((1, 1, 2, 4, 8, 16, 64))
        choice = random.randrange(7)
        if choice == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif choice == 1:
            changed[at : at + 1] = bytes([random.randrange(256)])
        elif choice == 2:
            changed[at:at] = random.randbytes(length)
        elif choice == 3:
            del changed[at : at + length]
        elif choice == 4:
            changed[at:at] = changed[at : at + length]
        elif choice == 5:
            number = random.choice(_SIZES)
            width = random.choice((1, 2, 4, 8))
            changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, random.choice(("little", "big")))
        else:
            del changed[at:]
    return bytes(changed)


def mutate_json(random: Random, content: bytes) -> bytes:
    """Change types and sizes of values; remove, add and swap entries; sometimes return invalid JSON."""
    choice = random.randrange(20)
    if choice == 0:
        return mutate_bytes(random, content)
    if choice == 1:
        return random.choice(_RAW)
    document = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _edited(random, document)
    text = json.dumps(document)
    if choice == 2:
        raw = random.choice(_RAW).decode("latin-1")
        return text.replace(random.choice(('"', "1", "[", "null")), raw, 1).encode("latin-1")
    return text.encode()


def _edited(random: Random, document: Any) -> Any:
    """Change one place of a document; one near the root is as likely as one deep in a long list."""
    container, key = None, None
    value = document
    while isinstance(value, dict | list) and value and (container is None or random.random() < 0.75):
        container, key = value, random.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = container[key]
    if container is None:
        return _value(random, document)
    choice = random.randrange(8)
    if choice == 0:
        del container[key]
    elif choice == 1 and isinstance(container, dict):
        container[random.choice((*_TEXTS, *container))] = value
    elif choice == 2 and isinstance(container, list):
        container[key:key] = [value] * random.choice((1, 2, 50))
    elif choice == 3:
        other = random.choice(list(container) if isinstance(container, dict) else range(len(container)))
        container[key], container[other] = container[other], container[key]
    else:
        container[key] = _value(random, value)
    return document


def _value(random: Random, old: Any) -> Any:
    choice = random.randrange(10)
    if choice == 0:
        return None
    if choice == 1:
        return random.choice(([], {}, [[]], {"a": 1}, [1, "x", None], [0.5] * 3, {"": {}}, [{}]))
    if choice == 2:
        nested: Any = old
        for _ in range(random.choice((1, 2, 40, 200))):
            nested = [nested] if random.random() < 0.5 else {"a": nested}
        return nested
    if choice < 5 and isinstance(old, int | float):
        return random.choice((old + 1, old - 1, -old, old * 1000, float(old), str(old), old / 3))
    if choice < 5 and isinstance(old, str) and old:
        return random.choice((old[:-1], old + "x", old.upper(), old[::-1], old * 2, f"../{old}", [old]))
    return random.choice(_NUMBERS) if choice < 8 else random.choice(_TEXTS)


def mutate_gzip_json(random: Random, content: bytes) -> bytes:
    """Mutate the document inside, or the gzip file's bytes."""
    if random.random() < 0.2:
        return mutate_bytes(random, content)
    return gzip.compress(mutate_json(random, gzip.decompress(content)), 1, mtime=0)


def mutate_gzip(random: Random, content: bytes) -> bytes:
    """Mutate the content, or the gzip file's bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    return gzip.compress(mutate_bytes(random, gzip.decompress(content)), 1, mtime=0)


def mutate_lines(random: Random, content: bytes) -> bytes:
    """Mutate messages, one JSON document per line."""
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    choice = random.randrange(8)
    if choice == 0:
        del lines[at]
    elif choice == 1:
        lines.insert(at, random.choice(lines))
    elif choice == 2:
        random.shuffle(lines)
    elif choice == 3:
        lines[at] = mutate_bytes(random, lines[at])
    else:
        lines[at] = mutate_json(random, lines[at]) if lines[at] else b"{}"
    return b"\n".join(lines)


def mutate_zip(random: Random, content: bytes, inner: Mutation = mutate_bytes) -> bytes:
    """Change names, contents, compression and number of a zip file's members; sometimes its bytes."""
    if random.random() < 0.25:
        return mutate_bytes(random, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(members)) if members else 0
        choice = random.randrange(7)
        if not members or choice == 0:
            members.insert(at, (random.choice(_TEXTS).replace("\0", "")[:60_000] or "x", b"x"))
        elif choice == 1:
            del members[at]
        elif choice == 2:
            other = random.choice((members[at][0].rpartition("/")[0], *_TEXTS)).replace("\0", "")[:60_000]
            members[at] = (other.encode(errors="replace").decode() or "x", members[at][1])
        elif choice == 3:
            members.append(members[at])
        elif choice == 4:
            members[at] = (members[at][0], bytes(random.choice((0, 1, 1 << 12, 1 << 22))))
        else:
            members[at] = (members[at][0], inner(random, members[at][1]))
    stream = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name.encode(errors="replace").decode())
            info.external_attr = random.choice((0, 0, 0, 0o120777 << 16, 0o40755 << 16))  # a link, a folder
            archive.writestr(info, data, method)
    return stream.getvalue()


def mutate_npy(random: Random, content: bytes) -> bytes:
    """Change the type, order or shape in an array file's header, or break the header."""
    if random.random() < 0.3 or content[:6] != b"\x93NUMPY":
        return mutate_bytes(random, content)
    size = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + size].decode("latin-1")
    kinds = (
        "<f4",
        "|u1",
        "<i8",
        "<u4",
        "|O",
        "<f8",
        "<U9",
        "|S99999",
        "<c16",
        "|V0",
        "|b1",
        "<M8[s]",
        "[('a', '|O')]",
    )
    choice = random.randrange(5)
    if choice == 0:
        for kind in ("<f4", "|u1", "<i8", "<u4", "<U1"):
            header = header.replace(kind, random.choice(kinds))
    elif choice == 1:
        shape = random.choice(_SHAPES)
        start = header.find("(")
        header = header[:start] + shape + header[header.find(")") + 1 :]
    elif choice == 2:
        header = header.replace("False", random.choice(("True", "1", "None", "__import__('os')")))
    elif choice == 3:
        header = random.choice(("", "{", "{}", "[" * 500, "9" * 9000, "{'descr': '<f4'}"))
    else:
        header = mutate_bytes(random, header.encode("latin-1")).decode("latin-1")
    raw = header.encode("latin-1", errors="replace")[:65_000]
    return content[:8] + len(raw).to_bytes(2, "little") + raw + content[10 + size :]


def mutate_npz(random: Random, content: bytes) -> bytes:
    """Mutate a numpy archive."""
    return mutate_zip(random, content, mutate_npy)


def mutate_protobuf(random: Random, content: bytes) -> bytes:
    """Change fields of any nested message: numbers, types, lengths, values; repeat, remove or nest them."""
    if random.random() < 0.15:
        return mutate_bytes(random, content)
    return _message(random, content, random.choice((1, 2, 3, 4, 5)))


def _message(random: Random, content: bytes, depth: int) -> bytes:
    """Change one field of a message, `depth` levels down if it is nested that deep."""
    fields = _fields(content)
    if not fields:
        return mutate_bytes(random, content)
    at = random.randrange(len(fields))
    key, payload, framed = fields[at]
    if depth > 1 and framed and len(payload) > 1:
        fields[at] = (key, _message(random, payload, depth - 1), True)
        return b"".join(_encoded(*field) for field in fields)
    choice = random.randrange(8)
    if choice == 0:
        del fields[at]
    elif choice == 1:
        fields[at:at] = [fields[at]] * random.choice((1, 2, 200))
    elif choice == 2:
        fields[at] = (random.choice((0, 7, 8, 10, 13, 42, 58, (1 << 29) << 3 | 2, 3, 4, 6, key ^ 7)), payload, framed)
    elif choice == 3 and framed:  # a wrong length
        return b"".join(_encoded(*field) for field in fields[:at]) + _varint(key) + _varint(
            random.choice((*_SIZES, len(payload) + 1, 1 << 70))
        ) + payload  # fmt: skip
    elif choice == 4 and framed:
        fields[at] = (key, random.choice(_TEXTS).encode(errors="replace"), True)
    elif choice == 5 and framed:  # nested deeper than any reader accepts
        deep = payload
        for _ in range(random.choice((3, 90, 110, 2000))):
            deep = _varint(key) + _varint(len(deep)) + deep
        fields[at] = (key, deep, True)
    elif choice == 6 and not framed:
        fields[at] = (key, _varint(random.choice((*_SIZES, 1 << 70))), False)
    else:
        fields[at] = (key, mutate_bytes(random, payload), framed)
    return b"".join(_encoded(*field) for field in fields)


def _fields(content: bytes) -> list[tuple[int, bytes, bool]]:
    """(key, payload, whether it has a length) of each field; empty if this is not a message."""
    fields: list[tuple[int, bytes, bool]] = []
    at = 0
    while at < len(content):
        key, after = _read_varint(content, at)
        start = after
        if key & 7 == 0:
            _, after = _read_varint(content, after)
        elif key & 7 == 1:
            after += 8
        elif key & 7 == 5:
            after += 4
        elif key & 7 == 2:
            size, start = _read_varint(content, after)
            after = start + size
        else:
            return []
        if key >> 3 == 0 or after > len(content):
            return []
        fields.append((key, content[start:after], key & 7 == 2))
        at = after
    return fields


def _encoded(key: int, payload: bytes, framed: bool) -> bytes:
    return _varint(key) + (_varint(len(payload)) if framed else b"") + payload


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        number |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return number, at
    return 0, len(content) + 1
