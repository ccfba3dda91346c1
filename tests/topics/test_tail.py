"""The embedded journal's tail: kills at any instant, failures, full disks, power losses, damage, and older schemas."""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import random
import shutil
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sag.errors import Fault, StartError
from sag.topics import sqlite
from sag.topics.journal import Drop, Put, Row, Unit
from sag.topics.merge import Entry
from sag.topics.sqlite import FIXED, KEYS, OFFSET, SqliteJournal
from tests.harness import copy_as_killed, times, until

State = dict[str, dict[Any, Any]]  # of each table: primary key -> row
TABLES = ("topic", "conversation", "run", "idem", "kv", "snapshot")
pwrite = os.pwrite


def _unit(tid: int, *offs: int, writes: tuple[Put | Drop, ...] = (), body: bytes = b'{"patch":{}}') -> Unit:
    unit = Unit()
    unit.events = [(tid, Entry(off, "conv", None, off, body)) for off in offs]
    unit.writes = list(writes)
    return unit


def _idem(key: str, ts: int = 1, **more: object) -> Put:
    return Put("idem", {"user": "u", "method": "m", "key": key, "digest": "d", "result": b"1", "ts": ts} | more)


def _run(id: str, ts: int, status: str = "running") -> Put:
    row = {"id": id, "owner": f"u{ts}", "conv": "c", "kind": "chat", "status": status, "open": 1, "ts": ts}
    return Put("run", row)


async def _commit(journal: SqliteJournal, *units: Unit) -> list[Fault | None]:
    """What became of units that were submitted together."""
    futures: list[asyncio.Future[Fault | None]] = []
    for unit in units:
        futures.append(future := asyncio.get_running_loop().create_future())
        unit.done = future.set_result
        journal.submit(unit)
    return await asyncio.wait_for(asyncio.gather(*futures), 10)


async def _born(journal: SqliteJournal, name: str = "conv:c1", *offs: int) -> int:
    """The number of a new topic that has events."""
    tid, put = journal.new_topic("u1", name, "g1")
    assert await _commit(journal, _unit(tid, *(offs or (1,)), writes=(put,))) == [None]
    return tid


async def _offs(journal: SqliteJournal, name: str = "conv:c1") -> list[int] | None:
    kept = await asyncio.wait_for(journal.load("u1", name), 10)
    assert kept is None or [e.off for e in kept.entries][-1:] == [kept.head]
    return kept and [e.off for e in kept.entries]


async def _dump(folder: Path, sync: str = "normal") -> State:
    """All that a start finds in a folder."""
    journal = SqliteJournal(folder, sync)
    db = journal._write
    state: State = {"event": {row[0]: row[1:] for row in db.execute("SELECT * FROM event")}}
    for table in TABLES:
        rows = journal._fetch(f"SELECT * FROM {table}", ())
        state[table] = {tuple(row[k] for k in KEYS[table]): row for row in rows}
    await journal.close()
    return state


async def _after_kill(journal: SqliteJournal, to: Path) -> State:
    copy_as_killed(journal.path.parent, to)
    return await _dump(to)


def _of(state: State, tid: int) -> list[int]:
    return sorted(id & OFFSET for id in state["event"] if id >> 32 == tid)


def _limit(journal: SqliteJournal, pages: int = 1) -> None:
    """Fill the disk for the database; it has at least the pages that it has."""
    journal._write.execute(f"PRAGMA max_page_count={pages}")


async def _stick(journal: SqliteJournal, unit: Unit) -> None:
    """A unit is told, and the disk is full before it is in the database."""
    await journal.rows("kv", {})
    journal._write.execute("VACUUM")
    _limit(journal)
    unit.writes.append(_idem("large", result=b"x" * 9000))
    assert await _commit(journal, unit) == [None]
    await until(lambda: journal._is_stuck)


# what the model says


def _model(state: State, unit: Unit) -> None:
    for tid, e in unit.events:
        state["event"][tid << 32 | e.off] = (e.name, e.key, e.ts, e.body)
    for write in unit.writes:
        table = state[write.table]
        if isinstance(write, Put):
            key = tuple(write.row[k] for k in KEYS[write.table])
            kept = {c: table[key][c] for c in FIXED.get(write.table, ())} if key in table else {}
            table[key] = table.get(key, {}) | write.row | kept
        elif write.table == "event":
            tid, upto = write.where["topic"], write.upto.get("off", OFFSET)
            for id in [id for id in table if tid << 32 <= id <= tid << 32 | upto]:
                del table[id]
        else:
            for key in [k for k, row in table.items() if row.items() >= write.where.items()]:
                del table[key]


class Script:
    """Random units, and the heads that whoever submits them believes in."""

    def __init__(self, rng: random.Random, journal: SqliteJournal) -> None:
        self.rng, self.journal = rng, journal
        self.tips: dict[int, int] = {}

    def unit(self) -> tuple[Unit, bool]:
        """A unit and whether it may be told as kept."""
        rng, may = self.rng, True
        unit = Unit()
        kind = rng.random()
        if kind < 0.15 or not self.tips:
            tid, put = self.journal.new_topic("u1", f"conv:{rng.random()}", "g1")
            unit.writes.append(put)
            self.tips[tid] = 0
        for tid in rng.sample(sorted(self.tips), rng.randint(1, min(3, len(self.tips)))):
            unit.events += [(tid, self._entry(self.tips[tid] + n)) for n in range(1, rng.randint(2, 4))]
            self.tips[tid] = unit.events[-1][1].off
        if rng.random() < 0.5:
            unit.writes.append(_idem(f"k{rng.randrange(9)}", rng.randrange(99), result=rng.randbytes(5)))
            unit.writes.append(_run(f"r{rng.randrange(9)}", rng.randrange(99), rng.choice("abc")))
        if kind > 0.85:
            unit.writes.append(Put("kv", {"space": "s", "key": f"k{rng.randrange(5)}", "value": rng.randbytes(4)}))
        tid = rng.choice(sorted(self.tips))
        if 0.15 < kind < 0.2:
            unit.writes.append(Drop("event", {"topic": tid}, {"off": max(0, self.tips[tid] - rng.randint(1, 5))}))
        elif kind < 0.23 and len(self.tips) > 2:
            unit.writes += [Drop(t, {"id" if t == "topic" else "topic": tid}) for t in ("event", "snapshot", "topic")]
            del self.tips[tid]
        elif kind < 0.26:
            unit.events.append((tid, self._entry(self.tips[tid] + 2)))
            may = False
        elif kind < 0.29:
            unit.writes.append(Put("kv", {"space": "s", "key": "bad", "value": None}))
            may = False
        return unit, may

    def _entry(self, off: int) -> Entry:
        return Entry(off, "conv", None, off, self.rng.randbytes(self.rng.choice((5, 50, 400, 3000))))


@pytest.mark.parametrize("seed", range(times(4, 60)))
async def test_what_was_told_is_there_after_any_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, sync = random.Random(seed), "full" if seed % 2 else "normal"
    monkeypatch.setattr(sqlite, "WAIT_S", 0.003)
    monkeypatch.setattr(sqlite, "RETRY_S", 0.005)
    home = tmp_path / "home"
    journal = SqliteJournal(home, sync)
    script, chance = Script(rng, journal), random.Random(seed + 1)  # one for each thread
    states: list[State] = [{table: {} for table in ("event", *TABLES)}]
    copies: list[tuple[int, int, Path]] = []  # the first and the last commit that it may show, and where it is
    durable, wal = b"", 0
    taken: list[list[Unit]] = [[]]
    commit = journal._commit

    def copied(first: int) -> Path:
        shutil.copytree(home, folder := tmp_path / str(len(copies)))
        copies.append((first, len(states) - 1, folder))
        return folder

    def after_commit() -> None:
        nonlocal wal
        before = len(states) - 1
        state = copy.deepcopy(states[-1])
        for unit in taken[0]:
            _model(state, unit)
        states.append(state)
        size = (home / "sag.db-wal").stat().st_size
        if chance.random() < 0.2:
            folder = copied(len(states) - 1)
            if sync == "full":
                (folder / "sag.tail").write_bytes(durable)
        elif size > wal and not journal._is_behind and chance.random() < 0.5:  # in the middle of the commit
            os.truncate(copied(before) / "sag.db-wal", chance.randint(wal, size))
        wal = size

    def torn(file: int, data: bytes, at: int) -> int:
        nonlocal wal
        wal = (home / "sag.db-wal").stat().st_size  # the database has what this may be written over
        some = data[: chance.randrange(len(data))]
        if some and (dice := chance.random()) < 0.3:
            written = pwrite(file, some, at)
            if dice < 0.05:
                copied(len(states) - 1)
            if dice > 0.25 and any(data):
                raise OSError(errno.ENOSPC, "full")
            return written
        return pwrite(file, data, at)

    def synced(file: int) -> None:
        nonlocal durable
        if chance.random() < 0.1:
            raise OSError(errno.EIO, "fails")
        durable = os.pread(file, 1 << 24, 0)

    def recorded(units: Any) -> None:
        taken[0] = units
        commit(units)

    monkeypatch.setattr(journal, "_commit", recorded)
    monkeypatch.setattr(journal._tail, "clear", lambda: None)  # it comes after the commit that is cut below
    monkeypatch.setattr(os, "pwrite", torn)
    monkeypatch.setattr(os, "fdatasync", synced)
    journal.after_commit = after_commit
    for _ in range(times(30, 60)):
        if rng.random() < 0.1:
            _limit(journal, rng.choice((1, 1, 10**6)))
        burst = [script.unit() for _ in range(rng.choice((1, 1, 1, 2, 5)))]
        results = await _commit(journal, *(unit for unit, _ in burst))
        for (_, may), fault in zip(burst, results, strict=True):
            assert may or fault is not None
        if any(results):
            _limit(journal, 10**6)
        shown = states[-1]
        for row in list(shown["topic"].values()):
            if any(results) or rng.random() < 0.1:
                kept = await asyncio.wait_for(journal.load(row["owner"], row["name"]), 10)
                assert kept is not None
                assert [e.off for e in kept.entries] == _of(shown, row["id"])
        script.tips = {row["id"]: _of(shown, row["id"])[-1] for row in shown["topic"].values() if _of(shown, row["id"])}
        await asyncio.sleep(rng.choice((0, 0, 0, 0.01)))
    monkeypatch.undo()
    _limit(journal, 10**6)
    await journal.close()
    assert await _dump(home, sync) == states[-1]
    for n, (first, last, folder) in enumerate(copies):
        lost = tmp_path / f"lost{n}"
        if sync == "normal" and first == last:
            _lose_power(lost, folder, [c[2] for c in copies[: n + 4]], rng)
        assert await _dump(folder, sync) in states[first : last + 1], n
        if lost.exists():
            with monkeypatch.context() as other:
                other.setattr(sqlite, "boot_id", lambda: "another")
                state = await _dump(lost)
            assert all(row["gen"] != "g1" for row in state["topic"].values())
            for row in state["topic"].values():
                row["gen"] = "g1"
            assert state in states, n
    assert len(copies) > 3


def _lose_power(to: Path, folder: Path, others: list[Path], rng: random.Random) -> None:
    """The database of one moment beside a tail whose sectors are of any others."""
    shutil.copytree(folder, to)
    tails = [(p / "sag.tail").read_bytes() for p in others]
    length = len(rng.choice(tails))
    sectors = [rng.choice(tails[-2:])[at : at + 512].ljust(512, b"\0") for at in range(0, length, 512)]
    (to / "sag.tail").write_bytes(b"".join(sectors)[:length])


# rows that cannot be kept


@pytest.mark.parametrize(
    "put",
    [
        Put("idem", {"user": "u", "method": "m", "digest": "d", "result": b"", "ts": 1}),  # no key
        _idem("k", 1 << 63),
        _idem("k", 1 << 64),
        _idem("\ud800"),
        _idem("k", result=None),
        _idem("k", result={"no": "column takes this"}),
        _idem("k", nobody="knows this column"),
        _idem(["k"]),  # type: ignore[arg-type]
        Put("topic", {"id": 99, "owner": "u1", "name": "conv:c1", "gen": "g2"}),  # there is one of that name
    ],
    ids=["keyless", "int64", "int128", "surrogate", "null", "dict", "column", "list", "unique"],
)
async def test_a_row_that_cannot_be_kept_takes_its_unit_alone(tmp_path: Path, put: Put) -> None:
    journal = SqliteJournal(tmp_path / "home")
    tid = await _born(journal)
    other = await _born(journal, "conv:c2")
    bad, good = _unit(tid, 2, writes=(put,)), _unit(other, 2)
    results = await _commit(journal, good, bad)
    told = [1] if results[1] else [1, 2]
    later = await _commit(journal, _unit(other, 3))
    offs = await asyncio.wait_for(asyncio.gather(_offs(journal), _offs(journal, "conv:c2")), 10)
    killed = await _after_kill(journal, tmp_path / "killed")
    await journal.close()
    assert (results[0], *later, *offs) == (None, None, told, [1, 2, 3])
    assert (_of(killed, tid), _of(killed, other)) == (told, [1, 2, 3])
    assert results[1] is not None, "a unit without one of its rows was told as kept"


async def test_rows_are_the_same_with_and_without_a_kill(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "home")
    ask = {"id": "a", "owner": "u1", "conv": "c"}
    puts = [_run("r", 1), _run("r", 2, "done"), Put("ask", ask), Put("ask", {**ask, "owner": "u2", "outcome": b"1"})]
    for put in (*puts, Put("ask", {**ask, "owner": "u3"})):
        assert await _commit(journal, _unit(0, writes=(put,))) == [None]
    copy_as_killed(tmp_path / "home", tmp_path / "killed")
    killed = SqliteJournal(tmp_path / "killed")
    for table in ("run", "ask"):
        assert await journal.rows(table, {}) == await killed.rows(table, {}), table
    await journal.close()
    await killed.close()


# full disks and failing ones


async def test_a_full_disk_hides_nothing_and_is_over_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "RETRY_S", 0.02)
    journal = SqliteJournal(tmp_path / "home")
    tid = await _born(journal)
    await _stick(journal, _unit(tid, 2, 3, writes=(_idem("k"),)))
    (fault,) = await _commit(journal, _unit(tid, 4, body=b"x" * 9000))
    assert fault is not None
    assert fault.kind == "store.full"
    assert await _offs(journal) == [1, 2, 3]
    assert [e.off for e in await journal.read(tid, 1, 3, 1 << 20)] == [2, 3]
    assert [e.off for e in await journal.read(tid, 0, 3, 1)] == [1]
    try:
        found: list[Row] | Fault = await journal.rows("idem", {"key": "k"})
    except Fault as e:
        found = e
    assert _of(await _after_kill(journal, tmp_path / "killed"), tid) == [1, 2, 3]
    entries = journal._entries

    def late(*given: Any) -> list[Entry]:
        _limit(journal, 10**6)
        while journal._is_behind:  # the writer catches up between what waits was looked at and the read
            time.sleep(0.01)
        return entries(*given)

    monkeypatch.setattr(journal, "_entries", late)
    assert await _offs(journal) == [1, 2, 3]
    assert await _commit(journal, _unit(tid, 4)) == [None]
    assert await _offs(journal) == [1, 2, 3, 4]
    await journal.close()
    assert found != [], "an idempotency key that was told is forgotten while the disk is full"


# the end


async def test_reads_at_the_end_are_true_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(tmp_path)
    write_through, go = journal._write_through, threading.Event()

    def slow(units: list[Unit]) -> None:
        go.wait(5)
        write_through(units)

    monkeypatch.setattr(journal, "_write_through", slow)
    await _born(journal)
    before = asyncio.create_task(_offs(journal))
    await asyncio.sleep(0)
    end = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    after = asyncio.create_task(_offs(journal))
    await asyncio.sleep(0.05)
    go.set()
    for result in await asyncio.gather(before, after, return_exceptions=True):
        assert result == [1] or isinstance(result, Fault)
    await asyncio.wait_for(end, 5)


async def test_an_end_with_a_full_disk_is_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(tmp_path / "home")
    tid = await _born(journal)
    await _stick(journal, _unit(tid, 2, 3))
    await journal.close()
    shutil.copytree(tmp_path / "home", tmp_path / "lost")
    assert _of(await _dump(tmp_path / "home"), tid) == [1, 2, 3]
    (tmp_path / "lost" / "sag.tail").write_bytes(b"")  # it was never synced
    monkeypatch.setattr(sqlite, "boot_id", lambda: "another")
    state = await _dump(tmp_path / "lost")
    assert _of(state, tid) == [1]
    assert state["topic"][tid,]["gen"] != "g1"


# power losses, tails of others, damage


@pytest.mark.parametrize(("was", "clean"), [("normal", True), ("full", False)])
async def test_a_power_loss_after_a_start_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, clean: bool
) -> None:
    """What SQLite did not sync is lost: all but a commit with synchronous=FULL and a checkpoint."""
    home, disk = tmp_path / "home", tmp_path / "disk"

    def sync() -> None:
        shutil.rmtree(disk, ignore_errors=True)
        shutil.copytree(home, disk)

    class Synced(sqlite3.Connection):
        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *given)
            full = super().execute("PRAGMA synchronous").fetchone() == (2,)
            if "wal_checkpoint(" in sql or (full and sql == "COMMIT"):
                sync()
            return cursor

    journal = SqliteJournal(home, was)
    tid = await _born(journal)
    if clean:
        await journal.close()
        sync()
    else:
        await journal.rows("kv", {})
        assert await _commit(journal, _unit(tid, 2)) == [None]
        sync()
        await journal.close()
        shutil.rmtree(home)
        shutil.copytree(disk, home)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Synced))
    journal = SqliteJournal(home)
    assert await _commit(journal, _unit(tid, 2 if clean else 3, body=b"x" * 300)) == [None]
    shutil.copy(home / "sag.tail", disk)
    monkeypatch.setattr(sqlite, "boot_id", lambda: "another")
    state = await _dump(disk)
    assert _of(state, tid) == [1, 2, 3][: 2 if clean else 3] or state["topic"][tid,]["gen"] != "g1"
    await journal.close()


async def test_a_tail_of_another_time_is_left_alone(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "home")
    tid = await _born(journal)
    early = await _after_kill(journal, tmp_path / "early")
    for off in range(2, 5):
        assert await _commit(journal, _unit(tid, off)) == [None]
        await journal.rows("kv", {})
    shutil.copytree(tmp_path / "home", tmp_path / "late")
    await journal.close()
    assert await _dump(tmp_path / "early") == early
    for epoch in ("early", "home"):  # an older database beside a newer tail of the same history, and of another
        shutil.copy(tmp_path / "late" / "sag.tail", tmp_path / epoch)
        assert _of(await _dump(tmp_path / epoch), tid) == ([1] if epoch == "early" else [1, 2, 3, 4])
    (tmp_path / "late" / "sag.tail").unlink()
    assert _of(await _dump(tmp_path / "late"), tid) == [1, 2, 3, 4]


async def test_a_damaged_record_before_whole_ones_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(tmp_path / "home")
    monkeypatch.setattr(journal, "_catch_up", lambda: None)
    sizes = [0]
    for off in range(1, 5):
        assert await _commit(journal, _unit(7, off)) == [None]
        sizes.append((tmp_path / "home" / "sag.tail").stat().st_size)
    shutil.copytree(tmp_path / "home", tmp_path / "killed")
    monkeypatch.undo()
    await journal.close()
    data = (tmp_path / "killed" / "sag.tail").read_bytes()
    for n, begin in enumerate(sizes[:-1]):
        for place in (begin, begin + 8, begin + 16, begin + 20, sizes[n + 1] - 1):
            garbled = bytearray(data)
            garbled[place] ^= 0x55
            shutil.copytree(tmp_path / "killed", folder := tmp_path / f"{place}")
            (folder / "sag.tail").write_bytes(garbled)
            if n == 3:  # it may be one that was never told
                assert _of(await _dump(folder), 7) == [1, 2, 3]
                continue
            with pytest.raises(StartError, match=r"sag\.tail") as caught:
                SqliteJournal(folder)
            assert caught.value.code == 74


# older schemas


@pytest.mark.parametrize("version", [1, 2])
async def test_an_older_schema_keeps_every_offset(tmp_path: Path, version: int) -> None:
    db = sqlite3.connect(tmp_path / "sag.db", isolation_level=None)
    for script in sqlite.MIGRATIONS[:version]:
        db.executescript(script)
    ranges = {1: range(1, 4), 2: range(1), 3: range(900, 1000), 1 << 30: range(OFFSET - 3, OFFSET)}
    offsets = [(tid, off) for tid, offs in ranges.items() for off in offs if off]
    events = [(tid, off, f"n{off}", "k" if off % 2 else None, off, b"%d" % off) for tid, off in offsets]
    db.executemany("INSERT INTO topic VALUES (?, 'u1', ?, ?)", [(tid, f"conv:{tid}", f"g{tid}") for tid in ranges])
    db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", random.Random(1).sample(events, len(events)))
    db.execute("INSERT INTO snapshot VALUES (3, 950, x'00')")
    old = """SELECT t.owner, t.name, (SELECT max(off) FROM event e WHERE e.topic = t.id AND e.ts < ? AND e.off <=
             (SELECT max(off) FROM event m WHERE m.topic = t.id) - ?) AS upto FROM topic t WHERE upto IS NOT NULL"""
    asked = [(keep, before) for keep in (0, 1, 2, 50, 99, 100, 5000) for before in (0, 2, 3, 950, 1 << 60)]
    stale = [set(db.execute(old, (before, keep))) for keep, before in asked]
    db.execute("INSERT INTO meta VALUES ('clean', '1')")
    db.execute(f"PRAGMA user_version={version}")
    db.close()
    journal = SqliteJournal(tmp_path)
    found: list[tuple[object, ...]] = []
    for tid, offs in ranges.items():
        kept = await journal.load("u1", f"conv:{tid}")
        assert kept is not None
        first, head = (offs[0], offs[-1]) if offs[0] else (1, 0)
        assert (kept.tid, kept.gen, kept.first, kept.head) == (tid, f"g{tid}", first, head)
        assert (kept.snap_off, len(kept.entries)) == ((950, 49) if tid == 3 else (0, len(offs) if head else 0))
        entries = await journal.read(tid, 0, head, 1 << 30)
        found += [(tid, e.off, e.name, e.key, e.ts, e.body) for e in entries]
    assert found == events
    assert [set(await journal.stale(keep, before)) for keep, before in asked] == stale
    assert await _commit(journal, _unit(3, 1000)) == [None]
    await journal.close()


async def test_what_is_deleted_or_in_the_database_does_not_stay_in_the_tail(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    tid = await _born(journal)
    assert await _commit(journal, _unit(tid, 2, body=b'"secret"')) == [None]
    assert b"secret" in (tmp_path / "sag.tail").read_bytes()
    assert await _commit(journal, _unit(tid, writes=(Drop("event", {"topic": tid}),))) == [None]
    assert b"secret" not in (tmp_path / "sag.tail").read_bytes()
    assert await _commit(journal, _unit(tid, 1)) == [None]
    await journal.close()
    assert (tmp_path / "sag.tail").read_bytes() == b""
