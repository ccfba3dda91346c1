"""A topic: its log's tip, its state, its recent events, and who reads it; and the registry of all topics.

State is folded when an event is appended; whatever shows it to somebody waits until the journal has committed it
(protocol section 3, the promise). Readers are cursors: on commit each is offered the new events, and one that is
behind reads forward by itself. Above: store, hooks, engine, hub. Below: the reducers and a journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import msgspec

from sag.errors import Fault
from sag.schema.events import Event
from sag.schema.ids import new_gen, now_ms
from sag.settings import crash_at
from sag.topics.backlog import Backlog
from sag.topics.journal import Drop, Journal, Kept, Put, Unit, ignore, sizes
from sag.topics.merge import Entry, encode, frame, join_deltas, tails
from sag.topics.reducers import FAMILIES, Reducer

BATCH_BYTES = 256 << 10  # of bodies in a frame; one event alone may be larger
RING_BYTES = 256 << 10
RING_EVENTS = 1024
TICK_CHARS = 64 << 10  # of text that wait for the tick; more goes at once
SNAPSHOT_EVERY = 2_000
IDLE_TOPICS = 256
ABSENT_TOPICS = 1024

_decode = msgspec.json.Decoder().decode
T = TypeVar("T")


class Batch:
    """Newly committed events of one topic, made into bytes once for all readers."""

    __slots__ = ("_objects", "after", "cache", "entries", "last")

    def __init__(self, after: int, entries: list[Entry]) -> None:
        self.after = after
        self.entries = entries
        self.last = entries[-1].off
        self._objects: list[bytes] | None = None
        self.cache: dict[int, bytes] = {}

    def text(self, t: int) -> bytes:
        """The frame's text under a topic handle."""
        if self._objects is None:
            self._objects = tails(self.entries, self.after)
        return frame(t, self._objects)


def _batches(after: int, entries: list[Entry]) -> Iterator[Batch]:
    """Entries in batches that each make a frame within its limit, however much one commit kept."""
    first = size = 0
    for i, entry in enumerate(entries if sizes(entries) > BATCH_BYTES else ()):
        size += len(entry.body)
        if size > BATCH_BYTES and i > first:
            yield Batch(after, entries[first:i])
            after, first, size = entries[i - 1].off, i, len(entry.body)
    yield Batch(after, entries[first:])


class Reader(Protocol):
    """Whoever follows a topic."""

    def offer(self, topic: Topic, batch: Batch) -> None:
        """New events were committed."""

    def ephemeral(self, topic: Topic, name: str, body: bytes) -> None:
        """Something passed by that is not kept."""

    def ended(self, topic: Topic, reason: str) -> None:
        """The topic can be read no longer from here: `deleted`, `denied` or `gen`."""


class Topic:
    """One ordered log.

    Attributes:
        owner: The user whose it is; "" is everybody's.
        name: As clients name it.
        gen: The generation.
        tip: The newest offset, committed or not.
        head: The newest committed offset.
        first: The oldest offset that can be replayed.
        fold: The reducer with the state at `tip`.
        readers: Who follows.
    """

    __slots__ = (
        "_chars", "_deltas", "_opened", "_ring", "_ring_bytes", "_snap_off", "_uncommitted", "_waiters",
        "birth", "first", "fold", "gen", "head", "lost", "name", "owner", "pins", "readers", "tid", "tip",
    )  # fmt: skip

    def __init__(self, owner: str, name: str, tid: int, gen: str, fold: Reducer, head: int, first: int) -> None:
        self.owner, self.name, self.tid, self.gen, self.fold = owner, name, tid, gen, fold
        self.tip = self.head = head
        self.first = first
        self.readers: dict[Reader, None] = {}
        self.pins = 0
        self.birth: Put | None = None
        self.lost: Fault | None = None
        self._ring: deque[Entry] = deque()
        self._ring_bytes = 0
        self._uncommitted: deque[Entry] = deque()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._deltas: dict[int, list[str]] = {}
        self._chars = 0
        self._opened: set[int] = set()
        self._snap_off = 0

    @property
    def state(self) -> dict[str, Any]:
        return self.fold.state

    def recent(self, after: int, limit: int) -> list[Entry] | None:
        """Committed events after an offset from memory, about `limit` bytes; None where memory does not reach back."""
        if after >= self.head:
            return []
        if not self._ring or self._ring[0].off > after + 1:
            return None
        out: list[Entry] = []
        size = 0
        start = after + 1 - self._ring[0].off
        for i in range(start, len(self._ring)):
            entry = self._ring[i]
            if entry.off > self.head or (out and size + len(entry.body) > limit):
                break
            out.append(entry)
            size += len(entry.body)
        return out

    async def settled(self) -> None:
        """Wait until all that the state shows is committed.

        Raises:
            Fault: store.full and its like, when it could not be.
        """
        if self.lost:
            raise self.lost
        if self.tip == self.head:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self.tip, future))
        await future

    async def shown(self, look: Callable[[], T]) -> T:
        """What a look at the state gives, once all that it shows is committed.

        While a commit that failed is being undone it waits and looks again, so that reading goes on where nothing can
        be written.

        Args:
            look: Gives something of its own, which no later event changes.

        Raises:
            Fault: store.full and its like, when the state does not come back within 2 s; what `look` raises.
        """
        for _ in range(40):
            if not self.lost:
                seen = look()
                with contextlib.suppress(Fault):
                    await self.settled()
                    return seen
            await asyncio.sleep(0.05)
        raise self.lost or Fault("store.unavailable")

    def can_replay(self, gen: str | None, off: int | None) -> bool:
        """Whether a reader that stands at `off` can be given all that follows."""
        return gen == self.gen and off is not None and self.first - 1 <= off <= self.head

    # the registry's side

    def _append(self, name: str, key: str | None, ts: int, body: bytes, d: Any) -> Entry:
        self.fold.fold(name, d)
        self.tip += 1
        entry = Entry(self.tip, name, key, ts, body)
        self._uncommitted.append(entry)
        return entry

    def _committed(self, upto: int) -> None:
        after, entries = self.head, self._uncommitted
        fresh = [entry for entry in entries if entry.off <= upto]
        if not fresh:
            return
        if len(fresh) == len(entries):
            entries.clear()
        else:
            for _ in fresh:
                entries.popleft()
        self.head = upto
        self._ring.extend(fresh)
        self._ring_bytes += sizes(fresh)
        while len(self._ring) > 1 and (self._ring_bytes > RING_BYTES or len(self._ring) > RING_EVENTS):
            self._ring_bytes -= len(self._ring.popleft().body)
        if self.readers:
            for batch in _batches(after, fresh):
                for reader in list(self.readers):
                    reader.offer(self, batch)
        if self._waiters:
            waiting, self._waiters = self._waiters, []
            for off, future in waiting:
                if off > upto:
                    self._waiters.append((off, future))
                elif not future.done():
                    future.set_result(None)

    def _fail(self, fault: Fault) -> None:
        self.lost = fault
        waiting, self._waiters = self._waiters, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(fault)


class Transaction:
    """Events and rows that commit together. Appends and `submit` are made without an await in between.

    A transaction that was begun with an idempotency key carries the answer that is kept under it.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._unit = Unit()
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handed: Sequence[Callable[[], None]] = ()
        self._after: Sequence[Callable[[], None]] = ()
        self._undo: Sequence[Callable[[], None]] = ()
        self._touched: dict[Topic, int] = {}
        self._size = 0
        self.submitted = False

    @property
    def empty(self) -> bool:
        return not self._unit.events and not self._unit.writes

    def append(self, topic: Topic, event: Event) -> int:
        """Append an event and give its offset.

        Raises:
            Fault: The one that a failed write gave (store.full …), until the topic was read again.
        """
        return self._add(topic, event.NAME, event.KEY, event)

    def append_raw(self, topic: Topic, name: str, d: Any, key: str | None = None) -> int:
        """Append an event of a plugin's topic whose `d` is plain JSON."""
        return self._add(topic, name, None, d, key)

    def _add(self, topic: Topic, name: str, key_member: str | None, event: Any, key: str | None = None) -> int:
        if topic.lost:
            self._abandon(topic.lost)
            raise topic.lost
        body = encode(event)
        d = _decode(body)
        if topic._deltas:
            self._topics.flush_deltas(topic, self)
        if key_member is not None:
            key = str(d[key_member])
        ts = now_ms()
        if topic.birth is not None:
            self.touch(topic)
        entry = topic._append(name, key, ts, body, d)
        self._unit.events.append((topic.tid, entry))
        self._touched[topic] = entry.off
        self._unit.writes.extend(self._topics.project(topic, name, d, ts))
        return entry.off

    def _abandon(self, fault: Fault) -> None:
        """Half of it cannot be; the topics of the other half are ahead of what will be kept, so they are read again."""
        for topic in self._touched:
            self._topics.lose(topic, fault)
        self._unit.events.clear()
        self._unit.writes.clear()

    def touch(self, topic: Topic) -> None:
        """See to it that a new topic is kept with this transaction."""
        if topic.birth is not None:
            self._unit.writes.append(topic.birth)
            topic.birth = None
            self._touched.setdefault(topic, 0)

    def add_deltas(self, topic: Topic, parts: list[Any]) -> None:
        """Append one delta event; `Topics.delta` is what others call."""
        entry = topic._append("delta", None, now_ms(), encode(parts), parts)
        self._unit.events.append((topic.tid, entry))
        self._touched[topic] = entry.off

    def put(self, *writes: Put | Drop) -> None:
        """Add rows to write."""
        self._unit.writes.extend(writes)

    def handed(self, call: Callable[[], None]) -> None:
        """Call when it goes to the journal: what is submitted from the next turn on is kept after it or not at all.

        A task that begins then has its first events in the same commit.
        """
        self._handed = (*self._handed, call)

    def after(self, call: Callable[[], None]) -> None:
        """Call when the commit is done; not called when it fails."""
        self._after = (*self._after, call)

    def undo(self, call: Callable[[], None]) -> None:
        """Call when the commit fails, before its topics are read again."""
        self._undo = (*self._undo, call)

    def submit(self, crash: str | None = None) -> asyncio.Future[None]:
        """Hand everything to the journal.

        Args:
            crash: The name of this commit for SAG_CRASH_AT, in tests of what a kill leaves behind.

        Returns:
            Done when committed; failed with a Fault otherwise. It may be left unawaited.
        """
        self.submitted = True
        unit = self._unit
        unit.crash = crash
        unit.done = self._done
        self._size = sum([len(entry.body) for _, entry in unit.events])
        self._topics.backlog.add(self._size)
        for call in self._handed:  # before the journal asks for the turn in which it looks what there is
            call()
        self._topics.journal.submit(unit)
        return self._future

    def _done(self, fault: Fault | None) -> None:
        self._unit.done = ignore  # or the two would hold each other until a garbage collection
        self._topics.backlog.add(-self._size)
        # The future is the caller's alone: one that is cancelled while it waits must not keep the rest from being told.
        future = self._future
        if fault is not None:
            for topic in self._touched:
                self._topics.lose(topic, fault)
            for call in self._undo:
                call()
            if not future.done():
                future.set_exception(fault)
                future.exception()  # it may be left unawaited
            return
        crash_at("commit_before_send")
        for call in self._after:
            call()
        if self._unit.writes:
            self._topics.kept(self._unit.writes)
        self._topics.show(self._touched)
        if not future.done():
            future.set_result(None)


Projection = Callable[[Topic, str, Any, int], Iterable["Put | Drop"]]


class Topics:
    """All topics of the hub, loaded as they are asked for.

    Args:
        journal: Where they are kept.
        tick_ms: How often merged deltas go out; 0 means at once.
        project: Makes the rows of listings from an event, within its commit.

    Attributes:
        kept: Is called with the rows of each commit.
    """

    def __init__(self, journal: Journal, tick_ms: float = 33.0, project: Projection | None = None) -> None:
        self.journal = journal
        journal.told = self._show
        self.families: dict[str, Callable[[str], Reducer]] = dict(FAMILIES)
        self.project: Projection = project or (lambda *_: ())
        self.kept: Callable[[Sequence[Put | Drop]], None] = lambda _: None
        self.backlog = Backlog()
        self._tick_s = tick_ms / 1000
        self._loaded: OrderedDict[tuple[str, str], Topic] = OrderedDict()
        self._loading: dict[tuple[str, str], asyncio.Future[Topic | None]] = {}
        self._absent: set[tuple[str, str]] = set()
        self._dirty: dict[Topic, None] = {}
        self._fresh: dict[Topic, int] = {}
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    # finding

    async def find(self, owner: str, name: str) -> Topic | None:
        """A user's topic, or None. A thing of another user is not found by construction: the owner is in its key."""
        if name.partition(":")[0] not in self.families:
            return None  # of a plugin that is not there
        key = (owner, name)
        topic = self._loaded.get(key)
        if topic is not None:
            self._loaded.move_to_end(key)
            return topic
        if key in self._absent:
            return None
        future = self._loading.get(key)
        if future is None:
            future = self._loading[key] = asyncio.ensure_future(self._load(owner, name))
            future.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(future)

    async def _load(self, owner: str, name: str) -> Topic | None:
        kept = await self.journal.load(owner, name)
        if (owner, name) in self._loaded:
            return self._loaded[owner, name]
        if kept is None:
            # Every run asks for its client's settings, which most clients do not have.
            if len(self._absent) >= ABSENT_TOPICS:
                self._absent.clear()
            self._absent.add((owner, name))
            return None
        topic = Topic(owner, name, kept.tid, kept.gen, self._reducer(name), kept.head, kept.first)
        self._restore(topic, kept)
        return self._keep(topic)

    def _restore(self, topic: Topic, kept: Kept) -> None:
        fold = self._reducer(topic.name)
        if kept.snap is not None:
            fold.load(_decode(kept.snap))
        for entry in kept.entries:
            fold.fold(entry.name, _decode(entry.body))
        topic.fold = fold
        topic.tip = topic.head = kept.head
        topic.first = kept.first
        topic._snap_off = kept.snap_off
        topic._uncommitted.clear()
        topic._deltas.clear()
        topic._chars = 0
        topic._ring.clear()
        topic._ring_bytes = 0
        topic.lost = None

    def _reducer(self, name: str) -> Reducer:
        family, _, id = name.partition(":")
        return self.families[family](id)

    def empty(self, topic: Topic) -> dict[str, Any]:
        """A topic's state before its first event."""
        return self._reducer(topic.name).state

    def _keep(self, topic: Topic) -> Topic:
        self._loaded[topic.owner, topic.name] = topic
        if len(self._loaded) > IDLE_TOPICS:
            self._evict()
        return topic

    def _evict(self) -> None:
        idle = (
            (key, topic)
            for key, topic in self._loaded.items()
            if not topic.readers and not topic.pins and topic.tip == topic.head and not topic._deltas
        )
        for key, topic in list(islice(idle, len(self._loaded) - IDLE_TOPICS)):
            if topic.head - topic._snap_off > 200:
                self.keep_snapshot(topic)
            del self._loaded[key]

    async def get(self, owner: str, name: str) -> Topic:
        """A user's topic, made where there is none: for those that always are (`user:me`, `client:<id>`, `hub`)."""
        topic = await self.find(owner, name) or self.create(owner, name)
        if topic.birth is not None:
            tx = self.begin()
            tx.touch(topic)
            await tx.submit()
        return topic

    def create(self, owner: str, name: str) -> Topic:
        """A new topic; it is kept with its first event."""
        if (topic := self._loaded.get((owner, name))) is not None:
            return topic
        tid, put = self.journal.new_topic(owner, name, gen := new_gen())
        topic = Topic(owner, name, tid, gen, self._reducer(name), 0, 1)
        topic.birth = put
        self._absent.discard((owner, name))
        return self._keep(topic)

    def discard(self, topic: Topic) -> None:
        """Forget a new topic whose events will not be submitted."""
        self._loaded.pop((topic.owner, topic.name), None)

    def loaded(self) -> Iterable[Topic]:
        return list(self._loaded.values())

    # writing

    def begin(self) -> Transaction:
        return Transaction(self)

    def emit(self, topic: Topic, *events: Event, crash: str | None = None) -> asyncio.Future[None]:
        """Append events in one commit."""
        tx = self.begin()
        for event in events:
            tx.append(topic, event)
        return tx.submit(crash)

    def pass_by(self, topic: Topic, event: Event) -> None:
        """Tell the live readers of an event of class ephemeral."""
        body = encode(event)
        for reader in list(topic.readers):
            reader.ephemeral(topic, event.NAME, body)

    def delta(self, topic: Topic, part: int, text: str) -> None:
        """Add text to an open part: the first of a part at once, later ones at the tick, merged; much of it at once."""
        topic._chars += len(text)
        pieces = topic._deltas.get(part)
        if pieces is None:
            topic._deltas[part] = [text]
        else:
            pieces.append(text)
        if part not in topic._opened or topic._chars > TICK_CHARS:
            topic._opened.add(part)
            tx = self.begin()
            self.flush_deltas(topic, tx)
            if not tx.empty:
                tx.submit()
            return
        if pieces is not None:
            return
        self._dirty[topic] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._tick_s, self._tick) if self._tick_s else loop.call_soon(self._tick)

    def open_part(self, topic: Topic, event: Event, part: int, text: str) -> None:
        """Open a part with its first text in one commit."""
        tx = self.begin()
        tx.append(topic, event)
        if text:
            topic._opened.add(part)
            tx.add_deltas(topic, [part, text])
        tx.submit()

    def flush_deltas(self, topic: Topic, tx: Transaction) -> None:
        """Put the text that waits into a transaction, before what follows it."""
        parts: list[Any] = []
        for part, pieces in topic._deltas.items():
            parts += (part, "".join(pieces))
        topic._deltas.clear()
        topic._chars = 0
        self._dirty.pop(topic, None)
        if parts and not topic.lost:
            tx.add_deltas(topic, parts)

    def close_part(self, topic: Topic, part: int) -> None:
        """Forget that a part's first delta went out."""
        topic._opened.discard(part)

    def _tick(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, {}
        tx = self.begin()
        for topic in dirty:
            self.flush_deltas(topic, tx)
        if not tx.empty:
            tx.submit()

    # telling

    def show(self, committed: dict[Topic, int]) -> None:
        """Let topics' readers have what was committed, as far as an offset of each.

        What one commit of the journal kept goes out together, before whoever waits for a transaction goes on: in one
        frame for each reader, whose way through the kernel costs most of all.
        """
        self._fresh |= committed

    def _show(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for topic, off in fresh.items():
            topic._committed(off)
            if topic.tip == topic.head > topic._snap_off + SNAPSHOT_EVERY:
                self.keep_snapshot(topic)

    # trouble, keeping and deleting

    def lose(self, topic: Topic, fault: Fault) -> None:
        """A commit failed: the state in memory is ahead of the truth, so read it again."""
        if not topic.lost:
            topic._fail(fault)
            task = asyncio.ensure_future(self._reload(topic))
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self, topic: Topic) -> None:
        for delay in (0.05, 0.2, 0.5, *[1.0] * 600):
            await asyncio.sleep(delay)
            try:
                kept = await self.journal.load(topic.owner, topic.name)
            except Fault:
                continue
            if kept is None:
                topic.tid, topic.birth = self.journal.new_topic(topic.owner, topic.name, topic.gen)
                kept = Kept(topic.tid, topic.gen, 1, 0, 0, None, [])
            self._restore(topic, kept)
            return

    def keep_snapshot(self, topic: Topic) -> asyncio.Future[None]:
        """Keep the state, so that loading the topic need not fold its whole log. All that it shows is committed."""
        dump = getattr(topic.fold, "dump", None)
        state = dump() if dump else topic.state
        tx = self.begin()
        tx.put(Put("snapshot", {"topic": topic.tid, "off": topic.tip, "state": encode(state)}))
        topic._snap_off = topic.tip
        return tx.submit()

    async def trim(self, topic: Topic, upto: int) -> None:
        """Forget a topic's events up to an offset; its state is kept first.

        Raises:
            Fault: store.full and its like.
        """
        while topic.tip != topic.head:
            await topic.settled()
        await self.keep_snapshot(topic)
        tx = self.begin()
        tx.put(Drop("event", {"topic": topic.tid}, {"off": upto}))
        await tx.submit()
        topic.first = max(topic.first, upto + 1)

    def delete(self, tx: Transaction, topic: Topic) -> None:
        """Delete a topic and its log with this transaction, and tell its readers."""
        for table in ("event", "snapshot"):
            tx.put(Drop(table, {"topic": topic.tid}))
        tx.put(Drop("topic", {"id": topic.tid}))
        topic.lost = Fault("topic.unknown", "The topic was deleted.")

        def tell() -> None:
            self._loaded.pop((topic.owner, topic.name), None)
            for reader in list(topic.readers):
                reader.ended(topic, "deleted")
            topic.readers.clear()

        def undo() -> None:
            topic.lost = None
            self.lose(topic, Fault("store.unavailable"))

        tx.after(tell)
        tx.undo(undo)

    async def close(self) -> None:
        """Flush deltas, keep the states of what changed much, and close the journal."""
        self._tick()
        for topic in self.loaded():
            if topic.head - topic._snap_off > 200 and topic.tip == topic.head and not topic.lost:
                self.keep_snapshot(topic)
        for task in list(self._reloads):
            task.cancel()
        await self.journal.close()


__all__ = ["Batch", "Reader", "Topic", "Topics", "Transaction", "join_deltas"]
