"""The plugin of Anthropic: what it sends, what it makes of any bytes, and how it is configured."""

import base64
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import httpx
import msgspec
import pytest

import sag_anthropic
from sag.engine.transport import Transport
from sag.hooks.hub import Hub as HubImpl
from sag.outbound import Outbound
from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    HttpProvider,
    Message,
    Model,
    ModelRequest,
    Part,
    Price,
    ProviderError,
    Reasoning,
    Replay,
    Secret,
    Text,
    TextPart,
    ThoughtPart,
    ToolSpec,
    Usage,
    UsageChunk,
    text_message,
)
from sag.testing.contract import PNG as CONTRACT_PNG
from sag.testing.contract import SHORT, TOOLS, Answer
from sag.testing.upstream import (
    Calls,
    Emit,
    Fail,
    FakeUpstream,
    Refusal,
    Say,
    Script,
    Think,
    ToolCall,
    fail,
    say,
)
from sag_anthropic import Account, Settings, make_providers
from sag_anthropic.catalog import CATALOG, FILE, NEWEST_SONNET, find
from sag_anthropic.decoder import MessagesDecoder
from sag_anthropic.provider import BINDING, HOST, MessagesProvider

ALL = "aé€😀 \u2028\u2029\u0085\x0b\x0c\0 \u202e\u200b\ufeff"
OLD, NEW, BOUND = "claude-haiku-4-5", "claude-opus-4-8", "claude-sonnet-5-5"
KEEP = {"cache_control": {"type": "ephemeral"}}


# a stream


def event(data: Any, newline: str = "\n", name: bool = True) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    kind = f"event: {data.get('type')}{newline}" if name and isinstance(data, dict) else ""
    return f"{kind}data: {text}{newline}{newline}".encode()


def start(newline: str = "\n", **usage) -> bytes:
    message: dict[str, Any] = {"id": "msg_1", "role": "assistant", "content": [], "stop_reason": None, "usage": usage}
    return event({"type": "message_start", "message": message}, newline)


def begin(index: int, newline: str = "\n", **block) -> bytes:
    return event({"type": "content_block_start", "index": index, "content_block": block}, newline)


def delta(index: int, newline: str = "\n", **members) -> bytes:
    kind = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
    type = kind.get(next(iter(members)), "signature_delta")
    return event({"type": "content_block_delta", "index": index, "delta": {"type": type, **members}}, newline)


def stop(index: int, newline: str = "\n") -> bytes:
    return event({"type": "content_block_stop", "index": index}, newline)


def end(reason: str | None = "end_turn", newline: str = "\n", details=None, **usage) -> bytes:
    change = {"stop_reason": reason, "stop_sequence": None, "stop_details": details}
    last = event({"type": "message_delta", "delta": change, "usage": usage}, newline) if reason else b""
    return last + event({"type": "message_stop"}, newline)


def text(*pieces: str, index: int = 0) -> bytes:
    return begin(index, type="text", text="") + b"".join(delta(index, text=p) for p in pieces) + stop(index)


def call(index: int, id: str, name: str, *pieces: str, input=None) -> bytes:
    opened = begin(index, type="tool_use", id=id, name=name, input=input or {})
    return opened + b"".join(delta(index, partial_json=p) for p in pieces) + stop(index)


def record(newline: str = "\n") -> bytes:
    """A stream with everything in it."""
    return b"".join(
        [
            f": keep-alive{newline}{newline}".encode(),
            start(newline, input_tokens=10, cache_creation_input_tokens=3, cache_read_input_tokens=7, output_tokens=1),
            event({"type": "ping"}, newline),
            begin(0, newline, type="thinking", thinking="", signature=""),
            delta(0, newline, thinking="think "),
            delta(0, newline, thinking="😀"),
            delta(0, newline, signature="EqQB/+="),
            stop(0, newline),
            begin(1, newline, type="redacted_thinking", data="opaque"),
            stop(1, newline),
            begin(2, newline, type="text", text=""),
            delta(2, newline, text=ALL),
            event({"type": "content_block_delta", "index": 2, "delta": {"type": "citations_delta", "citation": {}}}),
            delta(2, newline, text="x\\\"'"),
            stop(2, newline),
            begin(3, newline, type="tool_use", id="toolu_1", name="f", input={}),
            delta(3, newline, partial_json=""),
            delta(3, newline, partial_json='{"q":"\\u00'),
            delta(3, newline, partial_json='e4"}'),
            stop(3, newline),
            begin(4, newline, type="server_tool_use", id="srv_1", name="web_search", input={}),
            delta(4, newline, partial_json='{"query":"x"}'),
            stop(4, newline),
            begin(5, newline, type="tool_use", id="toolu_2", name="g", input={}),
            stop(5, newline),
            event({"type": "something_new", "index": 5, "delta": {"text": "no"}}, newline),
            end("tool_use", newline, output_tokens=64, output_tokens_details={"thinking_tokens": 20}),
        ]
    )


RECORDED = [
    UsageChunk(Usage(20, 1, cached=7, cache_write=3)),
    Reasoning("think "),
    Reasoning("😀"),
    Replay({"type": "thinking", "thinking": "think 😀", "signature": "EqQB/+="}),
    Replay({"type": "redacted_thinking", "data": "opaque"}),
    Text(ALL),
    Text("x\\\"'"),
    CallFragment(0, "toolu_1", "f"),
    CallFragment(0, arguments='{"q":"\\u00'),
    CallFragment(0, arguments='e4"}'),
    CallFragment(1, "toolu_2", "g"),
    CallFragment(1, arguments="{}"),
    UsageChunk(Usage(20, 64, reasoning=20, cached=7, cache_write=3)),
    Finish("tools"),
]


def decode(*pieces: bytes) -> list[Chunk]:
    decoder = MessagesDecoder()
    chunks: list[Chunk] = []
    for piece in pieces:
        chunks += decoder.feed(piece)
    return chunks + list(decoder.finish())


def fails(*pieces: bytes) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        decode(*pieces)
    return caught.value


def said(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))


# bytes


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_split_of_a_stream_gives_the_same_chunks(newline):
    body = record(newline)
    assert decode(body) == RECORDED
    for i in range(len(body) + 1):
        assert decode(body[:i], body[i:]) == RECORDED, i
    for size in (1, 2, 3, 7, 100):
        assert decode(*[body[i : i + size] for i in range(0, len(body), size)]) == RECORDED


def test_a_byte_order_mark_is_dropped_wherever_it_is_cut():
    body = b"\xef\xbb\xbf" + record()
    for i in range(6):
        assert decode(body[:i], body[i:]) == RECORDED


def test_the_last_event_needs_no_blank_line_and_events_no_name():
    for cut in (b"", b"\n"):
        assert decode(text("a") + end().rstrip() + cut) == [Text("a"), UsageChunk(Usage(0, 0)), Finish("stop")]
    bare = b"\n\n".join(line for line in record().splitlines() if line.startswith(b"data:"))
    assert decode(bare) == RECORDED


def test_a_server_that_forgets_blank_lines_is_understood():
    assert decode(record().replace(b"\n\n", b"\n")) == RECORDED


def test_broken_unicode_becomes_the_replacement_character():
    for raw, expected in [
        (b"a\xff", "a\ufffd"),
        (rb"\ud83d x", "\ufffd x"),
        (rb"\ud83d\ude00", "😀"),
        (b"\x00\x01", "\0\1"),
    ]:
        line = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}\n\n' % raw
        assert said(decode(line + end())) == expected, raw
    name = (
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"a","name":"\\ud83d"}}'
    )
    assert decode(name + b"\n\n" + end())[0] == CallFragment(0, "a", "\ufffd")


def test_lines_and_events_have_a_limit():
    for body in (b"data: " + b"x" * (1 << 21), b"data: " + b"x" * 1000 + b"\n"):
        decoder = MessagesDecoder()
        with pytest.raises(ProviderError) as caught:
            deque((decoder.feed(body) for _ in range(2000)), 0)
        assert caught.value.kind == "provider.protocol"


def test_members_of_other_types_take_the_lenient_road():
    odd = {"type": "content_block_delta", "index": 0.0, "delta": {"type": "text_delta", "text": "a", "thinking": 7}}
    used = {"input_tokens": 5.0, "output_tokens": "many", "output_tokens_details": []}
    body = event({"type": "message_start", "message": {"usage": used}}) + event(odd) + end()
    assert decode(body)[:2] == [UsageChunk(Usage(5, 0)), Text("a")]


# blocks


def test_thoughts_without_words_are_kept_all_the_same():
    body = begin(0, type="thinking", thinking="", signature="") + delta(0, signature="S") + stop(0) + end()
    assert decode(body)[0] == Replay({"type": "thinking", "thinking": "", "signature": "S"})


def test_thoughts_without_a_signature_cannot_go_back():
    body = begin(0, type="thinking", thinking="") + delta(0, thinking="hm") + stop(0) + end()
    assert [chunk for chunk in decode(body) if isinstance(chunk, Reasoning | Replay)] == [Reasoning("hm")]


def test_what_a_block_of_thoughts_has_besides_goes_back_too():
    block = {"type": "thinking", "thinking": "", "signature": "", "kind": "progress_update"}
    body = begin(0, **block) + delta(0, thinking="a") + delta(0, signature="S") + stop(0) + end()
    assert decode(body)[1] == Replay({**block, "thinking": "a", "signature": "S"})


def test_blocks_that_begin_with_something_lose_nothing():
    body = begin(0, type="text", text="a") + delta(0, text="b") + stop(0) + call(1, "i", "f", input={"x": "é"}) + end()
    chunks = decode(body)
    assert said(chunks) == "ab"
    assert chunks[-3] == CallFragment(0, arguments='{"x": "é"}')


def test_blocks_that_nobody_closed_are_closed_by_the_end():
    body = (
        begin(0, type="thinking", thinking="") + delta(0, signature="S") + begin(1, type="tool_use", id="i", name="f")
    )
    assert decode(body + end("tool_use")) == [
        CallFragment(0, "i", "f"),
        UsageChunk(Usage(0, 0)),
        Replay({"type": "thinking", "thinking": "", "signature": "S"}),
        CallFragment(0, arguments="{}"),
        Finish("tools"),
    ]


def test_each_call_has_an_id_of_its_own():
    body = call(0, "a", "f") + call(1, "a", "f") + call(2, "", "f") + end("tool_use")
    ids = [chunk.id for chunk in decode(body) if isinstance(chunk, CallFragment) and chunk.id]
    assert ids[0] == "a"
    assert len(set(ids)) == 3


def test_arguments_may_end_anywhere():
    chunks = decode(call(0, "a", "f", '{"x": "ha') + end("max_tokens"))
    assert chunks[1] == CallFragment(0, arguments='{"x": "ha')
    assert chunks[-1] == Finish("length")


def test_counts_are_cumulative_and_none_is_lost():
    body = start(input_tokens=5, cache_read_input_tokens=2, output_tokens=1)
    body += end(input_tokens=0, output_tokens=9, cache_creation_input_tokens=None)
    assert decode(body)[-2] == UsageChunk(Usage(7, 9, cached=2))
    later = start(input_tokens=0) + end(input_tokens=8, output_tokens=3)
    assert decode(later)[-2] == UsageChunk(Usage(8, 3))


def test_what_the_input_took_is_told_when_the_answer_begins():
    decoder = MessagesDecoder()
    assert decoder.feed(start(input_tokens=5) + event({"type": "ping"}) + begin(0, type="text", text="")) == []
    assert decoder.feed(delta(0, text="a") + delta(0, text="b")) == [UsageChunk(Usage(5, 0)), Text("a"), Text("b")]
    assert decode(start(input_tokens=5), end(None)) == [UsageChunk(Usage(5, 0)), Finish("stop")]


# ends and errors


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "refused"),
        ("tool_use", "stop"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_reasons_to_stop_without_calls(given, reason):
    assert decode(end(given))[-1] == Finish(reason)


@pytest.mark.parametrize(
    ("given", "reason"), [("tool_use", "tools"), ("something_new", "tools"), ("max_tokens", "length")]
)
def test_reasons_to_stop_after_calls(given, reason):
    assert decode(call(0, "a", "f") + end(given))[-1] == Finish(reason)


def test_a_refusal_is_explained_where_nothing_else_was_said():
    details = {"type": "refusal", "category": "bio", "explanation": "That I may not."}
    assert decode(end("refusal", details=details))[-2:] == [Text("That I may not."), Finish("refused")]
    assert said(decode(text("Well,") + end("refusal", details=details))) == "Well,"
    assert said(decode(end("refusal", details={"type": "refusal", "explanation": None}))) == ""


@pytest.mark.parametrize(
    "body",
    [b"", text("a"), start(), text("a") + end().split(b"event: message_stop")[0], text("a") + b'data: {"type": "co'],
)
def test_a_stream_without_its_end_mark_is_truncated(body):
    error = fails(body)
    assert (error.kind, error.retry) == ("provider.truncated", True)


@pytest.mark.parametrize("body", [b"data: {oops}\n\n", b"data: 1\n\n", b"data: " + b"[" * 5000 + b"\n\n"])
def test_data_that_is_no_event_is_a_protocol_error(body):
    assert fails(body + end()).kind == "provider.protocol"


def test_garbage_is_a_protocol_error_and_shows_none_of_it():
    error = fails(b"<html><b>secret</b></html>")
    assert error.kind == "provider.protocol"
    assert "secret" not in error.message


def test_what_follows_the_end_is_ignored():
    assert decode(text("a") + end() + b"data: [DONE]\n\ndata: oops\n\n" + text("b"))[-1] == Finish("stop")
    assert said(decode(text("a") + b"data: [DONE]\n\n" + end())) == "a"


def failure(type: str, message: str = "m") -> dict[str, Any]:
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (failure("overloaded_error", "Overloaded"), "provider.overloaded"),
        (failure("api_error"), "provider.overloaded"),
        (failure("rate_limit_error"), "provider.rate_limit"),
        (failure("timeout_error"), "provider.timeout"),
        (failure("authentication_error"), "provider.auth"),
        (failure("invalid_request_error"), "provider.refused"),
        (failure("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"), "provider.context"),
        (failure("something_new"), "provider.protocol"),
        ({"type": "error"}, "provider.protocol"),
        ({"error": {"message": "m", "type": "overloaded_error"}}, "provider.overloaded"),
    ],
)
def test_an_error_within_the_stream_is_raised_after_what_came_before_it(given, kind):
    decoder = MessagesDecoder()
    assert decoder.feed(text("a") + event(given) + end()) == [Text("a")]
    steps: list[Callable[[], Sequence[Chunk]]] = [
        lambda: decoder.feed(b""),
        lambda: decoder.feed(text("b")),
        decoder.finish,
    ]
    for again in steps:
        with pytest.raises(ProviderError) as caught:
            again()
        assert caught.value.kind == kind
    assert fails(event(given)).kind == kind


def test_an_error_that_is_no_event_is_seen_too():
    body = json.dumps(failure("overloaded_error")).encode()
    assert fails(text("a"), body + b"\n").kind == "provider.overloaded"
    assert fails(body).kind == "provider.overloaded"


# what is sent


def provider(**given: Any) -> MessagesProvider:
    return MessagesProvider("anthropic", HOST, Secret("sk-ant-secret"), **given)


def body_of(request: ModelRequest, **given: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(provider(cache=False, **given).prepare(request).body)
    return body


def ask(*messages: Message, model: str = NEW, **given: Any) -> ModelRequest:
    return ModelRequest(model, list(messages) or [text_message("user", "u")], **given)


def sent(*messages: Message, **given: Any) -> list[Any]:
    return list(body_of(ask(*messages, **given))["messages"])


def block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_a_request_holds_only_what_was_set():
    prepared = provider(cache=False).prepare(ask(text_message("system", "s"), text_message("user", "u")))
    assert (prepared.method, prepared.url) == ("POST", "https://api.anthropic.com/v1/messages")
    assert prepared.headers == {
        "content-type": "application/json",
        "accept": "text/event-stream",
        "anthropic-version": "2023-06-01",
        "x-api-key": "sk-ant-secret",
    }
    assert json.loads(prepared.body) == {
        "model": NEW,
        "max_tokens": 128_000,
        "system": [block("s")],
        "messages": [{"role": "user", "content": [block("u")]}],
        "stream": True,
    }


def test_what_was_set_is_sent_under_its_name():
    request = ask(
        model="claude-opus-4-6",
        temperature=0.0,
        top_p=1.0,
        max_tokens=5,
        stop=["x"],
        extra={"top_k": 3, "metadata": {"user_id": "u"}, "stream": False},
    )
    expected = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 5, "stop_sequences": ["x"], "top_k": 3}
    assert body_of(request).items() >= {**expected, "metadata": {"user_id": "u"}, "stream": False}.items()


def test_the_members_of_settings_stand_below_those_of_the_request():
    given = {"service_tier": "auto", "metadata": {"user_id": "s"}}
    body = body_of(ask(extra={"metadata": {"user_id": "r"}}), extra=given)
    assert (body["service_tier"], body["metadata"]) == ("auto", {"user_id": "r"})


def test_betas_come_from_settings_and_headers():
    prepared = provider(beta=["a-1"], headers={"Anthropic-Beta": "b-2, a-1", "X-Team": "t"}).prepare(ask())
    assert prepared.headers["anthropic-beta"] == "a-1,b-2"
    assert prepared.headers["x-team"] == "t"


def test_tools_have_a_schema_of_an_object():
    body = body_of(ask(tools=[ToolSpec("f", "does f", {}), ToolSpec("g", "", {"type": "object", "properties": {}})]))
    assert body["tools"] == [
        {"name": "f", "description": "does f", "input_schema": {"type": "object"}},
        {"name": "g", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_neighbours_of_one_role_are_one_message():
    messages = [
        text_message("system", "one"),
        text_message("user", "a"),
        text_message("user", "b"),
        text_message("assistant", "c"),
        text_message("system", "two"),
        text_message("assistant", "d"),
        text_message("user", "e"),
    ]
    body = body_of(ask(*messages))
    assert body["system"] == [block("one\n\ntwo")]
    assert body["messages"] == [
        {"role": "user", "content": [block("a"), block("b")]},
        {"role": "assistant", "content": [block("c"), block("d")]},
        {"role": "user", "content": [block("e")]},
    ]


def test_a_user_speaks_first_and_last():
    def roles(*messages: Message) -> list[str]:
        return [message["role"] for message in sent(*messages)]

    assert roles(text_message("assistant", "a"), text_message("user", "b")) == ["user", "assistant", "user"]
    assert roles(text_message("user", "a"), text_message("assistant", "b")) == ["user", "assistant", "user"]
    assert roles(text_message("system", "s")) == ["user"]
    assert all(message["content"] for message in sent(text_message("assistant", "a")))


def test_blank_text_is_left_out():
    messages = [
        text_message("user", "a"),
        Message("assistant", [TextPart(" \n"), CallRequest("k", "f", "{}")]),
        Message("tool", [TextPart("")], "k"),
        text_message("assistant", ""),
        text_message("user", " "),
    ]
    assert sent(*messages) == [
        {"role": "user", "content": [block("a")]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "k", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "k"}]},
    ]


def test_the_results_of_a_turn_come_first_in_one_message():
    messages = [
        text_message("user", "u"),
        Message("assistant", [TextPart("Wait."), CallRequest("a", "f", '{"x": 1}'), CallRequest("b", "g", "{broken")]),
        Message("tool", [TextPart("one")], "a"),
        text_message("user", "hurry"),
        Message("tool", [TextPart("no")], "b", failed=True),
    ]
    first, second = sent(*messages)[1:]
    assert first["content"] == [
        block("Wait."),
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"invalid_json": "{broken"}},
    ]
    assert second["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": [block("one")]},
        {"type": "tool_result", "tool_use_id": "b", "content": [block("no")], "is_error": True},
        block("hurry"),
    ]


def test_calls_in_a_transcript_need_their_tools_though_none_is_offered():
    messages = [
        text_message("user", "u"),
        Message("assistant", [CallRequest("a", "f", "{}")]),
        Message("tool", [TextPart("r")], "a"),
    ]
    body = body_of(ask(*messages))
    assert body["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "none"}
    assert "tool_choice" not in body_of(ask(*messages, tools=[ToolSpec("f", "", {})]))


PNG, PDF = b"\x89PNG rest", b"%PDF-1.7 rest"


def test_files_are_sent_as_what_they_are():
    parts: list[Part] = [
        TextPart("look"),
        FilePart("image/png", "a.png", PNG),
        FilePart("application/pdf", "b.pdf", PDF),
        FilePart("text/csv; charset=utf-8", "c.csv", "x;ü".encode()),
        FilePart("image/tiff", "d.tiff", b"II*"),
        FilePart("application/zip", "e.zip", b"PK"),
        FilePart("image/png", "f.png", b""),
    ]
    [message] = sent(Message("user", parts))

    def source(mime: str, data: bytes) -> dict[str, str]:
        return {"type": "base64", "media_type": mime, "data": base64.b64encode(data).decode()}

    assert message["content"][:4] == [
        block("look"),
        {"type": "image", "source": source("image/png", PNG)},
        {"type": "document", "source": source("application/pdf", PDF), "title": "b.pdf"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x;ü"}, "title": "c.csv"},
    ]
    named = message["content"][4:]
    assert [one["type"] for one in named] == ["text"] * 3
    assert ["d.tiff" in named[0]["text"], "e.zip" in named[1]["text"], "f.png" in named[2]["text"]] == [True] * 3


def test_a_result_may_hold_images_but_not_one_of_a_failure():
    calls = Message("assistant", [CallRequest("a", "f", "{}"), CallRequest("b", "f", "{}")])
    image = FilePart("image/png", "a.png", PNG)
    good = Message("tool", [TextPart("one"), image], "a")
    bad = Message("tool", [TextPart("two"), image], "b", failed=True)
    content = sent(text_message("user", "u"), calls, good, bad)[-1]["content"]
    assert [one["type"] for one in content] == ["tool_result", "tool_result", "image"]
    assert [one["type"] for one in content[0]["content"]] == ["text", "image"]
    assert content[1]["content"] == [block("two")]


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "S"}
HIDDEN = {"type": "redacted_thinking", "data": "x"}


def test_thoughts_go_back_unchanged_and_in_order():
    parts: list[Part] = [
        ThoughtPart("hm", THOUGHT),
        ThoughtPart("", HIDDEN),
        TextPart("a"),
        ThoughtPart("somebody else's", None),
        ThoughtPart("", {"type": "reasoning.encrypted"}),
        CallRequest("k", "f", "{}"),
    ]
    messages = [text_message("user", "u"), Message("assistant", parts), Message("tool", [TextPart("r")], "k")]
    content = sent(*messages)[1]["content"]
    assert content == [THOUGHT, HIDDEN, block("a"), {"type": "tool_use", "id": "k", "name": "f", "input": {}}]
    assert sent(*messages, reasoning="none")[1]["content"] == content[2:]


def test_thoughts_alone_are_no_message():
    messages = [
        text_message("user", "a"),
        Message("assistant", [ThoughtPart("hm", THOUGHT)]),
        text_message("user", "b"),
    ]
    assert sent(*messages) == [{"role": "user", "content": [block("a"), block("b")]}]


def test_half_surrogates_and_large_integers_in_a_transcript_do_no_harm():
    assert sent(text_message("user", "a\ud83d 😀"))[0]["content"] == [block("a\ufffd 😀")]
    messages = [text_message("user", "u"), Message("assistant", [CallRequest("k", "f", f'{{"n": {10**30}}}')])]
    assert sent(*messages)[1]["content"][0]["input"] == {"n": 10**30}


# how much an answer may have, and how much is thought


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ask(model=OLD), 64_000),
        (ask(model=NEW), 128_000),
        (ask(model="claude-haiku-4-5-20251001"), 64_000),
        (ask(model="my-own"), 8192),
        (ask(model=OLD, max_tokens=7), 7),
        (ask(text_message("user", "x" * 3_500 * 145), model=OLD), 54_996),
        (ask(text_message("user", "x" * 3_500 * 199), model=OLD), 50_000),
    ],
)
def test_an_answer_has_as_much_as_the_model_writes_and_as_fits(request_, expected):
    assert body_of(request_)["max_tokens"] == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "told"),
    [
        (OLD, None, None, None),
        (OLD, "none", {"type": "disabled"}, None),
        (OLD, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        (OLD, "high", {"type": "enabled", "budget_tokens": 16_384}, None),
        (OLD, "max", {"type": "enabled", "budget_tokens": 32_000}, None),
        (NEW, None, None, None),
        (NEW, "none", {"type": "disabled"}, None),
        (NEW, "minimal", {"type": "adaptive", "display": "summarized"}, "low"),
        (NEW, "xhigh", {"type": "adaptive", "display": "summarized"}, "xhigh"),
        ("claude-opus-4-6", "xhigh", {"type": "adaptive", "display": "summarized"}, "high"),
        ("claude-opus-4-6", "max", {"type": "adaptive", "display": "summarized"}, "max"),
        ("claude-sonnet-9", "medium", {"type": "adaptive", "display": "summarized"}, "medium"),
        ("kimi-k3", "low", {"type": "enabled", "budget_tokens": 4096}, None),
        (BOUND, "none", {"type": "between_tools"}, None),
    ],
)
def test_models_are_told_to_think_in_the_form_of_their_age(model, effort, thinking, told):
    body = body_of(ask(model=model, reasoning=effort))
    assert body.get("thinking") == thinking
    assert body.get("output_config") == (None if told is None else {"effort": told})


def test_a_budget_leaves_room_for_the_answer():
    for most, budget in [(4096, 2048), (1500, 1024)]:
        body = body_of(ask(model=OLD, reasoning="max", max_tokens=most))
        assert body["thinking"]["budget_tokens"] == budget < body["max_tokens"]


def test_an_effort_and_a_form_of_the_output_go_together():
    shape = {"type": "json_schema", "schema": {}}
    body = body_of(ask(reasoning="low", extra={"output_config": {"format": shape}}))
    assert body["output_config"] == {"effort": "low", "format": shape}


def test_thoughts_of_before_a_change_do_not_fail_the_request():
    binding = {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    for effort, thinking in [
        (None, {"type": "adaptive", **binding}),
        ("low", {"type": "adaptive", "display": "summarized", **binding}),
    ]:
        prepared = provider().prepare(ask(model=BOUND, reasoning=effort))
        assert json.loads(prepared.body)["thinking"] == thinking
        assert prepared.headers["anthropic-beta"] == BINDING
    for other in (provider().prepare(ask(model=NEW)), MessagesProvider("p", "http://p").prepare(ask(model=BOUND))):
        assert "anthropic-beta" not in other.headers
        assert "thinking" not in json.loads(other.body)


# what the vendor is to keep


def marks(body: Any) -> list[str]:
    found = []
    for name in ("tools", "system"):
        found += [f"{name}[{i}]" for i, one in enumerate(body.get(name, [])) if one.get("cache_control")]
    for i, message in enumerate(body["messages"]):
        found += [f"messages[{i}][{j}]" for j, one in enumerate(message["content"]) if one.get("cache_control")]
    return found


def test_what_stays_is_marked_to_be_kept():
    messages = [text_message("system", "s")]
    for i in range(4):
        messages += [
            text_message("user", f"u{i}"),
            Message("assistant", [ThoughtPart("hm", dict(THOUGHT)), CallRequest(f"a{i}", "f", "{}")]),
            Message("tool", [TextPart("r")], f"a{i}"),
        ]
    tools = [ToolSpec("f", "", {}), ToolSpec("g", "", {})]
    body = json.loads(provider().prepare(ask(*messages, tools=tools)).body)
    last = len(body["messages"]) - 1
    assert marks(body) == ["tools[1]", "system[0]", f"messages[{last - 2}][1]", f"messages[{last}][0]"]
    assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert messages[-2].thoughts[0].replay == THOUGHT
    assert "cache_control" not in tools[1].input


def test_nothing_is_marked_where_it_is_not_wanted_or_the_vendor_does_it():
    assert marks(json.loads(provider().prepare(ask()).body)) == ["messages[0][0]"]
    assert marks(json.loads(provider(cache=False).prepare(ask()).body)) == []
    body = json.loads(provider().prepare(ask(extra=KEEP)).body)
    assert (marks(body), body["cache_control"]) == ([], KEEP["cache_control"])


def test_the_mark_of_a_round_is_one_of_the_next():
    first = [text_message("user", "u")]
    more = [*first, Message("assistant", [CallRequest("a", "f", "{}")]), Message("tool", [TextPart("r")], "a")]
    for messages, expected in [(first, ["messages[0][0]"]), (more, ["messages[0][0]", "messages[2][0]"])]:
        body = json.loads(provider().prepare(ask(*messages)).body)
        assert [mark for mark in marks(body) if mark.startswith("messages")] == expected


# what is refused


@pytest.mark.parametrize(
    "request_",
    [
        ask(),
        ask(reasoning="max"),
        ask(model=OLD, temperature=0.3),
        ask(model=OLD, temperature=1, reasoning="low"),
        ask(model=OLD, reasoning="none", temperature=0.5),
        ask(model=OLD, max_tokens=64_000, top_p=0.9),
        ask(model="claude-sonnet-9", temperature=0.5),
        ask(model="kimi-k3", temperature=1.5, top_p=0.5, reasoning="low"),
    ],
)
def test_what_models_take_is_not_refused(request_):
    provider().check(request_)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask(temperature=0.5), "no temperature"),
        (ask(temperature=1), "no temperature"),
        (ask(temperature=0.5, top_p=0.1), "no temperature and no top_p"),
        (ask(extra={"top_k": 5}), "no top_k"),
        (ask(model=OLD, temperature=0.5, top_p=0.1), "either temperature or top_p"),
        (ask(model=OLD, temperature=1.5), "from 0 to 1"),
        (ask(model=OLD, temperature=0.5, reasoning="low"), "while it thinks"),
        (ask(model=OLD, max_tokens=1024, reasoning="low"), "above 1024"),
        (ask(model=OLD, max_tokens=64_001), "at most 64000"),
        (ask(model="claude-opus-5-5", reasoning="none"), "always thinks"),
        (ask(seed=1), "no seed"),
    ],
)
def test_what_models_do_not_take_is_refused_with_words(request_, words):
    with pytest.raises(ProviderError, match=words) as caught:
        provider().check(request_)
    assert (caught.value.kind, caught.value.retry) == ("provider.refused", False)
    assert request_.model in caught.value.message


def test_without_a_key_anthropic_is_not_asked():
    with pytest.raises(ProviderError, match="ANTHROPIC_API_KEY") as caught:
        MessagesProvider().check(ask())
    assert caught.value.kind == "provider.auth"
    MessagesProvider(token=Secret("t")).check(ask())
    MessagesProvider(headers={"X-Api-Key": "k"}).check(ask())
    MessagesProvider("proxy", "http://proxy").check(ask())


# how much a request takes


def test_tokens_are_estimated():
    def count(*messages: Message, **given: Any) -> int:
        return provider().count(ask(*messages, **given))

    words = text_message("user", "x" * 3500)
    assert count(words, model=OLD) == pytest.approx(1000, rel=0.01)
    assert count(words, model=NEW) == pytest.approx(1300, rel=0.01)
    assert count(text_message("user", "é" * 1750), model=OLD) == pytest.approx(1000, rel=0.01)
    for mime, size, expected in [
        ("image/png", 90_000, 1500),
        ("application/pdf", 2_000, 100),
        ("application/pdf", 9_000_000, 300_000),
        ("text/plain", 3500, 1000),
    ]:
        assert count(Message("user", [FilePart(mime, "", b"x" * size)]), model=OLD) == pytest.approx(expected, abs=5)
    tool = ToolSpec("f", "d" * 3500, {"type": "object"})
    assert count(model=OLD, tools=[tool]) > 1000
    calls = Message("assistant", [CallRequest("k", "f", '{"x": "%s"}' % ("y" * 3500))])
    assert count(calls, model=OLD) > 1000
    assert count(Message("assistant", [ThoughtPart("hm", {**THOUGHT, "signature": "s" * 3500})]), model=OLD) > 1000
    assert count(Message("assistant", [ThoughtPart("x" * 3500)]), model=OLD) < 10


# errors


def error(status: int, type: str = "", message: str = "m", headers=None, body=None) -> ProviderError:
    raw = json.dumps(failure(type, message)).encode() if body is None else body
    return provider().error(status, headers or {}, raw)


EMPTY = "Your credit balance is too low to access the Anthropic API."
LIMIT = "You have reached your specified API usage limits. You will regain access on 2026-12-01."
FULL = "prompt is too long: 210000 tokens > 200000 maximum"
BUSY = "This would exceed your rate limit; see the current usage."
LONG = "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000"


@pytest.mark.parametrize(
    ("given", "kind", "retry"),
    [
        (error(400, "invalid_request_error"), "provider.refused", False),
        (error(400, "invalid_request_error", FULL), "provider.context", False),
        (error(400, "invalid_request_error", LONG), "provider.context", False),
        (error(400, "invalid_request_error", EMPTY), "provider.rate_limit", False),
        (error(400, "invalid_request_error", LIMIT), "provider.rate_limit", False),
        (error(401, "authentication_error"), "provider.auth", False),
        (error(402, "billing_error"), "provider.rate_limit", False),
        (error(403, "permission_error"), "provider.auth", False),
        (error(404, "not_found_error"), "provider.refused", False),
        (error(408), "provider.timeout", True),
        (error(409, "conflict_error"), "provider.overloaded", True),
        (error(413, "request_too_large"), "provider.context", False),
        (error(413, body=b"<html>"), "provider.context", False),
        (error(422), "provider.refused", False),
        (error(429, "rate_limit_error"), "provider.rate_limit", True),
        (error(429, "rate_limit_error", BUSY), "provider.rate_limit", True),
        (error(500, "api_error"), "provider.overloaded", True),
        (error(501), "provider.overloaded", False),
        (error(502, body=b""), "provider.overloaded", True),
        (error(503), "provider.overloaded", True),
        (error(504, "timeout_error"), "provider.timeout", True),
        (error(529, "overloaded_error"), "provider.overloaded", True),
        (error(500, headers={"X-Should-Retry": "false"}), "provider.overloaded", False),
        (error(400, headers={"X-Should-Retry": "true"}), "provider.refused", True),
        (error(200, "overloaded_error"), "provider.overloaded", True),
        (error(200, body=b"[]"), "provider.protocol", True),
    ],
)  # fmt: skip
def test_statuses_and_types_have_their_kinds(given, kind, retry):
    assert (given.kind, given.retry) == (kind, retry)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[]", b'{"error": null}', b'{"error": []}', b"\xff\xfe", b"[" * 10_000, b'"x"']
)
def test_any_body_makes_an_error(body):
    assert error(500, body=body).kind == "provider.overloaded"
    assert error(400, body=body).kind == "provider.refused"


@pytest.mark.parametrize("body", [b'{"detail": "words"}', b'{"error": "words"}', b'{"message": ["words"]}'])
def test_the_words_are_found_in_other_shapes_too(body):
    assert "words" in error(400, body=body).message


def test_the_vendors_words_are_cut_cleaned_and_without_the_key():
    given = error(401, "authentication_error", "key sk-ant-secret\x1b[31m\n" + "x" * 5000)
    assert len(given.message) <= 200
    assert given.message.isprintable()
    assert "sk-ant-secret" not in given.message
    assert given.upstream == 401


NOW = 1_790_000_000
DATE = {"date": formatdate(NOW, usegmt=True)}


def limit(name: str, remaining: str, reset_s: float) -> dict[str, str]:
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + reset_s))
    return {f"Anthropic-RateLimit-{name}-Remaining": remaining, f"Anthropic-RateLimit-{name}-Reset": reset}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"Retry-After": "2"}, 2),
        ({"retry-after": "2", **limit("requests", "0", 30)}, 2),
        (limit("requests", "0", 30), 30),
        (limit("input-tokens", "0", 12) | limit("output-tokens", "0", 40) | limit("requests", "9", 99), 40),
        (limit("tokens", "1", 30), None),
        (limit("tokens", "0", -30), 0),
        (limit("tokens", "0", 1e6), 86_400),
        ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "soon"}, None),
        ({"anthropic-ratelimit-tokens-remaining": "0"}, None),
    ],
)
def test_how_long_to_wait(headers, wait):
    after_ms = error(429, "rate_limit_error", headers={**DATE, **headers}).after_ms
    assert after_ms == (None if wait is None else pytest.approx(wait * 1000))


def test_a_reset_is_held_against_our_clock_where_the_server_shows_none():
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))
    headers = {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": reset}
    after_ms = error(429, headers=headers).after_ms
    assert after_ms is not None
    assert 90_000 < after_ms < 110_000


def test_a_wait_is_told_only_where_waiting_helps():
    assert error(529, headers={"Retry-After": "2"}).after_ms == 2000
    assert error(400, headers={"Retry-After": "2"}).after_ms is None
    assert error(402, headers={"Retry-After": "2"}).after_ms is None


# models


def test_the_data_file_says_what_a_model_needs():
    assert FILE.sources
    assert FILE.as_of.year >= 2026
    for known in CATALOG.values():
        assert known.context
        assert known.output
        assert known.output < known.context
        assert known.price is not None
        assert known.price.cached is not None
        assert known.price.cached < known.price.input < known.price.output
        assert bool(known.efforts) == (known.thinking == "adaptive")
    assert "-sonnet-" in NEWEST_SONNET


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("claude-opus-5", "claude-opus-5"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-haiku-4-5-latest", "claude-haiku-4-5"),
        ("anthropic/claude-opus-4-8", "claude-opus-4-8"),
        ("eu.anthropic.claude-opus-4-5-20251101-v1:0", "claude-opus-4-5"),
    ],
)
def test_models_are_known_by_their_longest_prefix(name, id):
    assert find(name) is CATALOG[id]


@pytest.mark.parametrize("name", ["claude-opus-5-6", "claude-opus-50", "claude-sonnet-5-5-fast", "my-claude-opus-5"])
def test_a_model_that_only_sounds_like_one_is_not_known(name):
    assert find(name).price is None


def test_models_are_known_without_asking():
    models = provider().models()
    assert models[0] == Model(
        "claude-sonnet-5-5",
        label="Claude Sonnet 5.5",
        context=1_000_000,
        output=128_000,
        abilities=["tools", "images", "files", "reasoning", "json"],
        price=Price(2, 10, cached=0.1, cache_write=2.5),
        created=1_790_553_600,
    )
    ids = [model.id for model in models]
    assert len(ids) == len(set(ids)) > 5
    assert "claude-sonnet-4-5" not in ids
    chosen = MessagesProvider(model="claude-opus-5-20991231", default=True).models()
    assert (chosen[0].id, chosen[0].label, chosen[0].default) == ("claude-opus-5-20991231", "Claude Opus 5", True)
    assert [model.id for model in MessagesProvider("p", "http://p", model="m").models()] == ["m"]
    assert [model.id for model in MessagesProvider("p", "http://p").models()] == [NEWEST_SONNET]


def listed(id: str, **members: Any) -> dict[str, Any]:
    return {"type": "model", "id": id, "display_name": id.title(), "created_at": "2026-09-28T00:00:00Z", **members}


def can(**members: Any) -> dict[str, Any]:
    yes, no = {"supported": True}, {"supported": False}
    thinking = {"supported": True, "types": {"adaptive": no, "enabled": yes}}
    effort = {"supported": True, "low": yes, "medium": yes, "high": no, "max": yes, "xhigh": None}
    given = {"image_input": yes, "pdf_input": no, "structured_outputs": no, "thinking": thinking, "effort": effort}
    return {**given, "batch": yes, "context_management": {"supported": True, "x": None}, **members}


class Vendor:
    """A vendor that answers one after the other, and what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def page(*models: dict[str, Any], more: bool = False) -> httpx.Response:
    body = {"data": list(models), "has_more": more, "first_id": None, "last_id": models[-1]["id"] if models else None}
    return httpx.Response(200, json=body)


async def test_the_vendors_models_are_listed_page_by_page():
    vendor = Vendor(page(listed("claude-opus-5-5"), listed("claude-x"), more=True), page(listed("claude-sonnet-5-5")))
    models = await provider(beta=["b-1"]).list_models(vendor.http)
    assert [model.id for model in models] == ["claude-sonnet-5-5", "claude-opus-5-5", "claude-x"]
    assert models[1].price == Price(4, 20, cached=0.2, cache_write=5)
    assert (models[2].price, models[2].context, models[2].created) == (None, None, 1_790_553_600)
    first, second = vendor.asked
    assert str(first.url) == "https://api.anthropic.com/v1/models?limit=1000"
    assert second.url.params["after_id"] == "claude-x"
    assert first.headers["x-api-key"] == "sk-ant-secret"
    assert first.headers["anthropic-version"] == "2023-06-01"
    assert first.headers["anthropic-beta"] == "b-1"


async def test_what_the_list_says_of_a_model_wins_over_the_file():
    more = {"max_input_tokens": 5000, "max_tokens": 700, "capabilities": can()}
    vendor = Vendor(page(listed("claude-opus-5-5", **more), listed("claude-y", **more)))
    asked = provider()
    models = await asked.list_models(vendor.http)
    for model in models:
        assert (model.context, model.output, model.abilities) == (5000, 700, ["tools", "images", "reasoning"])
    sent = json.loads(asked.prepare(ask(model="claude-y", reasoning="high")).body)
    assert sent["max_tokens"] == 700
    assert sent["thinking"]["type"] == "enabled"
    adaptive = can(thinking={"supported": True, "types": {"adaptive": {"supported": True}}})
    vendor = Vendor(page(listed("claude-y", capabilities=adaptive)))
    await asked.list_models(vendor.http)
    sent = json.loads(asked.prepare(ask(model="claude-y", reasoning="xhigh")).body)
    assert (sent["thinking"]["type"], sent["output_config"]) == ("adaptive", {"effort": "medium"})
    dumb = can(thinking={"supported": False, "types": {}})
    await asked.list_models(Vendor(page(listed("claude-y", capabilities=dumb))).http)
    with pytest.raises(ProviderError, match="does not think"):
        asked.check(ask(model="claude-y", reasoning="low"))


async def test_the_default_is_the_configured_model_or_a_sonnet_that_is_there():
    async def first(*ids: str, **given: Any) -> Model:
        return (await provider(default=True, **given).list_models(Vendor(page(*map(listed, ids))).http))[0]

    assert (await first("claude-opus-5-5", "claude-sonnet-5")).id == "claude-sonnet-5"
    assert (await first("a", "b")).id == "a"
    chosen = await first("claude-opus-5-5", model="claude-haiku-4-5")
    assert (chosen.id, chosen.default, chosen.context) == ("claude-haiku-4-5", True, 200_000)
    assert await provider().list_models(Vendor(page()).http) == []


async def test_the_list_of_a_proxy_is_read_too():
    body = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]}
    asked = MessagesProvider("p", "http://proxy/anthropic")
    vendor = Vendor(httpx.Response(200, json=body))
    assert [model.id for model in await asked.list_models(vendor.http)] == ["m"]
    assert str(vendor.asked[0].url) == "http://proxy/anthropic/v1/models?limit=1000"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(401, json=failure("authentication_error")), "provider.auth"),
        (httpx.Response(529, json=failure("overloaded_error")), "provider.overloaded"),
        (httpx.Response(404, text="nothing here"), "provider.refused"),
        (httpx.Response(200, text="<html>"), "provider.protocol"),
        (httpx.Response(200, json={"data": [{"id": 1}]}), "provider.protocol"),
        (httpx.Response(200, content=b" " * (9 << 20)), "provider.protocol"),
        (httpx.ConnectError("no"), "provider.unreachable"),
        (httpx.ReadTimeout("no"), "provider.timeout"),
    ],
)
async def test_a_list_that_cannot_be_had_is_an_error(answer, kind):
    with pytest.raises(ProviderError) as caught:
        await provider().list_models(Vendor(answer).http)
    assert caught.value.kind == kind


async def test_without_a_key_no_list_is_asked_for():
    vendor = Vendor()
    with pytest.raises(ProviderError, match="ANTHROPIC_API_KEY"):
        await MessagesProvider().list_models(vendor.http)
    assert not vendor.asked


# configuration


def configured(env: dict[str, str] | None = None, **settings: Any) -> list[tuple[Any, ...]]:
    found = []
    for made in make_providers(Settings(**settings), env or {}):
        headers = made.prepare(ask()).headers
        key = headers.get("x-api-key") or headers.get("authorization", "")
        first = made.models()[0]
        found.append((made.name, made.base_url, key, first.id, first.default))
    return found


SONNET = NEWEST_SONNET
T = Secret("t")


@pytest.mark.parametrize(
    ("env", "settings", "expected"),
    [
        ({}, {}, []),
        ({"LLM_PROVIDER": "", "ANTHROPIC_API_KEY": " "}, {}, []),
        ({"LLM_PROVIDER": "openai", "LLM_API_KEY": "k", "LLM_BASE_URL": "http://x", "LLM_MODEL": "m"}, {}, []),
        ({"LLM_API_KEY": "k", "LLM_MODEL": "m"}, {}, []),
        ({}, {"model": "m"}, []),
        ({"LLM_PROVIDER": "anthropic"}, {}, [("anthropic", HOST, "", SONNET, True)]),
        ({"LLM_PROVIDER": "Anthropic", "LLM_MODEL": "m"}, {}, [("anthropic", HOST, "", "m", True)]),
        (
            {"LLM_PROVIDER": "anthropic", "LLM_API_KEY": "k", "LLM_BASE_URL": "http://b/v1/", "ANTHROPIC_API_KEY": "a"},
            {"api_key": T},
            [("anthropic", "http://b", "k", SONNET, True)],
        ),
        (
            {"LLM_PROVIDER": "anthropic", "LLM_API_KEY": "", "LLM_BASE_URL": " ", "ANTHROPIC_API_KEY": "a"},
            {"base_url": "http://b"},
            [("anthropic", "http://b", "a", SONNET, True)],
        ),
        ({"ANTHROPIC_API_KEY": "a"}, {}, [("anthropic", HOST, "a", SONNET, False)]),
        ({"ANTHROPIC_API_KEY": "a"}, {"api_key": T}, [("anthropic", HOST, "a", SONNET, False)]),
        ({"ANTHROPIC_API_KEY": ""}, {"api_key": T}, [("anthropic", HOST, "t", SONNET, False)]),
        ({"ANTHROPIC_AUTH_TOKEN": "o"}, {"api_key": T}, [("anthropic", HOST, "Bearer o", SONNET, False)]),
        ({"ANTHROPIC_AUTH_TOKEN": "o", "ANTHROPIC_API_KEY": "a"}, {}, [("anthropic", HOST, "a", SONNET, False)]),
        (
            {"ANTHROPIC_API_KEY": "a"},
            {"api_key": T, "base_url": "http://b/v1"},
            [("anthropic", "http://b", "t", SONNET, False)],
        ),
        (
            {"ANTHROPIC_BASE_URL": "http://e", "ANTHROPIC_API_KEY": "a"},
            {"api_key": T, "base_url": "http://b"},
            [("anthropic", "http://e", "a", SONNET, False)],
        ),
        ({"ANTHROPIC_BASE_URL": "http://e/x/v1"}, {}, [("anthropic", "http://e/x", "", SONNET, False)]),
        ({"ANTHROPIC_API_KEY": "a"}, {"model": "m"}, [("anthropic", HOST, "a", "m", True)]),
        ({"ANTHROPIC_API_KEY": "a", "LLM_MODEL": "x"}, {"model": "m"}, [("anthropic", HOST, "a", "m", False)]),
        ({"ANTHROPIC_API_KEY": "a", "LLM_PROVIDER": "demo"}, {"model": "m"}, [("anthropic", HOST, "a", "m", False)]),
        (
            {"ANTHROPIC_API_KEY": "a", "ANTHROPIC_BASE_URL": "http://e"},
            {"providers": {"eu": Account(base_url="http://eu/v1", api_key=T, model="m")}},
            [("anthropic", "http://e", "a", SONNET, False), ("eu", "http://eu", "t", "m", False)],
        ),
        (
            {"LLM_PROVIDER": "eu", "LLM_MODEL": "n", "ANTHROPIC_API_KEY": "a"},
            {"providers": {"eu": Account(base_url="http://eu", model="m")}},
            [("anthropic", HOST, "a", SONNET, False), ("eu", "http://eu", "", "n", True)],
        ),
    ],
)
def test_environment_and_table_name_the_providers(env, settings, expected):
    assert configured(env, **settings) == expected


@pytest.mark.parametrize("url", ["api.anthropic.com", "ftp://x", "http://", "http://x/v1?key=1"])
def test_a_base_url_that_is_none_is_told(url):
    with pytest.raises(ValueError, match="base URL"):
        configured(base_url=url)


def test_a_further_provider_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match="choose another"):
        configured({"LLM_PROVIDER": "anthropic"}, providers={"anthropic": Account()})


def test_what_the_table_says_reaches_the_provider():
    table = {
        "api_key": "sk-from-table",
        "headers": {"x-team": "t"},
        "beta": ["b-1"],
        "cache": False,
        "extra_body": {"service_tier": "auto"},
        "providers": {"eu": {"base_url": "http://eu", "cache": True}},
    }
    settings = msgspec.convert(table, Settings, dec_hook=lambda kind, value: Secret(value))
    first, second = make_providers(settings, {})
    prepared = first.prepare(ask())
    assert prepared.headers.items() >= {"x-team": "t", "anthropic-beta": "b-1", "x-api-key": "sk-from-table"}.items()
    assert (json.loads(prepared.body)["service_tier"], marks(json.loads(prepared.body))) == ("auto", [])
    assert marks(json.loads(second.prepare(ask()).body)) == ["messages[0][0]"]
    assert "sk-from-table" not in repr(vars(first)) + repr(settings)


def registered(env: dict[str, str], settings: Settings) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    hub = HubImpl("anthropic", settings, env, lambda kind, text: notes.append(f"{kind}: {text}"))
    sag_anthropic.register(hub)
    return [provider.name for provider in hub._seal("over").providers], notes


def test_register_offers_what_is_configured():
    assert registered({}, Settings()) == ([], ["note: not configured: set ANTHROPIC_API_KEY or [anthropic]"])
    both = Settings(providers={"eu": Account(base_url="http://eu")})
    assert registered({"ANTHROPIC_API_KEY": "a"}, both) == (["anthropic", "eu"], [])


def test_it_fits_the_contract():
    assert isinstance(provider(), HttpProvider)


# against a server that refuses what Anthropic refuses


@pytest.fixture
async def transport():
    outbound = Outbound()
    transport = Transport(outbound)
    yield transport
    transport.close()
    await outbound.close()


class Round(Answer):
    """A round with the fake; it has to come to a good end."""

    @classmethod
    async def of(cls, up: FakeUpstream, transport: Transport, *messages: Message, **given: Any) -> "Round":
        chunks: list[Chunk] = []
        request = ask(*messages, **{"model": "fake", "tools": TOOLS, **given})
        asked = MessagesProvider("anthropic", up.url, Secret(up.api_key), Secret(up.access_token))
        asked.check(request)
        await transport.run(asked, request, SHORT, chunks.extend)
        return cls(chunks, None, 0)


WORDS = text_message("user", "look it up")
BOTH = Calls([ToolCall("look_up", {"query": "x"}), ToolCall("list_all", "")])


@pytest.mark.parametrize("newer", [False, True])
async def test_a_tool_loop_with_thoughts_of_both_kinds(transport, newer):
    async with FakeUpstream("anthropic", models=[BOUND, OLD], reasoning_models=[BOUND], api_key="k") as up:
        model = BOUND if newer else OLD
        up.script(Script([Think("hidden", redacted=True), Think("a look-up"), Say("Wait."), BOTH]))
        first = await Round.of(up, transport, WORDS, model=model, reasoning="high")
        assert (first.thoughts, first.text, first.finish) == ("a look-up", "Wait.", "tools")
        assert [call.name for call in first.calls] == ["look_up", "list_all"]
        assert first.arguments == [{"query": "x"}, {}]
        assert [thought.replay["type"] for thought in first.message.thoughts] == ["redacted_thinking", "thinking"]
        image = FilePart("image/png", "a.png", CONTRACT_PNG)
        results = [
            Message("tool", [TextPart("found"), image], first.calls[0].id),
            Message("tool", [TextPart("broken"), image], first.calls[1].id, failed=True),
        ]
        up.script(say("It is there."))
        again = await Round.of(up, transport, WORDS, first.message, *results, model=model, reasoning="high")
        assert (again.text, again.finish) == ("It is there.", "stop")
        assert up.chats[-1].json["thinking"]["type"] == ("adaptive" if newer else "enabled")


async def test_what_was_sent_once_is_read_from_the_cache_by_the_next_round(transport):
    async with FakeUpstream("anthropic", api_key="k") as up:
        system = text_message("system", "Be kind. " * 50)
        up.script(Script([BOTH]), say("done"))
        first = await Round.of(up, transport, system, WORDS)
        results = [Message("tool", [TextPart("found")], call.id) for call in first.calls]
        second = await Round.of(up, transport, system, WORDS, first.message, *results)
        assert first.usage is not None
        assert second.usage is not None
        assert (first.usage.cached, second.usage.cached) == (0, first.usage.cache_write)
        assert 0 < second.usage.cached < second.usage.input


async def test_files_of_all_kinds_are_taken(transport):
    async with FakeUpstream("anthropic", api_key="k") as up:
        files: list[Part] = [
            FilePart("image/png", "a.png", CONTRACT_PNG),
            FilePart("application/pdf", "b.pdf", PDF),
            FilePart("text/plain", "c.txt", b"text"),
            FilePart("application/zip", "d.zip", b"PK"),
        ]
        up.script(say("I see."))
        assert (await Round.of(up, transport, Message("user", files))).text == "I see."


@pytest.mark.parametrize(
    "messages",
    [
        [text_message("assistant", "I begin.")],
        [WORDS, text_message("assistant", " "), text_message("user", "\n"), text_message("assistant", "mine")],
        [WORDS, Message("assistant", [CallRequest("k1", "gone", "{broken")]), Message("tool", [TextPart("")], "k1")],
    ],
)
async def test_odd_transcripts_are_taken(transport, messages):
    async with FakeUpstream("anthropic", api_key="k") as up:
        up.script(say("ok"))
        assert (await Round.of(up, transport, *messages, tools=[])).text == "ok"


async def test_a_token_is_taken_in_place_of_a_key(transport):
    async with FakeUpstream("anthropic", access_token="o") as up:
        up.script(say("ok"))
        assert (await Round.of(up, transport, WORDS)).text == "ok"
        assert up.chats[0].headers["authorization"] == "Bearer o"


@pytest.mark.parametrize(
    ("script", "text", "finish"),
    [
        (Script([Say("half"), Refusal("no")]), "half", "refused"),
        (Script([Refusal("That I may not.", "bio")]), "That I may not.", "refused"),
        (say("so far", finish="pause_turn"), "so far", "length"),
        (say("so far", finish="model_context_window_exceeded"), "so far", "length"),
        (Script([Emit({"type": "new_event", "x": 1}), Say("ok")]), "ok", "stop"),
    ],
)
async def test_how_answers_end(transport, script, text, finish):
    async with FakeUpstream("anthropic", api_key="k") as up:
        up.script(script)
        answer = await Round.of(up, transport, WORDS)
        assert (answer.text, answer.finish) == (text, finish)


@pytest.mark.parametrize(
    ("script", "kind", "after_ms"),
    [
        (fail(529, headers={"retry-after": "2"}), "provider.overloaded", 2000),
        (fail(429), "provider.rate_limit", 60_000),
        (fail(400, "prompt is too long: 9 tokens > 8 maximum"), "provider.context", None),
        (fail(402), "provider.rate_limit", None),
        (Script([Say("so far"), Fail(529, "Overloaded")]), "provider.overloaded", None),
        (say("so far", done=False), "provider.truncated", None),
    ],
)
async def test_how_rounds_fail(transport, script, kind, after_ms):
    async with FakeUpstream("anthropic", api_key="k") as up:
        up.script(script)
        with pytest.raises(ProviderError) as caught:
            await Round.of(up, transport, WORDS)
        assert caught.value.kind == kind
        assert caught.value.after_ms == pytest.approx(after_ms, abs=2000)


async def test_the_list_of_a_server_is_read_to_its_end():
    outbound = Outbound()
    ids = [f"claude-opus-5-{20260101 + i}" for i in range(1500)]
    async with FakeUpstream("anthropic", models=ids, api_key="k", max_model_len=900_000) as up:
        asked = MessagesProvider("anthropic", up.url, Secret("k"))
        models = await asked.list_models(outbound.client(trusted=True))
        assert [model.id for model in models] == ids
        assert (models[0].context, models[0].output, models[0].price) == (900_000, 64_000, Price(5, 25, 0.5, 6.25))
        with pytest.raises(ProviderError) as caught:
            await MessagesProvider("anthropic", up.url, Secret("wrong")).list_models(outbound.client(trusted=True))
        assert (caught.value.kind, caught.value.upstream) == ("provider.auth", 401)
    await outbound.close()
