"""Agents and turns: who sees what, tools of their own, several at once, pauses, and what a kill leaves of them."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sag.engine.agent import Agent
from sag.engine.ends import RunLimit
from sag.engine.run import Run, Turn
from sag.engine.transcript import GO_ON
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import Finish, ModelRequest, ProviderError, Text, UsageChunk, text_message
from sag.hooks.tool import Tool, ToolError, tool
from sag.schema.events import Usage
from sag.testing.provider import ScriptedProvider, call, say
from tests.engine.conftest import CALLED, Bench, open_bench
from tests.harness import copy_as_killed

Kind = Callable[[Run], Awaitable[None]]
ENDS = ("done", "cancelled", "failed", "limit", "interrupted")


class Config(RunConfig):
    """Config of the kinds here: `style` is what agents are told."""

    style: str = "plain"
    who: str = "pro"
    rounds: int = 30


class Theatre:
    """Opens hubs that know the kind `play`; `kill` leaves what a kill leaves: the file as it is at that moment."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.hub: Bench

    async def open(self, kind: Kind, *scripts: Any, **settings: Any) -> Bench:
        provider = ScriptedProvider(*scripts)
        kinds = [RunKind("play", Config, kind)]
        self.hub = await open_bench(self._folder / str(self._number), provider, kinds=kinds, **settings)
        return self.hub

    async def kill(self, conv: str) -> None:
        """End the hub; the next one opens a copy of its file that was made before anything was closed."""
        topic = await self.hub.app.topics.find("ada", f"conv:{conv}")
        assert topic is not None
        await topic.settled()
        old = self._folder / str(self._number)
        self._number += 1
        new = self._folder / str(self._number)
        copy_as_killed(old, new)
        await self.close()

    async def close(self) -> None:
        await self.hub.app.engine.drain(0)
        await self.hub.app.stop()


@pytest.fixture
async def theatre(tmp_path: Path) -> AsyncIterator[Theatre]:
    CALLED.clear()
    theatre = Theatre(tmp_path)
    yield theatre
    await theatre.close()
    gc.collect()


async def play(hub: Bench, status: str = "done", **config: Any) -> tuple[Any, dict[str, Any]]:
    """A run from start to end; gives what was started and the state."""
    started = await hub.start("go", kind="play", config=config)
    return started, await hub.end(started, status)


async def check_log(hub: Bench, conv: str) -> list[tuple[str, Any]]:
    """What is opened is closed once before its run is; gives the log."""
    events = await hub.events(conv)
    opened: Counter[tuple[str, Any]] = Counter()
    runs: set[str] = set()
    for name, d in events:
        what, _, how = name.partition(".")
        if what in ("part", "tool", "ask", "step", "agent") and how in ("open", "close", "drop"):
            id = (what, d[{"part": "part", "tool": "call", "ask": "ask", "step": "step", "agent": "agent"}[what]])
            assert how != "open" or not opened[id], f"{id} is opened twice"
            assert how == "open" or opened[id] or how == "drop", f"{id} is closed before it is open, or twice"
            opened[id] = how == "open"
        if name == "run.close":
            assert not +opened, f"open at the end: {+opened}"
            runs.add(d["run"])
    steps = [d["step"] for n, d in events if n == "step.open"]
    assert len(steps) == len(set(steps))
    assert runs
    return events


def sent(request: ModelRequest) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in request.messages]


def by_agent(state: dict[str, Any]) -> list[tuple[str | None, str]]:
    messages = [m for m in state["messages"] if m["role"] == "assistant"]
    return [(m.get("agent"), "".join(p["text"] for p in m["parts"] if p["kind"] == "text")) for m in messages]


# who sees what


async def test_each_agent_sees_its_own_words_as_the_assistants_and_others_as_the_users(theatre: Theatre) -> None:
    async def debate(run: Run) -> None:
        for name in ("pro", "con", "pro"):
            await run.turn(Agent(name=name, title=name.upper(), system=f"You are {name}."))

    hub = await theatre.open(debate, say("yes"), say("no"), say("still yes"))
    started, state = await play(hub)
    assert by_agent(state) == [("pro", "yes"), ("con", "no"), ("pro", "still yes")]
    assert [sent(r) for r in hub.provider.requests] == [
        [("system", "You are pro."), ("user", "go")],
        [("system", "You are con."), ("user", "go"), ("user", "PRO: yes")],
        [("system", "You are pro."), ("user", "go"), ("assistant", "yes"), ("user", "CON: no")],
    ]
    events = await check_log(hub, started["conv"])
    assert [(n, d["agent"]) for n, d in events if n.startswith("agent.")] == [
        (f"agent.{how}", who) for who in ("pro", "con", "pro") for how in ("open", "close")
    ]
    # a chat that follows knows them by their titles
    await hub.end(await hub.start("and?", conv=started["conv"], kind="chat"))
    assert sent(hub.provider.requests[3]) == [
        ("user", "go"), ("user", "PRO: yes"), ("user", "CON: no"), ("user", "PRO: still yes"), ("user", "and?"),
    ]  # fmt: skip


async def test_unmarked_words_come_without_a_name_and_a_chat_sees_agents_as_others(theatre: Theatre) -> None:
    async def two(run: Run) -> None:
        for name in ("a", "b"):
            await run.turn(Agent(name=name, marked=False))

    hub = await theatre.open(two, say("one"), say("two"), say("three"))
    started, _ = await play(hub)
    assert sent(hub.provider.requests[1]) == [("user", "go"), ("user", "one")]
    await hub.end(await hub.start("and?", conv=started["conv"], kind="chat"))
    assert sent(hub.provider.requests[2]) == [("user", "go"), ("user", "a: one"), ("user", "b: two"), ("user", "and?")]


async def test_with_a_brief_only_that_and_its_own_rounds_are_sent(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn()
        for _ in range(2):
            await run.turn(Agent(name="clerk", brief=[text_message("user", "Sum up.")]))

    hub = await theatre.open(kind, say("talk"), call(("double", {"number": 4})), say("8"), say("sum"), say("more"))
    await play(hub)
    assert [sent(r) for r in hub.provider.requests[1:]] == [
        [("user", "Sum up.")],
        [("user", "Sum up."), ("assistant", ""), ("tool", "8")],
        [("user", "Sum up."), ("assistant", ""), ("tool", "8"), ("assistant", "8"), ("user", GO_ON)],
    ]


async def test_an_agent_that_recalls_nothing_sees_the_rounds_of_the_turn_that_it_is_in(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        for _ in range(2):
            await run.turn(Agent(name="clerk", brief=[text_message("user", "Sum up.")], recalls=False))

    hub = await theatre.open(
        kind, call(("double", {"number": 4})), say("8"), call(("double", {"number": 5})), say("10")
    )
    await play(hub)
    assert [sent(r) for r in hub.provider.requests] == [
        [("user", "Sum up.")],
        [("user", "Sum up."), ("assistant", ""), ("tool", "8")],
        [("user", "Sum up.")],
        [("user", "Sum up."), ("assistant", ""), ("tool", "10")],
    ]


async def test_a_step_of_one_that_recalls_nothing_is_told_the_brief_alone(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        agent = Agent(name="clerk", brief=[text_message("user", "Sum up.")], recalls=False)
        await run.step(agent)
        await run.tools(agent)
        await run.step(agent)

    hub = await theatre.open(kind, call(("double", {"number": 4})), say("done"))
    await play(hub)
    assert [sent(r) for r in hub.provider.requests] == [[("user", "Sum up.")]] * 2


async def test_with_a_brief_what_is_said_meanwhile_is_heard_where_that_is_wished(theatre: Theatre) -> None:
    gate = asyncio.Event()

    async def kind(run: Run) -> None:
        while run.wants_step:
            await run.turn(Agent(brief=[text_message("user", "Whole.")], hears=True))

    hub = await theatre.open(kind, [Text("one"), gate, *say("")[1:]], say("two"))
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: by_agent(s)[-1:] == [(None, "one")])
    await hub.start("and this", conv=started["conv"], when="steer")
    gate.set()
    await hub.end(started)
    assert [sent(r) for r in hub.provider.requests] == [
        [("user", "Whole.")],
        [("user", "Whole."), ("assistant", "one"), ("user", "and this")],
    ]


async def test_what_was_cut_is_seen_by_nobody_in_the_run_and_marked_to_its_speaker_later(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(name="a"))
        await run.turn(Agent(name="b"))

    hub = await theatre.open(kind, say("one"), [Text("half"), asyncio.Event()], say("ok"))
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: by_agent(s)[-1:] == [("b", "half")])
    await hub.call("run.cancel", run=started["run"])
    await hub.end(started, "cancelled")
    await hub.end(await hub.start("again", conv=started["conv"], kind="play"))
    as_a, as_b = (sent(r) for r in hub.provider.requests[2:4])
    assert as_a == [("user", "go"), ("assistant", "one"), ("user", "b: half"), ("user", "again")]
    assert as_b[1:3] == [("user", "a: one"), ("assistant", "half\n[the reply was interrupted here]")]


# tools of an agent's own


def own(risk: Any = "read", name: str = "double") -> Tool:
    @tool(name=name, risk=risk)
    async def mine(number: int) -> str:
        """Do it my way."""
        CALLED.append(f"mine {number}")
        return f"mine {number}"

    return mine


async def test_own_tools_go_before_the_hubs_and_an_ends_call_ends_the_turn(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        ends = await run.turn(Agent(name="a", own=[own()], ends={"double"}))
        await run.update({"text": ends.text})

    hub = await theatre.open(kind, call(("double", {"number": 2}), text="So."))
    started, state = await play(hub, tools={"double": False})
    assert CALLED == ["mine 2"]
    assert len(hub.provider.requests) == 1
    assert [t.name for t in hub.provider.requests[0].tools].count("double") == 1
    assert state["runs"][started["run"]]["data"] == {"text": "So."}
    await check_log(hub, started["conv"])


async def test_an_ends_call_that_fails_does_not_end_the_turn(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(name="a", own=[own()], ends={"double"}))

    hub = await theatre.open(kind, call(("double", {"number": "x"})), call(("double", {"number": 1})))
    await play(hub)
    assert len(hub.provider.requests) == 2
    assert CALLED == ["mine 1"]


async def test_only_the_tools_that_are_meant_for_an_agent_are_offered(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(offered=lambda tool: tool.name == "grumble"))

    hub = await theatre.open(kind, call(("double", {"number": 1})), say("ok"))
    _, state = await play(hub)
    assert [t.name for t in hub.provider.requests[0].tools] == ["grumble"]
    assert [t["status"] for t in state["tools"].values()] == ["invalid"]
    assert not CALLED


@pytest.mark.parametrize(("offered", "names"), [((), []), (["grumble"], ["grumble"]), ({"double": 1}, ["double"])])
async def test_the_tools_that_an_agent_is_offered_may_be_named(
    theatre: Theatre, offered: Any, names: list[str]
) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(offered=offered))

    hub = await theatre.open(kind, say("ok"))
    await play(hub)
    assert [t.name for t in hub.provider.requests[0].tools] == names


def test_the_tools_of_a_connector_are_offered_by_its_name_and_no_tool_by_a_piece_of_it() -> None:
    async def nothing(args: Any, ctx: Any) -> None: ...

    plain, one, other = (Tool("t", "", {}, nothing, check=dict, connector=c) for c in ("", "mail", "mai"))
    agent = Agent(offered=["mail"])
    assert [agent.may_call(tool) for tool in (plain, one, other)] == [False, True, False]
    assert [Agent(offered=["mai/t", "t"]).may_call(tool) for tool in (plain, one, other)] == [True, False, True]


async def test_a_turn_has_the_calls_of_all_its_rounds_and_no_others(theatre: Theatre) -> None:
    turns: list[Turn] = []

    async def kind(run: Run) -> None:
        agents = [Agent(name=name, own=[own(name="mine")], ends={"mine"}) for name in ("a", "b")]
        await run.turn(agents[0])
        await run.together([run.turn(agent) for agent in agents])
        assert await run.turn(agents[1]) == run.turns()[-1]
        turns.extend(run.turns())
        calls = {c["call"]: c for turn in turns for c in turn.calls}
        assert calls == {c["call"]: c for c in run.calls()}

    def answer(request: ModelRequest) -> Any:
        if request.messages[-1].role == "tool":
            return call(("mine", {"number": 2}), ("mine", {"number": 3}))
        return call(("double", {"number": 1}))

    hub = await theatre.open(
        kind, call(("mine", {"number": "x"})), say("no"), answer, answer, answer, answer, say("so")
    )
    _, state = await play(hub)
    told = [[(c["name"], c["status"], c["agent"]) for c in turn.calls] for turn in turns]
    both = [[("double", "ok", a), ("mine", "ok", a), ("mine", "ok", a)] for a in ("a", "b")]
    assert told[0] == [("mine", "invalid", "a")]
    assert sorted(told[1:3]) == both
    assert told[3:] == [[]]
    assert CALLED.count("mine 2") == CALLED.count("mine 3") == 2
    assert all(state["tools"][c["call"]]["result"] == c["result"] for turn in turns[1:] for c in turn.calls)


async def test_edited_arguments_of_an_own_tool_are_held_against_that_tool(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(own=[own("danger", "launch")]))

    hub = await theatre.open(kind, call(("launch", {"number": 1})), say("ok"))
    started = await hub.start("go", kind="play")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    (ask,) = state["asks"]
    with pytest.raises(Fault) as wrong:
        await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"what": "a rocket"}})
    assert wrong.value.kind == "ask.invalid"
    await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"number": 7}})
    await hub.end(started)
    assert CALLED == ["mine 7"]


async def test_strict_calls_nothing_if_one_call_does_not_fit(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.step()
        results = await run.tools(strict=True)
        await run.update({"results": [(r["status"], (r.get("error") or {}).get("kind")) for r in results]})

    hub = await theatre.open(kind, call(("double", {"number": 1}), ("double", {"number": "x"}), ("nobody", {})))
    started, state = await play(hub)
    assert not CALLED
    assert state["runs"][started["run"]]["data"]["results"] == [
        ["cancelled", "tool.skipped"], ["invalid", "tool.args"], ["invalid", "tool.unknown"],
    ]  # fmt: skip


@pytest.mark.parametrize("parallel", [True, False])
async def test_results_come_in_the_order_of_the_calls(theatre: Theatre, parallel: bool) -> None:
    going: list[int] = []

    @tool(risk="read")
    async def wait(number: int) -> int:
        """Wait the longer the smaller the number."""
        going.append(number)
        assert parallel or going == [number]
        await asyncio.sleep(0.03 - number / 100)
        going.remove(number)
        return number

    async def kind(run: Run) -> None:
        agent = Agent(own=[wait])
        await run.step(agent)
        await run.update({"results": [c["result"] for c in await run.tools(agent, parallel=parallel)]})

    hub = await theatre.open(kind, call(*(("wait", {"number": n}) for n in range(3))))
    started, state = await play(hub)
    assert state["runs"][started["run"]]["data"]["results"] == [0, 1, 2]


async def test_a_cancel_between_calls_in_order_makes_none_of_the_rest(theatre: Theatre) -> None:
    hanging = asyncio.Event()

    @tool(risk="read")
    async def hang(number: int) -> int:
        """Hang."""
        CALLED.append(number)
        hanging.set()
        await asyncio.Event().wait()
        return number

    async def kind(run: Run) -> None:
        await run.turn(Agent(name="a", own=[hang]), parallel=False)

    hub = await theatre.open(kind, call(("hang", {"number": 1}), ("hang", {"number": 2})))
    started = await hub.start("go", kind="play")
    await hanging.wait()
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    assert CALLED == [1]
    assert [t["status"] for t in state["tools"].values()] == ["cancelled", "cancelled"]
    await check_log(hub, started["conv"])


# config


async def test_an_agent_is_made_of_the_config_that_its_step_runs_on(theatre: Theatre) -> None:
    go = asyncio.Event()

    def poet(config: Config) -> Agent:
        return Agent(name="poet", system=config.style, settings={"temperature": 0.5, "max_tokens": 9})

    async def kind(run: Run) -> None:
        await run.turn(poet)

    hub = await theatre.open(kind, [go, *call(("double", {"number": 1}))], say("ok"))
    started = await hub.start("go", kind="play", config={"style": "old"})
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]].get("open_steps"))
    await hub.call("config.patch", scope=f"run:{started['run']}", patch={"style": "new", "max_tokens": 5})
    go.set()
    state = await hub.end(started)
    assert [r.messages[0].text for r in hub.provider.requests] == ["old", "new"]
    assert {(r.temperature, r.max_tokens) for r in hub.provider.requests} == {(0.5, 9)}
    assert state["runs"][started["run"]]["applied"] == {"rev": 2, "step": 2}


async def test_a_patch_of_the_name_does_not_take_a_turn_from_its_agent(theatre: Theatre) -> None:
    go = asyncio.Event()

    async def kind(run: Run) -> None:
        await run.turn(lambda config: Agent(name=config.who))

    hub = await theatre.open(kind, [go, *call(("double", {"number": 1}))], say("ok"))
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]].get("open_steps"))
    await hub.call("config.patch", scope=f"run:{started['run']}", patch={"who": "con"})
    go.set()
    state = await hub.end(started)
    assert by_agent(state) == [("pro", ""), ("pro", "ok")]
    await check_log(hub, started["conv"])


# several at once


def together(*names: str, **more: Any) -> Kind:
    async def kind(run: Run) -> None:
        done = {turn.agent for turn in run.turns()}
        await run.together([run.turn(Agent(name=n, system=n, **more)) for n in names if n not in done])

    return kind


def closed_of(run: str, agent: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: state["runs"][run]["agents"][agent] == "closed"


def who_asks(request: ModelRequest) -> str:
    return request.messages[0].text


async def test_turns_at_once_are_told_apart_and_counted_each(theatre: Theatre) -> None:
    gates = {n: asyncio.Event() for n in "abc"}

    def answer(request: ModelRequest) -> list[Any]:
        name = who_asks(request)
        if any(m.role == "tool" for m in request.messages):
            return say("done ", name, tokens=3)
        number = ord(name)
        return [Text(f"{name}1 "), gates[name], Text(f"{name}2 "), *call(("double", {"number": number}))]

    hub = await theatre.open(together(*"abc"), answer)
    started = await hub.start("go", kind="play")
    conv = started["conv"]
    await hub.until(conv, lambda s: sorted(t for _, t in by_agent(s)) == ["a1 ", "b1 ", "c1 "])
    state = await hub.state(conv)
    assert sorted(state["runs"][started["run"]]["open_steps"]) == ["1", "2", "3"]
    for name in "cba":
        gates[name].set()
        await hub.until(conv, closed_of(started["run"], name))
    state = await hub.end(started)
    assert state["runs"][started["run"]]["usage"] == {"input": 6, "output": 12}
    assert [t for _, t in by_agent(state)] == ["a1 a2 ", "b1 b2 ", "c1 c2 ", "done c", "done b", "done a"]
    assert {t["agent"]: t["result"] for t in state["tools"].values()} == {n: 2 * ord(n) for n in "abc"}
    events = await check_log(hub, conv)
    usage = [d["usage"]["output"] for n, d in events if n == "step.close"]
    assert sorted(usage) == [1, 1, 1, 3, 3, 3]
    # each saw its own rounds and the words of others that were finished
    last = next(r for r in reversed(hub.provider.requests) if who_asks(r) == "a")
    assert sent(last) == [
        ("system", "a"), ("user", "go"), ("assistant", "a1 a2 "), ("tool", "194"), ("user", "b: b1 b2"),
        ("user", "c: c1 c2"), ("user", "c: done c"), ("user", "b: done b"),
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
async def test_cancel_closes_everything_that_is_open_at_once(theatre: Theatre, whole: bool) -> None:
    @tool(risk="read")
    async def hang() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    @tool(risk="danger")
    async def dare() -> str:
        """Dare."""
        return "dared"

    def answer(request: ModelRequest) -> list[Any]:
        half: list[Any] = [UsageChunk(Usage(7, 1)), Text("half"), asyncio.Event()]
        first: dict[str, list[Any]] = {"a": call(("hang", {})), "b": half}
        return first.get(who_asks(request)) or call(("dare", {}))

    hub = await theatre.open(together(*"abc", own=[hang, dare], whole=whole), answer)
    started = await hub.start("go", kind="play")

    def ready(state: dict[str, Any]) -> bool:
        return len(state["tools"]) == 2 and state["asks"] and len(state["runs"][started["run"]]["open_steps"]) == 1

    await hub.until(started["conv"], ready)
    for _ in range(20):
        await asyncio.sleep(0)  # what the third was told so far
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    assert state["runs"][started["run"]]["usage"] == {"input": 9, "output": 3}
    names = [n for n, _ in await check_log(hub, started["conv"])]
    assert names.count("agent.close") == 3
    task = next((t for t in hub.app.engine._tasks if started["run"] in t.get_name()), None)
    if task is not None:
        await asyncio.wait({task}, timeout=1)
        assert task.done()


async def test_a_patch_for_now_starts_all_calls_in_flight_again(theatre: Theatre) -> None:
    def answer(request: ModelRequest) -> list[Any]:
        return say("new") if request.temperature == 0.1 else [Text("old"), asyncio.Event()]

    hub = await theatre.open(together("a", "b"), answer)
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: [t for _, t in by_agent(s)] == ["old", "old"])
    answered = await hub.call("config.patch", scope=f"run:{started['run']}", patch={"temperature": 0.1}, apply="now")
    assert answered["applies"] == "now"
    state = await hub.end(started)
    assert sorted(by_agent(state)) == [("a", ""), ("a", "new"), ("b", ""), ("b", "new")]
    events = await check_log(hub, started["conv"])
    assert sorted(d["finish"] for n, d in events if n == "step.close") == ["config", "config", "stop", "stop"]
    assert len([d for n, d in events if n == "config.applied"]) == 1


async def test_the_first_failure_ends_the_others_and_nothing_is_left(theatre: Theatre) -> None:
    lost: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: lost.append(context))
    both = asyncio.Event()

    def answer(request: ModelRequest) -> list[Any]:
        if who_asks(request) == "c":
            both.set()
            return [Text("half"), asyncio.Event()]
        return [both, ProviderError("provider.refused", who_asks(request))]

    hub = await theatre.open(together(*"abc"), answer)
    started, state = await play(hub, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "provider.refused"
    await check_log(hub, started["conv"])
    gc.collect()
    assert not lost


async def test_a_kind_that_goes_on_after_a_failure_leaves_nothing_open_meanwhile(theatre: Theatre) -> None:
    @tool(risk="read")
    async def hang() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    open_meanwhile: list[Any] = []

    def answer(request: ModelRequest) -> list[Any]:
        match who_asks(request):
            case "broken":
                return [Text("half"), UsageChunk(Usage(5, 1)), ProviderError("provider.refused", "no")]
            case "slow":
                return [Text("slow"), asyncio.Event()]
            case "busy":
                return call(("hang", {}))
        return say("after all")

    async def kind(run: Run) -> None:
        with pytest.raises(ProviderError):
            await run.turn(Agent(name="broken", system="broken"))
        for name in ("slow", "busy"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await run.turn(Agent(name=name, system=name, own=[hang]))
        open_meanwhile.append(run.object.get("open_steps"))
        open_meanwhile.append([p for m in run.messages() for p in m["parts"] if p["open"]])
        open_meanwhile.append([t["status"] for t in run.calls()])
        open_meanwhile.append(run.object["agents"])
        await run.turn()

    hub = await theatre.open(kind, answer)
    started, state = await play(hub)
    assert open_meanwhile == [None, [], ["cancelled"], dict.fromkeys(("broken", "slow", "busy"), "closed")]
    assert state["runs"][started["run"]]["usage"]["input"] == 7
    events = await check_log(hub, started["conv"])
    closes = [d for n, d in events if n == "step.close"]
    assert [d["finish"] for d in closes] == ["failed", "cancelled", "tools", "stop"]
    assert closes[0]["error"]["kind"] == "provider.refused"
    assert [p.get("partial") for m in state["messages"][1:3] for p in m["parts"]] == [True, True]


async def test_a_whole_answer_is_told_when_it_is_complete(theatre: Theatre) -> None:
    go = asyncio.Event()

    async def kind(run: Run) -> None:
        await run.turn(Agent(name="a", whole=True))

    hub = await theatre.open(kind, [Text("one "), go, Text("two"), UsageChunk(Usage(2, 2)), Finish("stop")])
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]].get("open_steps"))
    for _ in range(50):
        await asyncio.sleep(0)
    assert (await hub.state(started["conv"]))["messages"][1]["parts"] == []
    go.set()
    state = await hub.end(started)
    assert by_agent(state) == [("a", "one two")]
    assert state["runs"][started["run"]]["usage"] == {"input": 2, "output": 2}
    await check_log(hub, started["conv"])


# what a run keeps


async def test_data_and_answers_outlive_a_kill(theatre: Theatre) -> None:
    asked: list[str] = []

    async def kind(run: Run) -> None:
        await run.update({"rounds": run.data.get("rounds", 0) + 1})
        for name in ("first", "second"):
            asked.append(name)
            answer = await run.ask(name, f"The {name}?", ["yes", "no"])
            await run.update({name: [answer.choice, answer.by]})

    hub = await theatre.open(kind)
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    state = await hub.until(conv, lambda s: s["asks"])
    first = next(iter(state["asks"]))
    await hub.until(conv, lambda s: s["runs"][run]["status"] == "waiting")
    await theatre.kill(conv)
    hub = await theatre.open(kind)
    state = await hub.until(conv, lambda s: s["runs"][run]["status"] == "waiting")
    assert list(state["asks"]) == [first], "the same ask is still open, and no second one"
    await hub.call("ask.answer", ask=first, choice="yes")
    state = await hub.until(conv, lambda s: [a["name"] for a in s["asks"].values()] == ["second"])
    await hub.until(conv, lambda s: s["runs"][run]["status"] == "waiting")
    await theatre.kill(conv)
    hub = await theatre.open(kind)
    await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="no")
    state = await hub.end(started)
    assert state["runs"][run]["data"] == {"rounds": 3, "first": ["yes", "ada"], "second": ["no", "ada"]}
    assert [d["name"] for n, d in await check_log(hub, conv) if n == "ask.open"] == ["first", "second"]


async def test_an_answer_that_came_before_a_kill_is_not_asked_for_again(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        answer = await run.ask("go", "Go?", ["yes", "no"])
        await run.update({"went": answer.choice})
        await run.turn()

    hub = await theatre.open(kind, [Text("half"), asyncio.Event()])
    started = await hub.start("go", kind="play")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="yes")
    await hub.until(started["conv"], lambda s: by_agent(s) == [(None, "half")])
    await theatre.kill(started["conv"])
    hub = await theatre.open(kind, say("whole"))
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=started["run"])
    state = await hub.end(started)
    assert state["runs"][started["run"]]["data"] == {"went": "yes"}
    assert len([n for n, _ in await check_log(hub, started["conv"]) if n == "ask.open"]) == 1


async def test_an_ask_that_expires_gives_the_last_option_and_is_remembered(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        for _ in range(2):
            answer = await run.ask("go", "Go?", ["yes", "later", "no"], expires_s=0.05)
            assert (answer.choice, answer.by) == ("no", None)

    hub = await theatre.open(kind)
    started, _ = await play(hub)
    events = await check_log(hub, started["conv"])
    assert [d.get("why") for n, d in events if n == "ask.close"] == ["expired"]


async def test_an_ask_that_expires_while_the_hub_is_down_is_settled_at_its_start(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        answer = await run.ask("go", "Go?", ["yes", "no"], expires_s=0.3)
        await run.update({"went": answer.choice})

    hub = await theatre.open(kind)
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    await theatre.kill(started["conv"])
    hub = await theatre.open(kind)
    state = await hub.end(started)
    assert state["runs"][started["run"]]["data"] == {"went": "no"}
    await check_log(hub, started["conv"])


async def test_two_asks_that_are_open_at_once_outlive_a_kill(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        async def one(name: str) -> None:
            await run.update({name: (await run.ask(name, name, ["yes", "no"])).choice})

        await run.together([one("a"), one("b")])

    hub = await theatre.open(kind)
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    state = await hub.until(conv, lambda s: len(s["asks"]) == 2)
    ids = {ask["name"]: id for id, ask in state["asks"].items()}
    await theatre.kill(conv)
    hub = await theatre.open(kind)
    await hub.call("ask.answer", ask=ids["b"], choice="no")
    await hub.until(conv, lambda s: s["runs"][run].get("data") == {"b": "no"})
    await hub.call("ask.answer", ask=ids["a"], choice="yes")
    state = await hub.end(started)
    assert state["runs"][run]["data"] == {"a": "yes", "b": "no"}
    assert len([n for n, _ in await check_log(hub, conv) if n == "ask.open"]) == 2


async def test_two_who_ask_the_same_share_one_ask(theatre: Theatre) -> None:
    answers: list[Any] = []

    async def kind(run: Run) -> None:
        async def one() -> None:
            answers.append((await run.ask("go", "Go?", schema={"type": "object"})).data)

        await run.together([one(), one()])

    hub = await theatre.open(kind)
    started = await hub.start("go", kind="play")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    (ask,) = state["asks"]
    await hub.call("ask.answer", ask=ask, choice="accept", data={"x": 1})
    await hub.end(started)
    assert answers == [{"x": 1}, {"x": 1}]


# pause


async def pausable(theatre: Theatre, **settings: Any) -> tuple[Bench, Any, asyncio.Event]:
    """A run that is told to pause in its first turn of two."""
    go = asyncio.Event()

    async def kind(run: Run) -> None:
        for name in ("a", "b"):
            if name not in {t.agent for t in run.turns()}:
                await run.turn(Agent(name=name))
        while run.unread:
            await run.turn(Agent(name="c"))

    hub = await theatre.open(kind, [Text("1"), go, Finish("stop")], say("2"), say("3"), **settings)
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: by_agent(s) == [("a", "1")])
    return hub, started, go


async def test_a_pause_holds_before_the_next_step_and_continue_lets_it_go_on(theatre: Theatre) -> None:
    hub, started, go = await pausable(theatre)
    for _ in range(2):
        assert (await hub.call("run.pause", run=started["run"]))["status"] == "running"
    go.set()
    state = await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "paused")
    inbox = await hub.app.topics.get("ada", "user:me")
    assert inbox.state["runs"][started["run"]]["status"] == "paused"
    assert not state["runs"][started["run"]].get("open_steps")
    await hub.start("and this", conv=started["conv"], when="steer")
    await hub.call("config.patch", scope=f"run:{started['run']}", patch={"temperature": 0.1})
    for _ in range(2):
        await hub.call("run.continue", run=started["run"])
    await hub.end(started)
    assert len(hub.provider.requests) == 2
    assert sent(hub.provider.requests[1])[-1] == ("user", "and this")
    assert hub.provider.requests[1].temperature == 0.1
    told = [
        d["patch"]["status"] for n, d in await check_log(hub, started["conv"]) if n == "run" and "status" in d["patch"]
    ]
    assert told == ["paused", "running"]


@pytest.mark.parametrize("mode", ["now", "after_step"])
async def test_a_paused_run_can_be_cancelled(theatre: Theatre, mode: str) -> None:
    hub, started, go = await pausable(theatre)
    await hub.call("run.pause", run=started["run"])
    go.set()
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "paused")
    await hub.call("run.cancel", run=started["run"], mode=mode)
    await hub.end(started, "cancelled")
    assert len(hub.provider.requests) == 1
    with pytest.raises(Fault) as closed:
        await hub.call("run.continue", run=started["run"])
    assert closed.value.kind == "run.closed"
    await check_log(hub, started["conv"])


async def test_a_paused_run_is_interrupted_by_a_restart_and_resumed_unpaused(theatre: Theatre) -> None:
    hub, started, go = await pausable(theatre)
    await hub.call("run.pause", run=started["run"])
    go.set()
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "paused")
    kind = hub.app.extensions.kinds["play"].run
    await theatre.kill(started["conv"])
    hub = await theatre.open(kind, say("2"))
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=started["run"])
    state = await hub.end(started)
    assert by_agent(state) == [("a", "1"), ("b", "2")]
    await check_log(hub, started["conv"])


async def test_a_hub_that_goes_down_does_not_wait_for_a_paused_run(theatre: Theatre) -> None:
    hub, started, go = await pausable(theatre)
    await hub.call("run.pause", run=started["run"])
    go.set()
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "paused")
    async with asyncio.timeout(2):
        await hub.app.engine.drain(30)
    await hub.end(started, "interrupted")


async def test_a_hub_that_goes_down_lets_turns_end_and_begins_none(theatre: Theatre) -> None:
    long, short = asyncio.Event(), asyncio.Event()

    async def speaker(run: Run, name: str, turns: int) -> None:
        for _ in range(turns):
            await run.turn(Agent(name=name))

    async def kind(run: Run) -> None:
        await run.together([speaker(run, "a", 2), speaker(run, "b", 1)])

    hub = await theatre.open(kind, [Text("1"), short, Finish("stop")], [Text("2"), long, Finish("stop")], say("3"))
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: len(hub.texts(s)) == 2)
    drained = asyncio.create_task(hub.app.engine.drain(30))
    short.set()
    await hub.until(started["conv"], lambda s: "closed" in s["runs"][started["run"]]["agents"].values())
    await asyncio.sleep(0.05)
    assert not drained.done()
    long.set()
    async with asyncio.timeout(5):
        await drained
    state = await hub.end(started, "interrupted")
    assert sorted(text for _, text in by_agent(state)) == ["1", "2"]
    assert all(m["finish"] == "stop" for m in state["messages"] if m["role"] == "assistant")
    await check_log(hub, started["conv"])


async def test_a_run_that_is_paused_while_it_waits_for_a_person_holds_after_the_answer(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.ask("go", "Go?")
        await run.turn()

    hub = await theatre.open(kind, say("went"))
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    state = await hub.until(conv, lambda s: s["runs"][run]["status"] == "waiting")
    await hub.call("run.pause", run=run)
    await theatre.kill(conv)
    hub = await theatre.open(kind, say("went"))
    await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="yes")
    await hub.until(conv, lambda s: s["runs"][run]["status"] == "paused")
    await hub.call("run.continue", run=run)
    await hub.end(started)


async def test_turns_at_once_are_held_together_and_a_steer_comes_to_both(theatre: Theatre) -> None:
    gates = {n: asyncio.Event() for n in "ab"}

    def answer(request: ModelRequest) -> list[Any]:
        if any(m.role == "tool" for m in request.messages):
            return say("done")
        return [gates[who_asks(request)], *call(("double", {"number": 1}))]

    hub = await theatre.open(together(*"ab"), answer)
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    await hub.until(conv, lambda s: len(s["runs"][run].get("open_steps", ())) == 2)
    await hub.call("run.pause", run=run)
    gates["a"].set()
    await hub.until(conv, lambda s: len(s["runs"][run]["open_steps"]) == 1 and s["tools"])
    await hub.until(conv, lambda s: all(t["status"] == "ok" for t in s["tools"].values()))
    assert (await hub.state(conv))["runs"][run]["status"] == "running", "the other one still works"
    gates["b"].set()
    await hub.until(conv, lambda s: s["runs"][run]["status"] == "paused")
    assert len(hub.provider.requests) == 2
    await hub.start("both of you", conv=conv, when="steer")
    await hub.call("run.continue", run=run)
    await hub.end(started)
    assert [("user", "both of you") in sent(r) for r in hub.provider.requests] == [False, False, True, True]
    await check_log(hub, conv)


async def test_a_queued_run_that_is_paused_holds_before_its_first_step(theatre: Theatre) -> None:
    go = asyncio.Event()

    async def kind(run: Run) -> None:
        await run.turn()

    hub = await theatre.open(kind, [Text("1"), go, Finish("stop")], say("2"))
    first = await hub.start("go", kind="play")
    second = await hub.start("and", conv=first["conv"])
    await hub.call("run.pause", run=second["run"])
    go.set()
    await hub.end(first)
    await hub.until(first["conv"], lambda s: s["runs"][second["run"]]["status"] == "paused")
    assert len(hub.provider.requests) == 1
    await hub.call("run.continue", run=second["run"])
    await hub.end(second)


# cancels of several at once


async def test_a_cancel_after_the_step_lets_each_step_end(theatre: Theatre) -> None:
    gates = {n: asyncio.Event() for n in "ab"}

    def answer(request: ModelRequest) -> list[Any]:
        name = who_asks(request)
        return [Text(f"{name}1 "), gates[name], Text(f"{name}2"), *call(("double", {"number": ord(name)}))]

    hub = await theatre.open(together(*"ab"), answer)
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    await hub.until(conv, lambda s: len(by_agent(s)) == 2 and all(t for _, t in by_agent(s)))
    await hub.call("run.cancel", run=run, mode="after_step")
    gates["a"].set()
    await hub.until(conv, lambda s: [t["status"] for t in s["tools"].values()] == ["ok"])
    for _ in range(20):
        await asyncio.sleep(0)
    gates["b"].set()
    state = await hub.end(started, "cancelled")
    assert by_agent(state) == [("a", "a1 a2"), ("b", "b1 b2")]
    assert not [p for m in state["messages"] for p in m["parts"] if p.get("partial")]
    assert len(hub.provider.requests) == 2
    await check_log(hub, conv)


async def test_a_step_that_is_given_up_while_it_starts_again_does_not_go_on(theatre: Theatre) -> None:
    fails = asyncio.Event()
    asked: list[str] = []

    async def kind(run: Run) -> None:
        async def fail() -> None:
            await fails.wait()
            run.restart_steps()
            raise Fault("input.invalid", "No.")

        with pytest.raises(Fault):
            await run.together([fail(), run.turn(Agent(name="a"))])
        asked.append("over")

    hub = await theatre.open(kind, [Text("half"), asyncio.Event()])
    started = await hub.start("go", kind="play")
    await hub.until(started["conv"], lambda s: by_agent(s) == [("a", "half")])
    fails.set()
    async with asyncio.timeout(2):
        await hub.end(started)
    assert asked == ["over"]
    assert len(hub.provider.requests) == 1
    await check_log(hub, started["conv"])


# what was lost


def lossy(tool: Tool, *, ends: bool = False) -> Kind:
    async def kind(run: Run) -> None:
        agent = Agent(name="a", own=[tool], ends={tool.name} if ends else ())
        while run.wants_step:
            await run.turn(agent)

    return kind


def hanging(seen: list[int], risk: Any, *, idempotent: bool = False, hangs: int = 1) -> Tool:
    """A tool that hangs in its first calls."""

    @tool(name="fetch", risk=risk, idempotent=idempotent)
    async def fetch(number: int, *, ctx: Any) -> str:
        """Fetch."""
        seen.append(number)
        await ctx.output(f"call {len(seen)}")
        if number == 2 and len([n for n in seen if n == 2]) <= hangs:
            await asyncio.Event().wait()
        return f"{number} at {len(seen)}"

    return fetch


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("kills", [1, 2])
async def test_a_lost_call_that_does_no_harm_is_made_again_and_its_result_takes_the_place(
    theatre: Theatre, kills: int, ends: bool
) -> None:
    seen: list[int] = []
    kind = lossy(hanging(seen, "read", hangs=kills), ends=ends)
    numbers = [2] if ends else [1, 2, 3]  # a good call of another would end the turn
    hub = await theatre.open(kind, call(*(("fetch", {"number": n}) for n in numbers)))
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    for kill in range(kills):
        while len(seen) < len(numbers) + kill:
            await asyncio.sleep(0.005)
        await hub.until(conv, lambda s: [t["status"] for t in s["tools"].values()].count("ok") == len(numbers) - 1)
        await theatre.kill(conv)
        hub = await theatre.open(kind, say("fine"))
        await hub.end(started, "interrupted")
        await hub.call("run.resume", run=run)
    state = await hub.end(started)
    calls = len(numbers) + kills
    assert sorted(seen) == sorted([*numbers, *[2] * kills])
    twos = {id: t for id, t in state["tools"].items() if t["args"] == {"number": 2}}
    assert [t["status"] for t in twos.values()] == [*["lost"] * kills, "ok"]
    assert [t.get("again") for t in twos.values()] == [None, *list(twos)[:-1]]
    if ends:
        assert hub.provider.requests == []
    else:
        (last,) = hub.provider.requests
        assert [m.text for m in last.messages if m.role == "tool"] == ["1 at 1", f"2 at {calls}", "3 at 3"]
    outputs = [p["text"] for m in state["messages"] for p in m["parts"] if p["kind"] == "tool_output"]
    assert f"call {calls}" in outputs, "what a call writes that is made again has its place"
    await check_log(hub, conv)


@pytest.mark.parametrize(
    ("risk", "idempotent", "times"), [("write", False, 1), ("write", True, 2), ("danger", False, 1)]
)
async def test_a_lost_call_that_might_do_harm_stays_lost_and_the_model_is_told(
    theatre: Theatre, risk: str, idempotent: bool, times: int
) -> None:
    seen: list[int] = []
    kind = lossy(hanging(seen, risk, idempotent=idempotent))
    hub = await theatre.open(kind, call(("fetch", {"number": 2})), say("fine"))
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    if risk == "danger":
        state = await hub.until(conv, lambda s: s["asks"])
        await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="allow_once")
    await hub.until(conv, lambda _: seen)
    await theatre.kill(conv)
    hub = await theatre.open(kind, say("fine"))
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=run)
    await hub.end(started)
    assert len(seen) == times
    (last,) = hub.provider.requests
    assert ("lost" in last.messages[-1].text) == (times == 1)
    await check_log(hub, conv)


async def test_a_call_that_was_made_again_and_waits_for_a_person_outlives_the_next_kill(theatre: Theatre) -> None:
    seen: list[str] = []

    @tool(risk="read", idempotent=True)
    async def form(*, ctx: Any) -> str:
        """Ask."""
        seen.append("form")
        if len(seen) == 1:
            await asyncio.Event().wait()
        _, data = await ctx.ask("Who?", schema={"type": "object"})
        return str(data)

    kind = lossy(form)
    hub = await theatre.open(kind, call(("form", {})))
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    await hub.until(conv, lambda _: seen)
    await theatre.kill(conv)
    hub = await theatre.open(kind, say("fine"))
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=run)
    await hub.until(conv, lambda s: s["asks"] and s["runs"][run]["status"] == "waiting")
    await theatre.kill(conv)
    hub = await theatre.open(kind, say("fine"))
    state = await hub.until(conv, lambda s: s["runs"][run]["status"] == "waiting")
    await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="accept", data={"name": "Ada"})
    state = await hub.end(started)
    assert [t["status"] for t in state["tools"].values()] == ["lost", "ok"]
    await check_log(hub, conv)


@pytest.mark.parametrize("moment", ["round", "tool", "second round"])
async def test_a_turn_that_was_cut_goes_on_where_it_was(theatre: Theatre, moment: str) -> None:
    seen: list[int] = []
    fetch = hanging(seen, "read", hangs=1 if moment == "tool" else 0)

    async def kind(run: Run) -> None:
        for name in ("a", "b"):
            if name not in {t.agent for t in run.turns()}:
                await run.turn(Agent(name=name, system=name, own=[fetch]))

    cut = asyncio.Event()

    def answer(request: ModelRequest) -> list[Any]:
        round = len([m for m in request.messages if m.role == "tool"])
        if who_asks(request) == "a":
            return say("from a")
        held = moment == ("round", "second round")[min(round, 1)] and not cut.is_set()
        wait = [Text("half"), cut] if held else []
        return [*wait, *(say("from b") if round else call(("fetch", {"number": 2})))]

    hub = await theatre.open(kind, answer)
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    if moment == "tool":
        await hub.until(conv, lambda _: seen)
    else:
        await hub.until(conv, lambda s: by_agent(s)[-1:] == [("b", "half")])
    before = len(hub.provider.requests)
    await theatre.kill(conv)
    cut.set()
    hub = await theatre.open(kind, answer)
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=run)
    state = await hub.end(started)
    assert [t for _, t in by_agent(state) if t not in ("", "half")] == ["from a", "from b"]
    assert before + len(hub.provider.requests) == 3 + (moment != "tool"), "a finished round was asked again"
    assert len(seen) == (2 if moment == "tool" else 1)
    await check_log(hub, conv)


# steering, and how a kind ends


async def test_a_steer_at_the_end_is_read_and_one_that_a_kind_ignores_ends_it_all_the_same(theatre: Theatre) -> None:
    calls: list[int] = []

    def kind_of(reads: bool) -> Kind:
        async def kind(run: Run) -> None:
            calls.append(1)
            if reads or not run.turns():
                await run.turn()

        return kind

    for reads in (True, False):
        calls.clear()
        go = asyncio.Event()
        hub = await theatre.open(kind_of(reads), [Text("1"), go, Finish("stop")], say("2"))
        started = await hub.start("go", kind="play")
        await hub.until(started["conv"], lambda s: by_agent(s) == [(None, "1")])
        await hub.start("wait", conv=started["conv"], when="steer")
        go.set()
        await hub.end(started)
        assert len(hub.provider.requests) == 1 + reads
        assert len(calls) == 2
        await check_log(hub, started["conv"])
        if reads:
            await theatre.close()


async def test_what_was_said_at_the_end_is_unread_still_when_the_round_that_answers_it_is_killed(
    theatre: Theatre,
) -> None:
    unread: list[bool] = []

    async def kind(run: Run) -> None:
        while run.unread:
            unread.append(run.unread)
            await run.turn(Agent(name="a"))

    go, cut = asyncio.Event(), asyncio.Event()
    hub = await theatre.open(kind, [Text("1"), go, Finish("stop")], [Text("half"), cut], say("2"))
    started = await hub.start("go", kind="play")
    conv, run = started["conv"], started["run"]
    await hub.until(conv, lambda s: by_agent(s) == [("a", "1")])
    await hub.start("wait", conv=conv, when="steer")
    go.set()
    await hub.until(conv, lambda s: by_agent(s)[-1] == ("a", "half"))
    await theatre.kill(conv)
    cut.set()
    hub = await theatre.open(kind, say("2"))
    await hub.end(started, "interrupted")
    await hub.call("run.resume", run=run)
    state = await hub.end(started)
    assert by_agent(state)[-1] == ("a", "2")
    assert len(hub.provider.requests) == 1
    await check_log(hub, conv)


async def test_a_kind_that_keeps_quiet_of_a_failed_model_is_not_called_again_and_again(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        try:
            await run.turn(Agent(name="a"))
        except ProviderError:
            assert run.unread

    hub = await theatre.open(kind, [Text("half"), ProviderError("provider.auth", "No.")])
    await play(hub)
    assert len(hub.provider.requests) == 1


async def test_what_is_being_answered_is_not_unread(theatre: Theatre) -> None:
    seen: list[bool] = []

    async def kind(run: Run) -> None:
        @tool(risk="read")
        async def look() -> str:
            """Look."""
            seen.append(run.unread)
            return "seen"

        await run.together([run.turn(Agent(name="a", own=[look])), run.turn(Agent(name="b", own=[look]))])

    def answer(request: ModelRequest) -> Any:
        return say("so") if request.messages[-1].role == "tool" else call(("look", {}))

    hub = await theatre.open(kind, answer, answer, answer, answer)
    await play(hub)
    assert seen == [False, False]


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (Fault("input.invalid", "No."), "failed", "input.invalid"),
        (ProviderError("provider.auth", "No."), "failed", "provider.auth"),
        (RunLimit("enough"), "limit", "run.limit"),
        (ToolError("no"), "failed", "run.failed"),
        (ValueError("no"), "failed", "run.failed"),
        (KeyError("x"), "failed", "run.failed"),
        (asyncio.CancelledError(), "interrupted", None),
        (SystemExit(3), "failed", "run.failed"),
        (KeyboardInterrupt(), "failed", "run.failed"),
    ],
)
async def test_how_a_kind_ends_says_how_its_run_does(
    theatre: Theatre, raised: BaseException, status: str, kind: str | None
) -> None:
    async def fails(run: Run) -> None:
        await run.turn(Agent(name="a"))
        raise raised

    hub = await theatre.open(fails, say("ok"))
    started, state = await play(hub, status)
    assert (state["runs"][started["run"]].get("error") or {}).get("kind") == kind
    await check_log(hub, started["conv"])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_a_plugin_that_exits_fails_its_run_and_not_the_hub(theatre: Theatre, error: BaseException) -> None:
    where = ""

    @tool(risk="read")
    async def leave() -> str:
        """Leave."""
        raise error

    def agent(config: Config) -> Agent:
        if where == "agent":
            raise error
        return Agent(name="a", own=[leave])

    async def kind(run: Run) -> None:
        await run.together([run.turn(agent)])

    hub = await theatre.open(kind, call(("leave", {})), say("It failed."), say("ok"))
    started, state = await play(hub)
    (told,) = state["tools"].values()
    assert (told["status"], told["error"]["message"]) == ("error", f"The tool failed ({type(error).__name__}).")
    await check_log(hub, started["conv"])
    where = "agent"
    started, state = await play(hub, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "run.failed"
    await check_log(hub, started["conv"])
    where = ""
    await play(hub)


async def test_the_model_of_an_agent_is_its_own(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(model=None, settings={"temperature": 0.5}))
        await run.turn(Agent(model="other/x"))

    hub = await theatre.open(kind, say("ok"))
    started, state = await play(hub, "failed", model="script/m")
    assert state["runs"][started["run"]]["error"]["kind"] == "model.unknown"
    assert [(r.model, r.temperature) for r in hub.provider.requests] == [("m", 0.5)]


async def test_settings_that_the_config_does_not_have_fail_the_run_in_words(theatre: Theatre) -> None:
    async def kind(run: Run) -> None:
        await run.turn(Agent(settings={"warmth": 1}))

    hub = await theatre.open(kind, say("ok"))
    started, state = await play(hub, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "run.failed"
    assert not hub.provider.requests
    await check_log(hub, started["conv"])
