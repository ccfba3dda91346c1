"""The fake of Anthropic: its events, its odd parts, what it counts and caches, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sag.testing.upstream import (
    Calls,
    Clock,
    Comment,
    Cut,
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
    Usage,
    fail,
    say,
)
from tests.testing.asking import OBJECT, PDF, PNG, Got, send

HEADERS = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
TOOLS = [{"name": name, "description": "d", "input_schema": OBJECT} for name in ("f", "g")]
THINKING = {"type": "enabled", "budget_tokens": 1024}
USER = {"role": "user", "content": "hello world"}


@pytest.fixture
async def up():
    async with FakeUpstream("anthropic", models=["fake", "thinker"], reasoning_models=["thinker"]) as server:
        yield server


async def ask(up: FakeUpstream, messages: Any = None, headers: dict[str, str] | None = None, **more: Any) -> Got:
    body = {"model": "fake", "max_tokens": 4096, "messages": [USER] if messages is None else messages, **more}
    return await send(up, "POST", "/v1/messages", body, HEADERS if headers is None else headers)


async def stream(up: FakeUpstream, *steps: Step, **more: Any) -> Got:
    if steps:
        up.script(Script(list(steps)))
    got = await ask(up, stream=True, **more)
    assert got.status == 200
    assert got.names == [event["type"] for event in got.events]
    assert not got.done
    return got


def deltas(got: Got) -> list[tuple[int, Json]]:
    return [(event["index"], event["delta"]) for event in got.events if event["type"] == "content_block_delta"]


# what is written


async def test_the_events_of_text_come_in_order(up):
    got = await stream(up, Say("hello world"))
    assert got.types == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = got.events[0]["message"]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 1)
    assert [delta["text"] for _, delta in deltas(got)] == ["hello", " world"]
    assert got.events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None, "stop_details": None}
    assert got.events[-2]["usage"]["output_tokens"] == 2


async def test_a_thought_is_signed_at_its_end(up):
    got = await stream(up, Think("let me see"), Say("yes"), thinking=THINKING)
    starts = [event["content_block"] for event in got.events if event["type"] == "content_block_start"]
    assert starts == [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""}]
    kinds = [(index, delta["type"]) for index, delta in deltas(got)]
    assert kinds == [(0, "thinking_delta")] * 3 + [(0, "signature_delta"), (1, "text_delta")]
    assert got.events[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    got = await stream(up, Think("let me see"), Say("yes"), thinking={"type": "adaptive", "display": "omitted"})
    assert [delta["type"] for _, delta in deltas(got)] == ["signature_delta", "text_delta"]


async def test_a_redacted_thought_comes_whole(up):
    got = await stream(up, Think("secret", redacted=True), Say("yes"), thinking=THINKING)
    block = got.events[1]["content_block"]
    assert (block["type"], set(block)) == ("redacted_thinking", {"type", "data"})
    assert "secret" not in str(got.events)
    assert [index for index, _ in deltas(got)] == [1]


async def test_the_input_of_calls_comes_in_fragments_an_empty_one_first(up):
    calls = Calls([ToolCall("f", {"x": 'ä"'}, id="own"), ToolCall("g", ""), ToolCall("f", "{broken")])
    got = await stream(up, Say("Wait."), calls)
    starts = [event["content_block"] for event in got.events if event["type"] == "content_block_start"][1:]
    assert [(one["id"] == "own", one["name"], one["input"]) for one in starts] == [
        (True, "f", {}),
        (False, "g", {}),
        (False, "f", {}),
    ]
    fragments: dict[int, list[str]] = {}
    for index, delta in deltas(got)[1:]:
        fragments.setdefault(index, []).append(delta["partial_json"])
    assert fragments[1][:2] == ["", '{"x']
    assert "".join(fragments[1]) == '{"x": "\\u00e4\\""}'
    assert 2 not in fragments
    assert "".join(fragments[3]) == "{broken"
    assert got.events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("length", "max_tokens"),
        ("stop_sequence", "stop_sequence"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "model_context_window_exceeded"),
    ],
)
async def test_it_ends_for_many_reasons(up, finish, reason):
    up.script(say("a", finish=finish), say("a", finish=finish))
    streamed = (await ask(up, stream=True, stop_sequences=["END"])).events[-2]["delta"]
    whole = (await ask(up, stop_sequences=["END"])).json
    for given in (streamed, whole):
        assert given["stop_reason"] == reason
        assert given["stop_sequence"] == ("END" if reason == "stop_sequence" else None)


async def test_a_refusal_has_details(up):
    steps: list[Step] = [Say("Well"), Refusal("Not that.", category="bio")]
    got = await stream(up, *steps)
    assert got.events[-2]["delta"] == {
        "stop_reason": "refusal",
        "stop_sequence": None,
        "stop_details": {"type": "refusal", "category": "bio", "explanation": "Not that."},
    }
    assert [delta["text"] for _, delta in deltas(got)] == ["Well"]


async def test_a_turn_that_paused_goes_on_where_its_content_comes_back(up):
    up.script(say("so far", finish="pause_turn"), say("and on"))
    first = (await ask(up)).json
    got = await ask(up, [USER, {"role": "assistant", "content": first["content"]}])
    assert (got.status, got.json["content"][0]["text"]) == (200, "and on")


async def test_what_nobody_knows_and_errors_come_in_mid_stream(up):
    odd = {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta", "x": 1}}
    got = await stream(up, Say("a"), Emit({"type": "new_event"}), Emit(odd), Comment("c"), Fail(529), Say("never"))
    assert got.names[-3:] == ["new_event", "content_block_delta", "error"]
    assert b": c\n\n" in got.body
    error = got.events[-1]
    assert (error["type"], error["error"]) == ("error", {"type": "overloaded_error", "message": "It failed."})
    assert error["request_id"] == got.headers["request-id"]


async def test_the_end_may_be_missing(up):
    up.script(say("a", done=False, finish=""))
    assert (await ask(up, stream=True)).names[-1] == "content_block_stop"
    up.script(say("a", role=False))
    assert (await ask(up, stream=True)).names[0] == "content_block_start"
    up.script(Script([Say("a"), Cut()]))
    with pytest.raises(Exception, match="payload"):
        await ask(up, stream=True)


async def test_the_same_comes_whole(up):
    up.script(Script([Think("hm"), Say("yes"), Calls([ToolCall("f", {"x": 1}, id="own"), ToolCall("g", "{broken")])]))
    message = (await ask(up, thinking=THINKING, tools=TOOLS)).json
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][2] == {"type": "tool_use", "id": "own", "name": "f", "input": {"x": 1}}
    assert message["content"][3]["input"] == {}
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "tool_use")
    up.script(Script([Say("a"), Fail(529, "Busy.")]))
    got = await ask(up)
    assert (got.status, got.error["type"]) == (529, "overloaded_error")


async def test_usage_is_cumulative_and_knows_the_cache(up):
    up.script(say("x", usage=Usage(input=10, output=7, cached=380, cache_write=20, reasoning=3)))
    got = await ask(up, stream=True)
    sent = {"input_tokens": 10, "cache_read_input_tokens": 380, "cache_creation_input_tokens": 20}
    assert sent.items() <= got.events[0]["message"]["usage"].items()
    assert {**sent, "output_tokens": 7}.items() <= got.events[-2]["usage"].items()


async def test_what_is_marked_is_cached(up):
    system = [{"type": "text", "text": "be very kind to all", "cache_control": {"type": "ephemeral"}}]
    seen = []
    for text in ("one", "two words", "x"):
        usage = (await ask(up, [{"role": "user", "content": text}], system=system, tools=TOOLS)).json["usage"]
        seen.append((usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]))
        total = usage["input_tokens"] + seen[-1][0] + seen[-1][1]
        count = await send(
            up,
            "POST",
            "/v1/messages/count_tokens",
            {"model": "fake", "messages": [{"role": "user", "content": text}], "system": system, "tools": TOOLS},
            HEADERS,
        )
        assert count.json == {"input_tokens": total}
    written = seen[0][0]
    assert written > 5
    assert seen == [(written, 0), (0, written), (0, written)]
    other = [{**system[0], "text": "be kind"}]
    usage = (await ask(up, system=other, tools=TOOLS)).json["usage"]
    assert usage["cache_read_input_tokens"] == 0
    usage = (await ask(up, cache_control={"type": "ephemeral"})).json["usage"]
    assert usage["cache_creation_input_tokens"] > 0


# keys, headers, models


async def test_a_key_or_a_token_and_a_version_are_wanted():
    async with FakeUpstream("anthropic", api_key="k", access_token="t") as up:
        for headers, status, kind in (
            ({}, 401, "authentication_error"),
            ({"x-api-key": "other"}, 401, "authentication_error"),
            ({"authorization": "Bearer x"}, 401, "authentication_error"),
            ({"x-api-key": "t"}, 401, "authentication_error"),
            ({"x-api-key": "k"}, 400, "invalid_request_error"),
            ({"x-api-key": "k", "anthropic-version": "latest"}, 400, "invalid_request_error"),
            ({"authorization": "Bearer t", "anthropic-version": "2023-06-01"}, 200, ""),
            ({"authorization": "Bearer k", "anthropic-version": "2026-10-21"}, 200, ""),
            (HEADERS, 200, ""),
        ):
            got = await ask(up, headers=headers)
            assert got.status == status, headers
            if kind:
                assert (got.json["type"], got.error["type"]) == ("error", kind)
                assert got.json["request_id"] == got.headers["request-id"]


async def test_limits_are_told_with_times_of_the_servers_clock(up):
    got = await ask(up)
    assert got.headers["anthropic-ratelimit-tokens-reset"] == "2026-11-21T12:01:00Z"
    assert got.headers["date"] == "Sat, 21 Nov 2026 12:00:00 GMT"
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        limit, left = (int(got.headers[f"anthropic-ratelimit-{name}-{what}"]) for what in ("limit", "remaining"))
        assert 0 < left < limit
    up.clock.move(3600)
    up.script(fail(429, "Slow down.", headers={"retry-after": "60"}))
    got = await ask(up)
    assert got.headers["anthropic-ratelimit-requests-reset"] == "2026-11-21T13:01:00Z"
    assert got.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert got.error["type"] == "rate_limit_error"


def test_a_clock_stands_still_or_runs():
    standing, running = Clock(), Clock(None)
    assert standing.now == standing.now
    before = running.now
    running.move(-1000)
    assert -1001 < running.now - before < -999


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (500, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
async def test_errors_have_the_type_of_their_status(up, status, kind):
    up.script(fail(status, "No."))
    got = await ask(up, stream=True)
    assert (got.status, got.error) == (status, {"type": kind, "message": "No."})


async def test_models_come_in_pages():
    models: list[str | Json] = [*(f"claude-{i}" for i in range(5)), {"id": "last", "max_tokens": 1000}]
    async with FakeUpstream("anthropic", models=models, max_model_len=200_000) as up:

        async def page(query: str) -> Any:
            got = await send(up, "GET", f"/v1/models{query}", headers=HEADERS)
            return got.json if got.status == 200 else got.error["message"]

        first = await page("?limit=4")
        assert [one["id"] for one in first["data"]] == ["claude-0", "claude-1", "claude-2", "claude-3"]
        assert (first["has_more"], first["first_id"], first["last_id"]) == (True, "claude-0", "claude-3")
        assert (first["data"][0]["max_input_tokens"], first["data"][0]["type"]) == (200_000, "model")
        rest = await page("?limit=4&after_id=claude-3")
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["claude-4", "last"], False)
        assert rest["data"][1]["max_tokens"] == 1000
        back = await page("?limit=2&before_id=claude-3")
        assert ([one["id"] for one in back["data"]], back["has_more"]) == (["claude-1", "claude-2"], True)
        assert len((await page(""))["data"]) == 6
        assert "limit" in await page("?limit=0")
        assert "after_id" in await page("?after_id=none")
        assert (await page("/claude-1"))["id"] == "claude-1"
        assert await page("/none") == "model: none"


async def test_other_paths_and_models_are_not_found(up):
    assert (await send(up, "POST", "/v1/nothing", {}, HEADERS)).error["type"] == "not_found_error"
    got = await ask(up, model="none")
    assert (got.status, got.error["message"]) == (404, "model: none")


# what is refused


def turn(*blocks: Json, role: str = "assistant") -> Json:
    return {"role": role, "content": list(blocks)}


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def use(id: str, **more: Any) -> Json:
    return {"type": "tool_use", "id": id, "name": "f", "input": {}, **more}


def result(id: str) -> Json:
    return {"type": "tool_result", "tool_use_id": id, "content": "r"}


REFUSED: list[tuple[Json, str]] = [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater"),
    ({"max_tokens": "many"}, "max_tokens: Input should be an integer"),
    ({"messages": "hi"}, "messages: Input should be an array"),
    ({"thinking": "on"}, "thinking: Input should be an object"),
    ({"messages": []}, "at least one message is required"),
    ({"messages": [{"role": "system", "content": "x"}]}, 'Unexpected role "system"'),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ({"messages": [{"role": "user", "content": ""}]}, "non-empty content"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 'first message must use the "user" role'),
    ({"messages": [USER, turn(), USER]}, "non-empty content"),
    ({"messages": [turn(text(""), role="user")]}, "text content blocks must be non-empty"),
    ({"messages": [turn({"type": "input_text"}, role="user")]}, "Input tag 'input_text'"),
    ({"messages": [turn({"type": "thinking"}, role="user")]}, "Input tag 'thinking'"),
    ({"messages": [USER, turn(use("a"))]}, "without `tool_result` blocks immediately after: a"),
    ({"messages": [USER, turn(use("a")), USER]}, "without `tool_result` blocks immediately after: a"),
    (
        {"messages": [USER, turn(use("a"), use("b")), turn(result("a"), role="user")]},
        "without `tool_result` blocks immediately after: b",
    ),
    (
        {"messages": [USER, turn(use("a")), turn(text("x"), result("a"), role="user")]},
        "without `tool_result` blocks immediately after: a",
    ),
    (
        {"messages": [USER, turn(use("a"), use("b")), turn(result("a"), text("x"), result("b"), role="user")]},
        "without `tool_result` blocks immediately after: b",
    ),
    ({"messages": [turn(result("a"), role="user")]}, "unexpected `tool_use_id` found in `tool_result` blocks: a"),
    (
        {"messages": [USER, turn(use("a")), turn(result("a"), result("a"), role="user")]},
        "each tool_use must have a single result",
    ),
    ({"messages": [USER, turn(use("a"), use("a")), turn(result("a"), role="user")]}, "must be unique"),
    ({"messages": [USER, turn(use("a", input="{}")), turn(result("a"), role="user")]}, "tool_use.input"),
    ({"messages": [USER, turn(use("a.b")), turn(result("a.b"), role="user")]}, "tool_use.id"),
    ({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required"),
    ({"tools": [{"name": "f", "input_schema": {}}]}, "input_schema.type: Field required"),
    ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "input_schema.type: Input should be 'object'"),
    ({"tools": [{"name": "a.b", "input_schema": OBJECT}]}, "tools.0.custom.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "Tool names must be unique"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools.0.custom.name: Field required"),
    ({"tool_choice": {"type": "auto"}}, "while providing tools"),
    ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "required"}}, "Input tag 'required'"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "h"}}, "Tool 'h' not found"),
    ({"tools": TOOLS, "tool_choice": {"type": "any"}, "thinking": THINKING}, "tool_choice forces tool use"),
    ({"system": [{"type": "text", "text": ""}]}, "system: text content blocks must be non-empty"),
    ({"system": {"text": "x"}}, "system"),
    ({"thinking": {"type": "on"}}, "Input tag 'on'"),
    ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "greater than or equal to 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "greater than `thinking.budget_tokens`"),
    ({"thinking": THINKING, "model": "thinker"}, '"thinking.type.enabled" is not supported'),
    ({"thinking": THINKING, "temperature": 0.5}, "may only be set to 1"),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "not supported with effort max"),
    ({"output_config": {"effort": "none"}}, "output_config.effort"),
    ({"temperature": 1.5}, "temperature"),
    ({"temperature": 0.5, "model": "thinker"}, "does not support `temperature`"),
    ({"top_k": 5, "model": "thinker"}, "does not support `top_k`"),
    ({"stream_options": {"include_usage": True}}, "stream_options: Extra inputs are not permitted"),
    (
        {"system": [{**text("x"), "cache_control": {"type": "ephemeral"}}] * 5},
        "A maximum of 4 blocks with cache_control may be provided. Found 5",
    ),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words[:60] for _, words in REFUSED])
async def test_requests_that_break_the_contract_get_the_real_error(up, given, words):
    got = await ask(up, **given)
    assert (got.status, got.error["type"]) == (400, "invalid_request_error")
    assert words in got.error["message"]


async def test_neighbours_of_one_role_are_one_turn(up):
    messages = [USER, turn(text("a")), turn(use("a")), turn(result("a"), role="user"), turn(text("go on"), role="user")]
    got = await ask(up, messages, tools=TOOLS)
    assert (got.status, got.json["content"][0]["text"]) == (200, "r")
    assert [one["role"] for one in up.requests[0].asked.transcript] == ["user", "assistant", "user"]
    assert (up.requests[0].asked.text, up.requests[0].asked.answers) == ("go on", ["r"])


async def test_a_thinking_model_takes_no_sampling_and_thinks_by_itself(up):
    got = await ask(up, model="thinker", thinking={"type": "adaptive"})
    assert got.json["content"][0]["type"] == "thinking"
    assert (await ask(up, thinking={"type": "between_tools"})).json["content"][0]["type"] == "text"


async def test_thoughts_come_back_as_they_were_given(up):
    up.script(Script([Think("a b"), Think("hidden", redacted=True), Calls([ToolCall("f", id="a")])]))
    given = (await ask(up, tools=TOOLS, thinking=THINKING)).json["content"]
    thought, hidden, made = given
    answer = turn(result("a"), role="user")

    async def again(*blocks: Json, thinking: Any = THINKING) -> Got:
        return await ask(up, [USER, turn(*blocks), answer], tools=TOOLS, thinking=thinking)

    assert (await again(thought, hidden, made)).status == 200
    for blocks, words in (
        ([{**thought, "thinking": "other"}, hidden, made], "Invalid `signature` in `thinking` block"),
        ([{**thought, "signature": "AAAA"}, hidden, made], "Invalid `signature` in `thinking` block"),
        ([thought, {**hidden, "data": "x"}, made], "Invalid `data`"),
        ([thought, made], "cannot be modified"),
        ([made], "must start with a thinking block"),
        ([text("x"), made], "must start with a thinking block"),
        ([{**thought, "cache_control": {"type": "ephemeral"}}, hidden, made], "thinking.cache_control"),
    ):
        got = await again(*blocks)
        assert (got.status, words in got.error["message"]) == (400, True), got.error
    got = await again(made, thinking={"type": "adaptive"})
    assert "cannot be modified" in got.error["message"]
    assert (await again(made, thinking=None)).status == 200
    # Turns before the last one may come without.
    later = [USER, turn(made), answer, turn(text("done")), USER]
    assert (await ask(up, later, tools=TOOLS, thinking=THINKING)).status == 200


async def test_images_and_documents_are_taken_and_noted(up):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    document = {
        "type": "document",
        "title": "a.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
    }
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hello"}}
    linked = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.png"}}
    seen = {**result("a"), "content": [text("r"), image]}
    messages = [turn(image, document, plain, linked, text("x"), role="user"), turn(use("a")), turn(seen, role="user")]
    assert (await ask(up, messages, tools=TOOLS)).status == 200
    png = File("image/png", b"\x89PNG\r\n\x1a\n")
    assert up.requests[0].asked.files == [
        png,
        File("application/pdf", b"%PDF-1.4", "a.pdf"),
        File("text/plain", b"hello"),
        File("", source="https://pictures.example/a.png"),
        png,
    ]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("image", None),
        ("image", {"type": "base64", "media_type": "image/png", "data": "!!"}),
        ("image", {"type": "base64", "media_type": "image/svg+xml", "data": PNG}),
        ("image", {"type": "base64", "data": PNG}),
        ("image", {"type": "base64", "media_type": "application/pdf", "data": PDF}),
        ("document", {"type": "base64", "media_type": "text/plain", "data": PDF}),
        ("document", {"type": "data", "data": PDF}),
        ("image", {"type": "url"}),
    ],
)
async def test_files_that_are_malformed_are_refused(up, kind, source):
    got = await ask(up, [turn({"type": kind, "source": source}, role="user")])
    assert (got.status, got.error["message"].startswith(f"messages.0.content.0.{kind}.source")) == (400, True)
