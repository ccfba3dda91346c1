"""The rows of steps: made with the event or not at all, always such that they can be summed, and summed exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sag.errors import Fault
from sag.schema.events import MessageAdd, RunOpen, StepClose, StepOpen, Usage
from sag.store.projections import project
from sag.store.usage import MOST_TOKENS, NANO, TOKENS, Ledger, Sums, step_row, sum_of, to_nano, utc_day
from sag.topics.journal import Drop, Put
from sag.topics.sqlite import SqliteJournal
from sag.topics.topic import Topic, Topics


@pytest.fixture
async def topics(tmp_path: Path) -> AsyncIterator[Topics]:
    made = Topics(SqliteJournal(tmp_path), project=project)
    yield made
    await made.close()


async def begun(topics: Topics, agent: str | None = None) -> Topic:
    """A conversation with a run in its first step."""
    conv = topics.create("ada", "conv:c1")
    await topics.emit(
        conv,
        RunOpen("r1", "chat", "ada", "", {}, 1, "running", 1),
        StepOpen("r1", 1, "shop/m", agent),
        MessageAdd("m1", "assistant", 1, [], "r1", agent, step=1),
    )
    return conv


async def rows(topics: Topics) -> list[dict[str, Any]]:
    return await topics.journal.rows("usage", {})


async def test_a_step_and_its_row_are_kept_together_or_not_at_all(topics: Topics) -> None:
    conv = await begun(topics)
    told: list[Put | Drop] = []
    topics.kept = told.extend
    tx = topics.begin()
    tx.append(conv, StepClose("r1", 1, "stop", Usage(5, 1)))
    tx.put(Put("kv", {"space": "s", "key": "k", "value": None}))  # NOT NULL fails
    with pytest.raises(Fault):
        await tx.submit()
    assert await rows(topics) == []
    assert told == []


async def test_what_is_kept_is_told_once(topics: Topics) -> None:
    conv = await begun(topics)
    told: list[Put | Drop] = []
    topics.kept = told.extend
    await topics.emit(conv, StepClose("r1", 1, "stop", Usage(5, 1)))
    (row,) = await rows(topics)
    assert [w.row for w in told if isinstance(w, Put)] == [row]
    assert row["client"] is None
    assert row["agent"] is None


async def test_a_step_without_usage_has_no_row(topics: Topics) -> None:
    conv = await begun(topics)
    await topics.emit(conv, StepClose("r1", 1, "cancelled"))
    assert await rows(topics) == []


async def test_a_step_of_no_run_has_no_row(topics: Topics) -> None:
    conv = await begun(topics)
    assert step_row(conv, {"run": "r9", "step": 1, "usage": {"input": 1, "output": 1}}, 0) is None


async def test_figures_that_cannot_be_are_bounded(topics: Topics) -> None:
    conv = await begun(topics)
    await topics.emit(conv, StepClose("r1", 1, "stop", Usage(10**30, -5, 10**30, 10**30, 10**30, 1e300)))
    (row,) = await rows(topics)
    assert [row[name] for name in TOKENS] == [MOST_TOKENS, 0, MOST_TOKENS, MOST_TOKENS, MOST_TOKENS]
    assert row["nano_usd"] is None


@pytest.mark.parametrize(
    ("usd", "nano"),
    [(0.0, 0), (0.1, 100_000_000), (1e-9, 1), (3.7e-10, 0), (5, 5 * NANO), (None, None), (-0.01, None),
     (float("nan"), None), (float("inf"), None), (1e9, None)],
)  # fmt: skip
def test_dollars_are_whole_nano_dollars(usd: float | None, nano: int | None) -> None:
    assert to_nano(usd) == nano


def test_days_are_those_of_utc() -> None:
    assert (utc_day(1_793_750_399_999), utc_day(1_793_750_400_000)) == ("2026-11-03", "2026-11-04")


async def test_many_small_costs_do_not_drift(topics: Topics) -> None:
    assert sum([0.1] * 10_000) != 1000  # as a sum of floats does
    journal = topics.journal
    assert isinstance(journal, SqliteJournal)
    row = {"day": "2026-11-21", "owner": "ada", "run": "r1", "conv": "c1", "model": "shop/m", "ts": 1,
           **dict.fromkeys(TOKENS, 1), "nano_usd": to_nano(0.1)}  # fmt: skip
    for n in range(10_000):
        journal._apply(Put("usage", {**row, "step": n}))
    journal._apply(Put("usage", {**row, "step": -1, "nano_usd": None}))
    ledger = Ledger(journal)
    (total,) = await ledger.sums({}, "2026-11-01", "2026-11-30")
    assert total == ("", *[10_001] * 6, 1000 * NANO, 1)
    assert sum_of([total, total]).nano_usd == 2000 * NANO
    (none,) = await ledger.sums({}, "2026-12-01", "2026-12-31")
    assert none == sum_of([]) == Sums("", 0, 0, 0, 0, 0, 0, None, 0)
