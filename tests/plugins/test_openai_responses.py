"""The Responses interface: what is sent, and what is made of any bytes that come."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    Message,
    ModelRequest,
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
from sag_openai import ChatProvider, ProviderSettings
from sag_openai.flavors import FLAVORS
from sag_openai.responses import ResponsesDecoder

ALL = "aé€😀 \u2028\u2029\u0085\x0b\x0c\0 \u202e\u200b\ufeff"
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "é"}],
    "encrypted_content": "x=",
}


def event(kind: str, newline: str = "\n", **members: Any) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": 1, **members}, ensure_ascii=False)
    return f"event: {kind}{newline}data: {data}{newline}{newline}".encode()


def item(what: str, place: int, newline: str = "\n", **members: Any) -> bytes:
    return event(f"response.output_item.{what}", newline, output_index=place, item=members)


def say(text: str, newline: str = "\n") -> bytes:
    return event("response.output_text.delta", newline, item_id="m", output_index=0, content_index=0, delta=text)


def end(kind: str = "completed", newline: str = "\n", **members: Any) -> bytes:
    return event(f"response.{kind}", newline, response={"id": "resp_1", "status": kind, "output": [], **members})


USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 16,
}


def call(place: int, id: str, name: str, pieces: Sequence[str], newline: str = "\n") -> bytes:
    head = {"type": "function_call", "id": f"fc_{place}", "call_id": id, "name": name}
    whole = "".join(pieces)
    deltas = [
        event("response.function_call_arguments.delta", newline, item_id=f"fc_{place}", output_index=place, delta=piece)
        for piece in pieces
    ]
    return b"".join(
        [
            item("added", place, newline, **head, arguments=""),
            *deltas,
            event("response.function_call_arguments.done", newline, output_index=place, arguments=whole),
            item("done", place, newline, **head, arguments=whole),
        ]
    )


def record(newline: str = "\n") -> bytes:
    """A stream with everything in it."""
    summary = "response.reasoning_summary_text.delta"
    part = "response.reasoning_summary_part.added"
    return b"".join(
        [
            event("response.created", newline, response={"id": "resp_1", "status": "in_progress"}),
            item("added", 0, newline, type="reasoning", id="rs_1", summary=[]),
            event(part, newline, summary_index=0),
            event(summary, newline, summary_index=0, delta="one 😀"),
            event(part, newline, summary_index=1),
            event(summary, newline, summary_index=1, delta="two"),
            item("done", 0, newline, **THOUGHT),
            item("added", 1, newline, type="message", id="m", content=[]),
            event("response.content_part.added", newline, part={"type": "output_text", "text": ""}),
            say(ALL, newline),
            say("x\\\"'", newline),
            event("response.output_text.done", newline, text=ALL + "x\\\"'"),
            item("done", 1, newline, type="message", id="m"),
            event("response.something_new", newline, delta={"any": 1}),
            call(2, "a", "f", ['{"q":"\\u00', 'e4"}'], newline),
            call(3, "b", "g", ["{}"], newline),
            end("completed", newline, usage=USAGE),
        ]
    )


RECORDED = [
    Reasoning("one 😀"),
    Reasoning("\n\n"),
    Reasoning("two"),
    Replay(THOUGHT),
    Text(ALL),
    Text("x\\\"'"),
    CallFragment(0, "a", "f"),
    CallFragment(0, arguments='{"q":"\\u00'),
    CallFragment(0, arguments='e4"}'),
    CallFragment(1, "b", "g"),
    CallFragment(1, arguments="{}"),
    UsageChunk(Usage(9, 7, reasoning=5, cached=4, cache_write=3)),
    Finish("tools"),
]


def decode(*pieces: bytes) -> list[Chunk]:
    decoder = ResponsesDecoder("sk-secret")
    chunks: list[Chunk] = []
    for piece in pieces:
        chunks += decoder.feed(piece)
    return chunks + list(decoder.finish())


def fails(*pieces: bytes) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        decode(*pieces)
    return caught.value


# bytes


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_split_of_a_stream_gives_the_same_chunks(newline):
    body = record(newline)
    assert decode(body) == RECORDED
    for i in range(len(body) + 1):
        assert decode(body[:i], body[i:]) == RECORDED, i
    for size in (1, 2, 3, 7, 100):
        assert decode(*[body[i : i + size] for i in range(0, len(body), size)]) == RECORDED


def test_broken_unicode_becomes_the_replacement_character():
    for raw, text in [(b"a\xff", "a\ufffd"), (rb"\ud83d", "\ufffd"), (rb"\ud83d\ude00", "😀"), (b"\x00", "\0")]:
        body = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % raw
        assert decode(body + end()) == [Text(text), Finish("stop")], raw


def test_members_of_other_types_take_the_lenient_road():
    body = b"".join(
        [
            event("response.output_text.delta", delta="a", output_index="0"),
            event(
                "response.output_item.added", output_index=1.0, item={"type": "function_call", "call_id": "c", "id": 5}
            ),
            event("response.function_call_arguments.delta", output_index=1.0, delta="{}"),
            event("response.output_text.delta", delta={"no": "text"}),
            event("response.completed", response={"usage": {"input_tokens": "3", "output_tokens": 1}}),
        ]
    )
    assert decode(body) == [
        Text("a"),
        CallFragment(0, "c", ""),
        CallFragment(0, arguments="{}"),
        UsageChunk(Usage(3, 1)),
        Finish("tools"),
    ]


def test_lines_have_a_limit():
    decoder = ResponsesDecoder()
    with pytest.raises(ProviderError) as caught:
        for _ in range(40):
            decoder.feed(b"data: " + b"x" * (1 << 20))
    assert caught.value.kind == "provider.protocol"


# what events become


def test_an_answer_of_many_megabytes_ends_well():
    assert decode(say("a") + end(output=[{"text": "x" * (4 << 20)}])) == [Text("a"), Finish("stop")]


def test_arguments_that_come_only_at_the_end_are_taken_once():
    head = {"type": "function_call", "call_id": "a", "name": "f"}
    whole = event("response.function_call_arguments.done", output_index=0, arguments="{}")
    expected = [CallFragment(0, "a", "f"), CallFragment(0, arguments="{}"), Finish("tools")]
    for body in (
        item("added", 0, **head) + whole + item("done", 0, **head, arguments="{}"),
        item("added", 0, **head, arguments="{}") + whole,
        item("done", 0, **head, arguments="{}"),
    ):
        assert decode(body + end()) == expected


def test_calls_without_a_place_are_told_apart_by_their_item():
    body = b"".join(
        [
            event("response.output_item.added", item={"type": "function_call", "id": "1", "call_id": "a", "name": "f"}),
            event("response.output_item.added", item={"type": "function_call", "id": "2", "name": "g"}),
            event("response.function_call_arguments.delta", item_id="2", delta="2"),
            event("response.function_call_arguments.delta", item_id="1", delta="1"),
            event("response.function_call_arguments.delta", item_id="3", delta="nobody's"),
        ]
    )
    assert decode(body + end()) == [
        CallFragment(0, "a", "f"),
        CallFragment(1, "2", "g"),
        CallFragment(1, arguments="2"),
        CallFragment(0, arguments="1"),
        Finish("tools"),
    ]


def test_text_that_was_not_streamed_is_told_at_its_end():
    done = event("response.output_text.done", text="whole")
    assert decode(done + end()) == [Text("whole"), Finish("stop")]
    assert decode(say("wh") + say("ole") + done + done + end()) == [
        Text("wh"),
        Text("ole"),
        Text("whole"),
        Finish("stop"),
    ]


def test_the_raw_thoughts_of_open_models_are_thoughts():
    assert decode(event("response.reasoning_text.delta", delta="hm") + end()) == [Reasoning("hm"), Finish("stop")]


def test_thoughts_that_cannot_be_sent_back_are_not_kept():
    assert decode(item("done", 0, type="reasoning", id="rs_1", summary=[]) + end()) == [Finish("stop")]


def test_a_refusal_is_text_and_a_refused_finish():
    assert decode(event("response.refusal.delta", delta="No.") + end()) == [Text("No."), Finish("refused")]


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "refused"), (None, "length")]
)
def test_an_incomplete_answer_says_why(reason, finish):
    assert decode(say("a") + end("incomplete", incomplete_details={"reason": reason})) == [Text("a"), Finish(finish)]


def test_what_comes_after_the_end_is_ignored():
    assert decode(end() + say("more") + b"data: [DONE]\n\ndata: oops\n\n") == [Finish("stop")]


# how it fails


@pytest.mark.parametrize(
    "body", [b"", say("a"), say("a") + b"data: [DONE]\n\n", say("a") + end()[:40], end("cancelled")]
)
def test_a_stream_without_its_last_event_is_truncated(body):
    error = fails(body)
    assert (error.kind, error.retry) == ("provider.truncated", True)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (end("failed", error={"code": "server_error", "message": "it broke"}), "provider.overloaded", "it broke"),
        (end("failed", error={"code": "rate_limit_exceeded", "message": "m"}), "provider.rate_limit", "m"),
        (end("failed", error={"code": "context_length_exceeded", "message": "m"}), "provider.context", "m"),
        (end("failed", error={"code": "invalid_prompt", "message": "m"}), "provider.refused", "m"),
        (end("failed", error={"code": "image_too_large", "message": "m"}), "provider.refused", "m"),
        (end("failed"), "provider.protocol", "failed"),
        (event("error", code="server_error", message="it broke", param=None), "provider.overloaded", "it broke"),
        (event("error", error={"code": "slow_down", "message": "m"}), "provider.rate_limit", "m"),
        (b'data: {"error": {"message": "m", "type": "server_error"}}\n\n', "provider.overloaded", "m"),
        (event("error", code="odd", message="key sk-secret"), "provider.protocol", "key …"),
    ],
)
def test_an_error_within_the_stream_is_raised_after_what_came_before_it(body, kind, words):
    decoder = ResponsesDecoder("sk-secret")
    assert decoder.feed(say("a") + body) == [Text("a")]
    steps: list[Callable[[], Sequence[Chunk]]] = [
        lambda: decoder.feed(b""),
        lambda: decoder.feed(say("b")),
        decoder.finish,
    ]
    for again in steps:
        with pytest.raises(ProviderError) as caught:
            again()
        assert caught.value.kind == kind
        assert words in caught.value.message
    assert fails(body).kind == kind


@pytest.mark.parametrize("body", [b"data: {oops}\n\n", b"data: 1\n\n", b"<html>secret</html>"])
def test_what_is_no_stream_of_events_is_a_protocol_error(body):
    error = fails(body)
    assert error.kind == "provider.protocol"
    assert "secret" not in error.message


# what is sent


def sent(request: ModelRequest, flavor: str = "openai", **given: Any):
    provider = ChatProvider("openai", "http://x/v1", "key", ProviderSettings(**given), flavor=FLAVORS[flavor])
    return provider.prepare(request)


def body_of(request: ModelRequest, flavor: str = "openai", **given: Any):
    return json.loads(sent(request, flavor, **given).body)


def test_a_request_holds_only_what_was_set():
    request = ModelRequest("gpt-6.2-sol", [text_message("system", "s"), text_message("user", "u")])
    given = sent(request)
    assert (given.method, given.url) == ("POST", "http://x/v1/responses")
    assert json.loads(given.body) == {
        "model": "gpt-6.2-sol",
        "instructions": "s",
        "input": [{"type": "message", "role": "user", "content": "u"}],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
    }


def test_what_was_set_is_sent_under_its_name():
    request = ModelRequest(
        "gpt-6.2-sol",
        [text_message("user", "u")],
        [ToolSpec("f", "does f", {"type": "object"})],
        max_tokens=50,
        reasoning="low",
        extra={"service_tier": "flex"},
    )
    body = body_of(request)
    assert body["tools"] == [
        {"type": "function", "name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": False}
    ]
    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert (body["max_output_tokens"], body["service_tier"]) == (50, "flex")
    calm = ModelRequest("gpt-5.2", [text_message("user", "u")], temperature=0.5, top_p=0.5, reasoning="none")
    body = body_of(calm)
    assert body["reasoning"] == {"effort": "none"}
    assert (body["temperature"], body["top_p"]) == (0.5, 0.5)


def test_thoughts_go_back_before_what_they_led_to():
    first, second, last = ({**THOUGHT, "id": f"rs_{n}"} for n in range(3))
    messages = [
        text_message("user", "u"),
        Message(
            "assistant",
            [
                ThoughtPart("é", first),
                TextPart("wait"),
                ThoughtPart("", second),
                CallRequest("a", "f", '{"x": 1}'),
                CallRequest("b", "g", "{broken"),
                ThoughtPart("not followed by anything", last),
            ],
        ),
        Message("tool", [TextPart("one")], "a"),
        Message("tool", [TextPart("two"), FilePart("image/png", "a.png", b"\x89PNG")], "b"),
        Message("assistant", [ThoughtPart("another vendor's", [{"type": "reasoning.text"}]), TextPart("done")]),
    ]
    items = body_of(ModelRequest("gpt-6.2-sol", messages))["input"]
    assert items == [
        {"type": "message", "role": "user", "content": "u"},
        first,
        {"type": "message", "role": "assistant", "content": "wait"},
        second,
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": '{"invalid_json": "{broken"}'},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [
                {"type": "input_text", "text": "two"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw=="},
            ],
        },
        {"type": "message", "role": "assistant", "content": "done"},
    ]
    for model, more in [("gpt-4o", {"api": "responses"}), ("m", {"flavor": "vllm", "api": "responses"})]:
        # Models that do not think refuse thoughts, and to be asked for them.
        body = body_of(ModelRequest(model, messages), **more)
        assert not [one for one in body["input"] if one["type"] == "reasoning"]
        assert not {"include", "reasoning"} & body.keys()


def test_files_are_sent_as_the_interface_takes_them():
    files = [
        FilePart("image/webp", "a.webp", b"RIFF"),
        FilePart("application/pdf", "b.pdf", b"%PDF-"),
        FilePart("text/csv", "c.csv", b"1,2"),
        FilePart("application/zip", "d.zip", b"PK"),
    ]
    [message] = body_of(ModelRequest("gpt-6.2-sol", [Message("user", [TextPart("look"), *files])]))["input"]
    assert message["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/webp;base64,UklGRg=="},
        {"type": "input_file", "filename": "b.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
        {"type": "input_file", "filename": "c.csv", "file_data": "data:text/csv;base64,MSwy"},
        {"type": "input_text", "text": "[file: d.zip, which this model cannot read]"},
    ]


@pytest.mark.parametrize(
    ("flavor", "model", "api", "responses"),
    [
        ("openai", "gpt-6.2-sol", "auto", True),
        ("openai", "gpt-5.4-2026-03-05", "auto", True),
        ("openai", "gpt-99-nova", "auto", True),
        ("openai", "gpt-4o", "auto", False),
        ("openai", "ft:gpt-4o-2024-08-06:org::id", "auto", False),
        ("openai", "gpt-4o", "responses", True),
        ("openai", "gpt-6.2-sol", "chat", False),
        ("azure", "gpt-6.2-sol", "auto", True),
        ("azure", "my-deployment", "auto", False),
        ("compatible", "gpt-6.2-sol", "auto", False),
        ("vllm", "m", "auto", False),
        ("ollama", "m", "responses", True),
    ],
)
def test_the_interface_is_chosen_by_the_model(flavor, model, api, responses):
    request = ModelRequest(model, [text_message("user", "u")])
    provider = ChatProvider("p", "http://x/v1", "", ProviderSettings(api=api), flavor=FLAVORS[flavor])
    assert provider.prepare(request).url.endswith("/responses") == responses
    assert isinstance(provider.decoder(request), ResponsesDecoder) == responses
