"""What runs took, as their users and administrators see it over the socket and over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sag.engine.agent import Agent
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.schema.events import Usage
from sag.topics.journal import Put
from tests.api.conftest import Shop, answer

NONE = {"input": 0, "output": 0, "reasoning": 0, "cached": 0, "cache_write": 0, "unpriced": 0}


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def days_ago(days: int) -> str:
    return (datetime.now(UTC).date() - timedelta(days=days)).isoformat()


async def put(house: Any, **row: Any) -> None:
    """Keep the row of a step that was never run."""
    full = {"day": today(), "owner": "local", "run": "r1", "step": 1, "conv": "c1", "model": "shop/m", "agent": None,
            "client": None, "input": 1, "output": 0, "reasoning": 0, "cached": 0, "cache_write": 0, "nano_usd": None,
            "ms": None, "ts": 0}  # fmt: skip
    tx = house.app.topics.begin()
    tx.put(Put("usage", full | row))
    await tx.submit()


async def test_a_run_is_seen_by_day_model_conversation_and_run(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        first = await house.run(client, text="Dice")
        second = await house.run(client, "shop/small", conv=first["conv"])
        dear = {"steps": 1, **NONE, "input": 1000, "output": 200, "cost_usd": 0.006}
        cheap = {**dear, "cost_usd": 0.00045}
        both = {**dear, "steps": 2, "input": 2000, "output": 400, "cost_usd": 0.00645}

        async def rows(by: str) -> Any:
            over_socket = await client.call("usage.get", {"by": by})
            assert (200, over_socket) == await house.rest(f"/api/usage?by={by}")
            assert over_socket["total"] == both
            assert "budget" not in over_socket
            return over_socket["rows"]

        assert await rows("day") == [{"key": today(), **both}]
        assert await rows("model") == [
            {"key": "shop/m", "label": "Middle", **dear},
            {"key": "shop/small", **cheap},
        ]
        assert await rows("conv") == [{"key": first["conv"], "label": "Dice", **both}]
        assert await rows("run") == [{"key": first["run"], **dear}, {"key": second["run"], **cheap}]
        assert await rows("user") == [{"key": "local", **both}]
        assert (await client.call("usage.get"))["rows"] == await rows("day")


async def test_filters_take_part_of_it(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        first = await house.run(client)
        second = await house.run(client, "shop/small")

        async def keys(**params: str) -> list[str]:
            _, found = await house.rest("/api/usage?by=run&" + "&".join(f"{k}={v}" for k, v in params.items()))
            assert found["total"]["steps"] == len(found["rows"])
            return [row["key"] for row in found["rows"]]

        assert await keys() == [first["run"], second["run"]]
        assert await keys(conv=second["conv"]) == [second["run"]]
        assert await keys(run=first["run"]) == [first["run"]]
        assert await keys(model="shop/small") == [second["run"]]
        assert await keys(model="shop/small", conv=first["conv"]) == []


async def test_nobody_but_an_administrator_sees_what_others_took(open_house: Any) -> None:
    async with open_house() as house, house.enter("ada") as ada, house.enter("bob") as bob, house.enter() as admin:
        mine = await house.run(ada, text="Secret plans")
        await house.run(ada)
        await house.run(bob)
        assert (await ada.call("usage.get"))["total"]["steps"] == 2
        assert (await bob.call("usage.get"))["total"]["steps"] == 1
        assert (await bob.call("usage.get", {"conv": mine["conv"]}))["rows"] == []
        assert (await admin.call("usage.get"))["total"]["steps"] == 0
        for params in ({"user": "ada"}, {"user": "bob"}, {"user": "*"}, {"by": "user"}):
            with pytest.raises(Fault) as denied:
                await bob.call("usage.get", params)
            assert denied.value.kind == "access.denied"
        assert (await house.rest("/api/usage?by=user", "bob"))[0] == 403

        users = (await admin.call("usage.get", {"by": "user"}))["rows"]
        assert [(row["key"], row["steps"]) for row in users] == [("ada", 2), ("bob", 1)]
        assert (await admin.call("usage.get", {"user": "ada"}))["total"]["steps"] == 2
        assert (await admin.call("usage.get", {"by": "user", "user": "bob"}))["total"]["steps"] == 1
        status, everybody = await house.rest("/api/usage?user=*&by=conv")
        assert (status, everybody["total"]["steps"]) == (200, 3)
        assert "Secret plans" not in str(everybody)
        assert [row.get("label") for row in (await ada.call("usage.get", {"by": "conv"}))["rows"]].count(
            "Secret plans"
        ) == 1


async def test_steps_whose_price_is_not_known_are_counted_as_such(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        await house.run(client, "shop/dark")
        (dark,) = (await client.call("usage.get", {"by": "model"}))["rows"]
        assert dark["unpriced"] == 1
        assert "cost_usd" not in dark
        await house.run(client)
        total = (await client.call("usage.get"))["total"]
        assert (total["steps"], total["unpriced"], total["cost_usd"]) == (2, 1, 0.006)
        await house.run(client, "shop/gift")
        gift = (await client.call("usage.get", {"model": "shop/gift"}))["total"]
        assert (gift["unpriced"], gift["cost_usd"]) == (0, 0)


async def test_a_step_that_tells_nothing_is_none_of_them(open_house: Any) -> None:
    async with open_house(Shop(answer(None))) as house, house.enter() as client:
        await house.run(client)
        assert await client.call("usage.get") == {"rows": [], "total": {"steps": 0, **NONE}}


async def test_all_that_a_vendor_counts_is_kept_with_who_and_where(open_house: Any) -> None:
    async def work(run: Any) -> None:
        await run.step(Agent(name="scout"))

    shop = Shop(answer(Usage(1000, 200, 50, 300, 100, 0.125)))
    kind = RunKind("scouting", RunConfig, work)
    async with open_house(shop, kinds=[kind]) as house, house.enter("ada") as ada:
        done = await house.run(ada, kind="scouting")
        (row,) = await house.app.journal.rows("usage", {"run": done["run"]})
        assert row.pop("ms") >= 0
        assert abs(row.pop("ts") - datetime.now(UTC).timestamp() * 1000) < 60_000
        assert row == {
            "day": today(), "owner": "ada", "run": done["run"], "step": 1, "conv": done["conv"], "model": "shop/m",
            "agent": "scout", "client": "desk", "input": 1000, "output": 200, "reasoning": 50, "cached": 300,
            "cache_write": 100, "nano_usd": 125_000_000,
        }  # fmt: skip
        (told,) = (await ada.call("usage.get"))["rows"]
        assert (told["reasoning"], told["cached"], told["cache_write"], told["cost_usd"]) == (50, 300, 100, 0.125)


async def test_what_a_conversation_cost_stays_when_it_is_deleted_but_not_its_title(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        done = await house.run(client, text="Secret plans")
        await client.call("conversation.delete", {"conv": done["conv"]})
        (row,) = (await client.call("usage.get", {"by": "conv"}))["rows"]
        assert (row["key"], row["cost_usd"]) == (done["conv"], 0.006)
        assert "label" not in row
        assert "Secret" not in str(await house.app.journal.rows("usage", {}))


async def test_days_are_those_of_the_range_and_stand_in_order(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        for ago in (3, 0, 29, 30, 400):
            await put(house, day=days_ago(ago), run=f"r{ago}")

        async def days(**params: str) -> list[str]:
            return [row["key"] for row in (await client.call("usage.get", params))["rows"]]

        assert await days() == [days_ago(29), days_ago(3), days_ago(0)]
        assert await days(to=days_ago(1)) == [days_ago(30), days_ago(29), days_ago(3)]
        assert await days(**{"from": days_ago(400), "to": days_ago(30)}) == [days_ago(400), days_ago(30)]
        assert await days(**{"from": days_ago(3)}) == [days_ago(3), days_ago(0)]
        assert (await house.rest(f"/api/usage?from={days_ago(3)}&to={days_ago(3)}"))[1]["total"]["steps"] == 1


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("from=yesterday", "$.from"),
        ("to=2026-02-30", "$.to"),
        ("to=0001-01-01", "$.to"),
        ("from=2026-03-02&to=2026-03-01", "$.from"),
        ("by=week", "$.by"),
        ("limit=0", "$.limit"),
    ],
)
async def test_a_range_that_is_none_is_refused(open_house: Any, query: str, path: str) -> None:
    async with open_house() as house:
        status, told = await house.rest(f"/api/usage?{query}")
        assert (status, told["error"]["data"]["kind"]) == (400, "rpc.params")
        assert told["error"]["data"]["path"] == path


async def test_of_many_rows_the_dearest_are_shown_and_all_are_counted(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        for n in range(5):
            await put(house, run=f"r{n}", nano_usd=n * 100_000_000, day=days_ago(n))
        await put(house, run="dark")
        found = await client.call("usage.get", {"by": "run", "limit": 2})
        assert [row["key"] for row in found["rows"]] == ["r4", "r3"]
        assert found["more"] is True
        assert (found["total"]["steps"], found["total"]["unpriced"], found["total"]["cost_usd"]) == (6, 1, 1.0)
        newest = await client.call("usage.get", {"limit": 2})
        assert [row["key"] for row in newest["rows"]] == [days_ago(1), days_ago(0)]
        assert "more" not in await client.call("usage.get", {"limit": 5})


async def test_a_budget_is_told_with_what_is_used_of_it(open_house: Any) -> None:
    config = "[budget]\nday_usd = 1\nday_tokens = 5000\n[budget.users.bob]\nmonth_usd = 2.5"
    async with open_house(config=config) as house, house.enter("ada") as ada, house.enter("bob") as bob:
        await house.run(ada)
        budget = (await ada.call("usage.get"))["budget"]
        midnight = int((datetime.now(UTC).timestamp() // 86_400 + 1) * 86_400_000)
        assert budget == {
            "day": {"limit_usd": 1, "spent_usd": 0.006, "resets_at": midnight},
            "day_tokens": {"limit_tokens": 5000, "spent_tokens": 1200, "resets_at": midnight},
        }
        own = (await bob.call("usage.get"))["budget"]
        assert (own["month"]["limit_usd"], own["month"]["spent_usd"], own["day"]["spent_usd"]) == (2.5, 0, 0)
        assert (await house.rest("/api/usage?user=ada"))[1]["budget"] == budget
        assert "budget" not in (await house.rest("/api/usage?by=user"))[1]
