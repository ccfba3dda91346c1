"""A stand-in for the services of a running hub, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from sag.hooks.provider import Model
from sag.ops.dispatch import User
from sag.schema.events import Event


class FakeServices:
    """Keeps what plugins ask for, to be looked at."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], Any] = {}
        self.events: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        self.patches: list[tuple[str, str, Any]] = []
        self.runs: list[tuple[str, Any]] = []
        self.models: dict[str, list[Model]] = {}
        self.client: httpx.AsyncClient | None = None
        self._news = asyncio.Condition()

    async def kv_get(self, space: str, key: str) -> Any:
        return self.keys.get((space, key))

    async def kv_put(self, space: str, key: str, value: Any) -> None:
        self.keys[space, key] = msgspec.json.decode(msgspec.json.encode(value))

    async def kv_delete(self, space: str, key: str) -> None:
        self.keys.pop((space, key), None)

    async def kv_list(self, space: str, prefix: str) -> dict[str, Any]:
        return {k: v for (s, k), v in sorted(self.keys.items()) if s == space and k.startswith(prefix)}

    async def publish(self, owner: str, topic: str, event: Event, space: str, keep: Mapping[str, Any]) -> int:
        log = self.events.setdefault((owner, topic), [])
        log.append((event.NAME, msgspec.to_builtins(event)))
        for key, value in keep.items():
            await (self.kv_delete(space, key) if value is None else self.kv_put(space, key, value))
        async with self._news:
            self._news.notify_all()
        return len(log)

    async def follow(self, owner: str, topic: str, after: int | None) -> AsyncIterator[tuple[str, Any]]:
        log = self.events.setdefault((owner, topic), [])
        at = len(log) if after is None else after
        while True:
            async with self._news:
                await self._news.wait_for(lambda: len(log) > at)  # noqa: B023 - waited for before it changes
            yield log[at]
            at += 1

    async def patch(self, user: User, scope: str, patch: dict[str, Any]) -> dict[str, Any]:
        self.patches.append((user.id, scope, patch))
        return patch

    async def start_run(self, user: User, params: dict[str, Any]) -> dict[str, Any]:
        self.runs.append((user.id, params))
        return {"run": "r1"}

    def set_models(self, provider: str, models: Sequence[Model]) -> None:
        self.models[provider] = list(models)

    def http(self, trusted: bool = False) -> httpx.AsyncClient:
        assert self.client is not None
        return self.client
