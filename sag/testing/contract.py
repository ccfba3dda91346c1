"""What every provider has to do, as tests: subclass `ProviderContract`, and a plugin is tested as the bundled ones are.

    class TestMine(ProviderContract):
        def make_upstream(self):
            return FakeUpstream(flavor="openai", api_key=self.key)

        def make_provider(self, url, key):
            return MyProvider(url, key)

The tests need pytest with pytest-asyncio. They speak to a fake server on loopback, through the
hub's own transport.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from sag.engine.transport import Deadlines, Transport
from sag.hooks.provider import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    HttpProvider,
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
    UsageChunk,
    text_message,
)
from sag.outbound import Outbound
from sag.schema.events import Usage
from sag.testing.upstream import (
    Calls,
    Comment,
    Cut,
    Fail,
    FakeUpstream,
    LongLine,
    Raw,
    Say,
    Script,
    Think,
    ToolCall,
    fail,
    say,
)

NASTY = 'aé€😀  \u2028\u2029\u0085\x0b\x0c \u202e\u200b\ufeff "quoted" \\back\\ <b> \t\n data: [DONE]\n\n'
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f0005000"
    "1ffa6e5d1a30000000049454e44ae426082"
)
TOOLS = [
    ToolSpec("look_up", "Look something up.", {"type": "object", "properties": {"query": {"type": "string"}}}),
    ToolSpec("list_all", "List everything.", {"type": "object", "properties": {}}),
]
SHORT = Deadlines(connect_s=2.0, first_token_s=1.0, gap_s=0.6, total_s=10.0)


class Answer:
    """What came of one round.

    Attributes:
        chunks: As they came.
        error: What it ended with, if it failed.
        seconds: How long it took.
    """

    def __init__(self, chunks: Sequence[Chunk], error: ProviderError | None, seconds: float) -> None:
        self.chunks, self.error, self.seconds = list(chunks), error, seconds

    @property
    def text(self) -> str:
        return "".join(c.text for c in self.chunks if isinstance(c, Text))

    @property
    def thoughts(self) -> str:
        return "".join(c.text for c in self.chunks if isinstance(c, Reasoning))

    @property
    def calls(self) -> list[CallRequest]:
        """The calls, in the order of their indexes."""
        calls: dict[int, CallRequest] = {}
        for c in self.chunks:
            if isinstance(c, CallFragment):
                call = calls.setdefault(c.index, CallRequest(c.id or "", c.name or "", ""))
                call.arguments += c.arguments
        return [calls[i] for i in sorted(calls)]

    @property
    def arguments(self) -> list[Any]:
        """The calls' arguments, decoded; those that are empty are `{}`."""
        return [msgspec.json.decode(call.arguments or "{}") for call in self.calls]

    @property
    def usage(self) -> Usage | None:
        """The last that was told."""
        return next((c.usage for c in reversed(self.chunks) if isinstance(c, UsageChunk)), None)

    @property
    def finish(self) -> str | None:
        reasons = [c.reason for c in self.chunks if isinstance(c, Finish)]
        assert len(reasons) <= 1, "an answer ends once"
        return reasons[0] if reasons else None

    @property
    def message(self) -> Message:
        """The answer as a transcript has it in the next round."""
        parts: list[Part] = []
        thoughts = ""
        for c in self.chunks:
            if isinstance(c, Reasoning):
                thoughts += c.text
            elif isinstance(c, Replay):
                parts.append(ThoughtPart(thoughts, c.data))
                thoughts = ""
            elif thoughts:
                parts.append(ThoughtPart(thoughts))
                thoughts = ""
            if isinstance(c, Text):
                if parts and isinstance(parts[-1], TextPart):
                    parts[-1].text += c.text
                else:
                    parts.append(TextPart(c.text))
        return Message("assistant", [*parts, *self.calls])


class ProviderContract(ABC):
    """The tests. A subclass says whom to test, and against what.

    Attributes:
        model: The model that is asked.
        key: The key; it must be shown nowhere.
        thinks: The provider gives thoughts, asked with `reasoning="high"`.
        replays: It wants them back.
        sees: It sends images.
        keyed: The server looks at the key.
        overloaded: A status that means overloaded.
    """

    pytestmark = pytest.mark.asyncio

    model = "fake"
    key = "sk-contract-0123456789"
    thinks = True
    replays = False
    sees = True
    keyed = True
    overloaded = 503

    @abstractmethod
    def make_upstream(self) -> FakeUpstream:
        """The server to test against, not started; it should refuse other keys than `key`."""

    @abstractmethod
    def make_provider(self, url: str, key: str) -> HttpProvider:
        """The provider, for a server at `url`."""

    @pytest_asyncio.fixture
    async def up(self) -> AsyncIterator[FakeUpstream]:
        async with self.make_upstream() as up:
            yield up

    @pytest_asyncio.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        outbound = Outbound()
        transport = Transport(outbound)
        yield transport
        transport.close()
        await outbound.close()

    def request(self, *messages: str | Message, **given: Any) -> ModelRequest:
        """A request with messages of the user, or whole ones."""
        whole = [text_message("user", m) if isinstance(m, str) else m for m in messages or ("hi",)]
        return ModelRequest(self.model, whole, **given)

    async def ask(
        self,
        up: FakeUpstream,
        transport: Transport,
        *scripts: Script,
        request: ModelRequest | None = None,
        key: str | None = None,
        deadlines: Deadlines = SHORT,
    ) -> Answer:
        """One round, with what the server answers."""
        up.script(*scripts)
        provider = self.make_provider(up.url, self.key if key is None else key)
        chunks: list[Chunk] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        error = None
        try:
            await transport.run(provider, request or self.request(), deadlines, chunks.extend)
        except ProviderError as e:
            error = e
        return Answer(chunks, error, loop.time() - began)

    # what a good answer gives

    async def test_text_comes_as_it_was_sent(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, say(re.findall(r".{1,3}", NASTY, re.S)))
        assert (answer.error, answer.text, answer.finish) == (None, NASTY, "stop")

    async def test_tokens_are_told(self, up: FakeUpstream, transport: Transport) -> None:
        usage = (await self.ask(up, transport, say("one two three"))).usage
        assert usage is not None
        assert usage.input > 0
        assert usage.output == 3

    @pytest.mark.parametrize("segment", [1, 2, 3, 7, 64])
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    async def test_bytes_may_be_cut_anywhere(
        self, up: FakeUpstream, transport: Transport, segment: int, newline: str
    ) -> None:
        calls = Calls([ToolCall("look_up", {"query": 'Ü "😀" \\'})])
        script = Script([Say("gö 😀\u2028"), calls], segment=segment, newline=newline)
        request = self.request(tools=TOOLS)
        answer = await self.ask(up, transport, script, request=request)
        assert (answer.error, answer.text, answer.finish) == (None, "gö 😀\u2028", "tools")
        assert answer.arguments == [{"query": 'Ü "😀" \\'}]

    async def test_calls_in_parallel_keep_apart(self, up: FakeUpstream, transport: Transport) -> None:
        calls = [ToolCall("look_up", {"query": "a" * 50}), ToolCall("list_all"), ToolCall("look_up", {"query": "b"})]
        answer = await self.ask(up, transport, Script([Calls(calls)]), request=self.request(tools=TOOLS))
        assert answer.error is None
        assert [(c.name, a) for c, a in zip(answer.calls, answer.arguments, strict=True)] == [
            ("look_up", {"query": "a" * 50}),
            ("list_all", {}),
            ("look_up", {"query": "b"}),
        ]
        assert len({c.id for c in answer.calls}) == 3
        assert all(c.id for c in answer.calls)
        assert answer.finish == "tools"

    async def test_the_answers_of_tools_go_back(self, up: FakeUpstream, transport: Transport) -> None:
        request = self.request(text_message("system", "Be kind."), "look", tools=TOOLS)
        calls = Calls([ToolCall("look_up", {"query": "x"}), ToolCall("list_all")])
        first = await self.ask(up, transport, Script([Say("Wait."), calls]), request=request)
        results = [
            Message("tool", [TextPart("found")], first.calls[0].id),
            Message("tool", [TextPart("broken")], first.calls[1].id, failed=True),
        ]
        again = self.request(*request.messages, first.message, *results, "and?", tools=TOOLS)
        second = await self.ask(up, transport, say("It is there."), request=again)
        assert (second.error, second.text) == (None, "It is there.")
        assert b"found" in up.requests[-1].body
        assert b"broken" in up.requests[-1].body

    async def test_thoughts_are_no_text(self, up: FakeUpstream, transport: Transport) -> None:
        if not self.thinks:
            pytest.skip("it does not think")
        request = self.request(reasoning="high")
        answer = await self.ask(up, transport, Script([Think("let me see"), Say("yes")]), request=request)
        assert (answer.error, answer.thoughts, answer.text) == (None, "let me see", "yes")

    async def test_thoughts_go_back_where_the_vendor_wants_them(self, up: FakeUpstream, transport: Transport) -> None:
        if not self.replays:
            pytest.skip("the vendor does not want them")
        request = self.request("look", tools=TOOLS, reasoning="high")
        script = Script([Think("a look-up"), Calls([ToolCall("look_up", {"query": "x"})])])
        first = await self.ask(up, transport, script, request=request)
        assert any(isinstance(c, Replay) for c in first.chunks)
        result = Message("tool", [TextPart("found")], first.calls[0].id)
        again = self.request("look", first.message, result, tools=TOOLS, reasoning="high")
        second = await self.ask(up, transport, say("There."), request=again)
        assert (second.error, second.text) == (None, "There.")

    async def test_images_are_sent(self, up: FakeUpstream, transport: Transport) -> None:
        if not self.sees:
            pytest.skip("it sees nothing")
        message = Message("user", [TextPart("what is this?"), FilePart("image/png", "dot.png", PNG)])
        answer = await self.ask(up, transport, say("a dot"), request=self.request(message))
        assert (answer.error, answer.text) == (None, "a dot")
        assert b"iVBORw0KGgo" in up.requests[-1].body

    async def test_only_what_was_set_is_sent(self, up: FakeUpstream, transport: Transport) -> None:
        await self.ask(up, transport, say("x"))
        bare = up.requests[-1].json
        await self.ask(up, transport, say("x"), request=self.request(temperature=0.25, top_p=0.5))
        given = up.requests[-1].json
        assert not {"temperature", "top_p", "stop", "stop_sequences", "seed", "tools"} & bare.keys()
        assert (given["temperature"], given["top_p"]) == (0.25, 0.5)

    async def test_members_for_the_vendor_pass_through(self, up: FakeUpstream, transport: Transport) -> None:
        await self.ask(up, transport, say("x"), request=self.request(extra={"metadata": {"user_id": "u"}}))
        assert up.requests[-1].json["metadata"] == {"user_id": "u"}

    async def test_an_answer_that_was_cut_by_its_length_says_so(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, say("half a", finish="length"))
        assert (answer.error, answer.text, answer.finish) == (None, "half a", "length")

    # how it fails

    async def test_a_wrong_key_is_named_and_shown_nowhere(self, up: FakeUpstream, transport: Transport) -> None:
        provider = self.make_provider(up.url, self.key)
        assert self.key not in repr(provider)
        assert self.key not in repr(vars(provider))
        if not self.keyed:
            pytest.skip("the server takes any key")
        wrong = "sk-wrong-9876543210"
        answer = await self.ask(up, transport, key=wrong)
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retry, answer.error.upstream) == ("provider.auth", False, 401)
        assert wrong not in answer.error.message

    @pytest.mark.parametrize(
        ("status", "kind", "retry"),
        [
            (400, "provider.refused", False),
            (404, "provider.refused", False),
            (429, "provider.rate_limit", True),
            (500, "provider.overloaded", True),
            (0, "provider.overloaded", True),
        ],
    )
    async def test_errors_have_their_kind(
        self, up: FakeUpstream, transport: Transport, status: int, kind: str, retry: bool
    ) -> None:
        answer = await self.ask(up, transport, fail(status or self.overloaded, "It will not do."))
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retry) == (kind, retry)
        assert "It will not do." in answer.error.message
        assert not answer.chunks

    @pytest.mark.parametrize(
        ("headers", "wait"),
        [
            ({"retry-after": "7"}, 7000),
            ({"retry-after": "0.5"}, 500),
            ({"retry-after": "-3"}, 0),
            ({"retry-after": "Sat, 21 Nov 2026 12:00:09 GMT", "date": "Sat, 21 Nov 2026 12:00:00 GMT"}, 9000),
        ],
    )
    async def test_how_long_to_wait_is_told(
        self, up: FakeUpstream, transport: Transport, headers: dict[str, str], wait: int
    ) -> None:
        answer = await self.ask(up, transport, fail(429, "Slow down.", headers=headers))
        assert answer.error is not None
        assert answer.error.after_ms == wait

    async def test_a_wait_that_cannot_be_read_is_none(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, fail(429, "Slow down.", headers={"retry-after": "soon"}))
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retry) == ("provider.rate_limit", True)
        assert answer.error.after_ms is None or answer.error.after_ms >= 0

    async def test_what_the_vendor_says_is_cut(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, fail(400, "x" * 5000 + "\x1b[31m"))
        assert answer.error is not None
        assert len(answer.error.message) <= 200
        assert answer.error.message.isprintable()

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_a_connection_that_breaks_keeps_what_came(
        self, up: FakeUpstream, transport: Transport, how: Any
    ) -> None:
        answer = await self.ask(up, transport, Script([Say("so far"), Cut(how)]))
        assert answer.error is not None
        assert answer.error.kind in ("provider.disconnected", "provider.truncated")
        assert (answer.error.retry, answer.finish) == (True, None)
        if how == "fin":
            assert answer.text == "so far"

    async def test_an_end_without_its_mark_is_an_error(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, say("so far", finish="", done=False, usage=False))
        assert answer.error is not None
        assert (answer.error.kind, answer.text, answer.finish) == ("provider.truncated", "so far", None)

    @pytest.mark.parametrize(
        "rubbish",
        [
            Script(body=b"<html>Sign in</html>", headers={"content-type": "text/html"}),
            Script(body=b"<html>Sign in</html>", headers={"content-type": "text/event-stream"}),
            Script([Raw(b"data: {broken\n\n")]),
            Script([LongLine(3 << 20)]),
            Script(head="garbage"),
            Script(status=302, headers={"location": "http://169.254.169.254/"}, body=b""),
        ],
        ids=["html", "html as a stream", "no json", "endless line", "no http", "redirect"],
    )
    async def test_rubbish_is_no_answer(self, up: FakeUpstream, transport: Transport, rubbish: Script) -> None:
        answer = await self.ask(up, transport, rubbish)
        assert answer.error is not None
        assert (answer.error.kind, answer.finish) == ("provider.protocol", None)

    async def test_an_error_in_mid_stream_is_read(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, Script([Say("so far"), Fail(500, "It went away."), Say("no more")]))
        assert answer.error is not None
        assert (answer.text, answer.finish) == ("so far", None)
        assert "went away" in answer.error.message

    async def test_keep_alives_are_no_answer(self, up: FakeUpstream, transport: Transport) -> None:
        answer = await self.ask(up, transport, Script([Comment(count=None, every_s=0.02)]))
        assert answer.error is not None
        assert (answer.error.kind, answer.text, answer.finish) == ("provider.timeout", "", None)
        assert 0.5 < answer.seconds < 3

    async def test_nothing_listens(self, transport: Transport) -> None:
        up = self.make_upstream()
        await up.start()
        await up.close()
        answer = await self.ask(up, transport)
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retry) == ("provider.unreachable", True)

    # what it knows

    async def test_its_models_are_known_without_asking(self) -> None:
        provider = self.make_provider("http://127.0.0.1:9", self.key)
        assert all(model.id for model in provider.models())

    async def test_a_broken_tool_call_is_passed_on_as_it_is(self, up: FakeUpstream, transport: Transport) -> None:
        script = Script([Calls([ToolCall("look_up", '{"query": "unfin')])])
        answer = await self.ask(up, transport, script, request=self.request(tools=TOOLS))
        assert answer.error is None
        assert [c.arguments for c in answer.calls] == ['{"query": "unfin']
        again = self.request(
            "look", answer.message, Message("tool", [TextPart("no JSON")], answer.calls[0].id), tools=TOOLS
        )
        second = await self.ask(up, transport, say("sorry"), request=again)
        assert (second.error, second.text) == (None, "sorry")

    async def test_one_connection_is_enough_for_round_after_round(self, up: FakeUpstream, transport: Transport) -> None:
        for n in range(50):
            assert (await self.ask(up, transport, say(f"{n}"))).text == f"{n}"
        assert up.connections == 1
