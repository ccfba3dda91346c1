"""JSON Schema of everything that is declared, with bare component names as references.

Each document puts its own prefix before the references (`prefixed`). What the hub writes is described as it is
written: members that are always there are required, members that are left out instead of null are never null.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from sag.errors import KINDS
from sag.ops.export import frames
from sag.ops.export.declared import NOTIFICATIONS, SERVER_REQUESTS, Declared, SocketOperation
from sag.schema.events import Delta, Event

Json = dict[str, Any]
DELTA: Json = {"type": "array", "items": {"type": ["integer", "string"]}}


class Schemas:
    """Schemas of all declared types.

    Attributes:
        components: By name.
    """

    def __init__(self, declared: Declared) -> None:
        read: list[Any] = [op.params for op in declared.operations]
        read += [s.params for s in declared.socket]
        read += [n.params for n in NOTIFICATIONS if n.sender != "server"]
        read += [s.result for s in SERVER_REQUESTS]
        read += [cls for _, _, cls in declared.events() if cls is not Delta]
        told: list[Any] = [op.result for op in declared.operations]
        told += [s.result for s in declared.socket]
        told += [n.params for n in NOTIFICATIONS]
        told += [s.params for s in SERVER_REQUESTS]
        told += [*frames.SERVER_FRAMES, frames.ErrorBody, frames.TopicRefused]
        known = set(structs_in(read))
        written = [cls for cls in structs_in(told) if cls not in known]
        types = [*read, *told, *written]
        schemas, found = msgspec.json.schema_components(types, ref_template="{name}")
        for cls, schema in zip(written, schemas[len(read) + len(told) :], strict=True):
            _tighten(found[schema["$ref"]], cls)
        self._schemas = list(zip(types, schemas, strict=True))
        self.components = {name: _described(found[name]) for name in sorted(found)}
        self._add_unions(declared)

    def _add_unions(self, declared: Declared) -> None:
        subscribed = next((self.of(s.result) for s in declared.socket if s.method == "topic.subscribe"), {})
        self.components[frames.OUTCOME] = {
            "title": frames.OUTCOME,
            "description": "The answer to a subscriber, or why the topic cannot be had.",
            "anyOf": [subscribed, {"$ref": "TopicRefused"}],
        }
        self.components["ErrorKind"] = {
            "title": "ErrorKind",
            "description": "The hub's own kinds of errors; plugins add theirs.",
            "enum": list(KINDS),
        }
        for name, text, frames_of in (
            ("ServerFrame", "An object that the hub sends.", frames.SERVER_FRAMES),
            ("ClientFrame", "An object that a client sends.", frames.CLIENT_FRAMES),
        ):
            options = [self.of(frame) for frame in frames_of]
            self.components[name] = {"title": name, "description": text, "anyOf": options}

    def of(self, type: Any) -> Json:
        """The schema of a declared type, a reference for structs."""
        if type is Delta:
            return {"description": "`[part, text, part, text, …]`", **DELTA}
        return next(dict(schema) for known, schema in self._schemas if known is type or known == type)

    def resolve(self, schema: Json) -> Json:
        """A schema with its reference followed."""
        return self.components[schema["$ref"]] if "$ref" in schema else schema


def structs_in(types: Iterable[Any]) -> Iterator[type[Struct]]:
    """Each struct that types are made of, once."""
    seen: set[Any] = set()

    def walk(info: Any) -> Iterator[type[Struct]]:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                return
            seen.add(info.cls)
            yield info.cls
        if isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
            for name in info.__struct_fields__:
                value = getattr(info, name)
                for inner in value if isinstance(value, tuple) else (value,):
                    yield from walk(inner)

    for info in msgspec.inspect.multi_type_info(list(types)):
        yield from walk(info)


def _tighten(schema: Json, cls: type[Struct]) -> None:
    """Describe a struct that the hub only writes: what is always there, and what is never null."""
    omits = cls.__struct_config__.omit_defaults
    for field in msgspec.structs.fields(cls):
        member = schema["properties"][field.encode_name]
        if not omits and field.default is not UNSET and field.encode_name not in schema["required"]:
            schema["required"].append(field.encode_name)
        if not omits or field.default is None:
            member.pop("default", None)
        if omits and field.default is None and "anyOf" in member:
            options = [option for option in member["anyOf"] if option != {"type": "null"}]
            del member["anyOf"]
            member |= options[0] if len(options) == 1 else {"anyOf": options}


def _described(schema: Json) -> Json:
    """A struct's schema whose docstring is taken apart: the text above, and what it says of each member."""
    lead, members = split_doc(schema.get("description", ""))
    if lead:
        schema["description"] = lead
    for name, text in members.items():
        if (member := schema.get("properties", {}).get(name)) is not None:
            member.setdefault("description", text)
    if schema.get("required") == []:
        del schema["required"]
    return schema


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """A Google-style docstring's text, and what its `Attributes:` say of each member."""
    text, _, attributes = inspect.cleandoc(doc).partition("\nAttributes:\n")
    members: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc("\n" + attributes).splitlines():
        if match := re.match(r"(\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            members |= dict.fromkeys(names, match[2])
        elif line.strip():
            members |= {name: f"{members[name]} {line.strip()}" for name in names}
    return paragraphs(text), members


def paragraphs(text: str) -> str:
    """Text with each paragraph in one line."""
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text.strip()) if p.strip())


def prefixed(schema: Any, prefix: str) -> Any:
    """A copy with a prefix before each reference."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: prefix + v if k == "$ref" and "/" not in v else walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list) else value

    return walk(schema)


def event_schema(schemas: Schemas, name: str, cls: type[Event]) -> Json:
    """The frame of an event."""
    members: Json = {
        "t": {"type": "integer", "description": "The subscription's number."},
        "o": {"type": "integer", "description": "The offset; of a merged frame the last of its range."},
        "p": {"type": "integer", "description": "The offset that the frame follows, where that is not `o - 1`."},
        "e": {"const": name},
        "d": schemas.of(cls),
        "r": {"const": 1, "description": "The frame is replayed."},
    }
    required = ["t", "o", "e", "d"]
    if cls.CLASS == "ephemeral":
        for member in ("o", "p", "r"):
            del members[member]
        required.remove("o")
    return {"type": "object", "properties": members, "required": required}


def result_schema(schemas: Schemas, op: Any) -> Json:
    """What the socket answers: of operations that subscribe the caller, with the topic's answer."""
    result = schemas.of(op.result)
    if getattr(op, "topic", None) is None:
        return result
    topic = {"type": "object", "properties": {"topic": {"$ref": frames.OUTCOME}}}
    return {"allOf": [result, topic]}


def jsonschema(declared: Declared) -> Json:
    """The document `jsonschema.json`: any frame at the root, and by name all that is inside."""
    schemas = Schemas(declared)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": generated("sag/ops/export"),
        "title": "sag.1",
        "description": "Frames of the socket protocol sag.1, and the params, results, events and errors in them.",
        "version": declared.version,
        "anyOf": [{"$ref": "#/$defs/ServerFrame"}, {"$ref": "#/$defs/ClientFrame"}],
        **prefixed(
            {
                "x-operations": {
                    op.method: {
                        "params": schemas.of(op.params),
                        "result": result_schema(schemas, op),
                        "who": getattr(op, "who", "anyone"),
                        "changes": getattr(op, "changes", False),
                        "socket-only": isinstance(op, SocketOperation),
                    }
                    for op in declared.requests()
                },
                "x-requests-of-the-hub": {
                    s.method: {"params": schemas.of(s.params), "result": schemas.of(s.result)} for s in SERVER_REQUESTS
                },
                "x-notifications": {
                    n.method: {"params": schemas.of(n.params), "sender": n.sender} for n in NOTIFICATIONS
                },
                "x-events": _by_family(declared, lambda cls: {"d": schemas.of(cls), **event_class(cls)}),
                "x-errors": {name: kind._asdict() for name, kind in KINDS.items()},
                "$defs": schemas.components,
            },
            "#/$defs/",
        ),
    }


def event_class(cls: type[Event]) -> Json:
    """An event's class, and for class state its key."""
    return {"class": cls.CLASS} | ({"key": cls.KEY} if cls.KEY else {})


def _by_family(declared: Declared, make: Callable[[type[Event]], Json]) -> Json:
    out: Json = {}
    for family, name, cls in declared.events():
        out.setdefault(family, {})[name] = make(cls)
    return out


def generated(by: str) -> str:
    """What generated files say of themselves."""
    return f"Generated from the declarations by {by}. Do not edit."
