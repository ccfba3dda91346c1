"""Which of a user's conversations a client means by a name of its own."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from sag.plugin import Fault, Hub, User


class Thread(Struct):
    """What a name stands for.

    Attributes:
        conv: The conversation, None where the name is new.
        run: The run in it that rests.
        heard: The client's ids of the messages behind its last answer that the hub was told.
    """

    conv: str | None = None
    run: str | None = None
    heard: list[str] = []


class Threads:
    """What names of clients stand for.

    Args:
        hub: The plugin's hub.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, user: User, name: str) -> asyncio.Lock:
        """Held from looking a name up until it is kept."""
        return self._locks.setdefault(_key(user, name), asyncio.Lock())

    async def find(self, user: User, name: str) -> Thread:
        """What a name stands for: one that a client made up, or the hub's own id of a conversation."""
        kept = await self._hub.kv.get(_key(user, name))
        thread = msgspec.convert(kept, Thread) if kept is not None else Thread(name)
        try:
            await self._hub.state(user.id, f"conv:{thread.conv}")
        except Fault:
            return Thread()
        return thread

    async def keep(self, user: User, name: str, thread: Thread) -> None:
        """Remember what a name stands for."""
        await self._hub.kv.put(_key(user, name), msgspec.to_builtins(thread))


def _key(user: User, name: str) -> str:
    return f"thread {user.id} {hashlib.sha256(name.encode(errors='replace')).hexdigest()}"
