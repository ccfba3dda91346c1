"""Connections as a client meets them, on a hub inside the test."""

from __future__ import annotations

import asyncio
from typing import Any

from sag.hooks.tool import tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say


@tool(risk="danger")
async def launch(what: str) -> str:
    """Launch something."""
    return f"launched {what}"


async def _start(client: Any, text: str = "go", **params: Any) -> tuple[Any, Any]:
    started = await client.call("run.start", {"input": [{"kind": "text", "text": text}], **params})
    return started, await client.subscribe(f"conv:{started['conv']}")


def _ended(run: str) -> Any:
    return lambda state: state["runs"].get(run, {}).get("status") in ("done", "failed", "cancelled", "interrupted")


async def test_an_open_ask_is_in_the_snapshot_of_whoever_comes_later() -> None:
    provider = ScriptedProvider(call(("launch", {"what": "x"})), say("ok"))
    async with running_hub(providers=[provider], tools=[launch]) as hub, hub.client("desk") as desk:
        started, topic = await _start(desk)
        await topic.until(lambda state: state["asks"])
        async with hub.client("phone") as phone:
            seen = await phone.subscribe(topic.name)
            assert seen.state["asks"] == topic.state["asks"]
            inbox = await phone.subscribe("user:me")
            (ask,) = seen.state["asks"]
            assert list(inbox.state["asks"]) == [ask]
            await phone.call("ask.answer", {"ask": ask, "choice": "allow_once"})
        await topic.until(_ended(started["run"]))
        assert topic.state["asks"] == {}
        assert [t["result"] for t in topic.state["tools"].values()] == ["launched x"]


async def test_a_run_outlives_the_socket_that_started_it() -> None:
    go = asyncio.Event()
    provider = ScriptedProvider([*say("half ")[:1], go, *say("whole")])
    async with running_hub(providers=[provider]) as hub:
        async with hub.client() as client:
            started, topic = await _start(client)
            await topic.until(lambda state: len(state["messages"]) == 2 and state["messages"][1]["parts"])
        go.set()
        async with hub.client() as client:
            topic = await client.subscribe(f"conv:{started['conv']}")
            await topic.until(_ended(started["run"]))
            assert topic.state["runs"][started["run"]]["status"] == "done"
            assert topic.state["messages"][1]["parts"][0]["text"] == "half whole"


async def test_a_session_resumes_twice_with_the_newest_secret() -> None:
    async with running_hub() as hub, hub.client() as client:
        first = client.session["id"]
        for _ in range(3):
            client.drop_connection()
            await _until(lambda: client.connected)
            assert client.session["id"] == first


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)


async def test_pages_are_served_compressed_and_events_are_not() -> None:
    import httpx

    async with running_hub() as hub, httpx.AsyncClient(base_url=hub.url, trust_env=False) as http:
        health = await http.get("/health", headers={"accept-encoding": "gzip"})
        assert health.json()["status"] == "ok"
        assert "content-encoding" not in health.headers
        await _page(http, hub)


async def _page(http: Any, hub: RunningHub) -> None:
    page = await http.get("/")
    assert page.status_code == 200
    if page.headers["content-type"].startswith("text/html"):
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
