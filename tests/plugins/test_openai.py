"""Chat completions: what is sent, what is made of any bytes that come, and what errors are called."""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import pytest

from sag.hooks.streams import LONGEST_S, read_wait
from sag.outbound import Outbound
from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    Message,
    ModelRequest,
    Part,
    ProviderError,
    Reasoning,
    Replay,
    Text,
    TextPart,
    ThoughtPart,
    ToolSpec,
    Usage,
    UsageChunk,
    text_message,
)
from sag.testing.upstream import FakeUpstream
from sag_openai import ChatProvider, ProviderSettings, details
from sag_openai.decoder import ChatDecoder
from sag_openai.flavors import FLAVORS

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


def decode(*pieces: bytes, router: bool = False) -> list[Chunk]:
    decoder = ChatDecoder(router=router)
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


def test_the_cost_that_openrouter_tells_is_taken():
    usage: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": 1, "cost": 0.0125, "is_byok": False}
    usage |= {"prompt_tokens_details": {"cache_write_tokens": 5}, "cost_details": {"upstream_inference_cost": 0.5}}
    [found] = decode(event({"choices": [], "usage": usage}) + END, router=True)[:1]
    assert found == UsageChunk(Usage(9, 1, cache_write=5, cost_usd=0.0125))
    own_key = usage | {"is_byok": True}
    [found] = decode(event({"choices": [], "usage": own_key}) + END, router=True)[:1]
    assert found == UsageChunk(Usage(9, 1, cache_write=5, cost_usd=0.5125))
    [found] = decode(event({"choices": [], "usage": usage | {"prompt_tokens": "9"}}) + END, router=True)[:1]
    assert found == UsageChunk(Usage(0, 1, cache_write=5, cost_usd=0.0125))
    [found] = decode(event({"choices": [], "usage": usage}) + END)[:1]
    assert found == UsageChunk(Usage(9, 1, cache_write=5))


def thought(text: str, **more):
    return {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1", "index": 0, **more}


def test_openrouters_thoughts_are_given_whole_before_what_follows_them():
    body = b"".join(
        [
            delta(reasoning="let", reasoning_details=[thought("let")]),
            delta(reasoning=" me", reasoning_details=[thought(" me")]),
            delta(content="", reasoning_details=[thought("", signature="sig=")]),
            delta(content="a"),
            delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]),
            delta(reasoning_details=[{"type": "reasoning.encrypted", "data": "xx", "id": "c", "index": 1}]),
            delta(finish="tool_calls"),
        ]
    )
    expected = [
        Reasoning("let"),
        Reasoning(" me"),
        Replay([thought("let me", signature="sig=")]),
        Text("a"),
        CallFragment(0, "c", "f", "{}"),
        Replay([{"type": "reasoning.encrypted", "data": "xx", "id": "c", "index": 1}]),
        Finish("tools"),
    ]
    assert decode(body, router=True) == expected
    for i in range(len(body)):
        assert decode(body[:i], body[i:], router=True) == expected
    assert not [chunk for chunk in decode(body) if isinstance(chunk, Replay)]


def test_thoughts_that_only_the_details_hold_are_told_too():
    body = delta(reasoning_details=[{"type": "reasoning.summary", "summary": "sum", "index": 0}, {"type": "x"}, 5])
    assert decode(body + END, router=True) == [
        Reasoning("sum"),
        Replay([{"type": "reasoning.summary", "summary": "sum", "index": 0}, {"type": "x"}]),
        Finish("stop"),
    ]


def test_details_go_back_as_they_came():
    given = [[thought("a"), thought("b", signature="s")], [{"type": "reasoning.encrypted", "data": "x"}]]
    parts: list[Part] = [
        ThoughtPart("ab", given[0]),
        TextPart("t"),
        ThoughtPart("", given[1]),
        ThoughtPart("other", {"id": 1}),
    ]
    [message] = body_of(ModelRequest("m", [Message("assistant", parts)]), "openrouter")["messages"]
    assert message["reasoning_details"] == [thought("ab", signature="s"), *given[1]]
    [message] = body_of(ModelRequest("m", [Message("assistant", parts)]))["messages"]
    assert "reasoning_details" not in message


def test_ten_thousand_pieces_of_a_thought_are_joined_quickly():
    began = time.process_time()
    [whole] = details.merge(thought("x" * 100) for _ in range(10_000))
    assert len(whole["text"]) == 1_000_000
    assert time.process_time() - began < 2


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


def body_of(request: ModelRequest, flavor: str = "compatible", base_url: str = "http://x/v1", **given):
    provider = ChatProvider("openai", base_url, "key", ProviderSettings(**given), flavor=FLAVORS[flavor])
    return json.loads(provider.prepare(request).body)


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


PNG = FilePart("image/png", "a.png", b"\x89PNG")
PDF = FilePart("application/pdf", "b.pdf", b"%PDF-")


def test_images_and_pdfs_go_with_the_users_words_in_their_order():
    parts: list[Part] = [TextPart("look"), PNG, PDF, TextPart("well?"), FilePart("image/svg+xml", "c.svg", b"<svg/>")]
    assert body_of(ModelRequest("m", [Message("user", parts)]))["messages"][0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "file", "file": {"filename": "b.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "text", "text": "well?"},
        {"type": "text", "text": "[image: c.svg, which this model cannot read]"},
    ]


def test_files_of_tools_follow_their_results_in_one_message_of_the_user():
    messages = [
        Message("assistant", [CallRequest("a", "f", "{}"), CallRequest("b", "f", "{}")]),
        Message("tool", [TextPart("one"), PNG], "a"),
        Message("tool", [PNG], "b"),
        text_message("user", "u"),
    ]
    sent = body_of(ModelRequest("m", messages))["messages"]
    assert [m["role"] for m in sent] == ["assistant", "tool", "tool", "user", "user"]
    assert [m["content"] for m in sent[1:3]] == ["one", ""]
    assert [part["type"] for part in sent[3]["content"]] == ["text", "image_url", "image_url"]
    last = body_of(ModelRequest("m", messages[:3]))["messages"]
    assert [m["role"] for m in last] == ["assistant", "tool", "tool", "user"]


def test_deepseeks_thoughts_go_back_with_what_called_tools():
    messages = [
        Message("assistant", [ThoughtPart("hm"), TextPart("text")]),
        Message("assistant", [ThoughtPart("hm"), CallRequest("a", "f", "{}")]),
        Message("assistant", [CallRequest("b", "f", "{}")]),
    ]

    def thoughts(model: str, **more: Any) -> list[str | None]:
        sent = body_of(ModelRequest(model, messages), **more)["messages"]
        return [m.get("reasoning_content") for m in sent]

    for model, more in [
        ("deepseek-chat", {"base_url": "https://api.deepseek.com/v1"}),
        ("deepseek-ai/DeepSeek-V3.1", {"flavor": "vllm"}),
        ("m", {"reasoning_name": "reasoning_content"}),
    ]:
        assert thoughts(model, **more) == [None, "hm", ""]
    for model, more in [
        ("m", {}),
        ("deepseek-chat", {"reasoning_name": ""}),
        ("deepseek/r1", {"flavor": "openrouter"}),
    ]:
        assert thoughts(model, **more) == [None, None, None]


def test_members_for_the_vendor_come_at_the_top():
    extra = {"top_k": 3, "options": {"num_predict": 9}, "extra_body": {"min_p": 0.1, "top_k": 4}, "seed": 7}
    request = ModelRequest("m", [text_message("user", "u")], seed=1, extra=extra)
    body = body_of(request, extra_body={"top_k": 1, "cache_salt": "s", "temperature": 0.5})
    assert body["options"] == {"num_predict": 9}
    assert (body["min_p"], body["top_k"], body["seed"]) == (0.1, 4, 7)
    assert (body["cache_salt"], body["temperature"]) == ("s", 0.5)
    assert "extra_body" not in body
    assert request.extra["extra_body"]


@pytest.mark.parametrize(
    ("flavor", "model", "given", "name"),
    [
        ("compatible", "m", {}, "max_tokens"),
        ("compatible", "gpt-5.2", {}, "max_completion_tokens"),
        ("compatible", "gpt-4o", {}, "max_tokens"),
        ("compatible", "gpt-5.2", {"max_tokens_name": "max_tokens"}, "max_tokens"),
        ("vllm", "m", {}, "max_tokens"),
        ("openai", "gpt-4o", {}, "max_completion_tokens"),
        ("openai", "gpt-5.2", {"api": "chat"}, "max_completion_tokens"),
    ],
)
def test_the_answer_is_limited_by_the_name_that_the_server_wants(flavor, model, given, name):
    body = body_of(ModelRequest(model, [text_message("user", "u")], max_tokens=9), flavor, **given)
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    assert {key: body[key] for key in limits if key in body} == {name: 9}


@pytest.mark.parametrize(
    ("flavor", "effort", "sent"),
    [
        ("vllm", "xhigh", {"reasoning_effort": "xhigh"}),
        ("ollama", "low", {"reasoning_effort": "low"}),
        ("ollama", "minimal", {"reasoning_effort": "low"}),
        ("ollama", "xhigh", {"reasoning_effort": "high"}),
        ("ollama", "none", {"reasoning_effort": "none"}),
        ("openrouter", "high", {"reasoning": {"effort": "high"}}),
        ("openrouter", None, {}),
    ],
)
def test_how_much_to_think_is_said_as_the_server_wants_it(flavor, effort, sent):
    body = body_of(ModelRequest("m", [text_message("user", "u")], reasoning=effort), flavor)
    assert {key: value for key, value in body.items() if key.startswith("reasoning")} == sent


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


@pytest.mark.parametrize(
    ("code", "error_type", "kind", "retry"),
    [
        (402, "payment_required", "provider.rate_limit", False),
        (401, "authentication", "provider.auth", False),
        (403, "permission_denied", "provider.auth", False),
        (403, "content_policy_violation", "provider.refused", False),
        (400, "context_length_exceeded", "provider.context", False),
        (400, "max_tokens_exceeded", "provider.refused", False),
        (404, "not_found", "provider.refused", False),
        (429, "rate_limit_exceeded", "provider.rate_limit", True),
        (502, "provider_unavailable", "provider.overloaded", True),
        (503, "provider_overloaded", "provider.overloaded", True),
        (408, "timeout", "provider.timeout", True),
        (500, "server", "provider.overloaded", True),
    ],
)
def test_openrouters_errors_are_told_by_their_type_before_and_within_the_stream(code, error_type, kind, retry):
    given = {"code": code, "message": "m", "metadata": {"error_type": error_type}}
    before = error(code, body=json.dumps({"error": given}).encode())
    assert (before.kind, before.retry, before.upstream) == (kind, retry, code)
    chunk = {
        "id": "gen-1",
        "error": given,
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
    }
    within = fails(event(chunk))
    assert (within.kind, within.retry, within.upstream) == (kind, retry, None)
    textual = fails(event(chunk | {"error": given | {"code": error_type}}))
    assert textual.kind == kind


def test_the_words_of_the_vendor_behind_openrouter_are_shown():
    for raw in ("Too many tokens in flight", '{"error": {"message": "Too many tokens in flight"}}'):
        metadata = {"error_type": "rate_limit_exceeded", "provider_name": "Acme", "raw": raw}
        given = {"error": {"code": 429, "message": "Provider returned error", "metadata": metadata}}
        assert "Acme: Too many tokens in flight" in error(429, body=json.dumps(given).encode()).message


def test_openrouters_moment_to_wait_for_is_read():
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int((time.time() + 20) * 1000))}
    assert 15_000 < (error(429, headers=headers).after_ms or 0) <= 20_000
    assert error(429, headers=headers | {"X-RateLimit-Remaining": "1"}).after_ms is None


def test_a_prompt_that_azure_filters_is_refused():
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"violence": {"filtered": True}}}
    given = {"error": {"code": "content_filter", "message": "filtered", "status": 400, "innererror": inner}}
    assert error(400, body=json.dumps(given).encode()).kind == "provider.refused"


def test_a_wait_is_told_only_where_waiting_helps():
    assert error(429, headers={"Retry-After": "2"}).after_ms == 2000
    assert error(503, headers={"Retry-After": "2"}).after_ms == 2000
    assert error(400, headers={"Retry-After": "2"}).after_ms is None
    assert error(429, "insufficient_quota", headers={"Retry-After": "2"}).after_ms is None
