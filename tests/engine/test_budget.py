"""Budgets: when a run may take no further step, and what is said then."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sag.engine.budget import Budgets
from sag.engine.ends import RunLimit
from sag.hooks.provider import Model, Price, UsageChunk
from sag.schema.events import Usage
from sag.settings import Budget, BudgetLimits
from sag.store.usage import NANO, utc_day
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from sag.topics.journal import Put
from sag.topics.sqlite import SqliteJournal


class Clock:
    """A clock that stands where it is put."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self) -> int:
        return round(datetime.fromisoformat(self.text).replace(tzinfo=UTC).timestamp() * 1000)


def step(clock: Clock, usd: float | None, *, user: str = "ada", tokens: int = 0, n: int = 1, day: str = "") -> Put:
    """The row of a step that was closed now."""
    nano_usd = None if usd is None else round(usd * NANO)
    row = {"day": day or utc_day(clock()), "owner": user, "run": "r1", "step": n, "conv": "c1", "model": "shop/m",
           "agent": None, "client": None, "input": tokens, "output": 0, "reasoning": 0, "cached": 0, "cache_write": 0,
           "nano_usd": nano_usd, "ms": None, "ts": clock()}  # fmt: skip
    return Put("usage", row)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path)
    yield made
    await made.close()


async def refusal(budgets: Budgets, user: str = "ada") -> str:
    """What a check says; "" where the step may begin."""
    try:
        await budgets.check(user)
    except RunLimit as e:
        return str(e)
    return ""


async def test_without_a_budget_nothing_is_asked_and_nothing_refused() -> None:
    clock = Clock("2026-11-21T12:00")
    budgets = Budgets(None, Budget(), clock)  # type: ignore[arg-type]  # a query would fail
    await budgets.load()
    budgets.count([step(clock, 1_000_000.0)])
    assert await refusal(budgets) == ""
    assert budgets.view("ada") is None


async def test_a_day_is_used_up_and_begins_anew_at_midnight(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    budgets = Budgets(journal, Budget(day_usd=5), clock)
    await budgets.load()
    budgets.count([step(clock, 4.999_999_999)])
    assert await refusal(budgets) == ""
    budgets.count([step(clock, 0.000_000_001)])
    assert await refusal(budgets) == "The budget of $5.00 a day is used up; it begins anew at 00:00 UTC."
    assert await refusal(budgets, "bob") == ""
    clock.text = "2026-11-21T23:59:59.999"
    assert await refusal(budgets) != ""
    clock.text = "2026-11-22T00:00"
    assert await refusal(budgets) == ""


@pytest.mark.parametrize(
    ("now", "later", "day"),
    [
        ("2026-11-21T12:00", "2026-12-01T00:00", "2026-12-01"),
        ("2026-12-31T23:59", "2027-01-01T00:00", "2027-01-01"),
    ],
)
async def test_a_month_is_used_up_over_its_days(journal: SqliteJournal, now: str, later: str, day: str) -> None:
    clock = Clock(now)
    budgets = Budgets(journal, Budget(month_usd=0.125), clock)
    budgets.count([step(clock, 0.1, day=f"{now[:8]}01"), step(clock, 0.025)])
    text = f"The budget of $0.125 a month is used up; it begins anew on {day} at 00:00 UTC."
    assert await refusal(budgets) == text
    clock.text = later
    assert await refusal(budgets) == ""
    budgets.count([step(clock, 1.0, day=now[:10])])  # of a step that ended as the month did
    assert await refusal(budgets) == ""
    budgets.count([step(clock, 1.0)])
    assert await refusal(budgets) != ""


async def test_a_clock_that_was_wrong_for_a_while_loses_nothing(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    budgets = Budgets(journal, Budget(month_usd=3), clock)
    budgets.count([step(clock, 2.0), step(clock, 2.0, day="2038-01-19"), step(clock, 1.0)])
    assert await refusal(budgets) != ""
    for n in range(200):  # and what is long past is not kept for ever
        budgets.count([step(clock, 1.0, day=f"2027-{1 + n // 28:02d}-{1 + n % 28:02d}")])
    assert len(budgets._spent["ada"]) <= 64


async def test_tokens_are_counted_whether_or_not_their_price_is_known(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    budgets = Budgets(journal, Budget(day_tokens=1_000_000), clock)
    budgets.count([step(clock, None, tokens=999_999)])
    assert await refusal(budgets) == ""
    budgets.count([step(clock, 1.0, tokens=1)])
    assert await refusal(budgets) == "The budget of 1,000,000 tokens a day is used up; it begins anew at 00:00 UTC."


async def test_single_users_have_limits_of_their_own(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    users = {"ada": BudgetLimits(day_usd=float("inf")), "eve": BudgetLimits(day_usd=0)}
    budgets = Budgets(journal, Budget(day_usd=1, users=users), clock)
    budgets.count([step(clock, 3.0, user="ada"), step(clock, 3.0, user="bob")])
    assert await refusal(budgets, "ada") == ""
    assert await refusal(budgets, "bob") != ""
    assert "$0.00 a day" in await refusal(budgets, "eve")
    alone = Budgets(journal, Budget(users={"bob": BudgetLimits(day_tokens=1)}), clock)
    alone.count([step(clock, None, tokens=5, user="ada"), step(clock, None, tokens=5, user="bob")])
    assert [await refusal(alone, user) != "" for user in ("ada", "bob")] == [False, True]


async def test_a_model_without_a_price_is_told_of_once_where_dollars_are_limited(
    journal: SqliteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock("2026-11-21T12:00")
    tokens = Budgets(journal, Budget(day_tokens=10), clock)
    tokens.count([step(clock, None)])
    assert not caplog.records
    dollars = Budgets(journal, Budget(users={"ada": BudgetLimits(month_usd=1)}), clock)
    dollars.count([step(clock, None, user="bob"), step(clock, 0.5)])
    assert not caplog.records
    dollars.count([step(clock, None), step(clock, None, n=2)])
    assert [(r.levelno, r.args) for r in caplog.records] == [(logging.WARNING, ("shop/m",))]
    assert await refusal(dollars) == ""


async def test_what_was_spent_before_a_restart_counts(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    rows = [
        step(clock, 1.0),
        step(clock, 2.0, n=2),
        step(clock, 4.0, n=3, day="2026-11-01"),
        step(clock, 8.0, n=4, day="2026-10-31"),
        step(clock, 16.0, n=5, user="bob"),
    ]
    for row in rows:
        journal._apply(row)
    budgets = Budgets(journal, Budget(day_usd=100, month_usd=100), clock)
    await budgets.load()
    view = budgets.view("ada")
    assert view is not None
    assert view.day is not None
    assert view.month is not None
    assert (view.day.spent_usd, view.month.spent_usd) == (3.0, 7.0)
    assert utc_day(view.day.resets_at) == "2026-11-22"


async def test_a_check_is_fast_however_much_was_spent(journal: SqliteJournal) -> None:
    clock = Clock("2026-11-21T12:00")
    journal._write.execute("BEGIN")
    for n in range(100_000):
        journal._apply(step(clock, 0.000_01, n=n, user=f"u{n % 50}", tokens=10, day=f"2026-11-{1 + n % 21:02d}"))
    journal._write.execute("COMMIT")
    budgets = Budgets(journal, Budget(day_usd=1, month_usd=1, day_tokens=1_000_000), clock)
    await budgets.load()
    best_s = 1.0
    for _ in range(20):
        began = time.perf_counter()
        budgets.count([step(clock, 0.000_01, user="u7")])
        await budgets.check("u7")
        best_s = min(best_s, time.perf_counter() - began)
    assert best_s < 0.001
    month = getattr(budgets.view("u7"), "month", None)
    assert month is not None
    assert month.spent_usd == 0.020_2


# --- on a hub ---


class Priced(ScriptedProvider):
    """A scripted provider whose tokens cost a dollar a thousand."""

    def models(self) -> list[Model]:
        return [Model("m", default=True, price=Price(1000, 1000))]


def took(tokens: int, chunks: list[Any]) -> list[Any]:
    """A script whose round takes so many tokens."""
    return [UsageChunk(Usage(tokens, 0)) if isinstance(c, UsageChunk) else c for c in chunks]


async def run(client: Any) -> dict[str, Any]:
    """A run, to its end."""
    started = await client.call("run.start", {"input": [{"kind": "text", "text": "go"}]})
    topic = await client.subscribe(f"conv:{started['conv']}")
    await topic.until(lambda state: state["runs"].get(started["run"], {}).get("status") in ("done", "limit", "failed"))
    return dict(topic.state["runs"][started["run"]])


async def test_a_run_ends_before_the_step_that_its_users_budget_does_not_allow(tmp_path: Path) -> None:
    (tmp_path / "plugins.toml").write_text("[budget]\nday_usd = 0.5")
    again = took(300, call(("no_such_tool", {})))
    provider = Priced(again, again, again)
    async with running_hub(data=tmp_path, providers=[provider]) as hub, hub.client() as client:
        ended = await run(client)
        assert ended["status"] == "limit"
        assert ended["error"]["kind"] == "run.limit"
        assert ended["error"]["message"] == "The budget of $0.50 a day is used up; it begins anew at 00:00 UTC."
        assert len(provider.requests) == 2
        assert (await run(client))["status"] == "limit"
        assert len(provider.requests) == 2
        token = (await client.call("token.new", {"user": "ada"}))["token"]
        async with hub.client(token=token) as ada:
            assert (await ada.call("usage.get"))["budget"]["day"]["spent_usd"] == 0

    provider = Priced(took(1, say("ok")))
    async with running_hub(data=tmp_path, providers=[provider]) as hub, hub.client() as client:
        assert (await run(client))["status"] == "limit"
        assert not provider.requests
        async with hub.client(token=token) as ada:
            assert (await run(ada))["status"] == "done"
