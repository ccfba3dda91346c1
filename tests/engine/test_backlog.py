"""What the journal has not kept yet holds up those who bring more of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sag.engine.transport import Deadlines, Transport
from sag.hooks.provider import Chunk, Finish, ModelRequest, Text, text_message
from sag.outbound import Outbound
from sag.testing.hub import running_hub
from sag.testing.upstream import FakeUpstream, Request, Say, Script, say
from sag.topics.backlog import Backlog
from sag.topics.journal import Unit
from sag_openai.provider import ChatProvider

PATIENT = Deadlines(connect_s=5, first_token_s=5, gap_s=0.2, total_s=30)
WORD = "word " * 200


async def settled(value: Callable[[], int]) -> int:
    """A number that grows, once it stands still."""
    before = -1
    while before != (before := value()):
        await asyncio.sleep(0.3)
    return before


@pytest.fixture
async def up():
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def outbound():
    made = Outbound()
    yield made
    await made.close()


def test_those_who_wait_are_called_once_when_half_is_gone() -> None:
    backlog = Backlog(limit=10)
    called: list[int] = []
    full = []
    for size in (10, 1):
        backlog.add(size)
        full.append(backlog.is_full)
    assert full == [False, True]
    backlog.when_lower(lambda: called.append(backlog.size))
    for size in (-5, -1, -1):
        backlog.add(size)
    assert called == [5]


async def test_a_flood_waits_at_the_server_while_the_backlog_is_full(outbound, up):
    """The pause is nobody's but ours: it counts for no deadline."""
    backlog = Backlog(limit=100_000)
    transport = Transport(outbound, backlog)
    came: list[Chunk] = []

    def take(batch: Sequence[Chunk]) -> None:
        came.extend(batch)
        backlog.add(sum(len(chunk.text) for chunk in batch if isinstance(chunk, Text)))

    words = [WORD] * 20_000
    up.script(Script([Say(words)]))
    request = ModelRequest("fake", [text_message("user", "hi")])
    running = asyncio.create_task(transport.run(ChatProvider("openai", up.url), request, PATIENT, take))
    await up.wait_requests(1)
    sent = await settled(lambda: up.requests[0].tokens)
    assert 100 < sent < 15_000
    taken = backlog.size
    assert 100_000 < taken < 2_000_000
    await asyncio.sleep(0.5)
    assert backlog.size == taken
    while not running.done():
        backlog.add(-backlog.size)
        await asyncio.sleep(0.001)
    await running
    assert "".join(chunk.text for chunk in came if isinstance(chunk, Text)) == WORD * 20_000
    assert Finish("stop") in came

    up.script(say("again"))
    backlog.add(-backlog.size)
    await transport.run(ChatProvider("openai", up.url), request, PATIENT, take)
    assert up.connections == 1  # it reads again
    transport.close()


async def test_a_run_that_is_held_up_can_be_cancelled(outbound, up):
    backlog = Backlog(limit=0)
    transport = Transport(outbound, backlog)
    up.script(Script([Say([WORD] * 20_000)]))
    request = ModelRequest("fake", [text_message("user", "hi")])
    running = asyncio.create_task(
        transport.run(ChatProvider("openai", up.url), request, PATIENT, lambda batch: backlog.add(1))
    )
    await up.wait_requests(1)
    await settled(lambda: up.requests[0].tokens)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await up.requests[0].wait_ended() == "client"
    backlog.add(-backlog.size)
    transport.close()


async def test_a_provider_that_streams_by_itself_waits_too(outbound):
    backlog = Backlog(limit=3)
    given = 0

    class Endless:
        name = "endless"

        async def stream(self, request: ModelRequest) -> Any:
            nonlocal given
            for _ in range(100):
                given += 1
                yield Text("x")
            yield Finish("stop")

        def models(self) -> list[Any]:
            return []

    transport = Transport(outbound, backlog)
    request = ModelRequest("endless", [text_message("user", "hi")])
    running = asyncio.create_task(transport.run(Endless(), request, PATIENT, lambda batch: backlog.add(1)))
    assert await settled(lambda: given) == 4
    while not running.done():
        backlog.add(-backlog.size)
        await asyncio.sleep(0)
    await running
    assert given == 100


async def test_a_journal_that_stands_still_stops_the_flood_and_nothing_is_lost():
    """Many streams at once: what the hub holds stays bounded, and all of it is kept in the end."""
    pieces, streams = 30_000, 8
    words = [f"{i:05d} " * 20 for i in range(pieces)]

    def answer(request: Request) -> Script:
        return Script([Say(words)], before_s=0.5)

    async with (
        FakeUpstream(answer=answer) as up,
        running_hub(env={"LLM_PROVIDER": "openai", "LLM_BASE_URL": up.url, "LLM_MODEL": "fake"}) as hub,
        hub.client() as client,
    ):
        topics = hub.app.topics
        topics.backlog.limit = 1 << 20
        started = [await client.call("run.start", {"input": [{"kind": "text", "text": "go"}]}) for _ in range(streams)]
        withheld: list[Unit] = []
        submit = topics.journal.submit
        await up.wait_requests(streams)
        topics.journal.submit = withheld.append  # type: ignore[method-assign,assignment]
        try:
            while not all(request.tokens for request in up.chats):
                await asyncio.sleep(0.01)
            await settled(lambda: sum(request.tokens for request in up.chats))
            assert all(request.ended == "open" for request in up.chats)
            assert topics.backlog.size < 8 << 20
        finally:
            topics.journal.submit = submit  # type: ignore[method-assign]
            for unit in withheld:
                submit(unit)
        for one in started:
            topic = await client.subscribe(f"conv:{one['conv']}")
            state = await topic.until(lambda state: all(run["status"] == "done" for run in state["runs"].values()))
            assert "".join(part["text"] for part in state["messages"][-1]["parts"]) == "".join(words)
        assert topics.backlog.size == 0
