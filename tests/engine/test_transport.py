"""One round against an upstream that does everything wrong, or against a provider that is none of HTTP."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from sag.engine.transport import Deadlines, Transport
from sag.errors import Fault
from sag.hooks.provider import (
    CallFragment,
    Chunk,
    Finish,
    HttpRequest,
    ModelRequest,
    ProviderError,
    Reasoning,
    Text,
    text_message,
)
from sag.outbound import Outbound
from sag.testing.upstream import (
    Calls,
    Comment,
    Cut,
    Emit,
    FakeUpstream,
    Hang,
    LongLine,
    Raw,
    Say,
    Script,
    Step,
    ToolCall,
    Wait,
    call,
    fail,
    gzip_bomb,
    say,
)
from sag_openai.provider import ChatProvider

SHORT = Deadlines(connect_s=0.2, first_token_s=0.2, gap_s=0.2, total_s=5)
LONG = Deadlines(connect_s=5, first_token_s=20, gap_s=20, total_s=30)


@pytest.fixture
async def up():
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def transport():
    outbound = Outbound()
    made = Transport(outbound, body=8 << 20)
    yield made
    made.close()
    await outbound.close()


def ask(text: str = "hi", **given: Any) -> ModelRequest:
    return ModelRequest("fake", [text_message("user", text)], **given)


async def collect(
    transport: Transport, provider: Any, deadlines: Deadlines = LONG, request: ModelRequest | None = None
) -> tuple[list[Chunk], ProviderError | None]:
    """The chunks that came, and the error that ended them."""
    chunks: list[Chunk] = []

    def take(batch: Sequence[Chunk]) -> None:
        assert batch
        chunks.extend(batch)

    try:
        await transport.run(provider, request or ask(), deadlines, take)
    except ProviderError as e:
        return chunks, e
    return chunks, None


async def play(
    transport: Transport, up: FakeUpstream, script: Script, deadlines: Deadlines = LONG
) -> tuple[list[Chunk], ProviderError | None]:
    up.script(script)
    return await collect(transport, ChatProvider("openai", up.url), deadlines)


def said(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))


async def test_an_answer_comes_in_batches_and_its_connection_is_used_again(transport, up):
    for text in ("one two three", "four"):
        chunks, error = await play(transport, up, say(text))
        assert error is None
        assert said(chunks) == text
        assert Finish("stop") in chunks
    assert up.connections == 1
    assert [request.ended for request in up.requests] == ["done", "done"]


async def test_tokens_are_handed_on_as_they_come(transport, up):
    up.script(Script([Say("first"), Hang()]))
    came: asyncio.Queue[Sequence[Chunk]] = asyncio.Queue()
    task = asyncio.create_task(transport.run(ChatProvider("openai", up.url), ask(), LONG, came.put_nowait))
    async with asyncio.timeout(2):
        assert await came.get() == [Text("first")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


FAILURES = {
    "rst before the head": (Script(head="rst"), "provider.disconnected", ""),
    "fin before the head": (Script(head="fin"), "provider.disconnected", ""),
    "no http": (Script(head="garbage"), "provider.protocol", ""),
    "a head of 1 MB": (Script(headers={"x": "a" * 1_000_000}), "provider.protocol", ""),
    "fin in mid-chunk": (Script([Say("a b"), Cut("fin")]), "provider.disconnected", "a b"),
    "rst in mid-stream": (Script([Say("a b"), Wait(0.05), Cut("rst")]), "provider.disconnected", "a b"),
    "clean end without finish": (Script([Say("a b")], finish="", done=False), "provider.truncated", "a b"),
    "[DONE] without finish": (Script([Say("a b")], finish=""), "provider.truncated", "a b"),
    "connection as the end": (Script([Say("a")], finish="", done=False, framing="close"), "provider.truncated", "a"),
    "an event cut by the end": (
        Script([Say("a"), Raw(b'data: {"choi')], finish="", usage=False, done=False),
        "provider.truncated",
        "a",
    ),
    "html": (Script(body=b"<html>", headers={"content-type": "text/html"}), "provider.protocol", ""),
    "json": (Script(body=b'{"id":1}'), "provider.protocol", ""),
    "json with an error": (
        Script(body=b'{"error":{"message":"m","code":"context_length_exceeded"}}'),
        "provider.context",
        "",
    ),
    "no event stream": (
        Script([Raw(b"what is\nthis?\n")], role=False, finish="", usage=False, done=False),
        "provider.protocol",
        "",
    ),
    "broken json": (Script([Say("a"), Raw(b"data: {oops\n\n")]), "provider.protocol", "a"),
    "a line of 200 MB": (Script([Say("a"), LongLine(200 << 20)]), "provider.protocol", "a"),
    "events without end": (Script([Raw(b": " + b"x" * 60_000 + b"\n") for _ in range(200)]), "provider.protocol", ""),
    "a gzip bomb": (gzip_bomb(4 << 20), "provider.protocol", ""),
    "a redirect": (
        Script(status=302, headers={"location": "http://169.254.169.254/"}, body=b""),
        "provider.protocol",
        "",
    ),
    "an error in the stream": (
        Script([Say("a"), Emit({"error": {"message": "m", "type": "server_error"}})]),
        "provider.overloaded",
        "a",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_each_way_of_failing_has_its_kind_and_keeps_what_came(transport, up, name):
    script, kind, text = FAILURES[name]
    chunks, error = await play(transport, up, script)
    assert error is not None
    assert (error.kind, said(chunks)) == (kind, text)
    assert len(error.message) <= 200
    assert len(up.requests) == 1
    await up.requests[0].wait_ended()


async def test_an_error_after_tokens_does_not_wait_for_more_bytes(transport, up):
    script = Script([Say("a"), Emit({"error": {"message": "m", "code": 429}}), Hang()])
    async with asyncio.timeout(3):
        chunks, error = await play(transport, up, script)
    assert (said(chunks), error and error.kind) == ("a", "provider.rate_limit")


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_what_happens_after_the_finish_does_not_spoil_the_answer(transport, up, how):
    script = Script([Say("a"), Emit({"choices": [{"delta": {}, "finish_reason": "stop"}]}), Wait(0.05), Cut(how)])
    chunks, error = await play(transport, up, script)
    assert error is None
    assert said(chunks) == "a"


async def test_a_server_that_never_ends_a_finished_answer_is_left(transport, up):
    script = Script([Say("a"), Emit({"choices": [{"delta": {}, "finish_reason": "stop"}]}), Hang()])
    chunks, error = await play(transport, up, script, SHORT)
    assert error is None
    assert chunks == [Text("a"), Finish("stop")]
    assert await up.requests[0].wait_ended() == "client"


async def test_what_lingers_after_the_finish_is_left_soon(transport, up, monkeypatch):
    monkeypatch.setattr("sag.engine.transport.LINGER_S", 0.1)
    script = Script([Say("a"), Emit({"choices": [{"delta": {}, "finish_reason": "stop"}]}), Hang()])
    async with asyncio.timeout(3):
        assert await play(transport, up, script) == ([Text("a"), Finish("stop")], None)


EMPTY: list[Step] = [Emit({"choices": [{"delta": {"content": ""}}]}), Wait(0.05)]
TIMEOUTS = {
    "silence after accept": Script(head="hang"),
    "no first byte": Script([Hang()], role=False),
    "a role and no token": Script([Hang()]),
    "comments only": Script([Comment(count=None, every_s=0.02)]),
    "a stall": Script([Say("a"), Hang()]),
    "comments after a token": Script([Say("a"), Comment(count=None, every_s=0.02)]),
    "empty deltas": Script([Say("a"), *EMPTY * 20]),
}


@pytest.mark.parametrize("name", TIMEOUTS)
async def test_silence_is_a_timeout_and_comments_are_silence(transport, up, name):
    began = time.monotonic()
    _, error = await play(transport, up, TIMEOUTS[name], SHORT)
    assert error is not None
    assert (error.kind, error.code) == ("provider.timeout", 504)
    assert time.monotonic() - began < 1.5
    [sent] = await up.wait_requests(1)
    assert await sent.wait_ended() == "client"


async def test_an_answer_that_goes_on_for_ever_meets_the_total(transport, up):
    script = Script([Say(["x"] * 100_000)], tokens_per_s=100)
    chunks, error = await play(transport, up, script, Deadlines(1, 1, 1, 0.3))
    assert error is not None
    assert error.kind == "provider.timeout"
    assert 5 < len(chunks) < 60


async def test_slow_tokens_within_the_gap_are_no_timeout(transport, up):
    chunks, error = await play(transport, up, Script([Say(["x"] * 8)], tokens_per_s=20), SHORT)
    assert error is None
    assert said(chunks) == "x" * 8


async def test_the_consumers_own_time_is_no_gap(transport, up):
    up.script(Script([Say("a"), Wait(0.05), Say("b")]))
    seen: list[Chunk] = []

    def take(batch: Sequence[Chunk]) -> None:
        seen.extend(batch)
        time.sleep(0.3)

    await transport.run(ChatProvider("openai", up.url), ask(), SHORT, take)
    assert said(seen) == "ab"


async def test_a_consumer_that_is_cancelled_sees_the_cancel_and_frees_the_upstream_at_once(transport, up):
    up.script(Script([Say("a"), Hang()]))
    task = asyncio.create_task(collect(transport, ChatProvider("openai", up.url)))
    await up.wait_requests(1)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await up.requests[0].wait_ended(1) == "client"


async def test_a_cancel_before_the_head_frees_the_upstream_too(transport, up):
    up.script(Script(head="hang"))
    task = asyncio.create_task(collect(transport, ChatProvider("openai", up.url)))
    await up.wait_requests(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await up.requests[0].wait_ended(1) == "client"


@pytest.mark.parametrize("failure", [RuntimeError("enough"), Fault("run.limit", "enough"), KeyboardInterrupt()])
async def test_what_the_consumer_raises_ends_the_round_and_is_the_callers(transport, up, failure):
    up.script(Script([Say(["x"] * 100_000)], tokens_per_s=1000))
    batches: list[Sequence[Chunk]] = []

    def take(batch: Sequence[Chunk]) -> None:
        batches.append(batch)
        raise failure

    with pytest.raises(type(failure)) as caught:
        await transport.run(ChatProvider("openai", up.url), ask(), LONG, take)
    assert caught.value is failure
    assert len(batches) == 1
    assert await up.requests[0].wait_ended(1) == "client"
    with pytest.raises(type(failure)):
        await transport.run(Scripted(Text("a"), Text("b")), ask(), LONG, take)
    assert len(batches) == 2


async def test_a_timeout_of_the_consumer_stays_the_consumers(transport, up):
    up.script(Script([Say("a"), Hang()]))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await collect(transport, ChatProvider("openai", up.url))


async def test_a_timeout_leaves_no_cancel_behind(transport, up):
    _, error = await play(transport, up, Script([Hang()]), SHORT)
    assert error is not None
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_refused_unresolved_and_tls_are_unreachable(transport, up):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    urls = [f"http://127.0.0.1:{port}/v1", "http://nowhere.invalid/v1", f"https://127.0.0.1:{up.port}/v1", "ftp://x/v1"]
    for url in urls:
        chunks, error = await collect(transport, ChatProvider("openai", url))
        assert (chunks, error and error.kind) == ([], "provider.unreachable"), url
    assert error is not None
    assert not error.retry


async def test_a_full_backlog_is_unreachable_after_the_connect_deadline(transport):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(address)
        deadlines = Deadlines(connect_s=0.2, first_token_s=10, gap_s=10, total_s=10)
        _, error = await collect(transport, ChatProvider("openai", f"http://127.0.0.1:{address[1]}/v1"), deadlines)
        for one in filling:
            one.close()
    assert error is not None
    assert error.kind == "provider.unreachable"


async def test_a_status_goes_to_the_provider_with_at_most_64_kib(transport, up):
    chunks, error = await play(transport, up, fail(429, "slow down", headers={"retry-after": "2.5"}))
    assert chunks == []
    assert error is not None
    assert (error.kind, error.after_ms, error.retry) == ("provider.rate_limit", 2500, True)

    seen: dict[str, Any] = {}

    class Recording(ChatProvider):
        def error(self, status, headers, body):
            seen.update(status=status, header=headers["Content-Type"], size=len(body))
            return super().error(status, headers, body)

    up.script(Script(status=500, body=b"x" * 1_000_000, headers={"content-type": "text/plain"}))
    _, error = await collect(transport, Recording("openai", up.url))
    assert error is not None
    assert error.kind == "provider.overloaded"
    assert seen == {"status": 500, "header": "text/plain", "size": 64 << 10}


async def test_a_long_conversation_is_sent_whole(transport, up):
    text = "long " * 500_000
    up.script(say("ok"))
    _, error = await collect(transport, ChatProvider("openai", up.url), request=ask(text))
    assert error is None
    assert up.requests[0].json["messages"][0]["content"] == text


STRANGE = "aé€😀 \u2028\u2029\u0085\x0b\x0c\x1c\0 \u202e\u200b \ufeff end"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_text_is_exact_when_the_body_is_cut_at_every_byte(transport, up, newline):
    chunks, error = await play(transport, up, Script([Say([STRANGE])], segment=1, newline=newline, bom=True))
    assert error is None
    assert said(chunks) == STRANGE


async def test_broken_unicode_becomes_the_replacement_character_and_no_failure(transport, up):
    body = [
        b'data: {"choices":[{"delta":{"content":"a\xff\xc3("}}]}\n\n',
        rb'data: {"choices":[{"delta":{"content":"\ud83d b\ude00"}}]}' + b"\n\n",
    ]
    chunks, error = await play(transport, up, Script([Raw(b"".join(body))]))
    assert error is None
    assert said(chunks) == "a\ufffd\ufffd(\ufffd b\ufffd"


async def test_calls_are_handed_on_as_fragments(transport, up):
    script = Script([Calls([ToolCall("a", {"x": 'ä"'}), ToolCall("b")])])
    chunks, error = await play(transport, up, script)
    assert error is None
    texts = {0: "", 1: ""}
    for chunk in chunks:
        if isinstance(chunk, CallFragment):
            texts[chunk.index] += chunk.arguments
    assert texts == {0: r'{"x": "\u00e4\""}', 1: "{}"}
    assert Finish("tools") in chunks
    assert (await play(transport, up, call("a", "{broken")))[1] is None


# Providers that are not HTTP, and decoders of strangers.


class Scripted:
    name = "scripted"

    def __init__(self, *steps) -> None:
        self.steps = steps
        self.closed = False

    def models(self):
        return []

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.closed = True


async def test_a_stream_provider_is_read_to_its_finish(transport):
    provider = Scripted(Reasoning("hm"), Text("a"), Text(""), Text("\ud83d"), Finish("stop"))
    chunks, error = await collect(transport, provider)
    assert error is None
    assert chunks == [Reasoning("hm"), Text("a"), Text("\ufffd"), Finish("stop")]
    assert provider.closed


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([Text("a")], "provider.truncated"),
        ([Text("a"), 10.0], "provider.timeout"),
        ([10.0], "provider.timeout"),
        ([Text("a"), ConnectionResetError()], "provider.disconnected"),
        ([Text("a"), ValueError("secret")], "provider.protocol"),
        ([Text("a"), ProviderError("provider.auth", "no")], "provider.auth"),
    ],
)
async def test_a_stream_provider_fails_in_the_same_kinds(transport, steps, kind):
    provider = Scripted(*steps)
    chunks, error = await collect(transport, provider, SHORT)
    assert error is not None
    assert error.kind == kind
    assert "secret" not in error.message
    assert said(chunks) in ("", "a")
    assert provider.closed


async def test_empty_chunks_of_a_stream_provider_are_silence(transport):
    steps = [step for _ in range(40) for step in (Text(""), 0.02)]
    _, error = await collect(transport, Scripted(*steps, Finish("stop")), SHORT)
    assert error is not None
    assert error.kind == "provider.timeout"


async def test_a_decoder_that_raises_anything_is_a_protocol_error(transport, up):
    class Broken:
        def feed(self, data):
            raise KeyError("choices")

        def finish(self):
            return []

    body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"x"}]}'
    provider = SimpleNamespace(
        name="broken",
        prepare=lambda request: HttpRequest(f"{up.url}/chat/completions", body, {"Content-Type": "application/json"}),
        decoder=lambda request: Broken(),
        error=None,
        models=list,
    )
    _, error = await collect(transport, provider)
    assert error is not None
    assert error.kind == "provider.protocol"
    assert isinstance(error.__cause__, KeyError)
