"""A hub between two vendors' fakes: `b0` speaks by OpenAI's, `b1` by Anthropic's; and what was asked of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from sag.client import Client, Topic
from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import FakeUpstream, Hang, Request, Say, Script, Wait

Json = dict[str, Any]

ENDS = ("done", "cancelled", "failed", "limit", "interrupted")
BOTS: Json = {
    "b0": {"name": "Ada", "model": "openai/fake", "system": "You are Ada.", "temperature": 0.5},
    "b1": {"name": "Ben", "model": "anthropic/fake", "system": "You are Ben.", "temperature": 0.6},
}


class Stage:
    """The hub, a client of it, an HTTP client, and the fakes.

    Attributes:
        hub, client, http: Those.
        openai, anthropic: The fakes.
    """

    def __init__(
        self,
        hub: RunningHub,
        client: Client,
        http: httpx.AsyncClient,
        openai: FakeUpstream,
        anthropic: FakeUpstream,
    ) -> None:
        self.hub, self.client, self.http, self.openai, self.anthropic = hub, client, http, openai, anthropic
        self.topic: Topic
        self.id = ""

    async def start(self, topic: str = "Tea or coffee?", **config: Any) -> str:
        """Start a dialogue, of `BOTS` unless the config says otherwise, and follow it; gives its id."""
        params: Json = {"kind": "dialogue", "input": [{"kind": "text", "text": topic}]}
        started = await self.client.call("run.start", {**params, "config": {"bots": BOTS, **config}})
        return await self.follow(started["run"])

    async def follow(self, run: str) -> str:
        """Follow a run's conversation; gives the run's id."""
        self.id = run
        conv = (await self.client.call("run.get", {"run": run}))["conv"]
        self.topic = await self.client.subscribe(f"conv:{conv}")
        return run

    @property
    def run(self) -> Json:
        object: Json = self.topic.state["runs"][self.id]
        return object

    def words(self) -> list[tuple[str | None, str]]:
        """Who said what, in order; None is the user."""
        return [
            (m.get("agent"), "".join(p["text"] for p in m["parts"] if p["kind"] == "text"))
            for m in self.topic.state["messages"]
            if m["parts"]
        ]

    async def hears(self, text: str) -> None:
        """Wait until something was said."""
        await self.topic.until(lambda _: any(text in said for _, said in self.words()), 10)

    async def end(self, status: str = "done") -> Json:
        """Wait for the run's end; gives its object."""
        await self.topic.until(lambda _: self.run["status"] in ENDS, 20)
        assert self.run["status"] == status, self.run
        return self.run

    async def patch(self, patch: Json, **more: Any) -> Json:
        """Patch the run's config."""
        answer: Json = await self.client.call("config.patch", {"scope": f"run:{self.id}", "patch": patch, **more})
        return answer

    async def say(self, text: str) -> Json:
        """A person says something in between."""
        conv = self.topic.name[5:]
        params = {"conv": conv, "input": [{"kind": "text", "text": text}], "when": "steer"}
        answer: Json = await self.client.call("run.start", params)
        return answer


@asynccontextmanager
async def open_stage(*, env: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Stage]:
    """A stage for a test; options are those of `running_hub`."""
    async with FakeUpstream() as openai, FakeUpstream("anthropic") as anthropic:
        tables = {"anthropic": {"base_url": anthropic.url, "api_key": "k"}}
        theirs = {"LLM_PROVIDER": "openai", "LLM_BASE_URL": openai.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"}
        async with (
            running_hub(env=theirs | (env or {}), tables=tables, **options) as hub,
            hub.client("desk") as client,
            httpx.AsyncClient(base_url=hub.url, timeout=20, trust_env=False) as http,
        ):
            yield Stage(hub, client, http, openai, anthropic)


def slowly(first: str, rest: str = "and so on", seconds: float = 0.7) -> Script:
    """An answer that pauses after its first words, so that something can be done meanwhile."""
    return Script([Say(f"{first} "), Wait(seconds), Say(rest)])


def stalls(first: str) -> Script:
    """An answer that never comes to its end."""
    return Script([Say(f"{first} "), Hang()])


def heard(request: Request) -> list[tuple[str, str]]:
    """What a model was told, the system prompt aside: roles and texts, whether its vendor takes one in a message."""
    told = []
    for message in request.json["messages"]:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        told += [(message["role"], text) for text in texts if message["role"] != "system"]
    return told


def prompt(request: Request) -> str:
    """The system prompt of a request, whichever vendor's."""
    system = request.json.get("system")
    if system is None:
        return "".join(m["content"] for m in request.json["messages"] if m["role"] == "system")
    return system if isinstance(system, str) else "".join(part["text"] for part in system)


async def events(http: httpx.AsyncClient, run: str) -> AsyncIterator[Json]:
    """The events of `GET /api/stream/{id}`, comments left out."""
    async with http.stream("GET", f"/api/stream/{run}") as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            assert name in ("data", "", ":"), f"an event is its data alone, and not {line!r}"
            if name == "data":
                yield json.loads(value)
