"""Answers that come in reads of many events are decoded as if each event had come alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sag.plugin import CallFragment, Chunk, Finish, ProviderError, Reasoning, Replay, Text, UsageChunk
from sag_openai.decoder import ChatDecoder

WORDS = st.text(max_size=8) | st.sampled_from(["fake", "content", 'a "quote"', "\\", "\n", "é", "🙂"])


def event(delta: dict[str, Any], finish: str | None = None, **given: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    return b"data: " + json.dumps({**chunk, "choices": [choice], **given}).encode() + b"\n\n"


def content(text: str, **given: Any) -> bytes:
    return event({"content": text}, **given)


END = event({}, "stop") + b"data: [DONE]\n\n"


def joined(chunks: Sequence[Chunk]) -> list[Any]:
    """The chunks with neighbours of one kind put together."""
    out: list[Any] = []
    for chunk in chunks:
        if isinstance(chunk, Text | Reasoning) and out and type(out[-1]) is type(chunk):
            out[-1] = type(chunk)(out[-1].text + chunk.text)
        elif not isinstance(chunk, Text | Reasoning) or chunk.text:
            out.append(chunk)
    return out


def decode(*reads: bytes) -> list[Any]:
    decoder = ChatDecoder()
    chunks: list[Chunk] = []
    for data in reads:
        chunks += decoder.feed(data)
        chunks += decoder.feed(b"")
    return joined([*chunks, *decoder.finish()])


@given(
    st.lists(
        st.builds(content, WORDS)
        | st.builds(lambda text: event({"reasoning": text, "content": None}), WORDS)
        | st.builds(lambda text: content(text, created=2), WORDS)
        | st.builds(lambda text, padding: content(text, obfuscation=padding), WORDS, WORDS)
        | st.builds(lambda text, n: content(text, usage={"completion_tokens": n}), WORDS, st.integers(0, 9))
        | st.just(b": keep-alive\n\n")
        | st.just(event({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]})),
        max_size=30,
    ),
    st.lists(st.integers(0, 9000)),
)
@settings(max_examples=200, deadline=None)
def test_however_it_is_cut_an_answer_is_the_same(events: list[bytes], cuts: list[int]) -> None:
    events = [event({"role": "assistant", "content": ""}), *events, END]
    body = b"".join(events)
    marks = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    reads = [body[a:b] for a, b in pairwise(marks) if a < b]
    expected: list[Chunk] = []
    for one in events:
        if one.startswith(b"data: {"):
            expected += ChatDecoder().feed(one)  # a decoder for each, so that nothing is learnt
    calls = [chunk for chunk in expected if isinstance(chunk, CallFragment)]
    if not calls:
        assert decode(*reads) == joined(expected) == decode(body)
    assert decode(*reads) == decode(*events)


def test_a_read_of_many_tokens_is_one_text() -> None:
    decoder = ChatDecoder()
    decoder.feed(content("first"))
    assert decoder.feed(b"".join(content(f" t{i}") for i in range(100))) == [
        Text("".join(f" t{i}" for i in range(100)))
    ]


def test_the_first_read_is_skimmed_too() -> None:
    first, *rest = ChatDecoder().feed(b"".join(content(f" t{i}") for i in range(100)))
    assert first == Text(" t0")
    assert len(rest) == 1


def test_text_behind_the_end_does_not_count() -> None:
    assert decode(content("a") + content("b") + event({}, "stop") + content("c"), content("d")) == [
        Text("ab"),
        Finish("stop"),
    ]


def test_usage_that_every_chunk_brings_is_not_lost() -> None:
    reads = b"".join(content(str(i), usage={"prompt_tokens": 1, "completion_tokens": i}) for i in range(5))
    *_, last, finish = decode(reads, END)
    assert isinstance(last, UsageChunk)
    assert last.usage.output == 4
    assert finish == Finish("stop")


def test_an_error_behind_text_of_the_same_read_follows_it() -> None:
    decoder = ChatDecoder()
    decoder.feed(content("a"))
    assert decoder.feed(content("b") + content("c") + b'data: {"error":{"message":"broke"}}\n\n') == [Text("bc")]
    with pytest.raises(ProviderError, match="broke"):
        decoder.feed(b"")


def test_thoughts_to_be_sent_back_come_before_the_text_that_follows_them() -> None:
    details = [{"type": "reasoning.text", "text": "hm"}]
    decoder = ChatDecoder(router=True)
    chunks: list[Chunk] = []
    thought = event({"content": "", "reasoning_details": details})
    for data in (content("a") + content("b"), content("c") + thought, content("d") + content("e"), END):
        chunks += decoder.feed(data)
    assert joined(chunks) == [Text("abc"), Reasoning("hm"), Replay(details), Text("de"), Finish("stop")]


def test_text_is_skimmed_after_many_thoughts_that_cannot_be() -> None:
    decoder = ChatDecoder(router=True)
    for i in range(10):
        decoder.feed(event({"reasoning": f"t{i}", "reasoning_details": [{"type": "reasoning.text", "text": f"t{i}"}]}))
    decoder.feed(content("a"))
    assert decoder.feed(content("b") + content("c")) == [Text("bc")]


def test_it_is_learnt_anew_when_the_members_around_the_text_change() -> None:
    decoder = ChatDecoder()
    for stop in (None, "x"):
        decoder.feed(content("a", stop=stop))
        assert decoder.feed(content("b", stop=stop) + content("c", stop=stop)) == [Text("bc")]
