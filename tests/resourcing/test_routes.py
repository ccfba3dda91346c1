"""The routes that clients of the resource-planning router know, as such a client uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from sag.plugin import ProviderError, ToolContext, tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say
from sag_resourcing.prompt import SYSTEM_PROMPT

Json = dict[str, Any]


@tool(risk="read")
async def list_projects(*, ctx: ToolContext) -> str:
    """List projects."""
    return "Apollo"


@asynccontextmanager
async def serving(*script: Any) -> AsyncIterator[tuple[RunningHub, ScriptedProvider, httpx.AsyncClient]]:
    model = ScriptedProvider(*script)
    async with (
        running_hub(providers=[model], tools=[list_projects]) as hub,
        httpx.AsyncClient(base_url=hub.url, timeout=20, trust_env=False) as http,
    ):
        yield hub, model, http


async def test_a_chat_answers_and_goes_on() -> None:
    async with serving(say("Ana is free."), say("On Monday.")) as (_, model, http):
        first = await http.post("/api/chat", json={"message": "Who is free?"})
        assert first.status_code == 200
        body = first.json()
        assert body["response"] == "Ana is free."
        assert body["model"] == {"provider": "script", "model": "m", "base_url": ""}
        assert model.requests[0].messages[0].text == SYSTEM_PROMPT
        second = await http.post("/api/chat", json={"message": "When?", "conversation_id": body["conversation_id"]})
        assert second.json()["response"] == "On Monday."
        assert second.json()["conversation_id"] == body["conversation_id"]
        assert [m.role for m in model.requests[1].messages] == ["system", "user", "assistant", "user"]
        assert model.requests[1].messages[0].text == SYSTEM_PROMPT


async def test_a_name_that_the_client_made_up_stands_for_a_conversation() -> None:
    async with serving(say("One."), say("Two.")) as (_, model, http):
        for text, answer in (("a", "One."), ("b", "Two.")):
            got = await http.post("/api/chat", json={"message": text, "conversation_id": "my own 1"})
            assert (got.json()["response"], got.json()["conversation_id"]) == (answer, "my own 1")
        assert len(model.requests[1].messages) == 4


async def test_a_history_that_the_client_keeps_is_read_once() -> None:
    said = [{"role": "user", "content": "I am Ana."}, {"role": "assistant", "content": "Hello, Ana."}]
    async with serving(say("Ana.")) as (_, model, http):
        await http.post("/api/chat", json={"message": "Who am I?", "history": said})
        system = model.requests[0].messages[0].text
        assert system.startswith(SYSTEM_PROMPT)
        assert system.endswith("User: I am Ana.\n\nAssistant: Hello, Ana.")


async def test_a_model_that_fails_is_502_with_the_reason() -> None:
    refused = ProviderError("provider.auth", "The key is refused.")
    async with serving([refused]) as (_, _, http):
        got = await http.post("/api/chat", json={"message": "Hi"})
        assert got.status_code == 502
        body = got.json()
        assert (body["error"], body["detail"]) == ("provider.auth", "The key is refused.")


async def test_no_model_at_all_is_502_too() -> None:
    env = {"LLM_PROVIDER": "openai", "LLM_BASE_URL": "http://127.0.0.1:9/v1"}
    async with running_hub(env=env) as hub, httpx.AsyncClient(base_url=hub.url, trust_env=False) as http:
        got = await http.post("/api/chat", json={"message": "Hi"})
        assert got.status_code == 502
        assert got.json()["error"].startswith(("model.", "provider."))


async def test_events_tell_words_and_tools_as_they_come() -> None:
    go = asyncio.Event()
    script = (call(("list_projects", {})), [*say("It is "), go, *say("Apollo.")])
    async with serving(*script) as (_, _, http):
        events: list[tuple[str, Json]] = []
        headers = {"accept": "text/event-stream"}
        async with http.stream("POST", "/api/chat", json={"message": "Which?"}, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    events.append((name, json.loads(line[6:])))
                    if name == "message":
                        go.set()
    names = [name for name, _ in events]
    assert names[:2] == ["tool", "tool"]
    assert [d["status"] for name, d in events if name == "tool"] == ["running", "ok"]
    assert "".join(d["delta"] for name, d in events if name == "message").endswith("Apollo.")
    assert names[-1] == "done"
    assert events[-1][1]["response"].endswith("Apollo.")


async def test_what_is_no_chat_is_refused() -> None:
    async with serving() as (_, model, http):
        assert (await http.get("/api/chat")).status_code == 405
        assert (await http.post("/api/chat", content=b"{}")).status_code == 415
        assert (await http.post("/api/chat", json={"message": ""})).status_code == 400
        assert (await http.post("/api/chat", json=["x"])).status_code == 400
        assert (await http.post("/api/chat/more", json={"message": "x"})).status_code in (404, 405)
        origin = {"origin": "https://evil.example"}
        assert (await http.post("/api/chat", json={"message": "x"}, headers=origin)).status_code == 403
        assert model.requests == []


async def test_health_and_config_tell_of_the_model_and_the_tools() -> None:
    async with serving() as (_, _, http):
        health = (await http.get("/api/health")).json()
        llm = {"provider": "script", "model": "m", "base_url": ""}
        assert health == {"status": "ok", "mcp_servers": {}, "llm": llm}
        config = (await http.get("/api/config")).json()
        assert config["llm"] == health["llm"]
        assert config["version"]
        assert "list_projects" in [t["name"] for t in config["available_tools"]]
        assert (await http.get("/api/config/client:chat")).json()["rev"] == 1  # the hub's own route below it
