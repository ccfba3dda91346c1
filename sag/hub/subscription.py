"""A reader's place in a topic's log, and the answer that a subscriber gets (protocol section 3).

Live delivery, replay after a cut and a slow reader are one thing: a cursor that reads forward. Above: the socket's
connection, server-sent events, plugins. Below: topics.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from sag.errors import Fault
from sag.ops.dispatch import User
from sag.topics.merge import Entry, encode
from sag.topics.snapshot import snapshot
from sag.topics.topic import Batch, Topic, Topics

READ_BYTES = 64 << 10
Json = dict[str, Any]


class Position(Struct, rename={"from_": "from"}):
    """Where a client stands in a topic, or from where it wants to begin."""

    gen: str | None = None
    off: int | None = None
    from_: Literal["head", "snapshot"] | None = None


class Subscribed(Struct):
    """The answer to a subscriber; `snap` is the whole state at `off`."""

    mode: Literal["replay", "snapshot"]
    gen: str
    off: int
    head: int
    t: int | UnsetType = UNSET
    snap: Raw | UnsetType = UNSET
    lost: Json | UnsetType = UNSET


async def resolve(topics: Topics, user: User, name: str) -> Topic:
    """A topic by the name under which a user knows it.

    Raises:
        Fault: topic.unknown.
    """
    family, _, id = name.partition(":")
    if name == "hub":
        return await topics.get("", "hub")
    if name == "user:me":
        return await topics.get(user.id, name)
    if family == "client" and 0 < len(id) <= 64 and all(c.isalnum() or c in "._-" for c in id):
        return await topics.get(user.id, name)
    if family in topics.families and id and family not in ("user", "client", "hub"):
        if family != "conv":  # a plugin's: everybody's if there is such a one, else the user's own
            return await topics.find("", name) or await topics.get(user.id, name)
        if (found := await topics.find(user.id, name)) is not None:
            return found
    raise Fault("topic.unknown", f"There is no topic {name[:80]!r}.")


def place_at_start(topics: Topics, topic: Topic) -> Subscribed:
    """Where a reader begins that is to get every event of a new topic."""
    return Subscribed("snapshot", topic.gen, 0, topic.head, snap=Raw(encode(topics.empty(topic))))


async def place(topic: Topic, at: Position, limit: int) -> Subscribed:
    """Where a subscriber begins: a replay from where it stands, or the state.

    Args:
        topic: What it subscribes to.
        at: Where it says that it stands.
        limit: The most bytes that a snapshot may have.

    Raises:
        Fault: topic.later where the state does not fit; store.full and its like.
    """
    if at.from_ == "head":
        return Subscribed("replay", topic.gen, topic.head, topic.head)
    if at.from_ is None and topic.can_replay(at.gen, at.off):
        assert at.off is not None
        return Subscribed("replay", topic.gen, at.off, topic.head)
    snap, off = await topic.shown(lambda: (snapshot(topic, limit), topic.tip))
    answer = Subscribed("snapshot", topic.gen, off, topic.head, snap=Raw(snap))
    if at.from_ is None and at.off is not None:
        answer.lost = {"gen": at.gen or topic.gen, "from": at.off}
    return answer


async def read_on(topics: Topics, topic: Topic, after: int) -> list[Entry]:
    """Committed events after an offset, from memory or the journal; empty where there are none.

    Raises:
        Fault: topic.unknown where history is gone.
    """
    if after >= topic.head:
        return []
    entries = topic.recent(after, READ_BYTES)
    if entries is None:
        if after < topic.first - 1:
            raise Fault("topic.unknown", "The history is gone; subscribe again.")
        entries = await topics.journal.read(topic.tid, after, topic.head, READ_BYTES)
        if not entries or entries[0].off != after + 1:
            raise Fault("topic.unknown", "The history is gone; subscribe again.")
    return entries


class Follower:
    """A reader that is woken and reads forward by itself: server-sent events and plugins."""

    def __init__(self, topics: Topics, topic: Topic, cursor: int) -> None:
        self._topics = topics
        self.topic = topic
        self.cursor = cursor
        self._wake = asyncio.Event()
        self.reason: str | None = None
        topic.readers[self] = None
        self._wake.set()

    def offer(self, topic: Topic, batch: Batch) -> None:
        self._wake.set()

    def ephemeral(self, topic: Topic, name: str, body: bytes) -> None:
        return

    def ended(self, topic: Topic, reason: str) -> None:
        self.reason = reason
        self._wake.set()

    async def next(self) -> list[Entry]:
        """What follows the cursor now, which the caller moves; empty where there is nothing."""
        return await read_on(self._topics, self.topic, self.cursor)

    async def woken(self, timeout_s: float) -> bool:
        """Wait for news; False when there were none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def close(self) -> None:
        self.topic.readers.pop(self, None)
