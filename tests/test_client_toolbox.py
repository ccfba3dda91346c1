"""Tools that a Python client offers, over a real hub and over a scripted server (protocol section 7)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from sag import client as client_module
from sag.client import Client, ClientTool, ToolCall
from sag.errors import Fault
from sag.hooks.provider import Model
from sag.hooks.tool import tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.harness import Proxy, until
from tests.test_client import Script, connection, scripted

Json = dict[str, Any]
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(client_module, "LONGEST_WAIT_S", 0.2)


class Vendor(ScriptedProvider):
    """Calls tools as the user's message names them, `name {"json": 1}; name {}`, and says what they gave."""

    def models(self) -> list[Model]:
        return [Model("m", default=True)]

    def __init__(self) -> None:
        super().__init__(name="vendor")

    async def stream(self, request: Any) -> Any:
        self.requests.append(request)
        if request.messages[-1].role == "tool":
            script = say("done")
        else:
            script = call(*(tuple(one.strip().partition(" ")[::2]) for one in request.messages[-1].text.split(";")))
        for chunk in script:
            yield chunk

    def told(self, request: int = -1) -> list[str]:
        """What the model was told of the calls."""
        return [m.text for m in self.requests[request].messages if m.role == "tool"]


async def outcome(client: Client, text: str, **params: Any) -> list[Json]:
    """What became of the calls of a run, in their order."""
    started, topic = await begin(client, text, **params)
    await ended(topic, started["run"])
    return calls_of(topic.state, started["run"])


def calls_of(state: Json, run: str) -> list[Json]:
    return [t for t in state["tools"].values() if t["run"] == run]


async def begin(client: Client, text: str, **params: Any) -> tuple[Json, Any]:
    started = await client.call("run.start", {"input": [{"kind": "text", "text": text}], **params})
    return started, await client.subscribe(f"conv:{started['conv']}")


async def ended(topic: Any, run: str) -> None:
    over = ("done", "failed", "cancelled", "interrupted", "limit")
    await topic.until(lambda state: state["runs"].get(run, {}).get("status") in over, WAIT_S)


@pytest.fixture
async def hub():
    vendor = Vendor()
    async with running_hub(providers=[vendor]) as running:
        running.vendor = vendor  # type: ignore[attr-defined]
        yield running


# --- over a real hub ---


async def test_a_function_becomes_a_tool_by_its_signature(hub: RunningHub):
    client = Client(hub.url, "desk")
    threads: list[int] = []

    @client.tool(idempotent=True)
    async def dim(room: str, percent: int = 50, *, ctx: ToolCall) -> str:
        """Dim the lights of a room."""
        ctx.progress(1, 2, room)
        return f"{room} at {percent}"

    @client.tool("add.up")
    def add(a: int, b: int) -> Json:
        """Add two numbers."""
        threads.append(threading.get_ident())
        return {"sum": a + b}

    async with client:
        assert client.tools_refused == []
        one, two, wrong = await outcome(client, 'dim {"room": "hall"}; add_up_f1d2a4 {}; dim {"room": 3}')
        assert (one["status"], one["origin"], one["name"]) == ("ok", "client", "dim")
        assert one["result"] == {"content": [{"kind": "text", "text": "hall at 50"}]}
        assert one["progress"] == {"done": 1, "total": 2, "text": "hall"}
        assert two["status"] == "invalid"  # not by a name that the hub did not make
        assert (wrong["status"], wrong["error"]["path"]) == ("invalid", "$.room")
        specs = {spec.name: spec for spec in hub.vendor.requests[0].tools}  # type: ignore[attr-defined]
        assert specs["dim"].description == "Dim the lights of a room."
        assert specs["dim"].input["required"] == ["room"]
        (legal,) = [name for name in specs if name.startswith("add_up")]
        (two,) = await outcome(client, f'{legal} {{"a": 1, "b": 2}}')
        assert two["result"] == {"content": [{"kind": "text", "text": '{"sum":3}'}]}
        assert threads != [threading.get_ident()]
        assert add(1, 2) == {"sum": 3}
    with pytest.raises(TypeError, match="docstring"):
        client.tool()(lambda: None)


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ("shown", [{"kind": "text", "text": "shown"}]),
        (None, []),
        ({"n": [1, None]}, [{"kind": "text", "text": '{"n":[1,null]}'}]),
        (0, [{"kind": "text", "text": "0"}]),
        ({"content": [{"kind": "link", "uri": "https://x"}]}, [{"kind": "link", "uri": "https://x"}]),
        ({"content": "no list"}, [{"kind": "text", "text": '{"content":"no list"}'}]),
    ],
)
async def test_what_a_handler_gives_is_told_as_content(hub: RunningHub, given, content):
    async def give(args: Json, call: ToolCall) -> Any:
        return given

    async with Client(hub.url, tools=[ClientTool("give", give)]) as client:
        (got,) = await outcome(client, "give {}")
        assert (got["status"], got["result"]) == ("ok", {"content": content})


async def test_what_a_handler_raises_is_told_to_the_model_and_spoils_nothing_else(hub: RunningHub):
    async def fail(args: Json, call: ToolCall) -> Any:
        match args["how"]:
            case "raise":
                raise ValueError("no screen")
            case "bare":
                raise KeyError
            case "fault":
                raise Fault("tool.error", "The door is stuck.")
            case "cancel":
                raise asyncio.CancelledError
            case "object":
                return object()
            case "large":
                return "x" * (1 << 20)
            case _:
                return "fine"

    async with Client(hub.url, tools=[ClientTool("fail", fail)]) as client:
        kinds = ["raise", "bare", "fault", "cancel", "object", "large", "well"]
        got = await outcome(client, "; ".join(f'fail {{"how": "{kind}"}}' for kind in kinds))
        assert [t["status"] for t in got] == ["error"] * 6 + ["ok"]
        words = [t.get("error", {}).get("message", "") for t in got]
        assert words[0] == "no screen"
        assert words[1] == "KeyError"
        assert words[2] == "The door is stuck."
        assert "object" in words[4]
        assert "too large" in words[5]
        assert "no screen" in hub.vendor.told()[0]  # type: ignore[attr-defined]


async def test_several_calls_work_at_once_and_each_has_its_own_answer(hub: RunningHub):
    here = asyncio.Barrier(3)

    async def meet(args: Json, call: ToolCall) -> str:
        async with asyncio.timeout(WAIT_S):
            await here.wait()
        return f"{args['n']}"

    async with Client(hub.url, tools=[ClientTool("meet", meet)]) as client:
        got = await outcome(client, 'meet {"n": 1}; meet {"n": 2}; meet {"n": 3}')
        assert [t["result"]["content"][0]["text"] for t in got] == ["1", "2", "3"]


async def test_the_deadline_ends_a_call_and_its_handler_and_progress_does_not_move_it(hub: RunningHub):
    stopped: list[str] = []

    async def wait(args: Json, call: ToolCall) -> None:
        try:
            while True:
                call.progress(1)
                await asyncio.sleep(0.02)
        finally:
            stopped.append("task")

    def block(args: Json, call: ToolCall) -> str:
        for n in range(500):
            call.progress(n, 500)
            if call.cancelled:
                stopped.append("thread")
                break
            time.sleep(0.01)
        return "too late"

    tools = [ClientTool("wait", wait, timeout_ms=200), ClientTool("block", block, timeout_ms=200)]
    async with Client(hub.url, tools=tools) as client:
        began = time.monotonic()
        got = await outcome(client, "wait {}; block {}")
        assert time.monotonic() - began < 2
        assert [t["status"] for t in got] == ["timeout", "timeout"]
        assert got[1]["progress"]["total"] == 500
        await until(lambda: sorted(stopped) == ["task", "thread"], "both handlers' end")


async def test_a_cancelled_run_stops_the_handler_even_one_that_does_not_want_to(hub: RunningHub):
    begun, seen = asyncio.Event(), asyncio.Event()

    async def stubborn(args: Json, call: ToolCall) -> str:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S * 2)
        except asyncio.CancelledError:
            assert call.cancelled
            seen.set()
        call.progress(9)
        return "all the same"

    async with Client(hub.url, tools=[ClientTool("stubborn", stubborn)]) as client:
        started, topic = await begin(client, "stubborn {}")
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
            await client.call("run.cancel", {"run": started["run"]})
            await seen.wait()
        await ended(topic, started["run"])
        (got,) = calls_of(topic.state, started["run"])
        assert got["status"] == "cancelled"
        assert "progress" not in got


async def test_names_of_the_hubs_own_are_refused_and_told(hub: RunningHub):
    @tool(risk="read")
    async def taken() -> str:
        """The hub's own."""
        return "the hub's"

    hub.app.extensions.tools["taken"] = taken

    async def mine(args: Json, call: ToolCall) -> str:
        return "the client's"

    async with Client(hub.url, tools=[ClientTool("taken", mine), ClientTool("mine", mine)]) as client:
        assert client.tools_refused == ["taken"]
        got = await outcome(client, "taken {}; mine {}")
        assert [t["result"] for t in got] == ["the hub's", {"content": [{"kind": "text", "text": "the client's"}]}]


async def test_tools_are_changed_by_a_hello_and_nothing_else_is_lost(hub: RunningHub):
    go, working = asyncio.Event(), asyncio.Event()

    async def first(args: Json, call: ToolCall) -> str:
        working.set()
        await go.wait()
        return "first"

    async def second(args: Json, call: ToolCall) -> str:
        return "second"

    statuses: list[str] = []
    async with Client(hub.url, on_status=lambda name, _: statuses.append(name)) as client:
        (got,) = await outcome(client, "first {}")
        assert got["status"] == "invalid"
        client.add_tool("first", "The first.", {"type": "object"}, first)
        client.add_tool("bad name!", "Cannot be.", {"type": "object"}, first)
        assert await client.offer() == ["bad name!"]
        assert client.session["resumed"]
        started, topic = await begin(client, "first {}")
        async with asyncio.timeout(WAIT_S):
            await working.wait()
        client.drop_tool("first")
        client.drop_tool("bad name!")
        client.add_tool("second", "The second.", {"type": "object"}, second, risk="read", timeout_ms=500)
        assert await client.offer() == []
        go.set()
        await ended(topic, started["run"])
        assert [t["status"] for t in calls_of(topic.state, started["run"])] == ["ok"]
        later = await outcome(client, "second {}; first {}", conv=started["conv"])
        assert [t["status"] for t in later] == ["ok", "invalid"]
        assert "lost" not in statuses
    with pytest.raises(Fault):
        await client.offer()


async def test_a_call_of_a_tool_that_was_dropped_meanwhile_is_told_to_the_model(hub: RunningHub):
    async def gone(args: Json, call: ToolCall) -> str:
        return "here"

    async with Client(hub.url, tools=[ClientTool("gone", gone)]) as client:
        client.drop_tool("gone")
        (got,) = await outcome(client, "gone {}")
        assert got["status"] == "error"
        assert "no tool 'gone'" in got["error"]["message"]


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("answered", ["while cut", "after the resume"])
async def test_a_call_outlives_a_cut_and_is_done_once(hub: RunningHub, idempotent, answered):
    calls: list[bool] = []
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(args: Json, call: ToolCall) -> str:
        calls.append(call.redelivered)
        begun.set()
        await go.wait()
        done.set()
        return "worked"

    async with Proxy(hub.app.settings.hub.port) as proxy:
        statuses: list[str] = []
        tools = [ClientTool("work", work, idempotent=idempotent)]
        async with Client(proxy.url, tools=tools, on_status=lambda name, _: statuses.append(name)) as client:
            started, topic = await begin(client, "work {}")
            async with asyncio.timeout(WAIT_S):
                await begun.wait()
            proxy.stalled |= {"c2s", "s2c"}  # nothing gets through, and nobody was told
            if answered == "while cut":
                go.set()
                async with asyncio.timeout(WAIT_S):
                    await done.wait()
                await asyncio.sleep(0.05)  # so that the answer is on its way into the void
            statuses.clear()
            client.drop_connection()
            proxy.stalled.clear()
            await until(lambda: "connected" in statuses, "the resume")
            assert client.session["resumed"]
            go.set()
            await ended(topic, started["run"])
            (got,) = calls_of(topic.state, started["run"])
            assert (got["status"], got["result"]["content"][0]["text"]) == ("ok", "worked")
            assert calls == [False]


async def test_a_call_that_begins_while_the_client_is_away_reaches_it_when_it_is_back(hub: RunningHub):
    calls: list[bool] = []
    step = asyncio.Event()

    async def once(args: Json, call: ToolCall) -> str:
        calls.append(call.redelivered)
        return "once"

    script = hub.vendor.stream  # type: ignore[attr-defined]

    async def late(request: Any) -> Any:
        await step.wait()
        async for chunk in script(request):
            yield chunk

    hub.vendor.stream = late  # type: ignore[attr-defined]
    async with (
        Proxy(hub.app.settings.hub.port) as proxy,
        Client(proxy.url, tools=[ClientTool("once", once)]) as client,
        Client(hub.url) as watcher,
    ):
        started, topic = await begin(client, "once {}")
        seen = await watcher.subscribe(topic.name)
        proxy.stalled |= {"c2s", "s2c"}
        client.drop_connection()
        await until(lambda: len(hub.app.hub.connections) == 1, "the client's absence")
        step.set()
        await seen.until(lambda state: state["tools"])
        assert calls == []
        proxy.stalled.clear()
        await ended(topic, started["run"])
        assert calls == [False]
        assert [t["status"] for t in topic.state["tools"].values()] == ["ok"]


async def test_a_run_that_is_cancelled_while_the_client_is_away_stops_the_handler_at_its_return(hub: RunningHub):
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def work(args: Json, call: ToolCall) -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S * 2)
        finally:
            stopped.set()

    async with (
        Proxy(hub.app.settings.hub.port) as proxy,
        Client(proxy.url, tools=[ClientTool("work", work)]) as client,
        Client(hub.url) as other,
    ):
        started, topic = await begin(client, "work {}")
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        proxy.stalled |= {"c2s", "s2c"}
        client.drop_connection()
        await until(lambda: len(hub.app.hub.connections) == 1, "the client's absence")
        await other.call("run.cancel", {"run": started["run"]})
        assert not stopped.is_set()
        proxy.stalled.clear()
        async with asyncio.timeout(WAIT_S):
            await stopped.wait()


async def test_a_call_whose_client_comes_back_too_late_is_lost_and_its_handler_stops(hub: RunningHub):
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def work(args: Json, call: ToolCall) -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S * 2)
        finally:
            stopped.set()

    hub.app.hub.sessions._keep_ms = 100
    async with (
        Proxy(hub.app.settings.hub.port) as proxy,
        Client(proxy.url, tools=[ClientTool("work", work, idempotent=True)]) as client,
    ):
        started, topic = await begin(client, "work {}")
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        proxy.stalled |= {"c2s", "s2c"}
        client.drop_connection()
        async with Client(hub.url) as watcher:
            seen = await watcher.subscribe(topic.name)
            await seen.until(lambda state: calls_of(state, started["run"])[0]["status"] == "lost")
        proxy.stalled.clear()
        async with asyncio.timeout(WAIT_S):
            await stopped.wait()
        assert not client.session["resumed"]


# --- over a scripted server ---


def tool_call(id: str, name: str = "work", **more: Any) -> Json:
    params = {"call": f"k{id}", "run": "r1", "name": name, "args": {}, "deadline_ms": 15_000, "redelivered": False}
    return {"id": id, "method": "tool.call", "params": {**params, **more}}


def text_of(answer: Json) -> str:
    return str(answer["result"]["content"][0]["text"])


class Work:
    """Tools whose calls the test ends."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.go = asyncio.Event()

    async def __call__(self, args: Json, call: ToolCall) -> str:
        self.calls.append((call.call, call.redelivered))
        await self.go.wait()
        return call.call

    def tools(self) -> list[ClientTool]:
        return [ClientTool("work", self, idempotent=True), ClientTool("once", self)]


async def enter(url: str, connections: asyncio.Queue[Script], work: Work) -> tuple[Client, Script]:
    client = Client(url, tools=work.tools())
    entering = asyncio.create_task(client.__aenter__())
    script = await connection(connections)
    await script.welcome()
    async with asyncio.timeout(WAIT_S):
        await entering
    return client, script


async def test_a_call_that_comes_again_is_run_once_and_answered_each_time():
    work = Work()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        await script.send(tool_call("s1"), tool_call("s1"))
        await script.send(tool_call("s1", redelivered=True))
        work.go.set()
        assert text_of(await script.read()) == "ks1"
        await script.send(tool_call("s1", redelivered=True))
        assert text_of(await script.read()) == "ks1"
        assert work.calls == [("ks1", False)]
        await client.__aexit__(None, None, None)


async def test_a_call_from_before_the_program_began_is_run_again_only_where_that_does_no_harm():
    work = Work()
    work.go.set()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        await script.send(tool_call("s1", redelivered=True), tool_call("s2", "once", redelivered=True))
        answers = {a["id"]: a for a in [await script.read(), await script.read()]}
        assert text_of(answers["s1"]) == "ks1"
        assert (answers["s2"]["error"]["code"], answers["s2"]["error"]["data"]["kind"]) == (409, "tool.lost")
        assert work.calls == [("ks1", True)]
        await client.__aexit__(None, None, None)


async def test_all_that_was_answered_while_cut_is_answered_after_the_resume():
    work = Work()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        await script.send(*(tool_call(f"s{n}", "once") for n in range(100)))
        await until(lambda: len(work.calls) == 100, "all calls")
        script.socket.transport.abort()
        await until(lambda: not client.connected, "the cut")
        work.go.set()
        script = await connection(connections)
        await script.welcome(secret="b", resumed=True)
        answers = [await script.read() for _ in range(100)]
        assert sorted(text_of(a) for a in answers) == sorted(f"ks{n}" for n in range(100))
        await script.send(*(tool_call(f"s{n}", "once", redelivered=True) for n in range(100)))
        assert len([await script.read() for _ in range(100)]) == len(work.calls) == 100
        await client.__aexit__(None, None, None)


async def test_a_call_and_its_cancel_in_one_frame_are_answered_once():
    work = Work()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        cancel = {"method": "rpc.cancel", "params": {"id": "s1"}}
        await script.send(tool_call("s1"), cancel, cancel, {"method": "rpc.cancel", "params": {"id": "s99"}})
        answer = await script.read()
        assert (answer["id"], answer["error"]["code"]) == ("s1", 499)
        await script.send(tool_call("s2"))
        work.go.set()
        assert text_of(await script.read()) == "ks2"
        await client.__aexit__(None, None, None)


async def test_an_answer_is_kept_until_its_deadline_and_no_longer():
    work = Work()
    work.go.set()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        await script.send(tool_call("s1", deadline_ms=100), tool_call("s2", deadline_ms=60_000))
        assert {text_of(await script.read()), text_of(await script.read())} == {"ks1", "ks2"}
        await asyncio.sleep(0.12)
        script.socket.transport.abort()
        script = await connection(connections)
        await script.welcome(secret="b", resumed=True)
        await script.send({"ping": 1})
        assert text_of(await script.read()) == "ks2"
        await client.__aexit__(None, None, None)


async def test_the_calls_of_a_session_that_is_over_end_and_their_ids_mean_others():
    work = Work()
    async with scripted() as (url, connections):
        client, script = await enter(url, connections, work)
        await script.send(tool_call("s1"))
        await until(lambda: work.calls, "the call")
        script.socket.transport.abort()
        script = await connection(connections)
        await script.welcome(secret="b", resumed=False)
        work.go.set()
        await script.send(tool_call("s1", call="k-new"))
        assert text_of(await script.read()) == "k-new"
        assert json.dumps(work.calls) == '[["ks1", false], ["k-new", false]]'
        await client.__aexit__(None, None, None)
