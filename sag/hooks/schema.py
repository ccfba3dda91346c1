"""Holds values against JSON Schemas that strangers wrote: those of MCP servers and of clients' tools.

A schema must be able neither to make the hub fetch something nor to keep it busy, and one that is broken must not
make its tool useless: what cannot be checked here is left to whoever wrote it. Above: tools and asks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from sag.errors import Fault

log = logging.getLogger("sag.tool")
Json = dict[str, Any]

REFERENCES = 2000  # that are followed for one value, which takes 50 ms; a few lines can stand for more than ever end
_MAPS = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})  # of names to schemas
_TURNING = frozenset({"not", "oneOf", "if"})  # what is left out within them would refuse more, and not less
_VALUES = frozenset({"enum", "const", "default", "examples"})
_left: ContextVar[int] = ContextVar("references that may still be followed")


def check_schema(schema: Json, value: Any, kind: str = "rpc.params") -> Any:
    """Hold a value against a JSON Schema and give it back.

    Raises:
        Fault: Of the kind given, with the path of the worst fault.
    """
    import jsonschema
    from referencing import Registry

    found: list[Any] = []
    _left.set(REFERENCES)
    try:
        draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        # A registry of its own, for jsonschema's default one fetches what a `$ref` names.
        for error in _bounded(draft)(_tame(schema), registry=Registry()).iter_errors(value):
            found.append(error)
    except Exception as e:  # whatever a broken schema makes jsonschema raise
        log.warning("a schema cannot be followed: %s", " ".join(f"{type(e).__name__}: {e}"[:300].split()))
    if error := jsonschema.exceptions.best_match(found):
        where = "" if error.json_path == "$" else f" - at `{error.json_path}`"  # as msgspec words it
        raise Fault(kind, f"{error.message[:500]}{where}", path=error.json_path)
    return value


def _tame(schema: Any, nested: bool = False) -> Any:
    """A schema without its patterns, some of which never end in Python, and without a change of dialect on the way."""
    if isinstance(schema, list):
        return [_tame(each, True) for each in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = {"pattern", "patternProperties"} | ({"$schema"} if nested else set())
    if "patternProperties" in schema:  # without it these would refuse what it allows
        left_out |= {"additionalProperties", "unevaluatedProperties"}
    out: Json = {}
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, dict):
            out[name] = {key: _tame(each, True) for key, each in value.items()}
        elif name in _VALUES:
            out[name] = value
        elif name not in left_out:
            tamed = _tame(value, True)
            if name not in _TURNING or tamed == value:
                out[name] = tamed
    return out


@cache
def _bounded(draft: Any) -> Any:
    """A draft's validator that follows so many references and no more."""
    from jsonschema.validators import extend

    def bound(follow: Any) -> Any:
        def followed(validator: Any, ref: Any, value: Any, schema: Any) -> Iterator[Any]:
            if (left := _left.get()) <= 0:
                raise RecursionError("it refers to itself too often")
            _left.set(left - 1)
            yield from follow(validator, ref, value, schema) or ()

        return followed

    names = ("$ref", "$dynamicRef", "$recursiveRef")
    bounds = {name: bound(draft.VALIDATORS[name]) for name in names if name in draft.VALIDATORS}
    return extend(draft, bounds)  # type: ignore[no-untyped-call]
