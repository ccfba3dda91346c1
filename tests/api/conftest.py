"""A hub with models that have prices, and users who ask it over both roads."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.client import Client
from sag.hooks.provider import Chunk, Finish, Model, Price, Text, UsageChunk
from sag.schema.events import Usage
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider

MODELS = (
    Model("m", "Middle", default=True, context=128_000, price=Price(3, 15), abilities=["tools", "images"]),
    Model("small", context=8_000, price=Price(0.25, 1), abilities=["tools"], author="Acme", created=100),
    Model("gift", "A Gift", context=32_768, price=Price(0, 0), abilities=[], author="Acme", created=300),
    Model("huge", context=1_048_576, price=Price(20, 80, cached=2), abilities=["tools", "reasoning"], created=200),
    Model("dark"),
)


class Shop(ScriptedProvider):
    """A scripted provider with several models; one answer takes 1,000 tokens and gives 200."""

    def __init__(self, *scripts: Any, name: str = "shop", models: Sequence[Model] = MODELS) -> None:
        super().__init__(*(scripts or [answer(Usage(1000, 200))]), name=name)
        self.known = models

    def models(self) -> Sequence[Model]:
        return self.known


def answer(usage: Usage | None) -> list[Chunk]:
    """A script that answers, and tells what it took."""
    return [Text("ok"), *([UsageChunk(usage)] if usage else []), Finish("stop")]


class House:
    """A hub, and who comes to it: the administrator of this machine, and users with a token each."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub, self.app = hub, hub.app
        self.tokens: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def enter(self, user: str = "") -> AsyncIterator[Client]:
        """A connected client of a user; "" is the administrator."""
        token = await self._token(user)
        async with self.hub.client("desk", **({"token": token} if token else {})) as client:
            yield client

    async def _token(self, user: str) -> str:
        if user and user not in self.tokens:
            async with self.hub.client() as client:
                self.tokens[user] = (await client.call("token.new", {"user": user}))["token"]
        return self.tokens.get(user, "")

    async def rest(self, path: str, user: str = "", body: Any = None) -> tuple[int, Any]:
        """What a route answers: the status and the JSON."""
        token = await self._token(user)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=self.hub.url, headers=headers, trust_env=False) as http:
            given = await (http.get(path) if body is None else http.post(path, json=body))
        return given.status_code, given.json()

    async def run(self, client: Client, model: str = "", text: str = "hi", **params: Any) -> dict[str, Any]:
        """A run to its end; gives what `run.start` answered and the run's object."""
        config = {"config": {"model": model}} if model else {}
        started = await client.call("run.start", {"input": [{"kind": "text", "text": text}], **config, **params})
        topic = await client.subscribe(f"conv:{started['conv']}")
        over = ("done", "failed", "limit", "cancelled", "interrupted")
        await topic.until(lambda state: state["runs"].get(started["run"], {}).get("status") in over)
        return {**started, "object": topic.state["runs"][started["run"]]}


@pytest.fixture
def open_house(tmp_path: Path) -> Callable[..., Any]:
    """Opens hubs on one data folder, with a plugins.toml."""

    @contextlib.asynccontextmanager
    async def open(*providers: Any, config: str = "", **options: Any) -> AsyncIterator[House]:
        (tmp_path / "plugins.toml").write_text(config)
        async with running_hub(data=tmp_path, providers=providers or [Shop()], **options) as hub:
            yield House(hub)

    return open
