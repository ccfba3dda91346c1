"""Schemas, types and reference pages, generated from the one declaration of each operation and event.

Owns the documents under `/schema`, the client's `protocol.gen.ts` and the generated pages of `docs/reference`; it
declares nothing itself but the frames that have no struct elsewhere. What lies above `ops` (the connection's own
operations, hooks, the command line) is handed in by those who call.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from sag.ops.export import markdown, pages
from sag.ops.export.asyncapi import asyncapi
from sag.ops.export.declared import FAMILIES, Declared, SocketOperation, declared, socket_operations
from sag.ops.export.openapi import openapi
from sag.ops.export.schema import jsonschema
from sag.ops.export.typescript import typescript
from sag.ops.operation import Registry

__all__ = [
    "FAMILIES",
    "Declared",
    "SocketOperation",
    "declared",
    "document",
    "files",
    "print_document",
    "socket_operations",
]

_DOCUMENTS = {"jsonschema": jsonschema, "openapi": openapi, "asyncapi": asyncapi}
_made: WeakKeyDictionary[Registry, dict[tuple[object, ...], bytes]] = WeakKeyDictionary()


def document(
    name: str,
    registry: Registry,
    version: str,
    socket: Sequence[SocketOperation] = (),
    families: Collection[str] = FAMILIES,
    routes: Mapping[str, str] | None = None,
) -> bytes | None:
    """A schema document by its name, made once for what is registered.

    Args:
        name: `jsonschema.json`, `openapi.json` or `asyncapi.json`, with or without `.json`.
        registry: The operations.
        version: The hub's version.
        socket: The operations of a connection.
        families: Which families of topics there are.
        routes: HTTP routes of plugins, and what they do.

    Returns:
        The document as JSON; None where there is none of that name.
    """
    make = _DOCUMENTS.get(name.removesuffix(".json"))
    if make is None:
        return None
    what = declared(registry, version, socket, families, routes)
    made = _made.setdefault(registry, {})
    key = (name.removesuffix(".json"), len(what.operations), tuple(what.families), tuple(what.routes))
    if key not in made:
        made[key] = msgspec.json.encode(make(what))
    return made[key]


def print_document(name: str, what: Declared) -> str:
    """A document as `sag schema` prints it.

    Args:
        name: `jsonschema`, `openapi`, `asyncapi`, `typescript` or `reference`, which is Markdown.
        what: All that is declared.
    """
    if name == "typescript":
        return typescript(what).rstrip("\n")
    if name == "reference":
        return "\n".join(markdown.pages(what).values()).rstrip("\n")
    return msgspec.json.format(msgspec.json.encode(_DOCUMENTS[name](what)), indent=2).decode()


def files(
    what: Declared, parser: argparse.ArgumentParser, hooks: type[Any], plugin: Sequence[type[Any]]
) -> dict[str, str]:
    """The generated files of the checkout, by their paths in it.

    Args:
        what: All that is declared.
        parser: The command line.
        hooks: The hook specifications.
        plugin: The hub that plugins are given, and what hangs from it.
    """
    made = markdown.pages(what) | {"cli.md": pages.cli(parser), "hooks.md": pages.hooks(hooks, plugin)}
    out = {f"docs/reference/{name}": markdown.wrapped(text) for name, text in made.items()}
    return out | {"static/client/src/protocol.gen.ts": typescript(what)}
