"""TypeScript types of operations, events and errors, for `static/client/src/protocol.gen.ts`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sag.errors import KINDS
from sag.ops.export import frames
from sag.ops.export.declared import NOTIFICATIONS, SERVER_REQUESTS, Declared, topic_name
from sag.ops.export.schema import Schemas, generated, paragraphs, split_doc

Json = dict[str, Any]
WIDTH = 120
SKIPPED = {"ErrorKind", "ServerFrame", "ClientFrame"} | {
    frame.__name__ for frame in (*frames.SERVER_FRAMES, *frames.CLIENT_FRAMES)
}


def typescript(declared: Declared) -> str:
    """The module's text."""
    schemas = Schemas(declared)
    out = [
        "/**",
        f" * {generated('scripts/generate')}",
        " *",
        " * Params and results of operations, data of events, kinds of errors, as the hub declares them. Types only.",
        " */",
        "",
        "/** An object whose members are not declared here. */",
        "export type Json = Record<string, any>;",
        "",
        *_union("ErrorKind", [json_text(kind) for kind in KINDS], schemas.components["ErrorKind"]["description"]),
        "",
    ]
    for name, schema in schemas.components.items():
        if name not in SKIPPED:
            out += [*_declare(name, schema), ""]
    out += _table("Operations", "What can be asked for, by method.", _operations(schemas, declared))
    socket = [(s.method, s.text, _pair(schemas, s)) for s in declared.socket]
    out += _table("SocketOperations", "Requests about the connection, which `Client` makes itself.", socket)
    hub = [(s.method, s.text, _pair(schemas, s)) for s in SERVER_REQUESTS]
    out += _table("HubRequests", "What the hub asks a client for.", hub)
    notices = [(n.method, split_doc(n.text)[0], type_of(schemas.of(n.params))) for n in NOTIFICATIONS]
    out += _table("Notifications", "Messages that are not answered.", notices)
    out += ["/** Data of events, by the family of the topic and the event's name. */", "export interface Events {"]
    for family in declared.families:
        out += [f"  /** `{topic_name(family)}` */", f"  {_key(family)}: {{"]
        for _, name, cls in (e for e in declared.events() if e[0] == family):
            out.append(f"    {_key(name)}: {type_of(schemas.of(cls))};")
        out.append("  };")
    return "\n".join([*out, "}", ""])


def _operations(schemas: Schemas, declared: Declared) -> list[tuple[str, str, str]]:
    rows = []
    for op in declared.operations:
        result = type_of(schemas.of(op.result))
        if op.topic is not None:
            result += f" & {{ topic?: {frames.OUTCOME} }}"
        pair = f"{{ params: {type_of(schemas.of(op.params))}; result: {result} }}"
        rows.append((op.method, paragraphs(op.text), pair))
    return rows


def _pair(schemas: Schemas, s: Any) -> str:
    return f"{{ params: {type_of(schemas.of(s.params))}; result: {type_of(schemas.of(s.result))} }}"


def _table(name: str, text: str, rows: Sequence[tuple[str, str, str]]) -> list[str]:
    out = [*_comment(text), f"export interface {name} {{"]
    for key, note, type in rows:
        out += [*_comment(note, "  "), f"  {_key(key)}: {type};"]
    return [*out, "}", ""]


def _declare(name: str, schema: Json) -> list[str]:
    text = _comment(schema.get("description", ""))
    if "anyOf" in schema:
        return text + _union(_name(name), [type_of(option) for option in schema["anyOf"]])
    out = [*text, f"export interface {_name(name)} {{"]
    required = schema.get("required", ())
    for member, inner in schema.get("properties", {}).items():
        note = _notes(inner)
        mark = "" if member in required else "?"
        out += [*_comment(note, "  "), f"  {_key(member)}{mark}: {type_of(inner)};"]
    return [*out, "}"] if len(out) > len(text) + 1 else [*text, f"export type {_name(name)} = Record<string, never>;"]


def _notes(schema: Json) -> str:
    default = schema.get("default")
    parts = [schema.get("description", "")]
    if default is not None and default not in ({}, [], ""):
        parts.append(f"Default `{json_text(default)}`.")
    return " ".join(p for p in parts if p)


def type_of(schema: Json) -> str:
    """A schema as a TypeScript type."""
    if "$ref" in schema:
        return _name(schema["$ref"])
    if "enum" in schema:
        return " | ".join(json_text(v) for v in schema["enum"])
    if "const" in schema:
        return json_text(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(type_of(option) for option in schema["anyOf"]))
    type = schema.get("type")
    if isinstance(type, list):
        return " | ".join(dict.fromkeys(type_of({"type": t}) for t in type))
    if type == "array":
        item = type_of(schema.get("items", {}))
        return f"({item})[]" if " " in item else f"{item}[]"
    if type == "object":
        values = schema.get("additionalProperties")
        return f"Record<string, {type_of(values)}>" if isinstance(values, dict) and values else "Json"
    return {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}.get(
        str(type), "unknown"
    )


def _union(name: str, options: list[str], text: str = "") -> list[str]:
    line = f"export type {name} = {' | '.join(options)};"
    if len(line) <= WIDTH:
        return [*_comment(text), line]
    return [
        *_comment(text),
        f"export type {name} =",
        *(f"  | {option}" for option in options[:-1]),
        f"  | {options[-1]};",
    ]


def _comment(text: str, indent: str = "") -> list[str]:
    if not text:
        return []
    words = text.replace("*/", "* /").split()
    line = f"{indent}/** {' '.join(words)} */"
    if len(line) <= WIDTH:
        return [line]
    out, current = [f"{indent}/**"], f"{indent} *"
    for word in words:
        if len(current) + 1 + len(word) > WIDTH:
            out.append(current)
            current = f"{indent} *"
        current += f" {word}"
    return [*out, current, f"{indent} */"]


def json_text(value: Any) -> str:
    """A JSON value as TypeScript, strings in single quotes."""
    if isinstance(value, str):
        return "'" + json.dumps(value, ensure_ascii=False)[1:-1].replace("'", "\\'").replace('\\"', '"') + "'"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_$][\w$]*", name) else json_text(name)


def _name(component: str) -> str:
    return re.sub(r"\W", "_", component)
