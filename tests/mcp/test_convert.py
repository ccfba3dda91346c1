"""From the protocol's JSON to what the hub knows, and back."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sag.plugin import BlobContent, LinkContent, PromptArgument, Result, Sampled, TextContent, Tool, ToolError
from sag_mcp import convert
from sag_mcp.ends import Malformed
from sag_mcp.spec import ServerSettings

Json = dict[str, Any]
ANY: Json = {"type": "object", "properties": {}}
BYTES = base64.b64encode(b"\x00bytes").decode()


async def never(tool: Tool, args: Any, ctx: Any) -> Any:
    raise AssertionError


def one(**raw: Any) -> tuple[list[Json], list[str]]:
    return convert.usable_tools([{"name": "t", "inputSchema": ANY, **raw}])


def made(settings: ServerSettings | None = None, **raw: Any) -> Tool:
    usable, notes = one(**raw)
    assert not notes
    return convert.make_tool(usable[0], settings or ServerSettings(command=["x"]), "srv", never)


# --- tools ---


@pytest.mark.parametrize(
    ("hints", "risk", "idempotent"),
    [
        (None, "write", False),
        ({}, "write", False),
        ({"readOnlyHint": True}, "read", True),
        ({"readOnlyHint": True, "destructiveHint": True}, "read", True),
        ({"destructiveHint": True}, "danger", False),
        ({"destructiveHint": False, "idempotentHint": True}, "write", True),
        ({"readOnlyHint": "yes", "destructiveHint": 1}, "write", False),
        ("nonsense", "write", False),
    ],
)
def test_the_risk_comes_from_the_annotations(hints: Any, risk: str, idempotent: bool) -> None:
    tool = made(annotations=hints)
    assert (tool.risk, tool.idempotent) == (risk, idempotent)


def test_the_settings_overrule_what_a_server_says() -> None:
    settings = ServerSettings(command=["x"], risks={"t": "danger"}, policy="deny", call_s=5, longest_s=50)
    tool = made(settings, annotations={"readOnlyHint": True})
    assert (tool.risk, tool.policy, tool.timeout_s, tool.longest_s) == ("danger", "deny", 5, 50)
    assert tool.key == "srv/t"


def test_a_tool_has_the_title_of_its_own_or_of_its_annotations() -> None:
    assert made(title="A", annotations={"title": "B"}).title == "A"
    assert made(annotations={"title": "B"}).title == "B"
    assert made().title == ""
    assert made(description="").description == "t"
    assert made(outputSchema={"type": "object"}).output == {"type": "object"}


@pytest.mark.parametrize("name", ["", " t", "a\nb", "x" * 129, 7, None, "\x00"])
def test_a_name_that_cannot_be_used_leaves_the_tool_out(name: Any) -> None:
    usable, notes = one(name=name)
    assert not usable
    assert "its name cannot be used" in notes[0]


@pytest.mark.parametrize("name", ["t", "a.b/c-d_e", "Ünï", "x" * 128, "with space"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert [tool["name"] for tool in one(name=name)[0]] == [name]


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (None, "its arguments are no object"),
        ([], "its arguments are no object"),
        ({"type": "array"}, "its arguments are no object"),
        ({"type": "object", "properties": []}, "have no properties"),
        ({"type": "object", "properties": {"a": {"type": "strange"}}}, "is none"),
        ({"type": "object", "required": "a"}, "is none"),
        ({"type": "object", "$ref": "http://127.0.0.1:1/x"}, "which is not in it"),
        ({"type": "object", "$ref": "file:///etc/passwd"}, "which is not in it"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, "which is not in it"),
        ({"type": "object", "properties": {"a": {"$ref": "#name"}}}, "which is not in it"),
        ({"type": "object", "properties": {"a": {"enum": ["x" * 70_000]}}}, "more than 64 KiB"),
    ],
)
def test_a_schema_that_cannot_be_used_leaves_the_tool_out(schema: Any, why: str) -> None:
    usable, notes = one(inputSchema=schema)
    assert not usable
    assert why in notes[0]


def test_a_schema_that_is_nested_without_end_leaves_the_tool_out() -> None:
    schema: Json = {"type": "object"}
    at = schema
    for _ in range(200):
        at["properties"] = {"a": {"type": "object"}}
        at = at["properties"]["a"]
    assert "nested too deeply" in one(inputSchema=schema)[1][0]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": {"a": {"items": [ANY]}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"$ref": "#b"}}, "$defs": {"b": {"$anchor": "b", "type": "string"}}},
        {"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}},
    ],
)
def test_other_schemas_are_taken(schema: Json) -> None:
    usable, notes = one(inputSchema=schema)
    assert notes == []
    assert usable[0]["inputSchema"] == {"properties": {}, **schema, "type": "object"}


def test_a_tool_that_can_be_called_as_a_task_alone_is_left_out() -> None:
    assert "as a task alone" in one(execution={"taskSupport": "required"})[1][0]
    assert one(execution={"taskSupport": "optional"})[0]


def test_an_output_schema_that_cannot_be_used_is_no_reason_to_leave_a_tool_out() -> None:
    usable, notes = one(outputSchema={"type": "strange"})
    assert "outputSchema" not in usable[0]
    assert not notes


def test_of_two_tools_with_one_name_the_first_is_taken() -> None:
    both = [{"name": "t", "description": d, "inputSchema": ANY} for d in "ab"]
    usable, notes = convert.usable_tools(both)
    assert [tool["description"] for tool in usable] == ["a"]
    assert "another one has its name" in notes[0]


def test_there_are_512_tools_at_most_and_1_mib_of_them() -> None:
    many = [{"name": f"t{n}", "inputSchema": ANY} for n in range(600)]
    usable, notes = convert.usable_tools(many)
    assert (len(usable), notes) == (512, ["There are more than 512 tools; the rest is left out."])
    large = {**ANY, "$comment": "x" * 60_000}
    usable, notes = convert.usable_tools([{"name": f"t{n}", "inputSchema": large} for n in range(100)])
    assert 15 < len(usable) < 20
    assert notes == ["There are more than 1 MiB of tools; the rest is left out."]


def test_notes_are_few() -> None:
    assert len(convert.usable_tools([None] * 1000)[1]) == 20


def test_a_long_description_is_cut() -> None:
    assert len(one(description="x" * 100_000)[0][0]["description"]) == convert.MAX_TEXT


# --- results ---


def test_contents_become_the_hubs() -> None:
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "image", "data": BYTES, "mimeType": "image/png"},
        {"type": "audio", "data": BYTES, "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "x://y/z.txt", "text": "b"}},
        {"type": "resource", "resource": {"uri": "x://y/a%20b.bin", "blob": BYTES}},
        {"type": "resource_link", "uri": "x://y", "name": "n", "title": "t", "description": "d", "mimeType": "m/n"},
    ]
    assert convert.contents(blocks) == [
        TextContent("a"),
        BlobContent("image/png", b"\x00bytes"),
        BlobContent("audio/wav", b"\x00bytes"),
        TextContent("b"),
        BlobContent("application/octet-stream", b"\x00bytes", "a b.bin"),
        LinkContent("x://y", "n", "t", "d", "m/n"),
    ]


@pytest.mark.parametrize(
    "block",
    [
        None,
        "text",
        {"type": "text"},
        {"type": "image", "data": "%%%", "mimeType": "image/png"},
        {"type": "image", "data": 7},
        {"type": "resource", "resource": {}},
        {"type": "resource_link"},
        {"type": "hologram"},
        {"type": ["list"]},
    ],
)
def test_content_that_cannot_be_shown_is_named(block: Any) -> None:
    (item,) = convert.contents([block])
    assert isinstance(item, TextContent)
    assert item.text.startswith("[")


def test_a_thousand_items_are_shown() -> None:
    found = convert.contents([{"type": "text", "text": "x"}] * 1500)
    assert len(found) == 1001
    assert found[-1] == TextContent("[500 more items were left out]")


def test_a_result_has_its_data() -> None:
    raw = {"content": [{"type": "text", "text": "4"}], "structuredContent": {"sum": 4}}
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    assert convert.result_of(raw, schema) == Result([TextContent("4")], {"sum": 4})
    with pytest.raises(Malformed, match="schema"):
        convert.result_of({**raw, "structuredContent": {"sum": "four"}}, schema)
    with pytest.raises(Malformed, match="no list"):
        convert.result_of({"content": "x"}, None)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"content": [{"type": "text", "text": "no"}, {"type": "text", "text": "milk"}]}, "no\nmilk"),
        ({"content": [], "structuredContent": {"why": 1}}, '{"why":1}'),
        ({"content": []}, "did not say why"),
    ],
)
def test_a_failed_result_is_an_error_with_its_text(raw: Json, text: str) -> None:
    with pytest.raises(ToolError, match=text.replace("{", r"\{")):
        convert.result_of({**raw, "isError": True}, None)


# --- prompts and resources ---


def test_prompts_are_taken_as_far_as_they_are_some() -> None:
    arguments = [{"name": "a", "description": "d", "required": True}, {"name": "b"}, {}, "x"]
    (prompt,) = convert.prompts_of([{"name": "p", "title": "P", "arguments": arguments}, {}, None, {"name": ""}])
    assert (prompt.name, prompt.title) == ("p", "P")
    assert prompt.arguments == [PromptArgument("a", "d", True), PromptArgument("b")]


def test_resources_are_taken_as_far_as_they_are_some() -> None:
    given = [{"uri": "a://b", "name": "n", "size": 3}, {"uri": "a://c", "size": -1}, {"uri": ""}, {"name": "x"}, None]
    found = convert.resources_of(given, template=False)
    assert [(r.uri, r.name, r.size, r.template) for r in found] == [
        ("a://b", "n", 3, False),
        ("a://c", "a://c", None, False),
    ]
    (template,) = convert.resources_of([{"uriTemplate": "a://{b}", "name": "n"}], template=True)
    assert (template.uri, template.template) == ("a://{b}", True)


def test_there_are_only_so_many_bytes_of_prompts_and_resources() -> None:
    assert len(convert.prompts_of([{"name": f"p{n}", "description": "x" * 2000} for n in range(500)])) < 140
    many = [{"uri": f"a://{n}", "name": "n", "description": "x" * 1000} for n in range(500)]
    assert len(convert.resources_of(many, template=False)) < 260


def test_a_prompt_that_was_filled_in_has_its_messages() -> None:
    said = {"type": "text", "text": "hi"}
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said}, {"role": "x"}, None]
    found = convert.prompt_messages({"messages": messages})
    assert [(m.role, m.content) for m in found] == [("user", [TextContent("hi")]), ("assistant", [TextContent("hi")])]
    with pytest.raises(Malformed):
        convert.prompt_messages({})


# --- what a server asks ---


def test_a_form_has_what_the_protocol_allows_and_no_more() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "T", "minLength": 1, "pattern": "(a+)+$", "default": "Ana"},
            "size": {"type": "string", "enum": ["s", "m"], "enumNames": ["Small", "Medium"]},
            "one": {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"const": "b"}, 7]},
            "many": {"type": "array", "items": {"anyOf": [{"const": "x", "title": "X"}], "items": {}}, "minItems": 1},
            "count": {"type": "integer", "minimum": "many", "maximum": 5},
            "nested": {"type": "object", "properties": {"a": {}}, "$ref": "#"},
            "bad": "x",
        },
        "required": ["name", "missing"],
        "additionalProperties": False,
    }
    assert convert.form_of(schema) == {
        "type": "object",
        "properties": {
            "name": {"title": "T", "minLength": 1, "type": "string", "default": "Ana"},
            "size": {"type": "string", "enum": ["s", "m"], "enumNames": ["Small", "Medium"]},
            "one": {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "b"}]},
            "many": {"type": "array", "items": {"anyOf": [{"const": "x", "title": "X"}]}, "minItems": 1},
            "count": {"type": "integer", "maximum": 5},
            "nested": {},
        },
        "required": ["name"],
    }
    assert convert.form_of("nonsense") == {"type": "object", "properties": {}}


def test_what_a_person_leaves_out_has_the_forms_default() -> None:
    form = convert.form_of({"properties": {"a": {"type": "string", "default": "x"}, "b": {"type": "integer"}}})
    assert convert.answer_of(form, {"b": 1, "other": 2}) == {"a": "x", "b": 1}
    assert convert.answer_of(form, {"a": "y", "b": {"no": 1}}) == {"a": "y"}


def test_what_the_model_answers_goes_back_as_the_protocol_has_it() -> None:
    assert convert.sampled_json(Sampled("hi", "p/m", "stop")) == {
        "role": "assistant",
        "content": {"type": "text", "text": "hi"},
        "model": "p/m",
        "stopReason": "endTurn",
    }
    assert convert.sampled_json(Sampled("hi", "p/m", "length"))["stopReason"] == "maxTokens"


def test_roots_are_uris() -> None:
    assert convert.root_uri("file:///a%20b") == "file:///a%20b"
    assert convert.root_uri("/a b") == "file:///a%20b"
