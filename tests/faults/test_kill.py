"""`kill -9` at random moments and at named points (RELIABILITY F1, F2).

After each: what anybody was shown is there, each topic has its generation, runs are interrupted and can be resumed,
and nothing with a side effect ran twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.testing.upstream import FakeUpstream
from tests.harness import Client, Gone, Hub, Refused, check_state, new_key, normal, times, until

OPEN = ("queued", "running", "waiting", "paused")


def words(count: int) -> str:
    return "".join(f"w{n} " for n in range(count))


async def test_a_kill_at_any_moment_loses_nothing_that_was_shown(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    chance = random.Random(20261120)
    slowest_s = 0.0
    clients = [Client(hub.url, f"k{n}").keep() for n in range(3)]
    for kill in range(times(7, 50)):
        texts = [f"flood {200 + n} 500" for n in range(2)] + [f'call probe_mark {{"id": "k{kill}.", "ms": 150}}']
        keys = [new_key() for _ in texts]
        starts = [
            asyncio.create_task(c.sure("run.start", input=[{"kind": "text", "text": t}], key=k))
            for c, t, k in zip(clients, texts, keys, strict=True)
        ]
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        hub.kill()
        shown = {v.topic: (v.gen, v.cur, list(v.events)) for c in clients for v in c.views.values()}
        known = {v.topic: len(v.modes) for c in clients for v in c.views.values()}
        await hub.restart()
        back = time.monotonic()
        slowest_s = max(slowest_s, hub.started_s)
        started = await asyncio.gather(*starts)
        for client, answer, text in zip(clients, started, texts, strict=True):
            topic = f"conv:{answer['conv']}"
            await client.online.wait()
            if topic not in client.views:
                await client.sure("topic.subscribe", topic=topic)
            view = client.views[topic]
            if topic in shown:
                gen, cur, events = shown[topic]
                assert view.gen == gen, "kill -9 never changes the generation"
                assert view.modes[known[topic] :] == ["replay"]
                assert view.cur >= cur
                assert view.events[: len(events)] == events
            run = await client.done(view, answer["run"], None, 5.0)
            before = view.text(answer["run"])
            if run["status"] == "interrupted":
                assert time.monotonic() - back < 5
                cut = [p for m in view.has["messages"] for p in m["parts"] if p.get("partial")]
                assert all(p["open"] is False for p in cut)
                assert words(201).startswith(before) or "probe" in text
                await client.sure("run.resume", run=answer["run"])
                await client.done(view, answer["run"], "done")
                assert len(view.named("run.close")) == 2
                run = view.run(answer["run"])
                assert [d["step"] for d in view.named("step.open")] == sorted(
                    {d["step"] for d in view.named("step.open")}
                ), "numbers of steps are never used twice"
            assert run["status"] == "done", run
            whole = view.text(answer["run"])
            assert whole.startswith(before)
            if text.startswith("flood"):
                assert whole.endswith(words(int(text.split()[1])))
            assert len(view.has["runs"]) == 1, "each mutation once"
            await check_state(hub.url, topic, view)
            await client.sure("topic.unsubscribe", topic=topic)
        assert len(hub.journal(f"tool mark k{kill}.")) <= 1, "a tool with side effects runs once"
    assert slowest_s <= 2.0
    for client in clients:
        await client.close()


@pytest.mark.timeout(120)
async def test_a_start_with_a_long_history_is_quick(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_TICK_MS="0")
    async with Client(hub.url) as client:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
        for _ in range(times(1, 8)):
            run, _ = await client.say(f"flood {times(4000, 25_000)} 6000", started["conv"])
            await client.done(view, run["run"], timeout_s=30)
        hang, _ = await client.say("hang", started["conv"])
        await until(lambda: view.text(hang["run"]), "the stream")
        assert view.cur > times(1000, 80_000)
        hub.kill()
        await client.closed()
    await hub.restart()
    assert hub.started_s <= 2.0
    async with Client(hub.url) as client:
        run = await client.call("run.get", run=hang["run"])
        assert run["object"]["status"] == "interrupted"
    print(f"start-up after {view.cur} events: {hub.started_s:.2f} s")


async def killed_in(hub: Hub, point: str, doing: Callable[[], Any]) -> None:
    """Restart with a crash point, do something until the hub dies of it, and start it again without."""
    hub.terminate()
    assert await hub.ended() == 0
    await hub.restart(SAG_CRASH_AT=point)
    task = asyncio.ensure_future(doing())
    try:
        assert await hub.ended() == -9, "it was killed by another signal"
        await hub.restart()
        await asyncio.wait({task}, timeout=20)
        assert task.done(), "what was begun before the kill never ended"
        task.result()
    finally:
        task.cancel()


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[Client]:
    """A client that comes back."""
    client = Client(hub.url).keep()
    await client.online.wait()
    yield client
    await client.close()


async def view_of(client: Client, answer: dict[str, Any]) -> Any:
    topic = f"conv:{answer['conv']}"
    if topic not in client.views or client.views[topic].state is None:
        await client.sure("topic.subscribe", topic=topic)
    return client.views[topic]


@pytest.mark.parametrize(
    "point", [f"{name}:{n}" for name in ("append_before_commit", "commit_before_send") for n in (1, 2, 3, 5, 6)]
)
async def test_a_kill_around_a_commit_shows_nothing_that_is_not_kept(hub: Hub, client: Client, point: str) -> None:
    answers: list[dict[str, Any]] = []

    async def doing() -> None:
        text = 'call probe_mark {"id": "around"} call probe_slow {"id": "around", "ms": 60}'
        answers.append(await client.sure("run.start", input=[{"kind": "text", "text": text}], key="around"))

    await killed_in(hub, point, doing)
    view = await view_of(client, answers[0])
    run = await client.done(view, answers[0]["run"], None)
    if run["status"] == "interrupted":
        await client.sure("run.resume", run=answers[0]["run"])
        await until(lambda: view.run(answers[0]["run"])["status"] == "done", "the resumed run")
    assert len(hub.journal("tool mark around")) <= 1
    assert len((await client.call("run.list"))["runs"]) == 1, "the key made it one run"
    await check_state(hub.url, view.topic, view)


@pytest.mark.parametrize("point", ["provider_sent", "first_delta"])
async def test_a_kill_in_a_model_call_interrupts_the_run_which_can_be_resumed(
    make_hub: Callable[..., Hub], point: str
) -> None:
    async with FakeUpstream() as upstream:
        hub = make_hub(LLM_PROVIDER="openai", LLM_BASE_URL=upstream.url, LLM_MODEL="fake", LLM_API_KEY="k")
        client = Client(hub.url).keep()
        await client.online.wait()
        answers: list[dict[str, Any]] = []

        async def doing() -> None:
            answers.append(await client.sure("run.start", input=[{"kind": "text", "text": "say it"}], key="model"))

        await killed_in(hub, point, doing)
        view = await view_of(client, answers[0])
        await client.done(view, answers[0]["run"], "interrupted")
        assert len(upstream.chats) == 1, "the hub calls no model by itself after a restart"
        await client.sure("run.resume", run=answers[0]["run"])
        await until(lambda: view.run(answers[0]["run"])["status"] == "done", "the resumed run")
        assert len(upstream.chats) == 2
        assert view.text(answers[0]["run"]).endswith("say it")
        assert [d["step"] for d in view.named("step.open")][-1] == 2
        await check_state(hub.url, view.topic, view)
        await client.close()


async def test_a_call_whose_result_was_not_kept_is_lost_and_not_run_again(hub: Hub, client: Client) -> None:
    answers: list[dict[str, Any]] = []

    async def doing() -> None:
        text = [{"kind": "text", "text": 'call probe_mark {"id": "lost"}'}]
        answers.append(await client.sure("run.start", input=text, key="lost"))

    await killed_in(hub, "tool_done_before_commit", doing)
    view = await view_of(client, answers[0])
    await client.done(view, answers[0]["run"], "interrupted")
    assert [t["status"] for t in view.has["tools"].values()] == ["lost"]
    await client.sure("run.resume", run=answers[0]["run"])
    await until(lambda: view.run(answers[0]["run"])["status"] == "done", "the resumed run")
    assert hub.journal("tool mark lost") == ["tool mark lost"], "never silently run again"
    assert "lost" in view.text(answers[0]["run"])
    await check_state(hub.url, view.topic, view)


async def test_a_kill_before_an_ask_is_kept_runs_nothing(hub: Hub, client: Client) -> None:
    answers: list[dict[str, Any]] = []

    async def doing() -> None:
        text = [{"kind": "text", "text": 'call probe_danger {"id": "early"}'}]
        answers.append(await client.sure("run.start", input=text, key="ask"))

    await killed_in(hub, "ask_open", doing)
    view = await view_of(client, answers[0])
    await client.done(view, answers[0]["run"], "interrupted")
    assert view.named("ask.open") == []
    await client.sure("run.resume", run=answers[0]["run"])
    ask = await client.asked(view)
    assert hub.journal("tool danger") == []
    await client.sure("ask.answer", ask=ask, choice="allow_once")
    await client.done(view, answers[0]["run"])
    assert hub.journal("tool danger") == ["tool danger early"]
    await check_state(hub.url, view.topic, view)


@pytest.mark.parametrize("point", ["config_commit", "key_store"])
async def test_a_kill_before_a_change_is_kept_and_its_resend_change_it_once(
    hub: Hub, client: Client, point: str
) -> None:
    started = await client.sure("run.start", input=[{"kind": "text", "text": "hi"}])
    view = await view_of(client, started)
    await client.done(view, started["run"])
    answers: list[dict[str, Any]] = []

    async def doing() -> None:
        scope = f"conv:{started['conv']}"
        if point == "config_commit":
            answers.append(await client.sure("config.patch", scope=scope, patch={"temperature": 0.1}, rev=1))
        else:
            answers.append(await client.sure("conversation.update", conv=started["conv"], title="Once"))

    await killed_in(hub, point, doing)
    await check_state(hub.url, view.topic, view)
    if point == "config_commit":
        assert answers[0]["rev"] == 2
        assert view.has["conv"]["config"] == {"temperature": 0.1}
        assert len(view.named("config")) == 1
    else:
        assert [d["patch"] for d in view.named("conv")][-1] == {"title": "Once"}
        assert sum(d["patch"] == {"title": "Once"} for d in view.named("conv")) == 1


async def test_a_kill_before_a_file_has_its_name_leaves_no_half_file(hub: Hub) -> None:
    data = b"x" * 100_000

    async def doing() -> None:
        async with hub.http() as http:
            with pytest.raises(httpx.TransportError):
                await http.post("/api/files?name=a", content=data)

    await killed_in(hub, "blob_rename", doing)
    async with hub.http() as http:
        made = (await http.post("/api/files?name=a", content=data)).json()
        assert (await http.get(f"/api/files/{made['ref']}")).content == data
    for file in (hub.data / "blobs").iterdir():
        assert file.suffix == ".tmp" or file.stat().st_size == len(data)


async def test_a_kill_in_a_migration_leaves_the_old_schema_or_the_new_one(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(start=False)
    hub.spawn(SAG_CRASH_AT="migration_step")
    assert await hub.ended() == -9
    await hub.restart()
    async with Client(hub.url) as client:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
        await check_state(hub.url, view.topic, view)


async def test_an_open_ask_outlives_a_kill_and_its_answer_runs_the_call(hub: Hub, client: Client) -> None:
    started = await client.sure("run.start", input=[{"kind": "text", "text": 'call probe_danger {"id": "late"}'}])
    view = await view_of(client, started)
    ask = await client.asked(view)
    for _ in range(2):
        hub.kill()
        await hub.restart()
        await until(lambda: client.online.is_set(), "the way back")
        await until(lambda: view.run(started["run"])["status"] == "waiting", "waiting")
        assert list(view.has["asks"]) == [ask]
    assert hub.journal("tool danger") == []
    await client.sure("ask.answer", ask=ask, choice="allow_once", data={"args": {"id": "edited"}})
    await client.done(view, started["run"])
    assert hub.journal("tool danger") == ["tool danger edited"]
    assert view.named("run.close")[0]["status"] == "done"
    await check_state(hub.url, view.topic, view)


async def test_queued_runs_and_clients_calls_end_with_the_hub(hub: Hub, client: Client) -> None:
    tools = [{"name": "work", "description": "", "input": {"type": "object"}}]
    async with Client(hub.url, "second", tools=tools) as second:
        called, view = await second.say("call work {}")
        await until(lambda: second.calls, "the call")
        queued, _ = await second.say("queued", called["conv"])
        seen = await view_of(client, called)
        hub.kill()
        await second.closed()
    await hub.restart()
    await client.online.wait()
    for run in (called, queued):
        await client.done(seen, run["run"], "interrupted")
    assert [t["status"] for t in seen.has["tools"].values()] == ["lost"]
    ends = [d["run"] for d in seen.named("run.close")]
    assert sorted(ends) == sorted([called["run"], queued["run"]])
    await client.sure("run.resume", run=queued["run"])
    await until(lambda: seen.run(queued["run"])["status"] == "done", "the resumed run")
    await check_state(hub.url, seen.topic, seen)


async def test_every_acknowledged_change_is_there_after_a_kill(hub: Hub, client: Client) -> None:
    acknowledged: dict[str, dict[str, Any]] = {}

    async def patch(n: int) -> None:
        scope = f"client:d{n}"
        for value in range(1, 200):
            try:
                answer = await client.call("config.patch", scope=scope, patch={"ui": {"n": value}})
            except (Gone, Refused, TimeoutError):
                return
            acknowledged[scope] = {"rev": answer["rev"], "n": value}

    writers = [asyncio.create_task(patch(n)) for n in range(6)]
    await until(lambda: len(acknowledged) == 6 and min(a["n"] for a in acknowledged.values()) > 3, "some patches")
    hub.kill()
    await asyncio.wait(writers, timeout=10)
    await hub.restart()
    await client.online.wait()
    for scope, last in acknowledged.items():
        view = await client.call("config.get", scope=scope)
        assert view["rev"] >= last["rev"]
        assert view["config"]["ui"]["n"] >= last["n"]


async def test_a_clean_stop_and_start_keep_everything(hub: Hub, client: Client, tmp_path: Path) -> None:
    started = await client.sure("run.start", input=[{"kind": "text", "text": "flood 300 0"}])
    view = await view_of(client, started)
    await client.done(view, started["run"])
    before = normal(view.topic, view.has)
    gen, cur = view.gen, view.cur
    hub.terminate()
    assert await hub.ended() == 0
    await hub.restart()
    await until(lambda: client.connects == 2 and client.online.is_set(), "the way back")
    assert (view.gen, view.cur, view.modes[-1]) == (gen, cur, "replay")
    assert normal(view.topic, await check_state(hub.url, view.topic, view)) == before
    assert not any(run["status"] in OPEN for run in view.has["runs"].values())
    assert tmp_path.exists()
