"""`kill -9` in the middle of a triage and of a plan, and `run.resume`: what was finished is not done again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sag.testing.upstream import Calls, FakeUpstream, Hang, Request, Say, Script, ToolCall
from sag.testing.upstream import call as make_call
from sag.testing.upstream import say as make_say
from tests.harness import Client, Hub, View, check_state, times, until
from tests.workflow.play import step, steps, who

Json = dict[str, Any]

CONFIG = """
[workflow.agents.clerk]
title = "Clerk"
description = "files things"
tools = ["probe_mark", "probe_slow"]
"""


class Model:
    """What the fake upstream answers, by whom it is asked and by what tools have answered already.

    Attributes:
        asked: How often each agent was asked.
        hangs: Agents whose next round that follows a tool's answer does not end, until they are taken out.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.hangs: set[str] = set()
        self.hanging: set[str] = set()

    def answer(self, request: Request) -> Script:
        messages = request.json["messages"]
        system = next((m["content"] for m in messages if m["role"] == "system"), "")
        agent = who(system, next(m["content"] for m in messages if m["role"] == "user"))
        self.asked[agent] += 1
        answers = [m["content"] for m in messages if m["role"] == "tool"]
        if agent == "triage":
            return make_call("hand_over", {"agent": "clerk", "note": "File it."})
        if agent == "planner":
            return make_call("make_plan", steps(step("a"), step("b"), step("c"), step("d", "a", "b", "c")))
        if agent == "writer":
            return make_say("All is done.")
        if not answers:
            mark = ToolCall("probe_mark", {"id": agent})
            slow = ToolCall("probe_slow", {"id": agent, "ms": 1 if agent not in self.hangs else 2500})
            return Script([Calls([mark, slow] if agent == "do c" else [mark])])
        if agent in self.hangs:
            self.hanging.add(agent)
            return Script([Say("I have "), Hang()])
        return make_say(f"{agent}: {', '.join(answers)}")


@pytest.fixture
async def model() -> AsyncIterator[tuple[Model, FakeUpstream]]:
    model = Model()
    async with FakeUpstream("vllm", answer=model.answer, max_model_len=None) as upstream:
        yield model, upstream


def env_of(upstream: FakeUpstream) -> dict[str, str]:
    return {"LLM_PROVIDER": "vllm", "LLM_BASE_URL": upstream.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"}


async def test_a_triage_goes_on_with_the_specialist_that_had_the_floor(
    make_hub: Callable[..., Hub], model: tuple[Model, FakeUpstream]
) -> None:
    acts, upstream = model
    acts.hangs = {"clerk"}
    hub = make_hub(CONFIG, **env_of(upstream))
    client = Client(hub.url).keep()
    await client.online.wait()
    started, view = await client.say("File this", kind="triage")
    await until(lambda: "I have" in view.text(started["run"]), "the specialist's second round")
    assert acts.asked == {"triage": 1, "clerk": 2}
    hub.kill()
    await hub.restart()
    await client.done(view, started["run"], "interrupted")
    acts.hangs.clear()
    await client.sure("run.resume", run=started["run"])
    await until(lambda: view.run(started["run"])["status"] == "done", "the resumed run")
    assert acts.asked == {"triage": 1, "clerk": 3}
    assert hub.journal("tool") == ["tool mark clerk"]
    assert view.text(started["run"]).endswith('clerk: {"marked":"clerk"}')
    await check_state(hub.url, view.topic, view)
    await client.close()


async def test_a_hand_over_that_was_cut_is_made_again_without_asking_the_model(
    make_hub: Callable[..., Hub], model: tuple[Model, FakeUpstream]
) -> None:
    acts, upstream = model
    hub = make_hub(CONFIG, **env_of(upstream), SAG_CRASH_AT="tool_done_before_commit")
    client = Client(hub.url).keep()
    await client.online.wait()
    started, view = await client.say("File this", kind="triage")
    assert await hub.ended() == -9
    await hub.restart(SAG_CRASH_AT="")
    await client.done(view, started["run"], "interrupted")
    await client.sure("run.resume", run=started["run"])
    await until(lambda: view.run(started["run"])["status"] == "done", "the resumed run")
    assert acts.asked == {"triage": 1, "clerk": 2}
    assert [t["status"] for t in view.has["tools"].values()] == ["lost", "ok", "ok"]
    await check_state(hub.url, view.topic, view)
    await client.close()


async def test_a_plan_goes_on_where_each_of_its_steps_was(
    make_hub: Callable[..., Hub], model: tuple[Model, FakeUpstream]
) -> None:
    acts, upstream = model
    acts.hangs = {"do b", "do c"}
    hub = make_hub(CONFIG, **env_of(upstream))
    client = Client(hub.url).keep()
    await client.online.wait()
    started, view = await client.say("Do it all", kind="plan")
    run = started["run"]

    def plan() -> Json:
        return dict(view.run(run).get("data", {}).get("plan", {}))

    def statuses() -> list[str]:
        return [plan()["steps"][id]["status"] for id in plan()["order"]]

    await until(lambda: acts.hanging == {"do b"} and len(hub.journal("tool")) == 4, "two steps are at work")
    await until(lambda: plan() and statuses() == ["done", "running", "running", "pending"], "the first is done")
    await until(lambda: [t["status"] for t in view.has["tools"].values()].count("ok") == 4, "the finished tools")
    hub.kill()
    await hub.restart()
    await client.done(view, run, "interrupted")
    assert sorted(hub.journal("tool")) == ["tool mark do a", "tool mark do b", "tool mark do c", "tool slow do c"]
    acts.hangs.clear()
    await client.sure("run.resume", run=run)
    await until(lambda: view.run(run)["status"] == "done", "the resumed run")
    assert statuses() == ["done"] * 4
    assert acts.asked == {"planner": 1, "do a": 2, "do b": 3, "do c": 2, "do d": 2, "writer": 1}
    assert Counter(hub.journal("tool")) == {
        "tool mark do a": 1,
        "tool mark do b": 1,
        "tool mark do c": 1,
        "tool mark do d": 1,
        "tool slow do c": 2,
    }, "what only reads was cut, and is made again"
    assert [plan()["steps"][id]["tries"] for id in plan()["order"]] == [1] * 4
    assert view.text(run).endswith("All is done.")
    await check_state(hub.url, view.topic, view)
    await client.close()


async def finish(client: Client, view: View, run: str) -> None:
    """Resume a run for as long as it takes."""
    ends = ("done", "interrupted", "failed", "limit", "cancelled")
    await until(lambda: view.run(run).get("status") in ends, "an end")
    if view.run(run)["status"] == "interrupted":
        await client.sure("run.resume", run=run)
        await until(lambda: view.run(run)["status"] == "done", f"the resumed run: {view.run(run)}")


@pytest.mark.timeout(600)
async def test_a_kill_at_any_commit_of_a_plan_does_nothing_twice(
    make_hub: Callable[..., Hub], model: tuple[Model, FakeUpstream]
) -> None:
    acts, upstream = model
    hub = make_hub(CONFIG, **env_of(upstream))
    client = Client(hub.url).keep()
    await client.online.wait()
    for n in range(4, 50, times(15, 1)):
        hub.terminate()
        await hub.ended()
        await hub.restart(SAG_CRASH_AT=f"commit_before_send:{n}")
        acts.asked.clear()
        before = len(hub.journal("tool"))
        input = [{"kind": "text", "text": "Do it all"}]
        starting = asyncio.create_task(client.sure("run.start", input=input, kind="plan", key=f"k{n}"))
        try:
            await hub.ended(2.0)
        except AssertionError:
            hub.kill()  # there were not so many commits
        await hub.restart(SAG_CRASH_AT="")
        started = await starting  # whether the answer came before the kill, or to the same request after it
        topic = f"conv:{started['conv']}"
        await client.online.wait()
        view = await client.follow(topic)
        await finish(client, view, started["run"])
        plan = view.run(started["run"])["data"]["plan"]
        assert {step["status"] for step in plan["steps"].values()} == {"done"}, (n, plan)
        tools = Counter(hub.journal("tool")[before:])
        assert all(tools[f"tool mark do {id}"] <= 1 for id in "abcd"), (n, tools)
        assert acts.asked["planner"] <= 2, "asked again only where its answer was not kept"
        assert acts.asked["writer"] <= 2
        await check_state(hub.url, topic, view)
    await client.close()
