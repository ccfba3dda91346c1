"""What becomes of calls of a client's tools when its connection breaks (protocol section 7)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.harness import Client, until

KEEP_MS = 400


def tool(name: str, **given: Any) -> dict[str, Any]:
    return {"name": name, "description": "Works.", "input": {"type": "object"}, **given}


@pytest.fixture
async def hub() -> AsyncIterator[RunningHub]:
    provider = ScriptedProvider(call(("work", {})), say("ok"))
    async with running_hub(providers=[provider], keep_ms=KEEP_MS) as running:
        yield running


async def cut_in_a_call(hub: RunningHub, **given: Any) -> tuple[Client, Any, Any, float]:
    """A client that resumed after a cut, its run, the view and when the cut was."""
    client = Client(hub.url, tools=[tool("work", **given)])
    await client.connect()
    started, view = await client.say("go")
    await until(lambda: client.calls, "the call")
    await client.cut_and_wait()
    cut = time.monotonic()
    await client.connect()
    assert client.hello["session"]["resumed"]
    return client, started, view, cut


def status(view: Any) -> str:
    return str(next(iter(view.has["tools"].values()))["status"])


async def test_a_call_that_must_not_be_sent_again_is_lost_when_it_stays_unanswered_after_a_cut(hub: RunningHub) -> None:
    client, started, view, cut = await cut_in_a_call(hub)
    await client.done(view, started["run"])
    assert status(view) == "lost"
    assert KEEP_MS / 1000 - 0.1 < time.monotonic() - cut < 3
    assert len(client.calls) == 1
    await client.close()


async def test_its_deadline_may_come_first_and_it_is_lost_all_the_same(hub: RunningHub) -> None:
    client, started, view, cut = await cut_in_a_call(hub, timeout_ms=200)
    await client.done(view, started["run"])
    assert status(view) == "lost"
    assert time.monotonic() - cut < KEEP_MS / 1000
    await client.close()


async def test_a_sign_of_life_after_the_resume_keeps_it_open_to_its_deadline(hub: RunningHub) -> None:
    client, started, view, _ = await cut_in_a_call(hub)
    id = client.calls[0]["id"]
    client.send({"method": "rpc.progress", "params": {"id": id, "done": 1}})
    await until(lambda: view.named("tool.progress"), "progress")
    await asyncio.sleep(KEEP_MS / 1000 + 0.2)
    assert status(view) == "running"
    client.send({"id": id, "result": "late"})
    await client.done(view, started["run"])
    assert status(view) == "ok"
    await client.close()


async def test_one_that_is_sent_again_has_its_whole_time(hub: RunningHub) -> None:
    client, started, view, _ = await cut_in_a_call(hub, idempotent=True)
    await until(lambda: len(client.calls) == 2, "the call again")
    assert client.calls[1] == {
        **client.calls[0],
        "params": {**client.calls[0]["params"], "redelivered": True},
    }
    await asyncio.sleep(KEEP_MS / 1000 + 0.2)
    client.send({"id": client.calls[0]["id"], "result": "late"})
    await client.done(view, started["run"])
    assert status(view) == "ok"
    await client.close()


async def test_a_second_resume_while_the_first_socket_is_open_counts_as_a_cut(hub: RunningHub) -> None:
    client = Client(hub.url, tools=[tool("work")])
    await client.connect()
    started, view = await client.say("go")
    await until(lambda: client.calls, "the call")
    other = Client(hub.url)
    other.session = client.session
    await other.connect()
    assert other.hello["session"]["resumed"]
    assert await client.closed() == 4003
    seen = await other.follow(view.topic)
    await other.done(seen, started["run"])
    assert status(seen) == "lost"
    assert other.calls == []
    await other.close()


async def test_answers_that_make_no_sense_fail_the_call_and_not_the_connection(hub: RunningHub) -> None:
    async with Client(hub.url, tools=[tool("work", timeout_ms=3000)]) as client:
        for answer in (
            {"error": None},
            {"error": "no"},
            {"error": {"message": ["no"]}},
            {"error": {"code": 499, "message": "x" * 100_000}},
        ):
            provider = ScriptedProvider(call(("work", {})), say("ok"))
            hub.app.extensions.providers["script"] = provider
            client.calls.clear()
            started, view = await client.say("go")
            sent = await until(lambda: client.calls, "the call")
            for done in (1, True, "x", None, [1]):
                client.send({"method": "rpc.progress", "params": {"id": sent[0]["id"], "done": done, "text": 7}})
            client.send({"id": sent[0]["id"], **answer})
            await client.done(view, started["run"])
            assert status(view) == "error", answer
            close = view.named("tool.close")[0]
            assert 0 < len(close["error"]["message"]) <= 2000


@pytest.mark.parametrize("result", [None, 7, [], {"content": "x"}, {"content": [1, {"kind": "image"}]}, "plain"])
async def test_any_result_is_taken_and_the_model_goes_on(hub: RunningHub, result: Any) -> None:
    async with Client(hub.url, tools=[tool("work")]) as client:
        started, view = await client.say("go")
        sent = await until(lambda: client.calls, "the call")
        client.send({"id": sent[0]["id"], "result": result})
        await client.done(view, started["run"])
        assert status(view) == "ok"
        assert next(iter(view.has["tools"].values())).get("result") == result
