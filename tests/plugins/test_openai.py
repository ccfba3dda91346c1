"""The plugin of OpenAI-style servers: what it sends, what it makes of any bytes, and how it is configured."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import pytest

import sag_openai
from sag.hooks.hub import Hub as HubImpl
from sag.hooks.streams import LONGEST_S, read_wait
from sag.outbound import Outbound
from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    Finish,
    HttpProvider,
    Message,
    Model,
    ModelRequest,
    ProviderError,
    Reasoning,
    Text,
    TextPart,
    ThoughtPart,
    ToolSpec,
    Usage,
    UsageChunk,
    text_message,
)
from sag.testing.upstream import FakeUpstream
from sag_openai import Settings, make_provider
from sag_openai.decoder import ChatDecoder
from sag_openai.provider import ChatProvider

ALL = "aé€😀 \u2028\u2029\u0085\x0b\x0c\0 \u202e\u200b\ufeff"


def event(data, newline: str = "\n", ascii: bool = False) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=ascii)
    return f"data: {text}{newline}{newline}".encode()


def delta(newline: str = "\n", finish=None, **members) -> bytes:
    return event(
        {"id": "x", "choices": [{"index": 0, "delta": members, "finish_reason": finish}], "usage": None}, newline
    )


def fragment(index, id=None, name=None, arguments="") -> bytes:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    call = {"function": function} | ({"index": index} if index is not None else {}) | ({"id": id} if id else {})
    return delta(tool_calls=[call])


def record(newline: str = "\n") -> bytes:
    """A stream with everything in it."""
    return b"".join(
        [
            f": OPENROUTER PROCESSING{newline}{newline}".encode(),
            event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, newline),
            delta(newline, role="assistant", content=None, refusal=None),
            delta(newline, reasoning="think 😀"),
            delta(newline, content=ALL),
            delta(newline, content="x\\\"'"),
            delta(newline, tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f"}}]),
            delta(newline, tool_calls=[{"index": 0, "function": {"arguments": '{"q":"\\u00'}}]),
            delta(newline, tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}}]),
            delta(newline, tool_calls=[{"index": 0, "function": {"arguments": 'e4"}'}}]),
            delta(newline, tool_calls=[{"index": 1, "function": {"arguments": "{}"}}]),
            delta(newline, finish="tool_calls"),
            event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}, newline),
            event("[DONE]", newline),
        ]
    )


RECORDED = [
    Reasoning("think 😀"),
    Text(ALL),
    Text("x\\\"'"),
    CallFragment(0, "a", "f"),
    CallFragment(0, arguments='{"q":"\\u00'),
    CallFragment(1, "b", "g"),
    CallFragment(0, arguments='e4"}'),
    CallFragment(1, arguments="{}"),
    Finish("tools"),
    UsageChunk(Usage(7, 5)),
]


def decode(*pieces: bytes) -> list[Chunk]:
    decoder = ChatDecoder()
    chunks: list[Chunk] = []
    for piece in pieces:
        chunks += decoder.feed(piece)
    return chunks + list(decoder.finish())


def fails(*pieces: bytes) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        decode(*pieces)
    return caught.value


def said(chunks) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))


END = delta(finish="stop") + event("[DONE]")


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


def test_a_stream_may_end_without_a_blank_line_or_done():
    text = delta(content="a")
    for end in (b"", b"data: [DONE]", b"data: [DONE]\n"):
        assert decode(text + delta(finish="stop") + end) == [Text("a"), Finish("stop")]
    assert decode(text + delta(finish="stop").rstrip()) == [Text("a"), Finish("stop")]


def test_what_a_stream_may_hold_besides_data():
    body = b"event: message\nid: 1\nretry: 5\n:\n\n\n" + delta(content="a") + b"data:" + delta(content="b")[6:] + END
    assert said(decode(body)) == "ab"


def test_several_data_lines_are_joined():
    assert said(decode(b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n' + END)) == "a"


def test_a_server_that_forgets_blank_lines_is_understood():
    body = (delta(content="a") + delta(content="b") + END).replace(b"\n\n", b"\n")
    assert said(decode(body)) == "ab"


def test_text_before_the_first_event_does_no_harm():
    assert said(decode(b"warming up\n\n" + delta(content="a") + END)) == "a"


def test_broken_unicode_becomes_the_replacement_character():
    for raw, text in [
        (b"a\xff", "a\ufffd"),
        (b"\xc3(", "\ufffd("),
        (b"\xed\xa0\xbd", "\ufffd\ufffd\ufffd"),
        (rb"\ud83d", "\ufffd"),
        (rb"\ud83d x", "\ufffd x"),
        (rb"\ude00", "\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83d\ude00", "😀"),
        (b"\x00\x01", "\0\1"),
        (rb"\u0000", "\0"),
    ]:
        chunks = decode(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % raw + END)
        assert said(chunks) == text, raw
        said(chunks).encode()


def test_lines_and_events_have_a_limit():
    for body in (b"data: " + b"x" * (1 << 21), b"data: " + b"x" * 1000 + b"\n"):
        decoder = ChatDecoder()
        with pytest.raises(ProviderError) as caught:
            deque((decoder.feed(body) for _ in range(2000)), 0)
        assert caught.value.kind == "provider.protocol"


def test_a_long_line_in_single_bytes_takes_no_square_time():
    began = time.process_time()
    body = b'data: {"choices":[{"delta":{"content":"' + b"x" * 300_000 + b'"}}]}\n\n' + END
    decoder = ChatDecoder()
    chunks: list[Chunk] = []
    for i in range(len(body)):
        chunks += decoder.feed(body[i : i + 1])
    assert len(said(chunks)) == 300_000
    assert time.process_time() - began < 5


# endings and errors


@pytest.mark.parametrize(
    "body",
    [b"", delta(content="a"), delta(content="a") + event("[DONE]"), delta(content="a") + b'data: {"choices": [{"del'],
)
def test_a_stream_without_a_finish_reason_is_truncated(body):
    error = fails(body)
    assert (error.kind, error.retry) == ("provider.truncated", True)


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_a_reason_that_is_none_is_truncated(reason):
    assert fails(delta(finish=reason)).kind == "provider.truncated"


@pytest.mark.parametrize(
    "body", [b"data: {oops}\n\n", b"data: 1\n\n", b"data: [[[[\n\n", b"data: " + b"[" * 5000 + b"\n\n"]
)
def test_data_that_is_no_chunk_is_a_protocol_error(body):
    assert fails(body + END).kind == "provider.protocol"


def test_garbage_is_a_protocol_error_and_shows_none_of_it():
    error = fails(b"<html><b>secret</b></html>")
    assert error.kind == "provider.protocol"
    assert "secret" not in error.message


def test_garbage_after_the_finish_is_ignored():
    assert decode(delta(finish="stop") + b"data: oops\n\n") == [Finish("stop")]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"error": {"message": "m", "code": "context_length_exceeded"}}, "provider.context"),
        ({"error": {"message": "m", "type": "server_error"}}, "provider.overloaded"),
        ({"error": {"message": "m", "code": 429}}, "provider.rate_limit"),
        ({"error": {"message": "m", "code": "502"}}, "provider.overloaded"),
        ({"error": "plain words"}, "provider.protocol"),
        (
            {"error": {"code": 502, "message": "m"}, "choices": [{"delta": {}, "finish_reason": "error"}]},
            "provider.overloaded",
        ),
        ({"object": "error", "message": "m", "code": 400}, "provider.refused"),
    ],
)
def test_an_error_within_the_stream_is_raised_after_what_came_before_it(given, kind):
    decoder = ChatDecoder()
    assert decoder.feed(delta(content="a") + event(given) + event("[DONE]")) == [Text("a")]
    steps: list[Callable[[], Sequence[Chunk]]] = [
        lambda: decoder.feed(b""),
        lambda: decoder.feed(delta(content="b")),
        decoder.finish,
    ]
    for again in steps:
        with pytest.raises(ProviderError) as caught:
            again()
        assert caught.value.kind == kind
    assert fails(event(given)).kind == kind


def test_an_error_that_is_no_event_is_seen_too():
    assert fails(delta(content="a"), b'{"error": {"message": "m", "code": 503}}\n').kind == "provider.overloaded"
    assert fails(b'{"error": {"message": "m", "code": 503}}').kind == "provider.overloaded"


def test_an_empty_error_is_none():
    assert decode(event({"choices": [], "error": None}) + END) == [Finish("stop")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "refused"),
        ("eos", "stop"),
        ("tool_calls", "stop"),
    ],
)
def test_finish_reasons_without_calls(given, reason):
    assert decode(delta(finish=given)) == [Finish(reason)]


@pytest.mark.parametrize(("given", "reason"), [("tool_calls", "tools"), ("stop", "tools"), ("length", "length")])
def test_finish_reasons_after_calls(given, reason):
    assert decode(fragment(0, "a", "f"), delta(finish=given))[-1] == Finish(reason)


def test_a_refusal_is_text_and_a_refused_finish():
    assert decode(delta(refusal="No."), delta(finish="stop")) == [Text("No."), Finish("refused")]


def test_usage_with_details():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    chunks = decode(END.replace(b"data: [DONE]", event({"choices": [], "usage": usage}).strip()))
    assert chunks[-1] == UsageChunk(Usage(10, 5, reasoning=3, cached=4))
    odd = {"prompt_tokens": 1.0, "completion_tokens": None, "prompt_tokens_details": "none"}
    assert decode(event({"usage": odd}) + END)[0] == UsageChunk(Usage(1, 0))


def test_both_names_of_reasoning():
    assert decode(delta(reasoning="a"), delta(reasoning_content="b"), delta(reasoning="c", reasoning_content="c"), END)[
        :-1
    ] == [Reasoning("a"), Reasoning("b"), Reasoning("c")]


def test_other_choices_are_left_out():
    assert decode(event({"choices": [{"index": 1, "delta": {"content": "b"}}]}) + END) == [Finish("stop")]


def test_members_of_other_types_take_the_lenient_road():
    body = event({"choices": [{"delta": {"content": [{"type": "text", "text": "a"}, {"type": "x"}]}}], "usage": 5})
    body += event(
        {
            "choices": [
                {"delta": {"tool_calls": [{"index": 0, "id": 7, "function": {"name": "f", "arguments": {"x": 1}}}]}}
            ]
        }
    )
    chunks = decode(body + END)
    assert said(chunks) == "a"
    assert [c.arguments for c in chunks if isinstance(c, CallFragment)] == ['{"x": 1}']


# tool calls


def calls(*pieces: bytes) -> list[tuple[str, str, str]]:
    made: dict[int, list[str]] = {}
    for chunk in decode(*pieces, END):
        if isinstance(chunk, CallFragment):
            if chunk.index not in made:
                made[chunk.index] = [chunk.id or "", chunk.name or "", ""]
                assert chunk.id
            else:
                assert (chunk.id, chunk.name) == (None, None)
            made[chunk.index][2] += chunk.arguments
    assert list(made) == list(range(len(made)))
    return [(id, name, arguments) for id, name, arguments in made.values()]


def test_whole_calls_under_one_index_are_told_apart_by_id():
    assert calls(fragment(0, "a", "f", "{}"), fragment(0, "b", "g", '{"x":1}'), fragment(0, arguments=" ")) == [
        ("a", "f", "{}"),
        ("b", "g", '{"x":1} '),
    ]


def test_an_id_and_a_name_that_are_repeated_make_no_new_call():
    assert calls(fragment(0, "a", "f", "{"), fragment(0, "a", "f", "}")) == [("a", "f", "{}")]


def test_one_id_under_two_indexes_makes_two_calls_with_an_id_each():
    first, second = calls(fragment(0, "a", "f", "{"), fragment(1, "a", "g", "[]"), fragment(0, "a", arguments="}"))
    assert first == ("a", "f", "{}")
    assert second[1:] == ("g", "[]")
    assert second[0] != "a"


def test_calls_without_an_index():
    assert calls(
        fragment(None, "a", "f", "{"),
        fragment(None, arguments="}"),
        fragment(None, "b", "g"),
        fragment(None, "b", arguments="{}"),
    ) == [
        ("a", "f", "{}"),
        ("b", "g", "{}"),
    ]


def test_calls_without_an_id_get_one():
    first, second = calls(fragment(0, None, "f", "{}"), fragment(0, None, "g", "{}"))
    assert (first[1], second[1]) == ("f", "g")
    assert first[0] != second[0]


def test_a_call_of_the_old_kind():
    [(id, name, arguments)] = calls(
        delta(function_call={"name": "f", "arguments": ""}), delta(function_call={"arguments": "{}"})
    )
    assert (bool(id), name, arguments) == (True, "f", "{}")


def test_indexes_that_begin_anywhere_and_mix():
    assert calls(
        fragment(3, "a", "f", "1"), fragment(1, "b", "g", "2"), fragment(3, arguments="3"), fragment(1, arguments="4")
    ) == [("a", "f", "13"), ("b", "g", "24")]


def test_a_thousand_calls():
    assert len(calls(*[fragment(i, f"id{i}", "f", "{}") for i in range(1000)])) == 1000


# what is sent


def body_of(request: ModelRequest, **given):
    sent = ChatProvider("openai", "http://x/v1", "key", **given).prepare(request)
    return json.loads(sent.body)


def test_a_request_holds_only_what_was_set():
    provider = ChatProvider("openai", "http://x/v1")
    sent = provider.prepare(ModelRequest("m", [text_message("system", "s"), text_message("user", "u")]))
    assert (sent.method, sent.url) == ("POST", "http://x/v1/chat/completions")
    assert sent.headers == {"Content-Type": "application/json", "Accept": "text/event-stream"}
    assert json.loads(sent.body) == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_what_was_set_is_sent_under_its_name():
    request = ModelRequest(
        "m",
        [text_message("user", "u")],
        [ToolSpec("f", "does f", {"type": "object"})],
        temperature=0.0,
        top_p=1.0,
        max_tokens=5,
        stop=["x"],
        seed=0,
        reasoning="low",
        extra={"top_k": 3, "stream_options": {"include_usage": False}},
    )
    body = body_of(request)
    assert body["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}
    ]
    for name, value in {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 0,
        "reasoning_effort": "low",
        "top_k": 3,
        "stream_options": {"include_usage": False},
    }.items():
        assert body[name] == value
    assert body_of(request, max_tokens_name="max_completion_tokens")["max_completion_tokens"] == 5


def test_calls_and_their_answers_are_written_as_the_server_wants_them():
    messages = [
        text_message("user", "u"),
        Message("assistant", [ThoughtPart("hm"), *[CallRequest("a", "f", ""), CallRequest("b", "g", "{broken")]]),
        Message("tool", [TextPart("one")], "a"),
        Message("tool", [TextPart("two")], "b"),
        Message("assistant", [TextPart("text"), *[CallRequest("c", "f", '{"x": 1}')]]),
        Message("tool", [TextPart("")], "c"),
    ]
    body = body_of(ModelRequest("m", messages))
    first, second = body["messages"][1], body["messages"][4]
    assert first["content"] is None
    assert second["content"] == "text"
    written = [call["function"]["arguments"] for call in first["tool_calls"] + second["tool_calls"]]
    assert [json.loads(one) for one in written] == [{}, {"invalid_json": "{broken"}, {"x": 1}]
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "a", "content": "one"}
    assert "reasoning_content" not in first
    body = body_of(ModelRequest("m", messages), reasoning_name="reasoning_content")
    assert [body["messages"][i]["reasoning_content"] for i in (1, 4)] == ["hm", ""]


def test_half_surrogates_in_a_transcript_are_replaced():
    assert body_of(ModelRequest("m", [text_message("user", "a\ud83d 😀")]))["messages"][0]["content"] == "a\ufffd 😀"


async def test_what_is_sent_passes_a_strict_server():
    outbound = Outbound()
    messages = [
        text_message("user", "u"),
        Message("assistant", [CallRequest("a", "f", "{}")]),
        Message("tool", [TextPart("r")], "a"),
    ]
    request = ModelRequest("fake", messages, [ToolSpec("f", "", {})], temperature=1.0, max_tokens=5, seed=1)
    async with FakeUpstream(strict=True, api_key="k") as up:
        sent = ChatProvider("openai", up.url, "k").prepare(request)
        client = outbound.client(trusted=True)
        answer = await client.request(sent.method, sent.url, content=sent.body, headers=sent.headers)
        assert answer.status_code == 200
        assert said(decode(answer.content)) == "r"
    await outbound.close()


# errors


def error(status: int, code=None, type="", message="m", headers=None, body=None) -> ProviderError:
    given = {"error": {"message": message, "type": type, "param": None, "code": code}}
    raw = json.dumps(given).encode() if body is None else body
    return ChatProvider("openai", "http://x", "sk-secret").error(status, headers or {}, raw)


@pytest.mark.parametrize(
    ("given", "kind", "retry"),
    [
        (error(400, "context_length_exceeded"), "provider.context", False),
        (
            error(400, 400, "BadRequestError", "This model's maximum context length is 4096 tokens."),
            "provider.context",
            False,
        ),
        (error(400, 400, "exceed_context_size_error"), "provider.context", False),
        (error(400, None, "invalid_request_error"), "provider.refused", False),
        (error(401, "invalid_api_key"), "provider.auth", False),
        (error(403), "provider.auth", False),
        (error(404, "model_not_found"), "provider.refused", False),
        (error(408), "provider.timeout", True),
        (error(409), "provider.overloaded", True),
        (error(422), "provider.refused", False),
        (error(429, "rate_limit_exceeded"), "provider.rate_limit", True),
        (error(429, "slow_down", "rate_limit_error"), "provider.rate_limit", True),
        (error(429, "insufficient_quota", "insufficient_quota"), "provider.rate_limit", False),
        (error(429, "credit_balance_exhausted"), "provider.rate_limit", False),
        (error(500, None, "server_error"), "provider.overloaded", True),
        (error(501), "provider.overloaded", False),
        (error(502), "provider.overloaded", True),
        (error(503, "server_is_overloaded", "service_unavailable_error"), "provider.overloaded", True),
        (error(503, "slow_down"), "provider.overloaded", True),
        (error(504), "provider.timeout", True),
        (error(529), "provider.overloaded", True),
        (error(500, headers={"X-Should-Retry": "false"}), "provider.overloaded", False),
        (error(400, headers={"X-Should-Retry": "true"}), "provider.refused", True),
        (error(200, body=b"[]"), "provider.protocol", True),
    ],
)
def test_statuses_and_codes_have_their_kinds(given, kind, retry):
    assert (given.kind, given.retry) == (kind, retry)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[]", b'{"error": null}', b'{"error": []}', b"\xff\xfe", b"[" * 10_000, b'"x"']
)
def test_any_body_makes_an_error(body):
    assert error(500, body=body).kind == "provider.overloaded"
    assert error(400, body=body).kind == "provider.refused"


@pytest.mark.parametrize("body", [b'{"detail": "words"}', b'[{"error": {"message": "words"}}]', b'{"error": "words"}'])
def test_the_words_are_found_in_other_shapes_too(body):
    assert "words" in error(400, body=body).message


def test_the_vendors_words_are_cut_cleaned_and_without_the_key():
    given = error(400, message="key sk-secret\x1b[31m\n" + "x" * 5000)
    assert len(given.message) <= 200
    assert given.message.isprintable()
    assert "sk-secret" not in given.message


NOW = 1_790_000_000
DATE = {"date": formatdate(NOW, usegmt=True)}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "1e9"}, LONGEST_S),
        ({"retry-after": "inf"}, LONGEST_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": formatdate(NOW + 30, usegmt=True), **DATE}, 30),
        ({"retry-after": formatdate(NOW - 30, usegmt=True), **DATE}, 0),
        ({"retry-after": "Mon, 99 Foo 2026 00:00:00 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
    ],
)
def test_how_long_to_wait(headers, wait):
    assert read_wait(headers) == pytest.approx(wait)


def test_a_date_is_held_against_our_clock_where_the_server_shows_none():
    wait = read_wait({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert wait is not None
    assert 95 < wait < 105


def test_a_wait_is_told_only_where_waiting_helps():
    assert error(429, headers={"Retry-After": "2"}).after_ms == 2000
    assert error(503, headers={"Retry-After": "2"}).after_ms == 2000
    assert error(400, headers={"Retry-After": "2"}).after_ms is None
    assert error(429, "insufficient_quota", headers={"Retry-After": "2"}).after_ms is None


# configuration


def configured(env: dict[str, str] | None = None, **settings: Any) -> tuple[Any, ...] | None:
    provider = make_provider(Settings(**settings), env or {})
    if provider is None:
        return None
    model = next(iter(provider.models()), None)
    key = provider.headers.get("Authorization", "").removeprefix("Bearer ")
    return provider.name, provider.base_url, key, (model.id, model.default) if model is not None else None


OPENAI, VLLM = "https://api.openai.com/v1", "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("env", "settings", "expected"),
    [
        ({}, {}, None),
        ({"LLM_PROVIDER": "", "OPENAI_API_KEY": " "}, {}, None),
        ({"LLM_PROVIDER": "demo", "LLM_BASE_URL": "http://x", "LLM_API_KEY": "k", "LLM_MODEL": "m"}, {}, None),
        ({"LLM_PROVIDER": "openai"}, {}, ("openai", OPENAI, "", None)),
        ({"LLM_PROVIDER": "OpenAI", "LLM_MODEL": "m"}, {}, ("openai", OPENAI, "", ("m", True))),
        ({"LLM_PROVIDER": "vllm"}, {}, ("vllm", VLLM, "", None)),
        ({"LLM_PROVIDER": "vllm", "VLLM_MODEL": "q"}, {}, ("vllm", VLLM, "", ("q", True))),
        ({"LLM_PROVIDER": "vllm", "VLLM_MODEL": "q", "LLM_MODEL": "m"}, {}, ("vllm", VLLM, "", ("m", True))),
        ({"LLM_PROVIDER": "vllm", "OPENAI_API_KEY": "o"}, {}, ("vllm", VLLM, "", None)),
        (
            {"LLM_PROVIDER": "vllm", "LLM_API_KEY": "k", "LLM_BASE_URL": "http://b/v1/"},
            {},
            ("vllm", "http://b/v1", "k", None),
        ),
        ({"OPENAI_API_KEY": "o"}, {}, ("openai", OPENAI, "o", None)),
        ({"OPENAI_API_KEY": "o", "LLM_API_KEY": "k"}, {}, ("openai", OPENAI, "k", None)),
        ({"OPENAI_API_KEY": "o", "LLM_API_KEY": ""}, {}, ("openai", OPENAI, "o", None)),
        ({"OPENAI_API_KEY": "o"}, {"api_key": "t"}, ("openai", OPENAI, "o", None)),
        ({"OPENAI_API_KEY": "o"}, {"api_key": "t", "base_url": "http://b/v1"}, ("openai", "http://b/v1", "t", None)),
        ({"OPENAI_API_KEY": "o"}, {"base_url": "http://b/v1"}, ("openai", "http://b/v1", "o", None)),
        ({"OPENAI_API_KEY": "o", "LLM_PROVIDER": "demo"}, {"model": "m"}, ("openai", OPENAI, "o", ("m", False))),
        (
            {"LLM_BASE_URL": "http://e/v1", "LLM_MODEL": "e"},
            {"base_url": "http://b/v1", "model": "m"},
            ("openai", "http://e/v1", "", ("e", True)),
        ),
        ({}, {"base_url": "http://b/v1", "model": "m", "name": "lm"}, ("lm", "http://b/v1", "", ("m", True))),
        ({"LLM_MODEL": "m"}, {}, None),
    ],
)
def test_environment_and_table_name_the_provider(env, settings, expected):
    assert configured(env, **settings) == expected


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://x/v1", "http://", "http://x/v1?key=1"])
def test_a_base_url_that_is_none_is_told(url):
    with pytest.raises(ValueError, match="base URL"):
        configured(base_url=url)


class Services:
    def __init__(self, outbound: Outbound) -> None:
        self.outbound = outbound
        self.models: dict[str, list[Model]] = {}

    def set_models(self, provider, models):
        self.models[provider] = list(models)

    def http(self, trusted):
        return self.outbound.client(trusted=trusted)


class Started:
    """The plugin in a hub that is only as real as this needs."""

    def __init__(self, env, allow=()) -> None:
        self.notes: list[str] = []
        self.services = Services(Outbound(allow))
        self.hub = HubImpl("openai", Settings(), env, lambda kind, text: self.notes.append(f"{kind}: {text}"))

    async def run(self) -> list[Model]:
        sag_openai.register(self.hub)
        staged = self.hub._seal("over")
        self.hub._connect(self.services)  # type: ignore[arg-type]
        await sag_openai.startup(self.hub)
        async with asyncio.timeout(5):
            while tasks := set(self.hub._tasks):
                await asyncio.wait(tasks)
        await self.services.outbound.close()
        return self.services.models.get(staged.providers[0].name, []) if staged.providers else []


async def test_nothing_is_registered_where_nothing_is_configured():
    started = Started({})
    assert await started.run() == []
    assert started.notes == ["note: not configured: set LLM_PROVIDER or [openai]"]


async def test_the_servers_models_are_announced_with_their_context():
    async with FakeUpstream(models=["m", "text-embedding-3", "n"], api_key="k") as up:
        env = {"LLM_PROVIDER": "openai", "LLM_BASE_URL": up.url, "LLM_API_KEY": "k", "LLM_MODEL": "m"}
        assert await Started(env, ["127.0.0.1"]).run() == [
            Model("m", context=8192, default=True),
            Model("n", context=8192),
        ]


async def test_the_only_model_of_a_server_is_the_default():
    async with FakeUpstream(models=["only"]) as up:
        env = {"LLM_PROVIDER": "vllm", "LLM_BASE_URL": up.url}
        assert await Started(env, ["127.0.0.1"]).run() == [Model("only", context=8192, default=True)]


async def test_a_server_that_lists_nothing_is_only_noted(caplog):
    caplog.set_level(logging.ERROR)
    async with FakeUpstream(api_key="other") as up:
        for env, allow in [
            ({"LLM_BASE_URL": up.url}, ["127.0.0.1"]),
            ({"LLM_BASE_URL": up.url}, []),
            ({"LLM_BASE_URL": "http://127.0.0.1:9/v1"}, ["127.0.0.1"]),
        ]:
            started = Started(env, allow)
            assert await started.run() == []
            assert len(started.notes) == 1
            assert "could not be listed" in started.notes[0]
    assert not caplog.records


def test_it_fits_the_contract():
    assert isinstance(make_provider(Settings(base_url="http://x/v1"), {}), HttpProvider)
