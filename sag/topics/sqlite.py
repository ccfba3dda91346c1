"""The embedded journal: one SQLite file in WAL mode, one writer thread with group commit, one reading thread.

All writes go through one connection (measured: group commit 144,000 rows/s against 1,300 transactions/s through an
async toolkit; SQLite before 3.51.3 has a corruption bug with two writing connections). The reader never checkpoints.

What runs write is committed to the tail (`sag.topics.tail`) and goes into the database many commits at a time, or
when nothing came for a moment, or before something is read: a tenth of the pages, and of the wear of a memory card.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import queue
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from sag.errors import Fault, StartError
from sag.schema.ids import new_gen
from sag.settings import crash_at
from sag.topics.journal import Drop, Kept, Put, Row, Unit
from sag.topics.merge import Entry
from sag.topics.tail import EPOCH_BYTES, Tail

log = logging.getLogger("sag.topics")
GROUP = 500
WAIT_S = 0.05  # for more, before what waits in the tail goes into the database
RETRY_S = 1.0  # after that failed
BUSY_MS, HURRY_MS = 5000, 100  # how long another program's lock is waited for
WAITING_S, WAITING_EVENTS, WAITING_BYTES = 1.0, 1024, 1 << 20  # at most, about
# Rows that the hub makes of events and requests: those alone wait in the tail, if it is sure that they can be kept.
WAITING = ("topic", "conversation", "run", "ask", "usage", "idem")
PLAIN = frozenset({str, bytes, int, float, type(None)})
LARGEST = (1 << 63) - 1
EventRow = tuple[int, str, str | None, int, bytes]  # id, name, key, ts and body
T = TypeVar("T")

# One script for each version of the schema, in order. A script that was released is never changed. What waits in the
# tail is written after them, so that a column of `WAITING` cannot be renamed or dropped.
MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE topic (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, gen TEXT NOT NULL,
        UNIQUE (owner, name));
    CREATE TABLE event (topic INTEGER NOT NULL, off INTEGER NOT NULL, name TEXT NOT NULL, key TEXT,
        ts INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (topic, off));
    CREATE TABLE snapshot (topic INTEGER PRIMARY KEY, off INTEGER NOT NULL, state BLOB NOT NULL);
    CREATE TABLE idem (user TEXT NOT NULL, method TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
        result BLOB NOT NULL, ts INTEGER NOT NULL, PRIMARY KEY (user, method, key)) WITHOUT ROWID;
    CREATE INDEX idem_ts ON idem (ts);
    CREATE TABLE token (id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, user TEXT NOT NULL, name TEXT NOT NULL,
        roles TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER) WITHOUT ROWID;
    CREATE TABLE kv (space TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (space, key)) WITHOUT ROWID;
    CREATE TABLE conversation (id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, created INTEGER NOT NULL,
        updated INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX conversation_owner ON conversation (owner, updated);
    CREATE TABLE run (id TEXT PRIMARY KEY, owner TEXT NOT NULL, conv TEXT NOT NULL, kind TEXT NOT NULL,
        status TEXT NOT NULL, open INTEGER NOT NULL, ts INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX run_owner ON run (owner, ts);
    CREATE INDEX run_conv ON run (conv, ts);
    CREATE INDEX run_open ON run (open) WHERE open = 1;
    CREATE TABLE ask (id TEXT PRIMARY KEY, owner TEXT NOT NULL, conv TEXT NOT NULL, outcome BLOB) WITHOUT ROWID;
    CREATE INDEX ask_conv ON ask (conv);
    CREATE TABLE blob (ref TEXT PRIMARY KEY, owner TEXT NOT NULL, digest TEXT NOT NULL, mime TEXT NOT NULL,
        name TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE usage (day TEXT NOT NULL, owner TEXT NOT NULL, run TEXT NOT NULL, step INTEGER NOT NULL,
        conv TEXT NOT NULL, model TEXT NOT NULL, agent TEXT, client TEXT, input INTEGER NOT NULL,
        output INTEGER NOT NULL, reasoning INTEGER NOT NULL, cached INTEGER NOT NULL, cache_write INTEGER NOT NULL,
        nano_usd INTEGER, ms INTEGER, ts INTEGER NOT NULL, PRIMARY KEY (day, owner, run, step)) WITHOUT ROWID;
    CREATE INDEX usage_owner ON usage (owner, day);
    CREATE INDEX usage_conv ON usage (conv);
    CREATE INDEX usage_run ON usage (run);
    """,
    # A run wrote 26 pages, of which ten were those of events' own index, and of indexes that were written more often
    # than read. What names an event is the topic's number and the offset as one whole number.
    """
    CREATE TABLE entry (id INTEGER PRIMARY KEY, name TEXT NOT NULL, key TEXT, ts INTEGER NOT NULL, body BLOB NOT NULL);
    INSERT INTO entry SELECT topic << 32 | off, name, key, ts, body FROM event ORDER BY topic, off;
    DROP TABLE event;
    ALTER TABLE entry RENAME TO event;
    DROP INDEX run_open;
    DROP INDEX usage_owner;
    DROP INDEX usage_run;
    """,
)
OFFSET = (1 << 32) - 1  # the bits of an event's id that are its offset; those above are its topic's number

KEYS: dict[str, tuple[str, ...]] = {
    "meta": ("name",),
    "topic": ("id",),
    "snapshot": ("topic",),
    "idem": ("user", "method", "key"),
    "token": ("id",),
    "kv": ("space", "key"),
    "conversation": ("id",),
    "run": ("id",),
    "ask": ("id",),
    "blob": ("ref",),
    "usage": ("day", "owner", "run", "step"),
}

# Columns that a row keeps: what is written again, be it the same, is written in its indexes too.
FIXED: dict[str, tuple[str, ...]] = {"run": ("owner", "conv", "kind", "ts")}


def boot_id() -> str:
    """What tells this boot of the machine from another; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


INSERT = "INSERT INTO event VALUES (?, ?, ?, ?, ?)"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[EventRow], list[tuple[str, Row]]]).decode


class Waiting(NamedTuple):
    """What is committed and not in the database, where that cannot take it."""

    events: Sequence[EventRow] = ()
    puts: Sequence[Put] = ()


class SqliteJournal:
    """Keeps topics and the hub's tables in one file.

    Args:
        folder: The data folder; made where it is missing.
        sync: `normal` syncs at checkpoints (a power loss may take what is newest), `full` at each commit.

    Attributes:
        told: As of `Journal`.
        after_commit: Is called in the writer's thread after each commit, before anybody is told of it; tests copy the
            folder there, which is what a kill at that moment leaves.

    Raises:
        StartError: Another hub uses the folder, the file is newer than this program or damaged.
    """

    def __init__(self, folder: Path, sync: str = "normal") -> None:
        self._sync = sync
        self.told: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock = os.open(folder / "sag.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StartError(f"{folder}: cannot be used as the data folder: {e.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StartError(
                f"{folder}: another hub is using this data folder; stop it or name another with --data"
            ) from None
        self.path = folder / "sag.db"
        try:
            self._write = self._open()
            self._tail = Tail(folder / "sag.tail", sync == "full")
            self._sql: dict[tuple[Any, ...], str] = {}
            self._migrate()
            self._start()
            self._read = self._open(read=True)
        except (sqlite3.DatabaseError, OSError, ValueError, msgspec.MsgspecError) as e:
            with contextlib.suppress(AttributeError):
                self._write.close()
                self._tail.close()
            os.close(self._lock)
            raise StartError(f"{self.path}: {e}; restore it from a backup or move it away to start anew", 74) from None
        # What waits in the tail: events, and rows by table and primary key. The loop looks at it too while the database
        # cannot take it: nothing is added then, and once it is there, lists and flags are replaced in this order.
        self._events: list[EventRow] = []
        self._puts: dict[tuple[Any, ...], Put] = {}
        self._size = 0
        self._since = 0.0  # when the first of it was committed
        self._is_behind = False  # the database lacks what waits
        self._is_stuck = False  # the last write failed in a way that is no unit's fault: none goes past the database
        self._needed: dict[tuple[Any, ...], list[int] | None] = {}  # of a table's columns, those that may not be null
        self._heads: dict[int, int] = {}
        self._broken: dict[int, Fault] = {}  # why the last write to a topic failed, for those that follow it
        self._next_topic = (self._write.execute("SELECT max(id) FROM topic").fetchone()[0] or 0) + 1
        self._queue: queue.SimpleQueue[list[Unit] | asyncio.Future[None] | None] = queue.SimpleQueue()
        self._fresh: list[Unit] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = ThreadPoolExecutor(1, "sag-journal-read")
        self._thread = threading.Thread(target=self._work, name="sag-journal", daemon=True)
        self._thread.start()
        self._closed = False

    # opening

    def _open(self, read: bool = False) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        db.execute("PRAGMA journal_mode=WAL")
        self._set_sync(db)
        if read:
            db.execute("PRAGMA query_only=1")
            db.execute("PRAGMA wal_autocheckpoint=0")
            db.execute("PRAGMA cache_size=-1024")
        return db

    def _set_sync(self, db: sqlite3.Connection) -> None:
        db.execute(f"PRAGMA synchronous={'FULL' if self._sync == 'full' else 'NORMAL'}")

    def _migrate(self) -> None:
        version = self._write.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StartError(f"{self.path}: made by a newer sag (schema {version}); update sag to open it")
        if 0 < version < len(MIGRATIONS):
            self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copyfile(self.path, self.path.with_suffix(f".v{version}.bak"))
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._write.execute("BEGIN IMMEDIATE")
            for i, statement in enumerate(s for s in script.split(";") if s.strip()):
                if i == 3:
                    crash_at("migration_step")
                self._write.execute(statement)
            self._write.execute(f"PRAGMA user_version={number}")
            self._write.execute("COMMIT")

    def _start(self) -> None:
        """After an unclean stop and another boot the tail may be gone, so that every topic begins a generation."""
        kept = dict(self._write.execute("SELECT name, value FROM meta"))
        boot = boot_id()
        unclean = kept.get("clean") == "0"
        tail_may_be_gone = unclean and (not boot or kept.get("boot") != boot) and kept.get("sync") != "full"
        # A power loss must not take what tells the next start that it may have taken more.
        self._write.execute("PRAGMA synchronous=FULL")
        self._write.execute("BEGIN IMMEDIATE")
        records, damaged = self._tail.read(bytes.fromhex(kept.get("epoch", "")), int(kept.get("tail", 0)))
        if damaged and not tail_may_be_gone:
            raise sqlite3.DatabaseError("sag.tail beside it is damaged")
        for record in records:
            events, puts = _decode(record)
            self._write.executemany(INSERT, events)
            for table, row in puts:
                self._apply(Put(table, row))
        if tail_may_be_gone:
            for (tid,) in self._write.execute("SELECT id FROM topic").fetchall():
                self._write.execute("UPDATE topic SET gen = ? WHERE id = ?", (new_gen(), tid))
        epoch = secrets.token_bytes(EPOCH_BYTES)
        rows = [("clean", "0"), ("boot", boot), ("sync", self._sync), ("epoch", epoch.hex()), ("tail", "0")]
        self._write.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self._write.execute("COMMIT")
        self._set_sync(self._write)
        self._tail.begin(epoch)

    # writing

    def new_topic(self, owner: str, name: str, gen: str) -> tuple[int, Put]:
        tid = self._next_topic
        self._next_topic += 1
        return tid, Put("topic", {"id": tid, "owner": owner, "name": name, "gen": gen})

    def submit(self, unit: Unit) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._closed:
            self._loop.call_soon(unit.done, Fault("store.unavailable", "The hub is going down."))
            return
        if not self._fresh:
            self._loop.call_soon(self._hand_over)
        self._fresh.append(unit)

    def _hand_over(self) -> None:
        """Give the writer thread what was submitted in a turn of the loop: waking it costs more than a small commit."""
        if self._fresh:
            self._queue.put(self._fresh)
            self._fresh = []

    def _work(self) -> None:
        """The writer thread: take all that waits, commit it at once, tell the loop once."""
        # On a core that both share, the thread would be let in where the loop wakes it, only to wait for the
        # interpreter's lock that the loop still has (measured: 6 % of the CPU of a run, and five switches).
        with contextlib.suppress(AttributeError, OSError):  # Linux alone has it, and some containers refuse it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        ending = False
        while not ending:
            try:
                taken = [self._queue.get(timeout=(RETRY_S if self._is_stuck else WAIT_S) if self._is_behind else None)]
            except queue.Empty:
                self._catch_up()
                continue
            while len(taken) < GROUP:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ending = None in taken
            if units := [unit for turn in taken if isinstance(turn, list) for unit in turn]:
                done: list[tuple[Unit, Fault | None]]
                try:
                    self._commit(units)
                    done = [(u, None) for u in units]
                except Exception as e:
                    alone = len(units) == 1
                    done = [(u, self._note(u, e) if alone else self._retry(u)) for u in units]
                self._in_loop(self._tell, done)
            asked = [turn for turn in taken if isinstance(turn, asyncio.Future)]
            if ending or (asked and not self._is_stuck) or self._is_much:
                self._catch_up()
            if asked:
                self._in_loop(_answer, asked)

    def _tell(self, done: list[tuple[Unit, Fault | None]]) -> None:
        for unit, fault in done:
            try:
                unit.done(fault)
            except Exception:  # one listener's fault must not keep the others from being told
                log.exception("what follows a commit failed")
        self.told()

    def _in_loop(self, call: Callable[..., None], *given: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *given)

    def _retry(self, unit: Unit) -> Fault | None:
        """Commit one unit of a group that failed, so that it does not suffer for another's fault."""
        try:
            self._commit([unit])
        except Exception as e:
            return self._note(unit, e)
        return None

    def _note(self, unit: Unit, e: Exception) -> Fault:
        fault = _fault(e)
        for tid, _ in unit.events:
            self._broken[tid] = fault
        return fault

    def _commit(self, units: list[Unit]) -> None:
        heads: dict[int, int] = {}
        events: list[EventRow] = []
        waits = not self._is_stuck
        for unit in units:
            for tid, e in unit.events:
                head = heads.get(tid)
                if e.off != (self._head(tid) if head is None else head) + 1:
                    why = self._broken.get(tid)
                    raise why or Fault("store.unavailable", "An earlier event of the topic was not kept.")
                heads[tid] = e.off
                events.append((tid << 32 | e.off, e.name, e.key, e.ts, e.body))
            for write in unit.writes:
                waits = waits and isinstance(write, Put) and self._may_wait(write)
                if isinstance(write, Drop) and write.table == "event" and not write.upto:
                    heads[write.where["topic"]] = 0
        if waits and len(events) < WAITING_EVENTS / 4 and sum([len(row[4]) for row in events]) < WAITING_BYTES:
            self._append(units, events)
        else:
            self._write_through(units)
        self._heads |= heads
        for tid in heads:
            self._broken.pop(tid, None)
        self.after_commit()

    def _may_wait(self, put: Put) -> bool:
        """Whether the database is sure to take a row later on."""
        table, row = put
        columns = (table, *row)
        if columns not in self._needed:
            known = {c[1]: c[3] for c in self._write.execute(f"PRAGMA table_info({table})")} if table in WAITING else {}
            plain = all(c in known for c in row) and all(c in row for c, needed in known.items() if needed)
            self._needed[columns] = [i for i, c in enumerate(row) if known[c]] if known and plain else None
        needed = self._needed[columns]
        values = list(row.values())
        if needed is None or None in [values[i] for i in needed] or not PLAIN.issuperset(map(type, values)):
            return False
        if table == "topic" and not self._is_new(row):
            return False
        return max([v for v in values if type(v) is int], default=0) <= LARGEST  # the tail refuses what is too small

    def _is_new(self, topic: Row) -> bool:
        """Whether a topic's number and name are nobody's."""
        sql = "SELECT count(*) FROM topic WHERE id = ? OR (owner = ? AND name = ?)"
        given = (topic["id"], topic["owner"], topic["name"])
        waiting = [put.row for put in self._puts.values() if put.table == "topic"]
        return self._write.execute(sql, given).fetchone() == (0,) and not any(
            row["id"] == given[0] or (row["owner"], row["name"]) == given[1:] for row in waiting
        )

    def _append(self, units: list[Unit], events: list[EventRow]) -> None:
        """Commit to the tail."""
        puts: list[Put] = [write for unit in units for write in unit.writes]  # type: ignore[misc]
        for unit in units:
            if unit.crash:
                crash_at(unit.crash)
        if events:
            crash_at("append_before_commit")
        record = _encode((events, puts))
        try:
            self._tail.append(record)
        except OSError:
            self._is_stuck = True  # the next record might have the number of one that came to the disk after all
            raise
        for table, row in puts:
            key = (table, *[row[c] for c in KEYS[table]])
            if (before := self._puts.get(key)) is not None:
                row = before.row | row | {c: before.row[c] for c in FIXED.get(table, ()) if c in before.row}
            self._puts[key] = Put(table, row)
        self._events += events
        self._size += len(record)
        if not self._is_behind:
            self._is_behind, self._since = True, time.monotonic()

    def _write_through(self, units: list[Unit]) -> None:
        """Commit to the database, along with what waits."""
        db = self._write
        number = self._tail.number + 1
        db.execute("BEGIN IMMEDIATE")
        try:
            if self._is_behind:
                self._events.sort()
                db.executemany(INSERT, self._events)
                for put in self._puts.values():
                    self._apply(put)
            events: list[EventRow] = []
            for unit in units:
                events += [(tid << 32 | e.off, e.name, e.key, e.ts, e.body) for tid, e in unit.events]
                for write in unit.writes:
                    if isinstance(write, Drop) and write.table == "event":  # what it deletes has to be there
                        self._insert(events)
                    self._apply(write)
                if unit.crash:
                    crash_at(unit.crash)
            self._insert(events)
            db.execute("UPDATE meta SET value = ? WHERE name = 'tail'", (str(number),))
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        try:
            db.execute("COMMIT")
        except BaseException:
            self._is_stuck = True  # it may be there all the same, and a record of its number would not count
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._tail.restart(number)
        if any(isinstance(write, Drop) for unit in units for write in unit.writes):
            self._tail.clear()
        self._events, self._puts, self._size = [], {}, 0
        self._is_behind = self._is_stuck = False

    @property
    def _is_much(self) -> bool:
        """Whether enough waits to be written."""
        if len(self._events) > WAITING_EVENTS or self._size > WAITING_BYTES:
            return True
        return self._is_behind and time.monotonic() - self._since > WAITING_S

    def _catch_up(self) -> None:
        """Write what waits; where the database cannot take it, it goes on waiting, and nothing more does."""
        if self._is_behind:
            try:
                # It can be done later as well, and whoever reads or writes meanwhile has to wait.
                self._write.execute(f"PRAGMA busy_timeout={HURRY_MS}")
                self._write_through([])
            except Exception as e:
                if not self._is_stuck:
                    log.warning("the database cannot be written: %s", e)
                self._is_stuck = True
            finally:
                self._write.execute(f"PRAGMA busy_timeout={BUSY_MS}")

    def _insert(self, events: list[EventRow]) -> None:
        if events:
            self._write.executemany(INSERT, events)
            events.clear()
            crash_at("append_before_commit")

    def _head(self, tid: int) -> int:
        head = self._heads.get(tid)
        if head is None:
            head = self._heads[tid] = _end(self._write, tid, "max")
        return head

    def _apply(self, write: Put | Drop) -> None:
        if isinstance(write, Put):
            columns = tuple(write.row)
            sql = self._sql.get((write.table, *columns)) or self._put_sql(write.table, columns)
            self._write.execute(sql, tuple(write.row.values()))
            return
        if write.table == "event":
            tid, upto = write.where["topic"], write.upto.get("off", OFFSET)
            self._write.execute("DELETE FROM event WHERE id BETWEEN ? AND ?", (tid << 32, tid << 32 | upto))
            return
        where = " AND ".join([f"{c} = ?" for c in write.where] + [f"{c} <= ?" for c in write.upto])
        self._write.execute(f"DELETE FROM {write.table} WHERE {where}", (*write.where.values(), *write.upto.values()))

    def _put_sql(self, table: str, columns: tuple[str, ...]) -> str:
        keys = KEYS[table]
        rest = [c for c in columns if c not in keys and c not in FIXED.get(table, ())]
        update = f"UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in rest)}" if rest else "NOTHING"
        if missing := [k for k in keys if k not in columns]:
            raise Fault("rpc.internal", f"{table}: {missing} missing")
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT ({', '.join(keys)}) DO {update}"
        self._sql[(table, *columns)] = sql
        return sql

    # reading

    async def _in_reader(self, call: Callable[[Waiting], T]) -> T:
        """Read what is committed; what waits is given along where the database cannot take it."""
        if self._is_behind and not self._is_stuck:
            if self._closed:
                raise Fault("store.unavailable", "The hub is going down.")
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.put(future)
            await future
        # Whatever the writer does meanwhile, it is found in one of the two, or in both.
        waiting = Waiting(tuple(self._events), tuple(self._puts.values())) if self._is_stuck else Waiting()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, call, waiting)
        except sqlite3.Error as e:
            raise _fault(e) from e
        except RuntimeError as e:
            raise Fault("store.unavailable", "The hub is going down.") from e

    async def load(self, owner: str, name: str) -> Kept | None:
        return await self._in_reader(lambda waiting: self._load(owner, name, waiting))

    def _load(self, owner: str, name: str, waiting: Waiting) -> Kept | None:
        db = self._read
        db.execute("BEGIN")
        try:
            row = db.execute("SELECT id, gen FROM topic WHERE owner = ? AND name = ?", (owner, name)).fetchone()
            if row is None:
                born = [put.row for put in waiting.puts if put.table == "topic"]
                row = next(((r["id"], r["gen"]) for r in born if (r["owner"], r["name"]) == (owner, name)), None)
            if row is None:
                return None
            tid, gen = row
            new = [id & OFFSET for id, *_ in waiting.events if id >> 32 == tid]
            first, head = _end(db, tid, "min") or min(new, default=1), max(_end(db, tid, "max"), *new, 0)
            snap = db.execute("SELECT off, state FROM snapshot WHERE topic = ?", (tid,)).fetchone() or (0, None)
            entries = self._entries(tid, snap[0], head, 1 << 62, waiting)
            return Kept(tid, gen, first, head, snap[0], snap[1], entries)
        finally:
            db.execute("COMMIT")

    def _entries(self, tid: int, after: int, upto: int, limit: int, waiting: Waiting) -> list[Entry]:
        out: list[Entry] = []
        size = 0
        sql = "SELECT id, name, key, ts, body FROM event WHERE id > ? AND id <= ? ORDER BY id"
        begin, end = tid << 32 | after, tid << 32 | upto
        found = self._read.execute(sql, (begin, end))
        for id, name, key, ts, body in chain(found, (row for row in waiting.events if begin < row[0] <= end)):
            if out and (size + len(body) > limit or id & OFFSET <= out[-1].off):
                break
            size += len(body)
            out.append(Entry(id & OFFSET, name, key, ts, body))
        return out

    async def read(self, tid: int, after: int, upto: int, limit: int) -> list[Entry]:
        return await self._in_reader(lambda waiting: self._entries(tid, after, upto, limit, waiting))

    async def rows(self, table: str, where: Row, *, order: str = "", limit: int = 1000) -> list[Row]:
        sql = f"SELECT * FROM {table}"
        if where:
            sql += " WHERE " + " AND ".join(f"{c} = ?" for c in where)
        if order:
            sql += f" ORDER BY {order.removeprefix('-')}{' DESC' if order.startswith('-') else ''}"

        def look(waiting: Waiting) -> list[Row]:
            new = [put.row for put in waiting.puts if put.table == table]
            found = self._fetch(sql + " LIMIT ?", (*where.values(), limit + len(new)))
            if not new:
                return found
            by_key = {tuple(row[key] for key in KEYS[table]): row for row in found}
            for row in new:
                key = tuple(row[key] for key in KEYS[table])
                by_key.pop(key, None)
                if all(row[c] == value for c, value in where.items()):
                    by_key[key] = row
            out = list(by_key.values())
            if order:
                out.sort(key=lambda row: row[order.removeprefix("-")], reverse=order.startswith("-"))
            return out[:limit]

        return await self._in_reader(look)

    def _fetch(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        cursor = self._read.execute(sql, values)
        names = [c[0] for c in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    async def sums(
        self,
        table: str,
        of: Sequence[str],
        where: Row,
        *,
        by: Sequence[str] = (),
        since: Row | None = None,
        upto: Row | None = None,
        order: str = "",
        limit: int = 1000,
    ) -> list[Row]:
        since, upto = since or {}, upto or {}
        sums = [f"sum({c}) AS {c}, count(*) - count({c}) AS {c}_missing" for c in of]
        sql = f"SELECT {', '.join([*by, 'count(*) AS count', *sums])} FROM {table}"
        tests = [f"{c} = ?" for c in where] + [f"{c} >= ?" for c in since] + [f"{c} <= ?" for c in upto]
        if tests:
            sql += " WHERE " + " AND ".join(tests)
        if by:
            sql += " GROUP BY " + ", ".join(by)
        if order:
            sql += f" ORDER BY {order.removeprefix('-')}{' DESC' if order.startswith('-') else ''}"
        values = (*where.values(), *since.values(), *upto.values(), limit)
        return await self._in_reader(lambda _: self._fetch(sql + " LIMIT ?", values))

    async def stale(self, keep_events: int, before_ts: int) -> list[tuple[str, str, int]]:
        """Topics with events past retention: (owner, name, the newest offset that may go)."""
        sql = f"""SELECT t.owner, t.name, {OFFSET} & (SELECT max(e.id) FROM event e WHERE e.ts < ? AND e.id > t.id << 32
                      AND e.id <= (SELECT max(id) FROM event WHERE id < (t.id + 1) << 32) - ?) AS upto
                  FROM topic t WHERE upto IS NOT NULL LIMIT 1000"""
        return await self._in_reader(lambda _: self._read.execute(sql, (before_ts, keep_events)).fetchall())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self._reader.shutdown(wait=True)
        self._read.close()
        try:
            if not self._is_behind:
                self._write.execute("UPDATE meta SET value = '1' WHERE name = 'clean'")
                self._tail.clear()
        finally:
            self._write.close()
            self._tail.close()
            os.close(self._lock)


def _end(db: sqlite3.Connection, tid: int, which: str) -> int:
    """The first or the last offset of a topic, `min` or `max`; 0 where it has no events."""
    # One at a time: for each alone it looks at one row.
    sql = f"SELECT {which}(id) FROM event WHERE id BETWEEN ? AND ?"
    return (db.execute(sql, (tid << 32, tid << 32 | OFFSET)).fetchone()[0] or 0) & OFFSET


def _answer(asked: list[asyncio.Future[None]]) -> None:
    for future in asked:
        if not future.done():
            future.set_result(None)


def _fault(e: Exception) -> Fault:
    """The error that a client is told for an error of SQLite (RELIABILITY row 22: a full disk has two faces)."""
    if isinstance(e, Fault):
        return e
    if isinstance(e, OSError):
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return Fault("store.full") if full else Fault("store.unavailable", f"The store failed ({e.strerror}).")
    name = getattr(e, "sqlite_errorname", "")
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
        return Fault("store.full")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Fault("store.busy")
    return Fault("store.unavailable", f"The store failed ({name or type(e).__name__}).")
