"""Plans: written, approved, done in parallel, changed when a step fails or something is said, and answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sag.plugin import Fault, ModelRequest, ProviderError, Run, ToolContext, tool
from sag.testing.hub import running_hub
from sag.testing.provider import call, say
from sag_workflow.plan import _work
from tests.harness import Client, View, check_state, until
from tests.workflow.play import SPECIALISTS, Line, Play, asked, step, steps

Json = dict[str, Any]


class Bench:
    """Tools that write down their calls, and meet where two have to be at work at once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.began = asyncio.Semaphore(0)
        self.may_end = asyncio.Event()
        self.cancelled = 0

        @tool(risk="write")
        async def work(id: str, *, ctx: ToolContext) -> str:
            """Do some work."""
            self.calls.append(id)
            return f"{id} is worked"

        @tool(risk="write")
        async def meet(id: str, *, ctx: ToolContext) -> str:
            """Work until it may end."""
            self.calls.append(id)
            self.began.release()
            try:
                async with asyncio.timeout(10):
                    await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return f"{id} has met"

        self.tools = [work, meet]

    async def both(self, count: int = 2) -> None:
        """Wait until so many are at work."""
        async with asyncio.timeout(10):
            for _ in range(count):
                await self.began.acquire()


def hub_of(play: Play, bench: Bench | None = None, *more: Play, agents: Json = SPECIALISTS) -> Any:
    tools = bench.tools if bench is not None else []
    return running_hub(providers=[play, *more], tools=tools, tables={"workflow": {"agents": agents}}, tick_ms=0)


def plan_of(view: View, run: str) -> Json:
    """The run's plan as a device has it."""
    plan: Json = view.run(run).get("data", {}).get("plan", {})
    return plan


def statuses(plan: Json) -> dict[str, str]:
    return {id: plan["steps"][id]["status"] for id in plan["order"]}


def made(*given: Json) -> Line:
    return call(("make_plan", steps(*given)))


def revised(*given: Json) -> Line:
    return call(("revise_plan", steps(*given)))


async def test_five_steps_of_which_two_run_at_once_and_one_fails_and_is_replanned_on_two_devices() -> None:
    bench = Bench()
    drawn = [step("ask"), step("left", "ask"), step("right", "ask"), step("check", "left", "right")]
    play = Play(
        {
            "planner": [made(*drawn, step("mail", "check"))],
            "do ask": [call(("work", {"id": "ask"})), say("Asked.")],
            "do left": [call(("meet", {"id": "left"})), say("Left done.")],
            "do right": [call(("meet", {"id": "right"})), say("Right done.")],
            "do check": [call(("work", {"id": "check"})), call(("give_up", {"reason": "The sums differ."}))],
            "mend": [revised(step("recount", "left"), step("mail", "recount", "right"))],
            "do recount": [call(("work", {"id": "recount"})), say("Counted.")],
            "do mail": [say("Mailed.")],
            "writer": [say("All is ", "mailed.")],
        }
    )
    async with hub_of(play, bench) as hub, Client(hub.url, "desk") as desk:
        phone = Client(hub.url, "phone").keep()
        started, view = await desk.say("Count and mail", kind="plan")
        run = started["run"]
        await phone.online.wait()
        seen = await phone.follow(view.topic)
        await bench.both()
        assert statuses(plan_of(view, run)) == {
            "ask": "done",
            "left": "running",
            "right": "running",
            "check": "pending",
            "mail": "pending",
        }
        phone.cut()
        await phone.closed()
        bench.may_end.set()
        await desk.done(view, run)
        await until(lambda: seen.run(run).get("status") == "done", "the phone is back")
        assert phone.connects == 2
        state = await check_state(hub.url, view.topic, view, seen)
        plan = plan_of(view, run)
        assert plan == plan_of(seen, run) == state["runs"][run]["data"]["plan"]
        assert statuses(plan) == {
            "ask": "done",
            "left": "done",
            "right": "done",
            "check": "failed",
            "recount": "done",
            "mail": "done",
        }
        assert (plan["rev"], plan["said"], plan["mended"]) == (2, 1, 1)
        check, mail = plan["steps"]["check"], plan["steps"]["mail"]
        assert (check["error"], check["tries"], check["speaker"]) == ("The sums differ.", 1, "check")
        assert (mail["result"], mail["rev"], mail["needs"]) == ("Mailed.", 2, ["recount", "right"])
        assert mail["ts"] > 1_700_000_000_000
        object = state["runs"][run]
        assert object["titles"] == {"planner": "Planner", "planner.2": "Planner"} | {
            id: id.capitalize() for id in plan["order"]
        }
        assert set(object["agents"].values()) == {"closed"}
        assert state["messages"][-1].get("agent") is None
        assert state["messages"][-1]["parts"][0]["text"] == "All is mailed."
        told = [(e["e"], e["d"]["agent"]) for e in view.events if e["e"] in ("agent.open", "agent.close")]
        opened = told.index(("agent.open", "left")), told.index(("agent.open", "right"))
        closed = told.index(("agent.close", "left")), told.index(("agent.close", "right"))
        assert max(opened) < min(closed), "both are at work at once"
        await phone.close()
    assert sorted(bench.calls) == ["ask", "check", "left", "recount", "right"]
    (brief,) = [m.text for m in play.of("do mail")[0].messages if m.role == "user"]
    assert brief == (
        "What the user wants in all:\nCount and mail\n\nResult of Recount:\nCounted.\n\nResult of Right:\nRight done."
        "\n\nYour task:\ndo mail"
    )
    mend = play.of("mend")[0].messages[0].text
    assert "The step check failed: The sums differ." in mend
    assert "- mail (Mail, needs check): pending" in mend
    tools = {spec.name for spec in play.of("do ask")[0].tools}
    assert {"work", "meet", "give_up"} <= tools
    assert [spec.name for spec in play.of("planner")[0].tools] == ["make_plan"]
    assert "- work: Do some work." in play.of("planner")[0].messages[0].text
    assert play.of("writer")[0].tools == []


async def test_no_more_steps_run_at_once_than_the_config_allows() -> None:
    bench = Bench()
    lines: dict[str, Sequence[Line]] = {f"do {id}": [call(("meet", {"id": id})), say(id)] for id in "abc"}
    play = Play({"planner": [made(step("a"), step("b"), step("c"))], **lines, "writer": [say("Done.")]})
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"parallel": 2})
        await bench.both()
        assert list(statuses(plan_of(view, started["run"])).values()) == ["running", "running", "pending"]
        bench.may_end.set()
        await client.done(view, started["run"])
    assert sorted(bench.calls) == ["a", "b", "c"]


@pytest.mark.parametrize("choice", ["approve", "reject"])
async def test_nothing_runs_before_a_person_has_approved_it(choice: str) -> None:
    play = Play({"planner": [made(step("a"))], "do a": [say("Done.")], "writer": [say("It is done.")]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"approve": True})
        ask = await client.asked(view)
        asked_for = view.has["asks"][ask]
        assert (asked_for["name"], asked_for["options"]) == ("plan 1", ["approve", "change", "reject"])
        assert asked_for["subject"]["steps"][0]["task"] == "do a"
        assert statuses(plan_of(view, started["run"])) == {"a": "pending"}
        await client.call("ask.answer", ask=ask, choice=choice)
        await client.done(view, started["run"], "done" if choice == "approve" else "cancelled")
        plan = plan_of(view, started["run"])
    if choice == "approve":
        assert (statuses(plan), plan["approved"]) == ({"a": "done"}, 1)
    else:
        assert statuses(plan) == {"a": "pending"}
        assert [asked(request) for request in play.requests] == ["planner"]


async def test_a_person_may_have_the_plan_changed_and_is_asked_again() -> None:
    play = Play(
        {
            "planner": [made(step("a"), step("b"))],
            "mend": [revised(step("a"), step("c"))],
            "do a": [say("A.")],
            "do c": [say("C.")],
            "writer": [say("Both are done.")],
        }
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"approve": True})
        await client.call("ask.answer", ask=await client.asked(view), choice="change")
        form = await until(
            lambda: next((a for a, d in view.has["asks"].items() if d["name"] == "plan 1 change"), None), "the form"
        )
        refused = await client.refused("ask.answer", ask=form, choice="change", data={})
        assert refused.kind == "ask.invalid"
        await client.call("ask.answer", ask=form, choice="change", data={"comment": "Without b."})
        again = await until(
            lambda: next((a for a, d in view.has["asks"].items() if d["name"] == "plan 2"), None), "the new plan"
        )
        assert statuses(plan_of(view, started["run"])) == {"b": "dropped", "a": "pending", "c": "pending"}
        await client.call("ask.answer", ask=again, choice="approve")
        await client.done(view, started["run"])
        plan = plan_of(view, started["run"])
        assert statuses(plan) == {"b": "dropped", "a": "done", "c": "done"}
        assert (plan["rev"], plan["approved"], plan["steps"]["a"]["rev"]) == (2, 2, 1)
        assert "comment" not in plan
    assert "The user wants this changed before the plan is done: Without b." in play.of("mend")[0].messages[0].text


WRONG = {
    "needs x, which is no step": [step("a", "x")],
    "need each other": [step("a", "b"), step("b", "c"), step("c", "a")],
    "These steps need each other: a → a": [step("a", "a")],
    "stands for several": [step("a"), step("a")],
    "4 steps are too many": [step("a"), step("b"), step("c"), step("d")],
    "there is no specialist 'nobody'": [step("a", agent="nobody")],
    "is your own name": [step("planner")],
    "at least one step": [],
    "`$.steps[0].id`": [step("a b")],
}


@pytest.mark.parametrize("why", WRONG)
async def test_a_plan_that_does_not_fit_is_told_and_mended(why: str) -> None:
    play = Play({"planner": [made(*WRONG[why]), made(step("a"))], "do a": [say("A.")], "writer": [say("Done.")]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"max_steps": 3})
        await client.done(view, started["run"])
        assert statuses(plan_of(view, started["run"])) == {"a": "done"}
    assert why in play.of("planner")[1].messages[-1].text


async def test_plans_that_never_fit_end_the_run() -> None:
    play = Play({"planner": [made(step("a", "x"))] * 9})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        object = await client.done(view, started["run"], "limit")
        assert object["error"]["message"] == "The planner wrote 4 plans that do not fit."
        assert plan_of(view, started["run"]) == {}
    assert len(play.requests) == 4


async def test_what_needs_no_plan_is_answered_by_the_planner_and_what_is_said_then_may_need_one() -> None:
    goes_on = asyncio.Event()
    play = Play(
        {
            "planner": [[*say("Hello."), goes_on]],
            "mend": [revised(step("a"))],
            "do a": [say("A.")],
            "writer": [say("Done.")],
        }
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Hi", kind="plan")
        await until(lambda: view.text(started["run"]) == "Hello.", "the greeting")
        await client.say("Do a", started["conv"], when="steer")
        goes_on.set()
        await client.done(view, started["run"])
        plan = plan_of(view, started["run"])
        assert (statuses(plan), plan["rev"], plan["said"]) == ({"a": "done"}, 2, 2)


async def test_what_is_said_meanwhile_changes_the_plan_once_the_running_steps_are_over() -> None:
    bench = Bench()
    play = Play(
        {
            "planner": [made(step("a"), step("b", "a"))],
            "do a": [call(("meet", {"id": "a"})), say("A.")],
            "mend": [revised(step("c", "a"))],
            "do c": [say("C.")],
            "writer": [say("Done.")],
        }
    )
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await bench.both(1)
        await client.say("Rather c than b", started["conv"], when="steer")
        bench.may_end.set()
        await client.done(view, started["run"])
        plan = plan_of(view, started["run"])
        assert statuses(plan) == {"a": "done", "b": "dropped", "c": "done"}
        assert (plan["said"], plan["mended"]) == (2, 0)
    assert "Rather c than b" in [m.text for m in play.of("mend")[0].messages]


async def test_words_alone_leave_the_plan_as_it_is() -> None:
    bench = Bench()
    play = Play(
        {
            "planner": [made(step("a"), step("b", "a"))],
            "do a": [call(("meet", {"id": "a"})), say("A.")],
            "mend": [say("It takes a minute.")],
            "do b": [say("B.")],
            "writer": [say("Done.")],
        }
    )
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"approve": True})
        await client.call("ask.answer", ask=await client.asked(view), choice="approve")
        await bench.both(1)
        await client.say("How long?", started["conv"], when="steer")
        bench.may_end.set()
        await client.done(view, started["run"])
        assert statuses(plan_of(view, started["run"])) == {"a": "done", "b": "done"}
        assert len(view.named("ask.open")) == 1, "what was approved is not asked for again"


async def test_what_is_done_is_not_planned_again() -> None:
    play = Play(
        {
            "planner": [made(step("a"), step("b", "a"))],
            "do a": [say("A.")],
            "do b": [call(("give_up", {"reason": "No."}))],
            "mend": [revised(step("a"), step("b", "a")), revised()],
            "writer": [say("Half is done.")],
        }
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await client.done(view, started["run"])
        assert statuses(plan_of(view, started["run"])) == {"a": "done", "b": "failed"}
    assert "a: done already" in play.of("mend")[1].messages[-1].text


async def test_a_step_whose_model_fails_can_be_tried_again_with_another() -> None:
    broken = ProviderError("provider.refused", "The request is refused.")
    play = Play(
        {
            "planner": [made(step("a"), step("b", "a"))],
            "do a": [say("A.")],
            "mend": [revised(step("a"), step("b", "a"))],
            "do b": [say("B.")],
            "writer": [say("Done.")],
        }
    )
    other = Play({"do a": [[broken]]}, name="other")
    agents = {"travel": {"title": "Travel", "description": "trips", "model": "other/m"}}
    play.lines["planner"] = [made(step("a", agent="travel"), step("b", "a"))]
    async with hub_of(play, None, other, agents=agents) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await client.done(view, started["run"])
        plan = plan_of(view, started["run"])
        assert statuses(plan) == {"a": "done", "b": "done"}
        a = plan["steps"]["a"]
        assert (a["tries"], a["speaker"], a["rev"]) == (2, "a.2", 2)
        assert not {"error", "agent", "seen"} & set(a)
        finishes = [d["finish"] for d in view.named("step.close")]
        assert finishes.count("failed") == 1
    assert "The request is refused." in play.of("mend")[0].messages[0].text


async def test_a_key_that_is_refused_ends_the_run() -> None:
    play = Play({"planner": [made(step("a"))], "do a": [[ProviderError("provider.auth", "The key is refused.")]]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        object = await client.done(view, started["run"], "failed")
        assert object["error"]["kind"] == "provider.auth"


async def test_when_the_plan_may_be_changed_no_more_the_answer_says_what_failed() -> None:
    play = Play(
        {
            "planner": [made(step("a"), step("b", "a"), step("c"), step("d", "c"))],
            "do a": [call(("give_up", {"reason": "There is no a."}))],
            "do c": [say("C.")],
            "do d": [say("D.")],
            "writer": [say("There was no a.")],
        }
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan", config={"revisions": 0})
        await client.done(view, started["run"])
        plan = plan_of(view, started["run"])
        assert statuses(plan) == {"a": "failed", "b": "dropped", "c": "done", "d": "done"}
        assert (plan["rev"], plan["mended"]) == (1, 0)
    told = play.of("writer")[0].messages[0].text
    assert "- a (A): failed\n  There is no a." in told


async def test_a_step_of_a_specialist_has_its_prompt_its_model_and_its_tools() -> None:
    bench = Bench()
    agents = {
        "clerk": {"title": "Clerk", "description": "files", "system": "File it.", "tools": ["work"], "model": "other/m"}
    }
    play = Play({"planner": [made(step("a", agent="clerk"))], "writer": [say("Filed.")]})
    other = Play({"do a": [say("A.")]}, name="other")
    async with hub_of(play, bench, other, agents=agents) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await client.done(view, started["run"])
        assert plan_of(view, started["run"])["steps"]["a"]["agent"] == "clerk"
    assert "- clerk (Clerk): files" in play.of("planner")[0].messages[0].text
    request: ModelRequest = other.requests[0]
    assert sorted(spec.name for spec in request.tools) == ["give_up", "work"]
    assert request.messages[0].text.startswith("File it.\n\n")


async def test_a_tool_that_is_switched_off_is_told_to_no_planner() -> None:
    bench = Bench()
    play = Play({"planner": [say("Hello.")]})
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Hi", kind="plan", config={"tools": {"meet": False}})
        await client.done(view, started["run"])
    told = play.of("planner")[0].messages[0].text
    assert "- work: Do some work." in told
    assert "meet" not in told


async def test_a_cancel_ends_all_steps_that_are_at_work() -> None:
    bench = Bench()
    lines: dict[str, Sequence[Line]] = {f"do {id}": [call(("meet", {"id": id})), say(id)] for id in "ab"}
    play = Play({"planner": [made(step("a"), step("b"), step("c", "a", "b"))], **lines})
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await bench.both()
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        await until(lambda: bench.cancelled == 2, "both tools are cancelled")
        state = await check_state(hub.url, view.topic, view)
        assert set(state["runs"][started["run"]]["agents"].values()) == {"closed"}
        assert [t["status"] for t in state["tools"].values()] == ["ok", "cancelled", "cancelled"]
        assert statuses(plan_of(view, started["run"])) == {"a": "running", "b": "running", "c": "pending"}
        after, _ = await client.say("Hi", started["conv"], kind="chat", config={"model": "demo/scripted"})
        await client.done(view, after["run"])
    assert len(play.requests) == 3


async def test_a_pause_holds_every_step_before_its_next_round() -> None:
    bench = Bench()
    lines: dict[str, Sequence[Line]] = {f"do {id}": [call(("meet", {"id": id})), say(id)] for id in "ab"}
    play = Play({"planner": [made(step("a"), step("b"))], **lines, "writer": [say("Done.")]})
    async with hub_of(play, bench) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await bench.both()
        await client.call("run.pause", run=started["run"])
        bench.may_end.set()
        await until(lambda: view.run(started["run"])["status"] == "paused", "the pause")
        assert len(play.requests) == 3
        await client.call("run.continue", run=started["run"])
        await client.done(view, started["run"])


async def test_an_export_holds_the_plan() -> None:
    play = Play({"planner": [made(step("a"))], "do a": [say("A.")], "writer": [say("Done.")]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Go", kind="plan")
        await client.done(view, started["run"])
        text = (await client.call("run.export", run=started["run"], format="json"))["text"]
        assert '"order"' in text


async def test_a_plan_that_was_taken_in_with_a_circle_fails_instead_of_waiting_for_ever() -> None:
    """No planner can write one; an imported conversation can hold one."""
    plan = {
        "rev": 1,
        "order": ["a", "b"],
        "steps": {id: {"status": "pending", "needs": [need], "tries": 0} for id, need in ("ab", "ba")},
    }
    with pytest.raises(Fault) as fault:
        await _work(cast(Run, SimpleNamespace(data={"plan": plan})))
    assert fault.value.kind == "input.invalid"
