"""The routes of the operations chat, as a client of it uses them: plain HTTP, in either order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.plugin import ProviderError, ToolContext, tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import call, say
from tests.workflow.play import SPECIALISTS, Line, Play, hand, step, steps

Json = dict[str, Any]

TOLD: list[Json] = [
    {"type": "agent_invoked", "agent": "triage"},
    {"type": "function_start", "function": "hand_over", "arguments": {"agent": "stock", "note": "Please."}},
    {"type": "function_end", "function": "hand_over", "result": "stock goes on."},
    {"type": "agent_finished", "agent": "triage"},
    {"type": "agent_invoked", "agent": "stock"},
    {"type": "agent_finished", "agent": "stock"},
]


@tool(risk="read")
async def find_invoice(number: int, *, ctx: ToolContext) -> Json:
    """Find an invoice."""
    if number < 0:
        raise ValueError("none")
    return {"number": number}


def handed() -> dict[str, list[Line]]:
    return {"triage": [call(hand("stock"))], "stock": [say("Five are left.")]}


@asynccontextmanager
async def serving(
    lines: dict[str, list[Line]], data: Path | None = None, **env: str
) -> AsyncIterator[tuple[RunningHub, httpx.AsyncClient]]:
    tables = {"workflow": {"agents": SPECIALISTS}}
    async with (
        running_hub(providers=[Play(lines)], tools=[find_invoice], tables=tables, env=env, data=data) as hub,
        httpx.AsyncClient(base_url=hub.url, timeout=20, trust_env=False) as http,
    ):
        yield hub, http


async def open_conversation(http: httpx.AsyncClient) -> str:
    made = await http.post("/api/conversations", json={})
    assert made.status_code == 200, made.text
    return str(made.json()["conv"])


class Thinking:
    """A stream that is read in the background."""

    def __init__(self, http: httpx.AsyncClient, conv: str) -> None:
        self._http, self._conv = http, conv
        self.lines: list[str] = []
        self.connected = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._http.stream("GET", f"/api/conversations/{self._conv}/thinking") as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                self.lines.append(line)
                self.connected.set()

    async def opened(self) -> Thinking:
        async with asyncio.timeout(10):
            await self.connected.wait()
        assert self.lines[0] == ": connected"
        return self

    async def ended(self) -> list[Json]:
        """Wait until the hub has ended it; gives the events."""
        async with asyncio.timeout(10):
            await self._task
        assert self.lines[0] == ": connected"
        assert all(line == "" or line.startswith("data: ") for line in self.lines[1:])
        return [json.loads(line[6:]) for line in self.lines if line.startswith("data: ")]

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_a_stream_that_comes_first_tells_the_run_of_the_message() -> None:
    async with serving(handed()) as (_, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        answer = await http.post(f"/api/conversations/{conv}/messages", json={"message": "How many?"})
        assert answer.status_code == 200
        body = answer.json()
        assert set(body) == {"user_message", "assistant_message", "title"}
        assert body["title"] == "How many?"
        said, answered = body["user_message"], body["assistant_message"]
        assert (said["role"], said["content"]) == ("user", "How many?")
        assert (answered["role"], answered["content"]) == ("assistant", "Five are left.")
        assert answered["agent"] == "stock"
        assert answered["created"] >= said["created"] > 1_700_000_000_000
        assert said["id"] != answered["id"]
        assert await stream.ended() == TOLD


async def test_a_stream_that_comes_while_the_run_is_open_tells_it_from_its_beginning() -> None:
    goes_on = asyncio.Event()
    lines = handed() | {"stock": [[goes_on, *say("Five.")]]}
    async with serving(lines) as (hub, http):
        conv = await open_conversation(http)
        message = asyncio.create_task(http.post(f"/api/conversations/{conv}/messages", json={"message": "How many?"}))
        first = Thinking(http, conv)
        async with asyncio.timeout(10):
            while sum("agent_invoked" in line for line in first.lines) < 2:
                await asyncio.sleep(0.01)
        second = await Thinking(http, conv).opened()
        goes_on.set()
        assert (await message).status_code == 200
        assert await first.ended() == await second.ended() == TOLD


async def test_a_stream_that_comes_too_late_for_a_short_run_tells_it_whole_and_once() -> None:
    lines: dict[str, list[Line]] = {"triage": [call(hand("stock")), say("Hello.")], "stock": [say("Five.")]}
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        await http.post(f"/api/conversations/{conv}/messages", json={"message": "How many?"})
        assert await (await Thinking(http, conv).opened()).ended() == TOLD
        again = await Thinking(http, conv).opened()
        await http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"})
        assert await again.ended() == [
            {"type": "agent_invoked", "agent": "triage"},
            {"type": "agent_finished", "agent": "triage"},
        ]


async def test_a_run_that_was_streamed_is_not_told_again_to_a_stream_for_the_next() -> None:
    lines: dict[str, list[Line]] = {"triage": [say("One."), say("Two.")]}
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        for text in ("One.", "Two."):
            stream = await Thinking(http, conv).opened()
            answer = await http.post(f"/api/conversations/{conv}/messages", json={"message": "?"})
            assert answer.json()["assistant_message"]["content"] == text
            assert len(await stream.ended()) == 2


async def test_runs_that_others_began_are_told_too() -> None:
    goes_on = asyncio.Event()
    lines = handed() | {"stock": [[goes_on, *say("Five.")]]}
    async with serving(lines) as (hub, http), hub.client() as client:
        waiting = await open_conversation(http)
        stream = await Thinking(http, waiting).opened()
        params = {"kind": "triage", "input": [{"kind": "text", "text": "How many?"}], "conv": waiting}
        await client.call("run.start", params)
        async with asyncio.timeout(10):
            while sum("agent_invoked" in line for line in stream.lines) < 2:
                await asyncio.sleep(0.01)
        late = await Thinking(http, waiting).opened()
        goes_on.set()
        assert await stream.ended() == await late.ended() == TOLD


async def test_a_run_is_told_from_its_beginning_where_older_history_is_gone(tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    talk: list[Line] = [say(f"Answer {n}.") for n in range(5)]
    async with serving({"triage": talk}, data=tmp_path) as (hub, http):
        conv = await open_conversation(http)
        for _ in range(5):
            await http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"})
        (topic,) = (topic for topic in hub.app.topics.loaded() if topic.name == f"conv:{conv}")
        await hub.app.topics.trim(topic, topic.head - 3)
    lines = handed() | {"stock": [[goes_on, *say("Five.")]]}
    async with serving(lines, data=tmp_path) as (hub, http), hub.client() as client:
        params = {"kind": "triage", "input": [{"kind": "text", "text": "How many?"}], "conv": conv}
        await client.call("run.start", params)
        first = await Thinking(http, conv).opened()
        async with asyncio.timeout(10):
            while sum("agent_invoked" in line for line in first.lines) < 2:
                await asyncio.sleep(0.01)
        second = await Thinking(http, conv).opened()
        goes_on.set()
        assert await first.ended() == await second.ended() == TOLD


async def test_a_stream_ends_when_its_conversation_is_deleted() -> None:
    async with serving({}) as (hub, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        await http.delete(f"/api/conversations/{conv}")
        assert await stream.ended() == []
        assert (await http.get(f"/api/conversations/{conv}/thinking")).status_code == 404


async def test_a_message_whose_conversation_is_deleted_meanwhile_is_404() -> None:
    async with serving({"triage": [[asyncio.Event(), *say("Never.")]]}) as (_, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        message = asyncio.create_task(http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"}))
        async with asyncio.timeout(10):
            while not any("agent_invoked" in line for line in stream.lines):
                await asyncio.sleep(0.01)
        await http.delete(f"/api/conversations/{conv}")
        answer = await message
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (404, "conv.unknown")
        await stream.ended()


async def test_messages_that_come_at_once_are_answered_each_by_its_run() -> None:
    lines: dict[str, list[Line]] = {"triage": [say("One."), say("Two."), say("Three.")]}
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        path = f"/api/conversations/{conv}/messages"
        answers = await asyncio.gather(*(http.post(path, json={"message": f"m{n}"}) for n in range(3)))
        told = {a.json()["user_message"]["content"]: a.json()["assistant_message"]["content"] for a in answers}
        assert sorted(told) == ["m0", "m1", "m2"]
        assert sorted(told.values()) == ["One.", "Three.", "Two."]


async def test_a_call_that_fails_is_told_with_its_error() -> None:
    lines: dict[str, list[Line]] = {
        "triage": [call(hand("billing"))],
        "billing": [call(("find_invoice", {"number": 7}), ("find_invoice", {"number": -1})), say("Seven.")],
    }
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        await http.post(f"/api/conversations/{conv}/messages", json={"message": "Find it"})
        told = [event for event in await stream.ended() if event.get("function") == "find_invoice"]
        assert [event["arguments"] for event in told if event["type"] == "function_start"] == [
            {"number": 7},
            {"number": -1},
        ]
        results = [event["result"] for event in told if event["type"] == "function_end"]
        assert {"number": 7} in results
        (failed,) = [result for result in results if "status" in result]
        assert (failed["status"], failed["error"]["kind"]) == ("error", "tool.error")


@pytest.mark.parametrize(("value", "kind"), [("true", "plan"), ("1", "plan"), ("false", "triage"), ("", "triage")])
async def test_the_kind_is_chosen_by_the_environment(value: str, kind: str) -> None:
    lines: dict[str, list[Line]] = {
        "triage": [say("Done.")],
        "planner": [call(("make_plan", steps(step("a"))))],
        "do a": [say("A.")],
        "writer": [say("Done.")],
    }
    async with serving(lines, DYNAMIC_PLAN=value) as (hub, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        answer = await http.post(f"/api/conversations/{conv}/messages", json={"message": "Do a"})
        assert answer.json()["assistant_message"]["content"] == "Done."
        runs = (await http.get("/api/conversations/" + conv)).json()["snap"]["runs"]
        assert [run["kind"] for run in runs.values()] == [kind]
        agents = [event["agent"] for event in await stream.ended() if event["type"] == "agent_invoked"]
        assert agents == (["planner", "a"] if kind == "plan" else ["triage"])


async def test_conversations_that_are_not_there_or_not_ones_own_are_404() -> None:
    async with serving(handed()) as (_, http):
        conv = (await http.post("/api/conversations", json={"title": "Mine"})).json()["conv"]
        token = (await http.post("/rpc/token.new", json={"user": "eve"})).json()["token"]
        hers = {"authorization": f"Bearer {token}"}
        for place, headers in ((conv, hers), ("nowhere", {}), ("%00", {})):
            for answer in (
                await http.get(f"/api/conversations/{place}/thinking", headers=headers),
                await http.post(f"/api/conversations/{place}/messages", json={"message": "Hi"}, headers=headers),
            ):
                assert answer.status_code == 404
                assert answer.json()["error"]["data"]["kind"] == "conv.unknown"
        wrong = {"authorization": "Bearer wrong"}
        assert (await http.get(f"/api/conversations/{conv}/thinking", headers=wrong)).status_code == 401
        answer = await http.post(f"/api/conversations/{conv}/messages", json={"message": "How many?"})
        assert answer.json()["title"] == "Mine"


async def test_what_is_no_message_is_refused_and_starts_nothing() -> None:
    async with serving({}) as (_, http):
        conv = await open_conversation(http)
        path = f"/api/conversations/{conv}/messages"
        assert (await http.post(path, json={"message": ""})).status_code == 400
        assert (await http.post(path, json={"message": "x" * 100_001})).status_code == 400
        assert (await http.post(path, json=["x"])).status_code == 400
        assert (await http.post(path, content=b"{}")).status_code == 415
        assert (
            await http.post(path, json={"message": "x"}, headers={"origin": "https://evil.example"})
        ).status_code == 403
        assert (await http.get(path)).json()["messages"] == []


async def test_a_run_that_fails_is_told_as_an_error_and_ends_the_stream() -> None:
    lines: dict[str, list[Line]] = {"triage": [[ProviderError("provider.auth", "The key is refused.")], say("Hi.")]}
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        answer = await http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"})
        assert answer.status_code == 502
        assert answer.json()["error"]["data"]["kind"] == "provider.auth"
        assert [event["type"] for event in await stream.ended()] == ["agent_invoked", "agent_finished"]
        again = await http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"})
        assert again.json()["assistant_message"]["content"] == "Hi."


async def test_a_run_that_is_stopped_is_told_as_a_conflict() -> None:
    lines: dict[str, list[Line]] = {"triage": [[asyncio.Event(), *say("Never.")]]}
    async with serving(lines) as (_, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        message = asyncio.create_task(http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"}))
        async with asyncio.timeout(10):
            while not any("agent_invoked" in line for line in stream.lines):
                await asyncio.sleep(0.01)
        (run,) = (await http.get("/api/runs", params={"conv": conv})).json()["runs"]
        await http.post("/rpc/run.cancel", json={"run": run["run"]})
        answer = await message
        assert (answer.status_code, answer.json()["error"]["data"]["status"]) == (409, "cancelled")
        assert (await stream.ended())[-1] == {"type": "agent_finished", "agent": "triage"}


async def test_a_message_that_is_sent_again_under_its_key_is_answered_and_not_said_again() -> None:
    async with serving(handed()) as (_, http):
        conv = await open_conversation(http)
        headers = {"idempotency-key": "once"}
        path = f"/api/conversations/{conv}/messages"
        first = await http.post(path, json={"message": "How many?"}, headers=headers)
        assert (await http.post(path, json={"message": "How many?"}, headers=headers)).json() == first.json()
        assert len((await http.get(path)).json()["messages"]) == 3


async def test_a_stream_whose_client_leaves_is_forgotten_and_the_run_goes_on() -> None:
    goes_on = asyncio.Event()
    lines: dict[str, list[Line]] = {"triage": [[goes_on, *say("Done.")]]}
    async with serving(lines) as (hub, http):
        conv = await open_conversation(http)
        stream = await Thinking(http, conv).opened()
        (topic,) = (topic for topic in hub.app.topics.loaded() if topic.name == f"conv:{conv}")
        assert len(topic.readers) == 1
        await stream.leave()
        async with asyncio.timeout(10):
            while topic.readers:
                await asyncio.sleep(0.01)
        message = asyncio.create_task(http.post(f"/api/conversations/{conv}/messages", json={"message": "Hi"}))
        goes_on.set()
        assert (await message).status_code == 200
        assert not topic.readers
