"""The embedded journal: order, atomic units, failures, generations, retention, migrations."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sag.errors import Fault, StartError
from sag.schema.events import ConvPatch
from sag.topics import sqlite
from sag.topics.journal import Put, Unit
from sag.topics.merge import Entry
from sag.topics.sqlite import SqliteJournal
from sag.topics.topic import SNAPSHOT_EVERY, Topics


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path)
    yield made
    await made.close()


async def _commit(journal: SqliteJournal, *units: Unit) -> list[Fault | None]:
    """What became of units that were submitted together."""
    futures: list[asyncio.Future[Fault | None]] = []
    for unit in units:
        future = asyncio.get_running_loop().create_future()
        futures.append(future)
        unit.done = future.set_result
        journal.submit(unit)
    return await asyncio.gather(*futures)


def _unit(tid: int, *offs: int) -> Unit:
    unit = Unit()
    unit.events = [(tid, Entry(off, "conv", None, off, b'{"patch":{}}')) for off in offs]
    return unit


async def test_a_topic_is_read_again_as_it_was_kept(journal: SqliteJournal) -> None:
    tid, put = journal.new_topic("u1", "conv:c1", "g1")
    unit = _unit(tid, 1, 2)
    unit.writes.append(put)
    assert await _commit(journal, unit) == [None]
    kept = await journal.load("u1", "conv:c1")
    assert kept is not None
    assert (kept.gen, kept.first, kept.head, [e.off for e in kept.entries]) == ("g1", 1, 2, [1, 2])
    assert await journal.load("u2", "conv:c1") is None


async def test_a_unit_with_a_hole_fails_and_spares_the_others(journal: SqliteJournal) -> None:
    tid, put = journal.new_topic("u1", "conv:c1", "g1")
    first, hole, second = _unit(tid, 1), _unit(tid, 3), _unit(tid, 2)
    first.writes.append(put)
    results = await _commit(journal, first, hole, second)
    assert results[0] is None
    assert isinstance(results[1], Fault)
    assert results[1].kind == "store.unavailable"
    assert results[2] is None


async def test_an_event_and_its_key_commit_together_or_not_at_all(journal: SqliteJournal) -> None:
    tid, put = journal.new_topic("u1", "conv:c1", "g1")
    unit = _unit(tid, 1)
    unit.writes += [put, Put("idem", {"user": "u1", "method": "m", "key": "k", "digest": "d", "result": b"1", "ts": 1})]
    unit.writes.append(Put("kv", {"space": "s", "key": "k", "value": None}))  # NOT NULL fails
    (fault,) = await _commit(journal, unit)
    assert fault is not None
    assert await journal.load("u1", "conv:c1") is None
    assert await journal.rows("idem", {"user": "u1"}) == []


async def test_a_full_disk_is_told_and_the_topic_goes_on_from_the_truth(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    topics = Topics(journal)
    topic = await topics.get("u1", "user:me")
    conv = topics.create("u1", "conv:c1")
    await topics.emit(conv, ConvPatch({"title": "kept"}))
    pages = journal._write.execute("PRAGMA page_count").fetchone()[0]
    journal._write.execute(f"PRAGMA max_page_count={pages}")
    full: Fault | None = None
    for _ in range(200):
        try:
            await topics.emit(conv, ConvPatch({"title": "x" * 20_000}))
        except Fault as e:
            full = e
            break
    assert full is not None
    assert (full.kind, full.code) == ("store.full", 507)
    journal._write.execute("PRAGMA max_page_count=1000000")
    for _ in range(100):
        if conv.lost is None:
            break
        await asyncio.sleep(0.02)
    assert conv.tip == conv.head
    await topics.emit(conv, ConvPatch({"title": "again"}))
    assert conv.state["conv"]["title"] == "again"
    assert topic.lost is None
    await topics.close()


async def test_a_second_hub_on_the_folder_is_refused(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    with pytest.raises(StartError, match="another hub") as caught:
        SqliteJournal(tmp_path)
    assert caught.value.code == 78
    await journal.close()
    await SqliteJournal(tmp_path).close()


@pytest.mark.parametrize(
    ("clean", "same_boot", "sync", "keeps"),
    [
        ("1", False, "normal", True),
        ("0", True, "normal", True),
        ("0", False, "normal", False),
        ("0", False, "full", True),
    ],
)
async def test_only_a_lost_tail_changes_the_generation(
    tmp_path: Path, clean: str, same_boot: bool, sync: str, keeps: bool
) -> None:
    journal = SqliteJournal(tmp_path, sync)
    tid, put = journal.new_topic("u1", "conv:c1", "g1")
    unit = _unit(tid, 1)
    unit.writes.append(put)
    assert await _commit(journal, unit) == [None]
    await journal.close()
    db = sqlite3.connect(tmp_path / "sag.db")
    db.execute("UPDATE meta SET value = ? WHERE name = 'clean'", (clean,))
    if not same_boot:
        db.execute("UPDATE meta SET value = 'another' WHERE name = 'boot'")
    db.commit()
    db.close()
    journal = SqliteJournal(tmp_path, sync)
    kept = await journal.load("u1", "conv:c1")
    assert kept is not None
    assert (kept.gen == "g1") is keeps
    assert kept.head == 1
    await journal.close()


async def test_a_newer_file_is_refused_and_not_touched(tmp_path: Path) -> None:
    await SqliteJournal(tmp_path).close()
    db = sqlite3.connect(tmp_path / "sag.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StartError, match="newer sag"):
        SqliteJournal(tmp_path)


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "sag.db").write_bytes(b"this is no database, by far" * 100)
    with pytest.raises(StartError, match="backup") as caught:
        SqliteJournal(tmp_path)
    assert caught.value.code == 74


async def test_a_migration_leaves_a_backup_and_the_new_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await SqliteJournal(tmp_path).close()
    newer = (*sqlite.MIGRATIONS, "CREATE TABLE more (x INTEGER)")
    monkeypatch.setattr(sqlite, "MIGRATIONS", newer)
    journal = SqliteJournal(tmp_path)
    assert journal._write.execute("PRAGMA user_version").fetchone()[0] == len(newer)
    assert (tmp_path / f"sag.v{len(newer) - 1}.bak").is_file()
    await journal.close()


def test_scripts_that_were_released_are_as_they_were() -> None:
    released = [hashlib.sha256(script.encode()).hexdigest()[:16] for script in sqlite.MIGRATIONS[:1]]
    assert released == ["73979788ab1b8f64"]


async def test_a_database_of_the_first_schema_keeps_its_data(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "sag.db", isolation_level=None)
    for statement in sqlite.MIGRATIONS[0].split(";"):
        db.execute(statement)
    db.execute("INSERT INTO topic VALUES (1, 'u1', 'conv:c1', 'g1')")
    db.execute('INSERT INTO event VALUES (1, 1, \'conv\', NULL, 5, \'{"patch":{"title":"kept"}}\')')
    db.execute("INSERT INTO kv VALUES ('s', 'k', '1')")
    db.execute("INSERT INTO meta VALUES ('clean', '1')")
    db.execute("PRAGMA user_version=1")
    db.close()
    topics = Topics(SqliteJournal(tmp_path))
    conv = await topics.find("u1", "conv:c1")
    assert conv is not None
    assert (conv.gen, conv.state["conv"]["title"]) == ("g1", "kept")
    assert (await topics.journal.rows("kv", {}))[0]["value"] == "1"
    assert await topics.journal.rows("usage", {}) == []
    await topics.close()
    backup = sqlite3.connect(tmp_path / "sag.v1.bak")
    assert backup.execute("PRAGMA user_version").fetchone()[0] == 1
    assert backup.execute("SELECT count(*) FROM event").fetchone()[0] == 1
    backup.close()


async def test_sums_are_made_over_groups_and_tell_what_is_missing(journal: SqliteJournal) -> None:
    unit = Unit()
    for day, owner, input, nano_usd in (
        ("d1", "a", 1, 5),
        ("d2", "a", 2, None),
        ("d2", "a", 4, 7),
        ("d3", "b", 8, None),
    ):
        row = {"day": day, "owner": owner, "run": f"r{input}", "step": 1, "conv": "c", "model": "m", "input": input,
               "output": 0, "reasoning": 0, "cached": 0, "cache_write": 0, "nano_usd": nano_usd, "ts": 1}  # fmt: skip
        unit.writes.append(Put("usage", row))
    assert await _commit(journal, unit) == [None]
    of = ("input", "nano_usd")

    def group(count: int, input: int | None, missing: int, nano_usd: int | None, **by: str) -> dict[str, object]:
        sums = {"input": input, "input_missing": 0, "nano_usd": nano_usd, "nano_usd_missing": missing}
        return {**by, "count": count, **sums}

    assert await journal.sums("usage", of, {}, by=("day",), order="-day") == [
        group(1, 8, 1, None, day="d3"),
        group(2, 6, 1, 7, day="d2"),
        group(1, 1, 0, 5, day="d1"),
    ]
    assert await journal.sums("usage", of, {}, by=("owner",), order="-nano_usd", limit=1) == [
        group(3, 7, 1, 12, owner="a")
    ]
    assert await journal.sums("usage", of, {"owner": "a"}, since={"day": "d2"}, upto={"day": "d2"}) == [
        group(2, 6, 1, 7)
    ]
    assert await journal.sums("usage", of, {"owner": "z"}) == [group(0, None, 0, None)]
    assert await journal.sums("usage", of, {"owner": "z"}, by=("day",)) == []


async def test_trimming_keeps_the_state_and_tells_where_history_begins(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    topics = Topics(journal)
    conv = topics.create("u1", "conv:c1")
    for n in range(20):
        await topics.emit(conv, ConvPatch({"title": f"t{n}"}))
    stale = await journal.stale(5, 1 << 60)
    assert stale == [("u1", "conv:c1", 15)]
    await topics.trim(conv, 15)
    assert not conv.can_replay(conv.gen, 14)
    assert conv.can_replay(conv.gen, 15)
    await topics.close()

    journal = SqliteJournal(tmp_path)
    topics = Topics(journal)
    again = await topics.find("u1", "conv:c1")
    assert again is not None
    assert (again.first, again.head, again.state["conv"]["title"]) == (16, 20, "t19")
    await topics.close()


async def test_a_long_log_is_not_folded_from_its_beginning(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    topics = Topics(journal)
    conv = topics.create("u1", "conv:c1")
    for n in range(SNAPSHOT_EVERY + 200):
        topics.emit(conv, ConvPatch({"title": f"t{n}"}))
        if n % 100 == 0:
            await conv.settled()
    await conv.settled()
    for _ in range(100):
        kept = await journal.load("u1", "conv:c1")
        if kept is not None and kept.snap_off:
            break
        await asyncio.sleep(0.01)
    assert kept is not None
    assert 0 < kept.snap_off <= kept.head
    assert len(kept.entries) == kept.head - kept.snap_off
    await topics.close()
