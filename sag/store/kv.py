"""Plugins' own durable keys: JSON values under a space of each plugin's own."""

from __future__ import annotations

from typing import Any

import msgspec

from sag.topics.journal import Drop, Journal, Put
from sag.topics.topic import Topics


class KeyValue:
    """Keys and JSON values. A space is a plugin's name."""

    def __init__(self, journal: Journal, topics: Topics) -> None:
        self._journal = journal
        self._topics = topics

    async def get(self, space: str, key: str) -> Any:
        rows = await self._journal.rows("kv", {"space": space, "key": key})
        return msgspec.json.decode(rows[0]["value"]) if rows else None

    async def put(self, space: str, key: str, value: Any) -> None:
        tx = self._topics.begin()
        self.write(tx, space, key, value)
        await tx.submit()

    @staticmethod
    def write(tx: Any, space: str, key: str, value: Any) -> None:
        """Put a value with a transaction."""
        tx.put(Put("kv", {"space": space, "key": key, "value": msgspec.json.encode(value)}))

    async def delete(self, space: str, key: str) -> None:
        tx = self._topics.begin()
        self.drop(tx, space, key)
        await tx.submit()

    @staticmethod
    def drop(tx: Any, space: str, key: str) -> None:
        """Delete a key with a transaction."""
        tx.put(Drop("kv", {"space": space, "key": key}))

    async def list(self, space: str, prefix: str = "") -> dict[str, Any]:
        rows = await self._journal.rows("kv", {"space": space}, order="key", limit=100_000)
        return {r["key"]: msgspec.json.decode(r["value"]) for r in rows if r["key"].startswith(prefix)}
