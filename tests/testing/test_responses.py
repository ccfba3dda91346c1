"""The fake's Responses API: its events in order, what belongs together, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sag.testing.upstream import (
    Calls,
    Emit,
    Fail,
    FakeUpstream,
    File,
    Json,
    Refusal,
    Say,
    Script,
    Step,
    Think,
    ToolCall,
    call,
    fail,
    say,
)
from tests.testing.asking import OBJECT, PDF, PNG, Got, send

TOOLS = [{"type": "function", "name": "f", "parameters": OBJECT, "strict": False}]
SUMMARY = {"effort": "low", "summary": "auto"}
SEALED = ["reasoning.encrypted_content"]


@pytest.fixture
async def up():
    async with FakeUpstream(strict=True) as server:
        yield server


async def ask(up: FakeUpstream, given: Any = "hello world", **more: Any) -> Got:
    return await send(up, "POST", "/v1/responses", {"model": "fake", "input": given, **more})


async def stream(up: FakeUpstream, *steps: Step, **more: Any) -> Got:
    if steps:
        up.script(Script(list(steps)))
    got = await ask(up, stream=True, **more)
    assert got.status == 200
    assert got.names == [event["type"] for event in got.events]
    assert [event["sequence_number"] for event in got.events] == list(range(len(got.events)))
    assert not got.done
    return got


async def test_the_events_of_text_come_in_order(up):
    got = await stream(up, Say("hello world"))
    assert got.types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [e["response"]["status"] for e in got.events if "response" in e] == ["in_progress"] * 2 + ["completed"]
    added, part, *deltas = got.events[2:6]
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert part["part"]["text"] == ""
    assert [one["delta"] for one in deltas] == ["hello", " world"]
    assert {one["item_id"] for one in (part, *deltas)} == {added["item"]["id"]}
    assert all(one["obfuscation"] and one["logprobs"] == [] for one in deltas)
    [item] = got.events[-1]["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("completed", "hello world")


async def test_padding_is_left_out_on_request(up):
    got = await stream(up, Say("hello"), stream_options={"include_obfuscation": False})
    assert not any("obfuscation" in event for event in got.events)


async def test_a_summary_comes_only_to_who_asks(up):
    steps: list[Step] = [Think("let me see"), Say("yes")]
    got = await stream(up, *steps, reasoning=SUMMARY)
    assert got.types[2:8] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]
    thought, message = got.events[-1]["response"]["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "let me see"}]
    assert "encrypted_content" not in thought
    assert message["content"][0]["text"] == "yes"
    got = await stream(up, *steps, reasoning={"effort": "low"}, include=SEALED)
    assert not any("summary" in kind for kind in got.types)
    thought, _ = got.events[-1]["response"]["output"]
    assert thought["summary"] == []
    assert thought["encrypted_content"]
    usage = got.events[-1]["response"]["usage"]
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (4, {"reasoning_tokens": 3})


async def test_thoughts_of_open_models_are_content(up):
    got = await stream(up, Think("hm so", member="reasoning_text"), Say("yes"))
    deltas = [event for event in got.events if event["type"] == "response.reasoning_text.delta"]
    assert [one["delta"] for one in deltas] == ["hm", " so"]
    assert {one["content_index"] for one in deltas} == {0}
    assert got.events[-1]["response"]["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm so"}]


async def test_calls_come_one_after_the_other(up):
    calls = Calls([ToolCall("f", {"x": "ä"}, id="own"), ToolCall("f")], chars=4)
    got = await stream(up, Say("Wait."), calls)
    names = [name.removeprefix("response.") for name in got.names if "arguments" in name or "item" in name]
    one = ["output_item.added", *["function_call_arguments.delta"] * 4, "function_call_arguments.done"]
    assert names[2:9] == [*one, "output_item.done"]
    _, first, second = got.events[-1]["response"]["output"]
    assert (first["call_id"], first["name"], first["arguments"]) == ("own", "f", '{"x": "\\u00e4"}')
    assert first["id"] != first["call_id"]
    assert (second["arguments"], second["status"]) == ("{}", "completed")
    added = [event["item"] for event in got.events if event["type"] == "response.output_item.added"][1]
    assert (added["arguments"], added["status"]) == ("", "in_progress")
    done = [event for event in got.events if event["type"] == "response.function_call_arguments.done"]
    assert [(one["output_index"], one["item_id"]) for one in done] == [(1, first["id"]), (2, second["id"])]


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_may_be_incomplete(up, finish, reason):
    up.script(say("half a", finish=finish), call("f", '{"x": 1', finish=finish))
    for _ in range(2):
        got = await stream(up)
        last = got.events[-1]
        assert last["type"] == "response.incomplete"
        assert (last["response"]["status"], last["response"]["incomplete_details"]) == (
            "incomplete",
            {"reason": reason},
        )
        assert last["response"]["output"][-1]["status"] == "incomplete"
        assert last["response"]["completed_at"] is None


async def test_an_answer_may_fail(up):
    up.script(
        Script([Say("a"), Fail(500, "It broke.")], finish="failed"),
        Script([Say("a"), Fail(429, "Too much.", param="p"), Say("never")]),
        say("a", finish="failed"),
    )
    failed, error, bare = [(await stream(up)).events[-1] for _ in range(3)]
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["message"] == "It broke."
    assert error == {
        "type": "error",
        "sequence_number": 5,
        "code": "rate_limit_exceeded",
        "message": "Too much.",
        "param": "p",
    }
    assert (bare["type"], bare["response"]["error"]["code"]) == ("response.failed", "server_error")


async def test_a_refusal_is_a_part_of_its_own(up):
    got = await stream(up, Refusal("I will not."))
    assert [e["delta"] for e in got.events if e["type"] == "response.refusal.delta"] == ["I", " will", " not."]
    assert got.events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]


async def test_the_end_may_be_missing_and_events_be_unknown(up):
    up.script(Script([Say("a"), Emit({"type": "response.new_thing", "x": 1})], done=False))
    got = await ask(up, stream=True)
    assert "response.new_thing" in got.names
    assert got.names[-1] == "response.output_item.done"


async def test_the_same_comes_whole(up):
    steps: list[Step] = [Think("hm"), Say("yes"), Calls([ToolCall("f", {"x": 1})])]
    streamed = (await stream(up, *steps, reasoning=SUMMARY)).events[-1]["response"]
    up.script(Script(steps))
    whole = (await ask(up, reasoning=SUMMARY)).json
    for answer in (streamed, whole):
        for item in answer["output"]:
            del item["id"]
            item.pop("call_id", None)
        del answer["id"]
    assert streamed == whole
    up.script(Script([Say("a"), Fail(503, "Later.")]))
    got = await ask(up)
    assert (got.status, got.error["type"]) == (503, "service_unavailable_error")


# what belongs together


async def called(up: FakeUpstream, **more: Any) -> tuple[Json, Json]:
    """A thought and the call that came of it."""
    up.script(Script([Think("hm"), Calls([ToolCall("f")])]))
    got = await ask(up, "call it", tools=TOOLS, **more)
    thought, made = got.json["output"]
    return thought, made


def output(made: Json, text: str = "done") -> Json:
    return {"type": "function_call_output", "call_id": made["call_id"], "output": text}


USER = {"role": "user", "content": "call it"}


async def test_a_call_goes_back_with_its_thought_and_its_output(up):
    thought, made = await called(up, store=False, include=SEALED, reasoning={"effort": "low"})
    got = await ask(up, [USER, thought, made, output(made)], store=False)
    assert (got.status, got.json["output"][0]["content"][0]["text"]) == (200, "done")
    got = await ask(up, [USER, made, output(made)], store=False)
    assert (got.status, got.error["param"]) == (400, "input")
    assert f"without its required 'reasoning' item: '{thought['id']}'" in got.error["message"]
    bare = {name: made[name] for name in ("type", "call_id", "name", "arguments")}
    assert (await ask(up, [USER, bare, output(made)], store=False)).status == 400
    got = await ask(up, [USER, thought, output(made)], store=False)
    assert "without its required following item" in got.error["message"]


async def test_what_is_not_stored_has_to_come_encrypted_and_unchanged(up):
    thought, made = await called(up, store=False, include=SEALED)
    sealed = thought["encrypted_content"]
    for other in (sealed[:-8] + "AAAAAAA=", "x"):
        got = await ask(up, [USER, {**thought, "encrypted_content": other}, made, output(made)], store=False)
        assert (got.status, got.error["code"]) == (400, "invalid_encrypted_content")
    got = await ask(up, [USER, {**thought, "encrypted_content": None}, made, output(made)], store=False)
    assert (got.status, "Items are not persisted" in got.error["message"]) == (404, True)


async def test_what_is_stored_is_known_by_its_id(up):
    thought, made = await called(up)
    bare = {"type": "reasoning", "id": thought["id"], "summary": []}
    assert (await ask(up, [USER, bare, made, output(made)])).status == 200
    references = [{"type": "item_reference", "id": one["id"]} for one in (thought, made)]
    assert (await ask(up, [USER, *references, output(made)])).status == 200
    assert (await ask(up, [{"type": "item_reference", "id": "rs_none"}])).status == 404


async def test_a_conversation_goes_on_from_the_previous_response(up):
    up.script(Script([Think("hm"), Calls([ToolCall("f")])]))
    first = (await ask(up, "call it", tools=TOOLS)).json
    made = first["output"][1]
    got = await ask(up, [output(made)], previous_response_id=first["id"])
    assert got.json["output"][0]["content"][0]["text"] == "done"
    assert [item.get("type") for item in up.chats[-1].asked.transcript] == [
        None,
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    got = await ask(up, "go on", previous_response_id=first["id"])
    assert f"No tool output found for function call {made['call_id']}" in got.error["message"]
    got = await send(up, "GET", f"/v1/responses/{first['id']}")
    assert got.json == first
    up.script(say("x"))
    unstored = (await ask(up, store=False)).json["id"]
    got = await ask(up, "go on", previous_response_id=unstored)
    assert (got.status, got.error["code"]) == (400, "previous_response_not_found")
    assert (await send(up, "GET", f"/v1/responses/{unstored}")).status == 404


CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "r"}
NESTED = {"type": "function", "function": {"name": "f", "parameters": OBJECT}}


@pytest.mark.parametrize(
    ("given", "words", "param"),
    [
        ({"input": None}, "Missing required parameter: 'input'", "input"),
        ({"input": []}, "Missing required parameter: 'input'", "input"),
        ({"input": [OUTPUT]}, "No tool call found for function call output with call_id a", "input"),
        ({"input": [USER, CALL]}, "No tool output found for function call a", "input"),
        ({"input": [USER, OUTPUT, CALL]}, "No tool call found", "input"),
        ({"input": [USER, {**CALL, "arguments": {}}, OUTPUT]}, "input[1].arguments", "input[1].arguments"),
        ({"input": [USER, CALL, {**OUTPUT, "output": None}]}, "input[2].output", "input[2].output"),
        ({"input": [{"role": "tool", "content": "x"}]}, "Invalid value: 'tool'", "input[0].role"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]}, "output_text", None),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "Invalid value: 'text'", None),
        ({"input": [{"type": "thing"}]}, "Invalid value: 'thing'", "input[0].type"),
        ({"tools": [NESTED]}, "Missing required parameter: 'tools[0].name'", "tools[0].name"),
        ({"tools": [{**TOOLS[0], "name": "a.b"}]}, "pattern", "tools[0].name"),
        ({"tools": [{"type": "thing"}]}, "Invalid value: 'thing'", "tools[0].type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "'g' not found", "tool_choice"),
        ({"max_tokens": 5}, "Unknown parameter: 'max_tokens'", "max_tokens"),
        ({"messages": []}, "Unknown parameter: 'messages'", "messages"),
        ({"stream_options": {"include_usage": True}}, "Unknown parameter: 'stream_options.include_usage'", None),
        ({"max_output_tokens": 5}, "Expected a value >= 16, but got 5", "max_output_tokens"),
        ({"include": ["thoughts"]}, "Invalid value: 'thoughts'", "include"),
        ({"reasoning": {"effort": "huge"}}, "Invalid value: 'huge'", "reasoning.effort"),
        ({"model": "thinker", "temperature": 0.5}, "'temperature' is not supported", "temperature"),
        ({"background": True}, "not available", "background"),
        ({"reasoning": "high"}, "'reasoning': expected an object", "reasoning"),
        ({"input": {"role": "user"}}, "'input': expected a string or an array", "input"),
        ({"input": ["hi"]}, "'input[0]': expected an object", "input[0]"),
        ({"max_output_tokens": "many"}, "expected an integer", "max_output_tokens"),
    ],
)
async def test_requests_that_break_the_contract_get_the_real_error(given, words, param):
    async with FakeUpstream(strict=True, models=["fake", "thinker"], reasoning_models=["thinker"]) as up:
        got = await ask(up, **{"given": "x", **given} if "input" not in given else {"given": given["input"]})
        assert got.status == 400
        assert words in got.error["message"]
        assert param is None or got.error["param"] == param


async def test_models_and_conversations_that_are_not_there_are_not_found(up):
    for more in ({"model": "none"}, {"conversation": "conv_1"}):
        got = await send(up, "POST", "/v1/responses", {"model": "fake", "input": "x", **more})
        assert got.status == 404


async def test_images_and_files_are_taken_and_noted(up):
    content = [
        {"type": "input_text", "text": "what is it?"},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"},
        {"type": "input_image", "image_url": "https://pictures.example/a.png"},
        {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"},
        {"type": "input_file", "file_id": "file_1"},
    ]
    got = await ask(up, [{"role": "user", "content": content}])
    assert got.json["output"][0]["content"][0]["text"] == "what is it?"
    assert up.requests[0].asked.files == [
        File("image/png", b"\x89PNG\r\n\x1a\n"),
        File("", source="https://pictures.example/a.png"),
        File("application/pdf", b"%PDF-1.4", "a.pdf"),
        File("", source="file_1"),
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "data:image/png;base64,!!"},
        {"type": "input_image", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "input_image", "image_url": f"data:application/pdf;base64,{PDF}"},
        {"type": "input_file", "file_data": f"data:application/pdf;base64,{PDF}"},
        {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
        {"type": "image_url", "image_url": {"url": "x"}},
    ],
)
async def test_files_that_are_malformed_are_refused(up, part):
    got = await ask(up, [{"role": "user", "content": [part]}])
    assert (got.status, up.requests[0].asked) == (400, None)


async def test_errors_before_the_stream_have_openais_form(up):
    up.script(fail(429, "Too much.", code="insufficient_quota"))
    got = await ask(up, stream=True)
    assert got.json == {
        "error": {"message": "Too much.", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    }
