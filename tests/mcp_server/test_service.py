"""What holds for `/mcp` as a whole: who may come, how much there may be, how it begins and ends. By hand, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from sag.plugin import Tool
from sag.testing.hub import RunningHub, running_hub
from tests.harness import Hub
from tests.mcp_server.conftest import Host, make_tools, text_of

Json = dict[str, Any]
ACCEPT = {"accept": "application/json, text/event-stream"}
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "by hand", "version": "1"}}
VERSION = "2026-07-28"


@contextlib.asynccontextmanager
async def http(url: str, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {**ACCEPT, **({"authorization": f"Bearer {token}"} if token else {})}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=10, trust_env=False) as client:
        yield client


async def post(client: httpx.AsyncClient, method: str, params: Json, **headers: str) -> httpx.Response:
    return await client.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, headers=headers
    )


async def stateless(client: httpx.AsyncClient, method: str, params: Json, able: Json | None = None) -> Json:
    """A request of 2026-07-28; gives its answer."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": able if able is not None else {"elicitation": {}},
    }
    headers = {"mcp-protocol-version": VERSION, "mcp-method": method}
    if "name" in params:
        headers["mcp-name"] = params["name"]
    answer = await post(client, method, {**params, "_meta": meta}, **headers)
    if answer.headers["content-type"].startswith("text/event-stream"):
        return dict(json.loads([line for line in answer.text.splitlines() if line.startswith("data: ")][-1][6:]))
    return dict(answer.json())


# who may come


async def test_a_token_is_needed_and_sessions_belong_to_their_user(make_hub: Callable[..., Hub]):
    hub = make_hub(SAG_AUTH="required")
    made = subprocess.run(
        [sys.executable, "-m", "sag.cli", "token", "new", "--user", "local", "--admin", "--data", str(hub.data)],
        capture_output=True,
        text=True,
        check=True,
    )
    admin = made.stdout.strip()
    ana, ben = [(await hub.rpc("token.new", {"user": name}, admin))["token"] for name in ("ana", "ben")]
    async with http(hub.url) as nobody:
        answer = await post(nobody, "initialize", HELLO)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    async with http(hub.url, ana) as mine, http(hub.url, ben) as theirs:
        session = (await post(mine, "initialize", HELLO)).headers["mcp-session-id"]
        own = {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
        for client, status in ((mine, 200), (theirs, 404)):
            answer = await post(client, "ping", {}, **own)
            assert answer.status_code == status
            gone = await client.delete("/mcp", headers=own)
            assert gone.status_code == status
    assert session not in hub.log()


async def test_hosts_and_origins_are_checked_and_there_is_nothing_below():
    async with running_hub() as hub, http(hub.url) as client:
        for headers, status in (
            ({"host": "evil.example"}, 403),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": hub.url}, 200),
        ):
            assert (await post(client, "initialize", HELLO, **headers)).status_code == status
        assert (await client.get("/mcp/more")).status_code == 404
        assert (await client.get("/mcp?token=x")).status_code == 400


# what waits for the next round


async def test_a_call_goes_on_where_it_was_for_who_began_it_alone():
    runs: list[str] = []

    async def twice(args: Json, ctx: Any) -> str:
        runs.append(ctx.call)
        first = await ctx.ask("First?", options=["a", "b"])
        return f"{first} {await ctx.ask('Second?', options=['c', 'd'])}"

    tools = [Tool("twice", "Ask twice.", {"type": "object"}, twice, risk="read")]
    async with running_hub(tools=tools) as hub, http(hub.url) as client:
        asked = (await stateless(client, "tools/call", {"name": "twice", "arguments": {}}))["result"]
        assert (asked["resultType"], list(asked["inputRequests"])) == ("input_required", ["first"])
        answers: Json = {"first": {"action": "accept", "content": {"choice": "b"}}}
        goes_on = {"name": "twice", "arguments": {}, "requestState": asked["requestState"]}
        for wrong in ({"requestState": asked["requestState"] + "x"}, {"arguments": {"more": 1}}):
            refused = await stateless(client, "tools/call", {**goes_on, "inputResponses": answers, **wrong})
            assert refused["error"]["code"] == -32602
        # what does not fit, or is not there, is asked again
        asked = (await stateless(client, "tools/call", {**goes_on, "inputResponses": {"first": {"roots": []}}}))[
            "result"
        ]
        assert list(asked["inputRequests"]) == ["first"]
        goes_on["requestState"] = asked["requestState"]
        asked = (await stateless(client, "tools/call", {**goes_on, "inputResponses": answers}))["result"]
        assert list(asked["inputRequests"]) == ["second"]
        used = await stateless(client, "tools/call", {**goes_on, "inputResponses": answers})
        assert used["error"]["code"] == -32602  # a state is good for one round
        goes_on["requestState"] = asked["requestState"]
        last = {"second": {"action": "accept", "content": {"choice": "c"}}}
        done = (await stateless(client, "tools/call", {**goes_on, "inputResponses": last}))["result"]
        assert done["content"][0]["text"] == "('b', None) ('c', None)"
        assert len(runs) == 1  # and what the tool did before it asked was done once


async def test_a_call_whose_host_does_not_come_back_ends_and_so_many_may_wait():
    ended = asyncio.Queue[Any]()

    async def ask(args: Json, ctx: Any) -> None:
        ended.put_nowait(await ctx.ask("Well?", options=["a"]))

    tools = [Tool("ask", "Ask.", {"type": "object"}, ask, risk="read")]
    tables = {"mcp-server": {"waiting_s": 0.2}}
    async with running_hub(tools=tools, tables=tables) as hub, http(hub.url) as client:
        asked = (await stateless(client, "tools/call", {"name": "ask"}))["result"]
        async with asyncio.timeout(5):
            assert await ended.get() == (None, None)
        again = {"name": "ask", "requestState": asked["requestState"]}
        assert (await stateless(client, "tools/call", again))["error"]["code"] == -32602
    async with running_hub(tools=tools) as hub, http(hub.url) as client:
        first = (await stateless(client, "tools/call", {"name": "ask"}))["result"]
        for _ in range(32):
            assert (await stateless(client, "tools/call", {"name": "ask"}))["result"]["inputRequests"]
        async with asyncio.timeout(5):
            assert await ended.get() == (None, None)
        gone = {"name": "ask", "requestState": first["requestState"]}
        assert (await stateless(client, "tools/call", gone))["error"]["code"] == -32602


# how much there may be


async def test_sessions_are_bounded_in_number_and_time():
    tables = {"mcp-server": {"sessions": 2, "idle_s": 0.3}}
    async with running_hub(tables=tables) as hub, http(hub.url) as client:
        opened = [await post(client, "initialize", HELLO) for _ in range(3)]
        assert [answer.status_code for answer in opened] == [200, 200, 503]
        await asyncio.sleep(0.5)
        session = {"mcp-session-id": opened[0].headers["mcp-session-id"]}
        assert (await post(client, "ping", {}, **session)).status_code == 404
        assert (await post(client, "initialize", HELLO)).status_code == 200


async def test_what_is_no_message_is_refused():
    async with running_hub() as hub, http(hub.url) as client:
        for body, status in ((b"{", 400), (b"[]", 400), (b"x" * ((16 << 20) + 1), 413)):
            answer = await client.post("/mcp", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == status


# how it begins and ends


def test_the_sdk_comes_with_the_first_request():
    program = """
import asyncio, sys, urllib.request
from sag.testing.hub import running_hub
async def main():
    async with running_hub() as hub:
        print("mcp" in sys.modules, "pydantic" in sys.modules)
        request = urllib.request.Request(hub.url + "/mcp", b"{}", {"content-type": "application/json"})
        try:
            await asyncio.to_thread(urllib.request.urlopen, request)
        except urllib.error.HTTPError as e:
            print(e.code, "mcp" in sys.modules)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False", "406", "True"], done.stderr


async def test_open_streams_and_calls_do_not_hold_up_the_end(make_hub: Callable[..., Hub]):
    hub = make_hub(SAG_DRAIN_S="0")
    running: Any = type("At", (), {"url": hub.url})()
    calls: list[asyncio.Task[Any]] = []
    async with contextlib.AsyncExitStack() as stack:
        for mode in ("legacy", "auto"):
            client = await stack.enter_async_context(Host().connect(running, mode))
            calls.append(asyncio.create_task(client.call_tool("countdown", {"seconds": 30})))
            if mode == "auto":
                await stack.enter_async_context(client.listen(tools_list_changed=True))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        hub.terminate()
        assert await hub.ended() == 0
        assert time.monotonic() - began < 2
        for call in calls:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the SDK makes of it
                async with asyncio.timeout(5):
                    await call


async def test_many_hosts_at_once(era: str):
    async def use(hub: RunningHub, n: int) -> None:
        async with Host().connect(hub, era) as client:
            said = await asyncio.gather(*(client.call_tool("greet", {"name": f"{n}-{i}"}) for i in range(10)))
            assert [text_of(result) for result in said] == [f"Hello, {n}-{i}." for i in range(10)]

    async with running_hub(tools=make_tools()) as hub:
        await asyncio.gather(*(use(hub, n) for n in range(5)))
