"""Two things at once of which one has to win, everywhere the same (RELIABILITY F21). Each is tried often."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness import Client, Gone, Hub, Refused, check_state, new_key, times, until

Json = dict[str, Any]
COUNT = times(12, 500)


@pytest.fixture
async def client(common: Hub) -> AsyncIterator[Client]:
    async with Client(common.url, "one") as client:
        yield client


@pytest.fixture
async def other(common: Hub) -> AsyncIterator[Client]:
    async with Client(common.url, "two") as client:
        yield client


async def outcome(work: Any) -> Json | Refused:
    """An answer or a refusal."""
    try:
        return dict(await work)
    except Refused as refused:
        return refused


async def at(delay_s: float, client: Client, method: str, **params: Any) -> Json | Refused:
    await asyncio.sleep(delay_s)
    return await outcome(client.call(method, **params))


async def test_cancel_against_the_end(common: Hub, client: Client) -> None:
    chance = random.Random(1)
    seen = set()
    for _ in range(COUNT):
        started, view = await client.say("flood 20 2000")
        told = await at(chance.uniform(0, 0.02), client, "run.cancel", run=started["run"])
        run = await client.done(view, started["run"], None)
        assert len(view.named("run.close")) == 1
        if isinstance(told, Refused):
            assert (told.code, told.data["status"]) == (409, run["status"])
            assert run["status"] == "done"
        else:
            assert run["status"] == "cancelled"
        seen.add(run["status"])
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)
    assert seen == {"done", "cancelled"}, "both happened"


async def test_cancel_against_a_tools_result(common: Hub, client: Client) -> None:
    chance = random.Random(2)
    for n in range(COUNT):
        started, view = await client.say(f'call probe_mark {{"id": "race{n}.", "ms": 10}}')
        told = await at(chance.uniform(0.005, 0.02), client, "run.cancel", run=started["run"])
        run = await client.done(view, started["run"], None)
        assert isinstance(told, Refused) == (run["status"] == "done")
        opened, closed = view.named("tool.open"), view.named("tool.close")
        assert len(opened) == len(closed) <= 1
        assert len(common.journal(f"race{n}.")) >= len([c for c in closed if c["status"] == "ok"])
        assert view.events[-1]["e"] == "run.close"
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_two_answers_to_one_ask(common: Hub, client: Client, other: Client) -> None:
    for n in range(COUNT):
        started, view = await client.say(f'call probe_danger {{"id": "two{n}."}}')
        ask = await client.asked(view)
        answers = await asyncio.gather(
            at(0, client, "ask.answer", ask=ask, choice="allow_once"),
            at(0, other, "ask.answer", ask=ask, choice="deny"),
        )
        won = [a for a in answers if isinstance(a, dict)]
        lost = [a for a in answers if isinstance(a, Refused)]
        assert len(won) == len(lost) == 1
        assert (lost[0].code, lost[0].kind) == (409, "ask.closed")
        assert lost[0].data["outcome"] == won[0]["outcome"]
        await client.done(view, started["run"])
        allowed = won[0]["outcome"]["choice"] == "allow_once"
        assert len(common.journal(f"tool danger two{n}.")) == int(allowed)
        assert len(view.named("ask.close")) == 1
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_an_answer_against_the_expiry(common: Hub, client: Client) -> None:
    chance = random.Random(4)
    for _ in range(COUNT):
        started, view = await client.say('call probe_form {"id": "exp", "seconds": 0.05}')
        ask = await client.asked(view)
        options = view.has["asks"].get(ask, {}).get("options") or view.named("ask.open")[0]["options"]
        told = await at(
            chance.uniform(0.03, 0.07), client, "ask.answer", ask=ask, choice=options[0], data={"name": "Ada"}
        )
        await client.done(view, started["run"])
        close = view.named("ask.close")
        assert len(close) == 1
        if isinstance(told, Refused):
            assert (told.code, close[0]["why"]) == (409, "expired")
            assert told.data["outcome"]["why"] == "expired"
        else:
            assert close[0]["by"] == "local"
        result = next(iter(view.has["tools"].values()))["result"]
        assert (result["data"] is None) == isinstance(told, Refused)
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_an_answer_against_the_cancel_of_its_run(common: Hub, client: Client, other: Client) -> None:
    for n in range(COUNT):
        started, view = await client.say(f'call probe_danger {{"id": "vs{n}."}}')
        ask = await client.asked(view)
        answered, cancelled = await asyncio.gather(
            at(0, client, "ask.answer", ask=ask, choice="allow_once"), at(0, other, "run.cancel", run=started["run"])
        )
        assert isinstance(answered, dict) or answered.code == 409
        run = await client.done(view, started["run"], None)
        assert (run["status"] == "cancelled") == isinstance(cancelled, dict)
        assert len(view.named("ask.close")) == 1
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_subscribe_against_unsubscribe(common: Hub, client: Client, other: Client) -> None:
    started, view = await client.say("flood 3000 1500")
    for _ in range(COUNT):
        futures = [
            other.begin("topic.subscribe", topic=view.topic),
            other.begin("topic.unsubscribe", topic=view.topic),
            other.begin("topic.subscribe", topic=view.topic),
        ]
        await asyncio.gather(*futures)
        await asyncio.sleep(0.005)
    seen = await other.follow(view.topic)
    await outcome(client.call("run.cancel", run=started["run"]))  # it may have come to its end
    await client.done(view, started["run"], None)
    await check_state(common.url, view.topic, view, seen)


async def test_a_disconnect_in_mid_subscribe_leaves_nothing_behind(common: Hub, client: Client) -> None:
    started, view = await client.say("flood 3000 1500")
    chance = random.Random(6)
    async with common.http() as http:
        before = (await http.get("/health")).json()["connections"]
        for _ in range(COUNT):
            brief = Client(common.url, "brief")
            await brief.connect()
            for _ in range(3):
                brief.begin("topic.subscribe", topic=view.topic)
                brief.begin("conversation.list")
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
            await brief.cut_and_wait()
        deadline = time.monotonic() + 5
        while (await http.get("/health")).json()["connections"] > before:
            assert time.monotonic() < deadline, "connections stay behind"
            await asyncio.sleep(0.01)
    await outcome(client.call("run.cancel", run=started["run"]))
    await client.done(view, started["run"], None)
    await check_state(common.url, view.topic, view)


async def test_delete_against_everything(common: Hub, client: Client, other: Client) -> None:
    inbox = await client.follow("user:me")
    chance = random.Random(7)
    for n in range(COUNT):
        text = ["flood 200 1000", f'call probe_mark {{"id": "del{n}.", "ms": 30}}', "hang"][n % 3]
        started, _ = await client.say(text)
        conv, run = started["conv"], started["run"]
        results = await asyncio.gather(
            at(chance.uniform(0, 0.03), client, "conversation.delete", conv=conv, key=new_key()),
            at(chance.uniform(0, 0.03), other, "run.start", conv=conv, input=[{"kind": "text", "text": "more"}]),
            at(chance.uniform(0, 0.03), other, "config.patch", scope=f"run:{run}", patch={"temperature": 1}),
            at(chance.uniform(0, 0.03), other, "run.cancel", run=run),
            at(chance.uniform(0, 0.03), other, "topic.subscribe", topic=f"conv:{conv}"),
        )
        assert isinstance(results[0], dict)
        for result in results[1:]:
            assert isinstance(result, dict) or result.code in (404, 409), result
        assert (await client.refused("topic.subscribe", topic=f"conv:{conv}")).code == 404
        assert (await client.refused("conversation.get", conv=conv)).code == 404
        assert (await client.refused("run.get", run=run)).code == 404
    await until(lambda: not inbox.has["runs"], "no run of a deleted conversation is left in the inbox")
    assert (await client.call("run.list"))["runs"] == [] or not any(
        r["status"] in ("running", "queued") for r in (await client.call("run.list"))["runs"]
    )
    await check_state(common.url, "user:me", inbox)


async def test_a_steer_against_the_end_is_read_in_any_case(common: Hub, client: Client) -> None:
    chance = random.Random(8)
    seen = set()
    for n in range(COUNT):
        started, view = await client.say("flood 12 1000")
        await asyncio.sleep(chance.uniform(0, 0.02))
        steer, _ = await client.say(f"steer{n}.", started["conv"], when="steer")
        seen.add(steer["state"])
        await client.done(view, steer["run"])
        await client.done(view, started["run"])
        assert f"steer{n}." in view.text(steer["run"]), "an unread steer makes another step"
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)
    assert "steered" in seen
    assert len(seen) > 1, "both happened; in the moment between, it waits for the end"


async def test_two_interrupts_and_a_queue(common: Hub, client: Client, other: Client) -> None:
    hi = [{"kind": "text", "text": "hi"}]
    for _ in range(COUNT):
        started, view = await client.say("hang")
        answers = await asyncio.gather(
            client.call("run.start", conv=started["conv"], input=hi, when="interrupt"),
            other.call("run.start", conv=started["conv"], input=hi, when="interrupt", subscribe=False),
            client.call("run.start", conv=started["conv"], input=hi, when="queue"),
        )
        runs = {a["run"] for a in answers}
        assert len(runs) == 3
        for run in runs:
            await client.done(view, run, None)
        ends = view.named("run.close")
        assert len(ends) == 4
        assert ends[0] == {**ends[0], "run": started["run"], "status": "cancelled"}
        assert view.run(answers[2]["run"])["status"] in ("done", "cancelled")
        active: set[str] = set()
        for event in view.events:
            d = event["d"]
            if (event["e"] == "run.open" and d["status"] == "running") or (
                event["e"] == "run" and "begun" in d["patch"]
            ):
                active.add(d["run"])
            elif event["e"] == "run.close":
                active.discard(d["run"])
            assert len(active) <= 1, "one run at a time"
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_apply_now_against_the_end_of_the_step(common: Hub, client: Client) -> None:
    chance = random.Random(9)
    for _ in range(COUNT):
        started, view = await client.say("flood 15 1000")
        scope = f"run:{started['run']}"
        told = await at(
            chance.uniform(0, 0.025), client, "config.patch", scope=scope, patch={"temperature": 1}, apply="now"
        )
        run = await client.done(view, started["run"])
        assert run["status"] == "done"
        text = view.text(started["run"])
        assert text == "".join(f"w{n} " for n in range(15)), "the text is there once, whole"
        finishes = [s["finish"] for s in view.named("step.close")]
        if isinstance(told, dict) and told["applies"] == "now":
            assert finishes in (["config", "stop"], ["stop"])
        else:
            assert finishes == ["stop"]
        await check_state(common.url, view.topic, view)
        await client.call("topic.unsubscribe", topic=view.topic)


async def test_a_deaf_provider_does_not_hold_up_a_cancel_or_the_queue(common: Hub, client: Client) -> None:
    started, view = await client.say("deaf")
    await until(lambda: view.text(started["run"]), "the stream")
    began = time.monotonic()
    await client.call("run.cancel", run=started["run"])
    await client.done(view, started["run"], "cancelled")
    assert time.monotonic() - began < 2
    after, _ = await client.say("after", started["conv"])
    await client.done(view, after["run"])
    assert time.monotonic() - began < 3
    await check_state(common.url, view.topic, view)


async def test_a_connection_that_is_cut_with_requests_under_way_does_each_once_or_not(common: Hub) -> None:
    for n in range(COUNT):
        client = Client(common.url, "cut")
        await client.connect()
        future = client.begin("config.patch", scope=f"client:cut{n}", patch={"ui": {"n": 1}}, key=f"cut{n}")
        await asyncio.sleep(0 if n % 2 else 0.001)
        client.cut()
        try:
            await future
        except Gone:
            pass
        await client.closed()
        await client.connect()
        answer = await client.call("config.patch", scope=f"client:cut{n}", patch={"ui": {"n": 1}}, key=f"cut{n}")
        assert answer["rev"] == 2
        assert (await client.call("config.get", scope=f"client:cut{n}"))["rev"] == 2
        await client.close()
