"""The hub as the client of the conformance suite: for each scenario it connects to the suite's server by URL, signs in
where that is wanted, and has a model call the tools there.

The suite starts a program for each scenario. That program (`knock.py`) asks the hub of the test to do the work, for a
hub of its own would take two seconds each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from sag.client import Client
from sag.errors import Fault
from sag.plugin import Chunk, ModelRequest
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say

Json = dict[str, Any]
SCENARIO_S = 25.0
OPEN = frozenset({"queued", "running", "waiting", "paused"})
KNOCK = Path(__file__).parent / "knock.py"


class Player:
    """Plays scenarios on a hub.

    Attributes:
        command: What the suite is to start.
    """

    def __init__(self, hub: RunningHub, person: Client, http: httpx.AsyncClient) -> None:
        self._hub, self._person, self._http = hub, person, http
        self._number = 0
        self.command = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what `knock.py` asks for, and tell how it went: a line of exit status, then what went wrong."""
        wanted = json.loads(await reader.readline())
        try:
            async with asyncio.timeout(SCENARIO_S):
                await self.play(wanted["scenario"], wanted["url"], wanted.get("context") or {})
            text = "0\n"
        except Exception:
            text = f"1\n{traceback.format_exc()}"
        with contextlib.suppress(ConnectionError):
            writer.write(text.encode())
            await writer.drain()
        writer.close()

    async def play(self, scenario: str, url: str, context: Json) -> None:
        """Play one scenario."""
        self._number += 1
        name = f"peer{self._number}"
        if scenario == "auth/pre-registration":  # which is for plugins.toml, so it takes a hub that has it there
            client = {"client_id": context["client_id"], "client_secret": context["client_secret"]}
            async with playing({name: {"url": url, **client}}) as other:
                await other.use(name, context)
            return
        await self._person.call("mcp.server.connect", {"url": url, "name": name, "allow": True})
        try:
            await self.use(name, context)
        finally:
            with contextlib.suppress(Fault):
                await self._person.call("mcp.server.remove", {"id": name})

    async def use(self, name: str, context: Json) -> None:
        """Do with a connected server what can be done: sign in, call its tools, fill in prompts, read resources."""
        await self._signed_in(name)
        tools = {tool["name"]: tool["input"] for tool in await self._tools(name)}
        calls = context.get("toolCalls") or [
            {"name": tool, "arguments": example(schema, tools)} for tool, schema in tools.items()
        ]
        if calls:
            await self._call_all([(f"{name}__{c['name']}", without_nulls(c["arguments"])) for c in calls])
        state = (await self._person.subscribe("hub")).state["connectors"][name]
        for prompt in state.get("prompts", {}):
            await self._person.call("prompt.get", {"connector": name, "name": prompt})
        for resource in (await self._person.call("resource.list", {"connector": name}))["resources"]:
            if not resource.get("template"):
                await self._person.call("resource.read", {"connector": name, "uri": resource["uri"]})

    async def _tools(self, name: str) -> Sequence[Json]:
        return list((await self._person.call("mcp.server.tools", {"id": name}))["tools"])

    async def _signed_in(self, name: str) -> None:
        """Wait until a server is there, signing in for as long as it wants that."""
        topic = await self._person.subscribe("hub")
        for _ in range(4):
            state = await topic.until(lambda s: s["connectors"].get(name, {}).get("status") not in (None, "starting"))
            told = state["connectors"][name]
            if told["status"] != "auth":
                if told["status"] != "ready":
                    raise AssertionError(f"{name} is {told['status']}: {told.get('error')}")
                return
            begun = await self._person.call("mcp.server.sign_in", {"id": name})
            await self._visit(begun["auth_url"])

    async def _visit(self, url: str) -> None:
        """Open a page to sign in at as a person's browser does; the suite's authorization servers agree to all."""
        answer = await self._http.get(url)
        if not answer.has_redirect_location:
            raise AssertionError(f"{url}: {answer.status_code} {answer.text[:500]}")
        back = urlsplit(answer.headers["location"])  # it names the hub's port as it is configured
        answer = await self._http.get(f"{self._hub.url}{back.path}?{back.query}")
        if answer.is_error:
            raise AssertionError(f"{answer.status_code} {answer.text[-500:]}")

    async def _call_all(self, calls: Sequence[tuple[str, Json]]) -> None:
        """Have the model call tools in one run, and answer what is asked."""
        said = json.dumps(calls)
        started = await self._person.call(
            "run.start", {"input": [{"kind": "text", "text": said}], "config": {"model": "script/m"}}
        )
        topic = await self._person.subscribe(f"conv:{started['conv']}")
        answered: set[str] = set()
        while True:
            state = await topic.until(
                lambda s: _status(s, started["run"]) not in OPEN or s["asks"].keys() - answered, SCENARIO_S
            )
            if _status(state, started["run"]) not in OPEN:
                break
            for id in state["asks"].keys() - answered:
                answered.add(id)
                await self._answer(id, state["asks"][id])
        failed = [t for t in topic.state["tools"].values() if t["status"] != "ok"]
        if failed:
            raise AssertionError(f"calls failed: {failed}")

    async def _answer(self, id: str, ask: Json) -> None:
        answer: Json = {"ask": id, "choice": ask["options"][0]}
        if ask["kind"] == "form":
            answer["data"] = {}
        if ask["kind"] == "url":
            await self._visit(ask["url"])
        with contextlib.suppress(Fault):  # a sign-in that came to its end closes its question by itself
            await self._person.call("ask.answer", answer)


def _status(state: Json, run: str) -> str:
    return str(state["runs"].get(run, {}).get("status", "queued"))


def script(request: ModelRequest) -> Sequence[Chunk]:
    """A model that calls what it is told to call."""
    if request.messages[-1].role == "user":
        return call(*json.loads(request.messages[-1].text))
    return say("Done.")


def example(schema: Json, tools: Mapping[str, Json]) -> Json:
    """Arguments that fit a simple schema; where a schema is wanted, that of another tool, as it was listed."""
    values: Json = {"string": "us-west1", "integer": 2, "number": 1.5, "boolean": True, "array": []}
    other = next(iter(tools.values()))
    wanted = {*schema.get("required", []), *("email" for _ in schema.get("allOf", []))}
    given = {k: v.get("type", "string") for k, v in schema.get("properties", {}).items() if k in wanted}
    return {k: other if k == "schema" else values.get(kind, {}) for k, kind in given.items()}


def without_nulls(args: Json) -> Json:
    """Arguments as models write them: null is no boolean, and such a call would be refused before it is sent."""
    return {name: value for name, value in args.items() if value is not None}


@contextlib.asynccontextmanager
async def playing(servers: Json | None = None) -> AsyncIterator[Player]:
    """A hub that plays scenarios, with the servers of plugins.toml."""
    tables = {"mcp": {"allow": ["localhost"], "servers": servers or {}}}
    async with (
        running_hub(providers=[ScriptedProvider(script)], tables=tables) as hub,
        hub.client() as person,
        httpx.AsyncClient(trust_env=False, timeout=10) as http,
    ):
        player = Player(hub, person, http)
        server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        player.command = f"{sys.executable} -S -E {KNOCK} {port}"
        async with server:
            yield player
