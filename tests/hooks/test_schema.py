"""Schemas of strangers: what they say is held against values, and neither reaches out nor holds anything up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sag.errors import Fault
from sag.hooks.schema import check_schema
from sag.testing.provider import ScriptedProvider, call, say
from tests.connectors import FakeConnector, make_tool
from tests.engine.conftest import open_bench

Json = dict[str, Any]


def fault(schema: Any, value: Any) -> str | None:
    """Where a value does not fit; None where it does."""
    try:
        assert check_schema(schema, value) is value
    except Fault as e:
        assert e.kind == "rpc.params"
        return str(e.data["path"])
    return None


@pytest.mark.parametrize(
    ("schema", "value", "path"),
    [
        ({"type": "object", "required": ["a"]}, {}, "$"),
        ({"properties": {"a": {"type": "integer"}}}, {"a": "x"}, "$.a"),
        ({"properties": {"pattern": {"type": "string"}}}, {"pattern": 3}, "$.pattern"),
        ({"properties": {"enum": {"enum": ["a"]}}}, {"enum": "b"}, "$.enum"),
        ({"additionalProperties": False}, {"a": 1}, "$"),
        ({"$defs": {"s": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/s"}}}, {"a": 1}, "$.a"),
        ({"properties": {"a": {"items": {"minimum": 3}}}}, {"a": [3, 2]}, "$.a[1]"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "properties": {
            "a": {"minimum": 1, "exclusiveMinimum": True}}}, {"a": 1}, "$.a"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"items": [{"type": "string"}]}}},
         {"a": [1]}, "$.a[0]"),
        ({"$schema": "https://unknown.example/schema", "required": ["a"]}, {}, "$"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False, "required": ["a"]}, {}, "$"),
        (True, {}, None),
        ({}, {"a": 1}, None),
        ({"patternProperties": {"^x": {"type": "string"}}, "additionalProperties": False}, {"xa": "1"}, None),
        ({"properties": {"a": {"pattern": "^b"}}}, {"a": "c"}, None),
        ({"properties": {"a": {"type": ["string", "null"]}}}, {"a": None}, None),
        ({"properties": {"a": {"not": {"pattern": "^b"}}}}, {"a": "c"}, None),
        ({"properties": {"a": {"not": {"type": "string"}}}}, {"a": "c"}, "$.a"),
        ({"properties": {"a": {"oneOf": [{"pattern": "^a"}, {"pattern": "^b"}]}}}, {"a": "a"}, None),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"minLength": 1}]}}}, {"a": "a"}, "$.a"),
        ({"if": {"properties": {"a": {"pattern": "^x"}}}, "then": {"required": ["b"]}}, {"a": "y"}, None),
        ({"const": {"pattern": "x"}}, {"pattern": "x"}, None),
        ({"const": {"pattern": "x"}}, {"pattern": "y"}, "$"),
    ],
)  # fmt: skip
def test_what_a_schema_says_holds(schema: Any, value: Any, path: str | None) -> None:
    assert fault(schema, value) == path


def test_the_fault_says_where() -> None:
    with pytest.raises(Fault, match=r"'x' is not of type 'integer' - at `\$\.a`"):
        check_schema({"properties": {"a": {"type": "integer"}}}, {"a": "x"})
    with pytest.raises(Fault) as raised:
        check_schema({"type": "string"}, {"a": "x" * 100_000}, "ask.invalid")
    assert raised.value.kind == "ask.invalid"
    assert len(raised.value.message) <= 500


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"properties": []},
        {"properties": {"a": {"minimum": "x"}}},
        {"properties": {"a": {"multipleOf": 0}}},
        {"allOf": "x"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"$ref": 7},
        {"$schema": {"not": "text"}},
        {"$dynamicRef": "#loop", "$dynamicAnchor": "loop"},
        [],
        "text",
    ],
    ids=str,
)
def test_a_broken_schema_does_not_make_its_tool_useless(schema: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert fault(schema, {"a": 1}) is None
    assert "cannot be followed" in caplog.text


def test_what_was_found_before_it_broke_counts() -> None:
    assert fault({"required": ["b"], "properties": {"a": {"type": "nonsense"}}}, {"a": 1}) == "$"


def test_nothing_that_a_schema_says_takes_long() -> None:
    doubled = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schemas: list[tuple[Json, Any]] = [
        ({"$defs": {**doubled, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}, {"a": 1}),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 40 + "b"}),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"a" * 40 + "b": 1}),
        ({"patternProperties": {"^(a+)+$": {}}, "unevaluatedProperties": False}, {"a" * 40 + "b": 1}),
        ({"propertyNames": {"pattern": "^(a+)+$"}}, {"a" * 40 + "b": 1}),
        (
            {"properties": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": "^(a+)+$"}}},
            {"a": "a" * 40 + "b"},
        ),
        ({"$defs": {"x": {"pattern": "^(a+)+$"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}, {"a": "a" * 40 + "b"}),
        ({"anyOf": [{"not": {"properties": {"a": {"pattern": "^(a+)+$"}}}}]}, {"a": "a" * 40 + "b"}),
    ]
    for schema, value in schemas:
        began = time.monotonic()
        fault(schema, value)
        assert time.monotonic() - began < 0.5, schema


async def test_a_reference_to_another_place_is_not_fetched(tmp_path: Any) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"type":"null"}')
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/schema.json"
        places = [
            {"$ref": url},
            {"$ref": "x.json", "$id": url},
            {"$dynamicRef": url},
            {"$schema": url},
            {"$ref": "file:///etc/hostname"},
        ]
        for place in places:
            await asyncio.to_thread(fault, {"properties": {"a": place}}, {"a": 1})
        connector = FakeConnector("c", make_tool("it", input={"type": "object", "properties": {"a": places[0]}}))
        hub = await open_bench(tmp_path, ScriptedProvider(call(("c__it", {"a": 1})), say("done")), [connector])
        try:
            state = await hub.end(await hub.start("go"))
            assert [t["status"] for t in state["tools"].values()] == ["ok"]
        finally:
            await hub.app.engine.drain(0)
            await hub.app.stop()
        assert asked == []
    finally:
        server.close()
        await server.wait_closed()
