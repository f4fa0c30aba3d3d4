"""Checks of a torch.export archive before torch loads it, because loading can run code in it.

torch.export.load unpickles weights, constants and sample inputs, evaluates symbolic shapes (sympy.sympify), looks up
operators by dotted Python names, loads compiled libraries, and generates Python from names and guards. Allowed
are tensors as plain bytes, ATen operators, identifiers as names, and arithmetic of sizes. All records are read by
torch's own reader, so that the checked content is the loaded content.
"""

import ast
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import BundleError

# Records of an archive, below its root folder (torch/csrc/export/pt2_archive_constants.h).
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORDS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)"
)

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_PLAIN = re.compile(r"[\w.+:<>= -]*")
# aten::from_file maps a file, for writing too; aten::save writes one.
_TARGET = re.compile(
    r"torch\.ops\.(aten\.(?!from_file\b|save\b)\w+\.\w+|prims\.\w+\.\w+)|torch\.sym_(float|int|max|min|not|ite|sqrt)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|ge|gt|le|lt|and_|or_|getitem)|math\.(ceil|floor|trunc)"
)
_SYMBOLIC = re.compile(r"[A-Za-z_]\w*|\d+(\.\d+)?|'[a-z]+\d+'|[-+*/(),=<> ]")
_SYMBOLIC_NAMES = {
    "Symbol", "Integer", "Rational", "Float", "Mul", "Add", "Pow", "Mod", "Max", "Min", "Eq", "Ne", "Ge", "Gt", "Le",
    "Lt", "Equality", "Unequality", "GreaterThan", "StrictGreaterThan", "LessThan", "StrictLessThan", "FloorDiv",
    "CleanDiv", "PythonMod", "ModularIndexing", "Where", "CeilDiv", "CeilToInt", "FloorToInt", "IntTrueDiv",
    "TruncToInt", "ToFloat", "Identity", "positive", "nonnegative", "integer", "real", "zero", "True", "False", "None",
    "oo", "int_oo",
}  # fmt: skip
_GUARD_NAMES = {"L", "size", "stride", "storage_offset", "dim", "shape", "math", "isnan", "inf"}
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}

# Entries that are neither executed nor turned into code; tools show them.
_UNUSED = {"metadata"}


def check_program(path: Path) -> None:
    """Refuse an archive that would run more than tensor operators when it is loaded or called.

    Raises:
        BundleError: it holds a pickle, compiled code, a foreign operator, or text that torch would evaluate.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        sizes = {name: reader.get_record_size(name) for name in names}
    except (RuntimeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is not a torch.export archive: {_first_line(error)}", fix="export it again"
        ) from error
    check_size(sizes.values(), path)
    for name in names:
        if not _RECORDS.fullmatch(name):
            raise _refused(path, f"it holds {name[:80]!r}, which is not a tensor of a torch.export program")
    if _MODEL not in names:
        raise BundleError(
            f"{path} holds no program of a supported format",
            fix="export it again with torch 2.8 or newer: torch.export.save",
        )
    for name in {*_CONFIGS} & {*names}:
        for entry in _parsed(reader, name, path).get("config", {}).values():
            if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise _refused(path, f"{name} names a pickle")
    if sizes.get(_SAMPLES):
        _check_samples(_record(reader, _SAMPLES, path), path)
    document = _parsed(reader, _MODEL, path)
    for kind, text in _texts(document, ""):
        if not _harmless(kind, text):
            raise _refused(path, f"its program has {kind} {text[:80]!r}, which EdgeKit does not let torch evaluate")


def check_size(sizes: Iterable[int], path: Path) -> None:
    """Refuse a torch archive whose records are far larger than the file: torch writes them uncompressed.

    Raises:
        BundleError: the records are too large.
    """
    if sum(sizes) > 2 * path.stat().st_size + (1 << 20):
        raise _refused(path, "its compressed contents are much larger than the file")


def _refused(path: Path, what: str) -> BundleError:
    return BundleError(
        f"{path} is refused: {what}",
        fix="do not use a file that you do not trust; from your own network: edgekit import module:factory",
    )


def _record(reader: Any, name: str, path: Path) -> bytes:
    try:
        return reader.get_record(name)
    except RuntimeError as error:
        raise BundleError(f"{path} is damaged: {_first_line(error)}", fix="get it again, or export it again") from error


def _parsed(reader: object, name: str, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_record(reader, name, path))
        return {**document}
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{path}: {name} is not a JSON document: {_first_line(error)}", fix="export it again"
        ) from error


def _check_samples(content: bytes, path: Path) -> None:
    """Require the restricted unpickler to succeed, because torch falls back to a full one if it fails."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # UnpicklingError, and what its zip reader raises
        raise _refused(path, "its sample inputs are a pickle of more than tensors") from error


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """(key, text) for each text below a JSON value, and ("key", name) for each key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield "key", name
            if name not in _UNUSED:
                yield from _texts(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry, key)


def _harmless(kind: str, text: str) -> bool:
    if kind in ("name", "as_name", "forward_arg_names"):
        return bool(_IDENTIFIER.fullmatch(text))
    if kind == "target":
        return bool(_TARGET.fullmatch(text))
    if kind == "expr_str":
        return _is_symbolic(text)
    if kind == "guards_code":
        return _is_guard(text)
    if kind in ("in_spec", "out_spec"):
        return _is_tree(text)
    if kind == "as_string":  # an argument such as padding mode or einsum's equation; it stays a string
        return text.isprintable() and len(text) <= 200
    return kind not in ("as_custom_obj", "as_operator", "class_fqn") and bool(_PLAIN.fullmatch(text))


def _is_symbolic(text: str) -> bool:
    """Whether sympy would read only arithmetic of sizes."""
    tokens = list(_SYMBOLIC.finditer(text))
    names = {token.group() for token in tokens if _IDENTIFIER.fullmatch(token.group())}
    return "".join(token.group() for token in tokens) == text and all(
        name in _SYMBOLIC_NAMES or re.fullmatch(r"[a-z]{1,4}\d+", name) for name in names
    )


def _is_guard(text: str) -> bool:
    """Whether a guard only compares the inputs' sizes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    allowed = (
        ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.Call, ast.Attribute,
        ast.Name, ast.Constant, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    )  # fmt: skip
    return all(
        isinstance(node, allowed)
        and getattr(node, "id", "L") in _GUARD_NAMES
        and getattr(node, "attr", "L") in _GUARD_NAMES
        for node in ast.walk(tree)
    )


def _is_tree(text: str) -> bool:
    """Whether inputs and outputs are structured only by Python's own containers."""

    def types(node: Any) -> Iterator[Any]:
        yield node["type"]
        for child in node["children_spec"]:
            yield from types(child)

    try:
        return set(types(json.loads(text)[1])) <= _TREE_TYPES
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
