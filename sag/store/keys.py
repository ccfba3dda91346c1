"""Idempotency keys: the results of changes, kept for a day beside the events that they caused."""

from __future__ import annotations

from typing import Any

from sag.schema.ids import now_ms
from sag.topics.journal import Drop, Journal, Put


class KeyStore:
    """Results under (user, method, key).

    Args:
        journal: Where they are kept.
        keep_s: For how long; a key that is older is as if it had never been used.
    """

    def __init__(self, journal: Journal, keep_s: float) -> None:
        self._journal = journal
        self._keep_ms = int(keep_s * 1000)

    async def find(self, user: str, method: str, key: str) -> tuple[str, bytes] | None:
        rows = await self._journal.rows("idem", {"user": user, "method": method, "key": key})
        if not rows or rows[0]["ts"] < now_ms() - self._keep_ms:
            return None
        return rows[0]["digest"], rows[0]["result"]

    def keep(self, tx: Any, user: str, method: str, key: str, digest: str, result: bytes) -> None:
        row = {"user": user, "method": method, "key": key, "digest": digest, "result": result, "ts": now_ms()}
        tx.put(Put("idem", row))

    def expire(self, tx: Any) -> None:
        """Delete what is past its time."""
        tx.put(Drop("idem", {}, {"ts": now_ms() - self._keep_ms}))
