"""The registry of topics: what it spares the journal, the clock and the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sag.schema.events import ConvPatch, MessageAdd, PartOpen
from sag.topics.merge import Entry
from sag.topics.sqlite import SqliteJournal
from sag.topics.topic import TICK_CHARS, Topics, _batches


@pytest.fixture
async def topics(tmp_path: Path) -> AsyncIterator[Topics]:
    made = Topics(SqliteJournal(tmp_path), tick_ms=60_000)
    yield made
    await made.close()


async def test_a_topic_that_is_not_there_is_asked_for_once(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    load = topics.journal.load

    async def count(owner: str, name: str) -> object:
        asked.append(name)
        return await load(owner, name)

    monkeypatch.setattr(topics.journal, "load", count)
    for _ in range(3):
        assert await topics.find("u1", "client:c1") is None
    assert asked == ["client:c1"]
    made = await topics.get("u1", "client:c1")
    assert await topics.find("u1", "client:c1") is made
    assert await topics.find("u2", "client:c1") is None


async def test_much_text_does_not_wait_for_the_tick(topics: Topics) -> None:
    topic = topics.create("u1", "conv:c1")
    await topics.emit(topic, MessageAdd("m1", "assistant", 1, [], "r1"))
    topics.open_part(topic, PartOpen(1, "r1", "m1", "text", 1), 1, "begin ")
    await topic.settled()
    head = topic.head
    for _ in range(4):
        topics.delta(topic, 1, "x" * (TICK_CHARS // 4))
    await topic.settled()
    assert topic.head == head
    topics.delta(topic, 1, "y")
    await topic.settled()
    assert topic.head == head + 1
    assert topic.state["messages"][0]["parts"][0]["text"] == "begin " + "x" * TICK_CHARS + "y"
    assert topics.backlog.size == 0


async def test_what_is_committed_is_freed_without_a_garbage_collection(topics: Topics) -> None:
    topic = topics.create("u1", "conv:c1")
    gc.disable()
    try:
        tx = topics.begin()
        tx.append(topic, ConvPatch({"title": "t"}))
        freed = weakref.ref(tx)
        await tx.submit()
        await asyncio.sleep(0)
        del tx
        assert freed() is None
    finally:
        gc.enable()


def test_what_one_commit_kept_is_told_in_batches_that_fit_a_frame() -> None:
    sizes = [10, 200_000, 200_000, 900_000, 5, 5]
    entries = [Entry(7 + i, "delta", None, 0, b"x" * size) for i, size in enumerate(sizes)]
    batches = list(_batches(6, entries))
    assert [[len(e.body) for e in batch.entries] for batch in batches] == [[10, 200_000], [200_000], [900_000], [5, 5]]
    assert [(batch.after, batch.last) for batch in batches] == [(6, 8), (8, 9), (9, 10), (10, 12)]
