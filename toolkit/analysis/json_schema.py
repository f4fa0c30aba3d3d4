"""The JSON Schema (2020-12) and the Markdown page of the types that `deploy.documents.read` reads."""

import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union

from ...deploy.documents import Bounds, Length, fields_of, is_record
from .report_schema import Comparison, JoinedReport, Report

Schema = dict[str, object]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
# An entry of a docstring's "Attributes:" section; its continuation lines are indented further.
_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def report_schema() -> Schema:
    """The schema of the report of one device or of several, and of a comparison."""
    definitions: dict[str, Schema] = {}
    schema = _schema_of(Report | JoinedReport | Comparison, definitions)
    return {"$schema": DIALECT, "title": "EdgeKit report", **schema, "$defs": dict(sorted(definitions.items()))}


def report_page() -> str:
    """The report's types as Markdown: a table per type."""
    records: dict[str, object] = {}
    for kind in (Report, JoinedReport, Comparison):
        _collect(kind, records)
    lines = [
        "<!-- Written by: python -m edgekit.toolkit.analysis.json_schema -->",
        "",
        "# Report schema",
        "",
        "Schema 4, which `edgekit validate --json` prints and `report.json` contains. `edgekit report --schema` prints",
        "it as a JSON Schema (2020-12). Reports of schemas 1 to 3 are still read, and are judged by the current rules.",
        "",
        "Entries marked `?` are optional. Later versions may add entries, which readers ignore.",
    ]
    for name, kind in records.items():
        summary, attributes = _described(kind)
        fields = fields_of(kind)
        lines += ["", f"## {name}", "", summary, "", "| entry | type | |", "|---|---|---|"]
        for key, entry in fields.kinds.items():
            mark = "" if key in fields.required else "?"
            lines.append(f"| `{key}`{mark} | {_type_text(entry)} | {attributes.get(key, '')} |")
    return "\n".join(lines) + "\n"


def _schema_of(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of an annotation; records become definitions."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        schema = _schema_of(arguments[0], definitions)
        for rule in arguments[1:]:
            schema |= _rule(rule)
        return schema
    if is_record(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            definitions[kind.__name__] = _record(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {
            "anyOf": [
                {"type": "null"} if argument is type(None) else _schema_of(argument, definitions)
                for argument in arguments
            ]
        }
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    return {} if kind in (Any, object) else {"type": _PLAIN[kind]}


def _record(kind: object, definitions: dict[str, Schema]) -> Schema:
    summary, attributes = _described(kind)
    fields = fields_of(kind)
    properties = {}
    for name, entry in fields.kinds.items():
        properties[name] = _schema_of(entry, definitions)
        if name in attributes:
            properties[name]["description"] = attributes[name]
    schema: Schema = {"type": "object", "description": summary, "properties": properties}
    schema["required"] = sorted(fields.required)
    return schema if fields.is_open else {**schema, "additionalProperties": False}


def _rule(rule: object) -> Schema:
    if isinstance(rule, Bounds):
        return {"minimum": rule.low, "maximum": rule.high}
    if isinstance(rule, Length):
        maximum: Schema = {} if rule.high is None else {"maxItems": rule.high}
        return {"minItems": rule.low, **maximum}
    return {}


def _described(kind: object) -> tuple[str, dict[str, str]]:
    """A class's description and those of its attributes, from its docstring."""
    text = inspect.getdoc(kind) or ""
    summary, _, section = text.partition("\n\nAttributes:\n")
    attributes = {}
    for names, description in _ATTRIBUTE.findall(section):
        attributes |= dict.fromkeys(names.split(", "), " ".join(description.split()))
    return " ".join(summary.split()), attributes


def _collect(kind: Any, records: dict[str, object]) -> None:
    """Collect the records that an annotation uses, each before those nested in it."""
    if is_record(kind):
        if kind.__name__ in records:
            return
        records[kind.__name__] = kind
        parts: Iterator[object] = iter(fields_of(kind).kinds.values())
    else:
        parts = iter(typing.get_args(kind)) if typing.get_origin(kind) is not Literal else iter(())
    for part in parts:
        _collect(part, records)


def _type_text(kind: Any) -> str:
    """An annotation as readable text."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _type_text(arguments[0])
    if is_record(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if argument is type(None) else _type_text(argument) for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {_type_text(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object of {_type_text(arguments[1])}"
    return "anything" if kind in (Any, object) else _PLAIN[kind]


if __name__ == "__main__":
    print(report_page(), end="")
