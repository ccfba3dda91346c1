"""A hub that is killed: what waits for a client goes on with its answer, what was cut goes on by `run.resume`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sag.testing.upstream import Calls, FakeUpstream, Hang, Say, Script, ToolCall, say
from tests.harness import Hub

Json = dict[str, Any]
WEATHER = {"type": "function", "function": {"name": "weather"}}
NOTE = ToolCall("note_add", {"text": "milk"})


CONFIG = '[openai.providers.lab]\nflavor = "vllm"\nbase_url = "{}"\n'


def ask(hub: Hub, messages: list[Json]) -> Json:
    return {"url": f"{hub.url}/openai/v1/chat/completions", "json": {"model": "lab/fake", "messages": messages}}


async def runs_of(http: httpx.AsyncClient, hub: Hub) -> list[Json]:
    return list((await http.post(f"{hub.url}/rpc/run.list", json={})).json()["runs"])


async def test_a_call_that_waits_for_the_client_outlives_the_hub(make_hub: Callable[..., Hub]) -> None:
    async with FakeUpstream("vllm") as up, httpx.AsyncClient(timeout=30) as http:
        hub = make_hub(config=CONFIG.format(up.url))
        up.script(Script([Say("One moment."), Calls([ToolCall("weather", {}), NOTE])]))
        given = ask(hub, [{"role": "user", "content": "How is it?"}])
        given["json"]["tools"] = [WEATHER]
        message = (await http.post(**given)).json()["choices"][0]["message"]
        hub.kill()
        await hub.restart()
        assert [run["status"] for run in await runs_of(http, hub)] == ["waiting"]
        up.script(say("It rains."))
        [call] = message["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
        given["json"]["messages"] += [message, result]
        answer = await http.post(f"{hub.url}/openai/v1/chat/completions", json=given["json"])
        assert answer.json()["choices"][0]["message"]["content"] == "It rains."
        sent = up.chats[-1].json["messages"]
        assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
        assert sent[2]["content"] == "rain"
        assert [run["status"] for run in await runs_of(http, hub)] == ["done"]
        assert len(up.chats) == 2


async def test_a_completion_that_was_cut_is_resumed_on_what_its_request_held(make_hub: Callable[..., Hub]) -> None:
    async with FakeUpstream("vllm") as up, httpx.AsyncClient(timeout=30) as http:
        hub = make_hub(config=CONFIG.format(up.url))
        up.script(Script([Calls([NOTE])]), Script([Say("half "), Hang()]))
        messages = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Note milk."},
        ]
        asking = asyncio.create_task(http.post(**ask(hub, messages)))
        async with asyncio.timeout(10):
            while len(up.chats) < 2:
                await asyncio.sleep(0.01)
        hub.kill()
        with pytest.raises(httpx.TransportError):
            await asking
        await hub.restart()
        [run] = await runs_of(http, hub)
        assert run["status"] == "interrupted"
        up.script(say("Noted."))
        await http.post(f"{hub.url}/rpc/run.resume", json={"run": run["run"]})
        async with asyncio.timeout(10):
            while [one["status"] for one in await runs_of(http, hub)] != ["done"]:
                await asyncio.sleep(0.02)
        sent = [(m["role"], m.get("content")) for m in up.chats[-1].json["messages"]]
        assert [role for role, _ in sent] == ["user", "assistant", "user", "assistant", "tool"]
        assert sent[2] == ("user", "Note milk.")
        assert len(up.chats) == 3
        state = (await http.post(f"{hub.url}/rpc/conversation.get", json={"conv": run["conv"]})).json()["snap"]
        assert [tool["status"] for tool in state["tools"].values()] == ["ok"]  # the note was added once
