"""`sag.client`: over a real hub, and over a scripted server that sends what a hub seldom sends (protocol 1–4, 7, 8)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from sag import client as client_module
from sag.client import Client, ClientTool
from sag.errors import Fault
from tests.harness import Hub, until

Json = dict[str, Any]
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(client_module, "LONGEST_WAIT_S", 0.2)


def say(text: str, **params: Any) -> Json:
    return {"input": [{"kind": "text", "text": text}], **params}


def text_of(state: Json, run: str) -> str:
    messages = [m for m in state["messages"] if m["role"] == "assistant" and m.get("run") == run]
    return "".join(p["text"] for m in messages for p in m["parts"] if p["kind"] == "text")


def ended(run: str, status: str = "done") -> Any:
    return lambda state: state["runs"].get(run, {}).get("status") == status


# --- over a real hub ---


async def test_a_run_is_followed_to_its_end_and_the_state_is_the_hubs(common: Hub):
    async with Client(common.url) as c:
        started = await c.call("run.start", say("good words"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        await topic.until(ended(started["run"]))
        assert "good words" in text_of(topic.state, started["run"])
        view = await c.call("conversation.get", {"conv": started["conv"]})
        await topic.until(lambda _: topic.off >= view["off"])
        assert topic.state == view["snap"]
        assert c.user["id"] == "local"


async def test_each_event_comes_once_over_many_cuts(common: Hub):
    async with Client(common.url) as c:
        started = await c.call("run.start", say("flood 400 400"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        deltas: dict[int, str] = {
            p["part"]: p["text"] for m in topic.state["messages"] for p in m["parts"] if "part" in p
        }
        names: list[str] = []
        async with asyncio.timeout(WAIT_S * 2):
            async for name, d in topic.events():
                names.append(name)
                if name == "delta":
                    for part, text in zip(d[::2], d[1::2], strict=True):
                        deltas[part] = deltas.get(part, "") + text
                    if names.count("delta") % 4 == 0 and names.count("delta") < 20:
                        c.drop_connection()
                if name == "run.close":
                    break
        assert "topic.snapshot" not in names
        parts = {p["part"]: p["text"] for m in topic.state["messages"] for p in m["parts"] if "part" in p}
        assert deltas == parts
        assert c.session["resumed"]
        view = await c.call("conversation.get", {"conv": started["conv"]})
        assert topic.state == view["snap"]


async def test_a_hub_that_is_killed_and_comes_back_is_gone_on_with(make_hub):
    hub = make_hub()
    statuses: list[str] = []
    async with Client(hub.url, on_status=lambda name, _: statuses.append(name)) as c:
        started = await c.call("run.start", say("hang"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        await topic.until(ended(started["run"], "running"))
        gen = topic.gen
        hub.kill()
        await hub.restart()
        await topic.until(ended(started["run"], "interrupted"))
        assert topic.gen == gen
        assert not c.session["resumed"]
    assert statuses[0] == "connected"
    assert "lost" in statuses[1:]


async def test_refusals_are_raised_with_their_kind(common: Hub):
    async with Client(common.url) as c:
        for name in ("conv:nobody", "nonsense"):
            with pytest.raises(Fault) as raised:
                await c.subscribe(name)
            assert raised.value.kind == "topic.unknown"
        with pytest.raises(Fault) as raised:
            await c.call("run.start", say("hello", config={"temperature": 9}))
        assert raised.value.kind == "config.invalid"
        assert raised.value.data["path"] == "$.temperature"
        with pytest.raises(Fault) as raised:
            await c.call("run.start", say("x" * (2 << 20)))
        assert raised.value.kind == "frame.large"


async def test_a_wrong_token_and_a_port_without_hub_are_told_at_once(common: Hub):
    with pytest.raises(Fault) as raised:
        async with Client(common.url, token="wrong"):
            pass
    assert raised.value.kind == "auth.invalid"
    with pytest.raises(Fault) as raised:
        async with Client("http://127.0.0.1:9"):
            pass
    assert raised.value.kind == "hub.unreachable"
    with pytest.raises(Fault) as raised:
        async with Client(f"{common.url}/elsewhere"):
            pass
    assert raised.value.kind in ("hub.unreachable", "route.unknown")


async def test_a_topic_of_a_plugin_keeps_what_its_reducer_makes_of_it(common: Hub):
    from sag.topics.reducers import PlainReducer
    from sag_basics.notes import fold

    async with Client(common.url, reducers={"basics": lambda _: PlainReducer({"notes": {}}, fold)}) as c:
        started = await c.call("run.start", say('call note_add {"text": "milk"}'))
        conv = await c.subscribe(f"conv:{started['conv']}")
        await conv.until(ended(started["run"]))
        notes = await c.subscribe("basics:notes")
        assert [n["text"] for n in notes.state["notes"].values()] == ["milk"]
        await c.call("run.start", say('call note_add {"text": "bread"}', conv=started["conv"]))
        await notes.until(lambda state: len(state["notes"]) == 2)
        await c.unsubscribe("basics:notes")
        assert "basics:notes" not in c.topics


async def test_a_tool_of_the_client_is_called_with_progress_and_its_answer_reaches_the_run(common: Hub):
    async def show(args: Json, call: Any) -> str:
        call.progress(1, 2, "half")
        return f"shown {args['card']}"

    tool = ClientTool("screen_show", show, "Show a card", {"type": "object"}, idempotent=True)
    async with Client(common.url, "hall-1", tools=[tool]) as c:
        started = await c.call("run.start", say('call screen_show {"card": "tea"}'))
        topic = await c.subscribe(f"conv:{started['conv']}")
        await topic.until(ended(started["run"]))
        (opened,) = topic.state["tools"].values()
        assert opened["origin"] == "client"
        assert opened["status"] == "ok"
        assert opened["progress"] == {"done": 1.0, "total": 2.0, "text": "half"}
        assert "shown tea" in json.dumps(opened["result"])


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_cut_while_a_tool_works_costs_neither_the_answer_nor_a_second_call(common: Hub, idempotent):
    calls: list[bool] = []
    go, begun = asyncio.Event(), asyncio.Event()

    async def work(args: Json, call: Any) -> Json:
        calls.append(call.redelivered)
        begun.set()
        await go.wait()
        return {"n": 1}

    tool = ClientTool("slow_work", work, idempotent=idempotent)
    statuses: list[str] = []
    async with Client(common.url, tools=[tool], on_status=lambda name, _: statuses.append(name)) as c:
        started = await c.call("run.start", say("call slow_work {}"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        for _ in range(2):
            statuses.clear()
            c.drop_connection()
            await until(lambda: "connected" in statuses)
        go.set()
        await topic.until(ended(started["run"]))
        assert [t["status"] for t in topic.state["tools"].values()] == ["ok"]
        assert calls == [False]


async def test_a_run_that_is_cancelled_cancels_the_clients_tool(common: Hub):
    begun, ended_by = asyncio.Event(), asyncio.Event()

    async def work(args: Json, call: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S * 10)
        except asyncio.CancelledError:
            ended_by.set()
            raise

    async with Client(common.url, tools=[ClientTool("endless", work)]) as c:
        started = await c.call("run.start", say("call endless {}"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        await c.call("run.cancel", {"run": started["run"]})
        async with asyncio.timeout(WAIT_S):
            await ended_by.wait()
        await topic.until(ended(started["run"], "cancelled"))


async def test_a_deleted_conversation_ends_its_events(common: Hub):
    async with Client(common.url) as c:
        started = await c.call("run.start", say("short"))
        topic = await c.subscribe(f"conv:{started['conv']}")
        await topic.until(ended(started["run"]))
        events = topic.events()
        await c.call("conversation.delete", {"conv": started["conv"]})
        async with asyncio.timeout(WAIT_S):
            assert [name async for name, _ in events][-1:] != ["run.close"]
        assert topic.fault is not None
        assert topic.fault.kind == "topic.unknown"


# --- over a scripted server ---


class Script:
    """One connection of the scripted server: reads what the client sends, sends what the test wants."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def read(self) -> Json:
        """The next object that is no pong."""
        while True:
            async with asyncio.timeout(WAIT_S):
                thing: Json = json.loads(await self.socket.recv())
            if "pong" not in thing:
                return thing

    async def pong(self) -> Any:
        async with asyncio.timeout(WAIT_S):
            return json.loads(await self.socket.recv())["pong"]

    async def send(self, *things: Json) -> None:
        """One frame, an array where there are more objects."""
        await self.socket.send(json.dumps(things[0] if len(things) == 1 else list(things)))

    async def welcome(self, secret: str = "a", topics: Json | None = None, resumed: bool = False, **ping: int) -> Json:
        """Answer the hello; gives its params."""
        hello = await self.read()
        assert hello["method"] == "hello"
        result = {
            "v": 1,
            "server": {"name": "script", "version": "0"},
            "user": {"id": "u", "name": "U", "roles": []},
            "session": {"id": "ses_1", "secret": secret, "resumed": resumed, "keep_ms": 1000},
            "tools_refused": [],
            "ping": {"every_ms": 25_000, "timeout_ms": 10_000, **ping},
            "limits": {"frame": 1 << 20, "inflight": 64, "topics": 128},
            "topics": topics or {},
        }
        await self.send({"id": hello["id"], "result": result})
        params: Json = hello["params"]
        return params

    async def place(self, off: int, notes: list[str] | None = None, t: int = 1, **more: Any) -> Json:
        """Answer a subscribe: with a state, or with a replay from where the client stands."""
        asked = await self.read()
        assert asked["method"] == "topic.subscribe"
        snap = {"mode": "snapshot", "snap": {"notes": notes}} if notes is not None else {"mode": "replay"}
        await self.send({"id": asked["id"], "result": {"t": t, "gen": "g", "off": off, "head": off, **snap, **more}})
        params: Json = asked["params"]
        return params


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[tuple[str, asyncio.Queue[Script]]]:
    """A server whose connections the test plays; gives its address and the connections as they come."""
    connections: asyncio.Queue[Script] = asyncio.Queue()

    async def take(socket: ServerConnection) -> None:
        connections.put_nowait(Script(socket))
        await socket.wait_closed()

    async with serve(take, "127.0.0.1", 0, subprotocols=["sag.1.json"], ping_interval=None) as server:  # type: ignore[list-item]
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", connections


class Notes:
    """A fold that shows what was applied, in order."""

    def __init__(self) -> None:
        self.state: Json = {"notes": []}

    def fold(self, name: str, d: Any) -> None:
        self.state["notes"].append(d)

    def load(self, state: Json) -> None:
        self.state = state


@contextlib.asynccontextmanager
async def played(url: str, connections: asyncio.Queue[Script], **hello: Any) -> AsyncIterator[tuple[Client, Script]]:
    """A client that was greeted, and the server's side of it."""
    client = Client(url, reducers={"n": lambda _: Notes()})
    entering = asyncio.create_task(client.__aenter__())
    script = await connection(connections)
    await script.welcome(**hello)
    async with asyncio.timeout(WAIT_S):
        await entering
    try:
        yield client, script
    finally:
        await client.__aexit__(None, None, None)


async def connection(connections: asyncio.Queue[Script]) -> Script:
    async with asyncio.timeout(WAIT_S):
        return await connections.get()


def note(off: int, text: str, **more: Any) -> Json:
    return {"t": 1, "o": off, "e": "add", "d": text, **more}


async def test_the_cursor_rule_drops_what_is_known_and_asks_once_where_something_is_missing():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(3, ["old"])
        topic = await subscribing
        await script.send(note(3, "known"), note(4, "a"))
        await script.send(note(6, "b", p=4), note(6, "b", p=4))  # a merged frame, and again
        await script.send(note(9, "after a gap"), note(10, "dropped"), note(11, "dropped too"))
        asked = await script.read()
        assert asked["method"] == "topic.subscribe"
        assert asked["params"] == {"topic": "n:1", "gen": "g", "off": 6}
        await script.send(note(12, "dropped as well"))
        result = {"t": 2, "mode": "replay", "gen": "g", "off": 6, "head": 8}
        await script.send({"id": asked["id"], "result": result}, note(7, "c", t=2), note(8, "d", t=2, r=1))
        await topic.until(lambda state: len(state["notes"]) == 5)
        assert topic.state["notes"] == ["old", "a", "b", "c", "d"]
        await script.send({"t": 2, "e": "level", "d": 0.5}, {"t": 77, "o": 1, "e": "add", "d": "stray"})
        await script.send({"ping": 1, "heads": {"2": 8}})
        assert await script.pong() == 1
        assert topic.off == 8


async def test_ephemeral_events_are_told_and_not_folded():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(0, [])
        topic = await subscribing
        events = topic.events()
        await script.send({"t": 1, "e": "level", "d": 0.5}, note(1, "a"))
        async with asyncio.timeout(WAIT_S):
            assert [await anext(events), await anext(events)] == [("level", 0.5), ("add", "a")]
        assert topic.state["notes"] == ["a"]


async def test_a_head_above_the_cursor_means_subscribe_again():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(3, [])
        await subscribing
        await script.send({"ping": 5, "heads": {"1": 4}})
        assert await script.pong() == 5
        assert await script.place(3, t=2) == {"topic": "n:1", "gen": "g", "off": 3}


async def test_a_topic_that_was_closed_for_gen_is_taken_anew_and_the_reader_is_told():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(3, ["old"])
        topic = await subscribing
        events = topic.events()
        await script.send({"method": "topic.closed", "params": {"t": 1, "reason": "gen"}})
        await script.place(1, ["new"], t=2, gen="h", lost={"gen": "g", "from": 3})
        async with asyncio.timeout(WAIT_S):
            assert await anext(events) == ("topic.snapshot", {"notes": ["new"]})
        assert (topic.gen, topic.off, topic.lost) == ("h", 1, {"gen": "g", "from": 3})


async def test_a_change_is_sent_again_under_its_key_and_the_new_secret_is_shown():
    async with scripted() as (url, connections), played(url, connections, secret="first") as (c, script):
        calling = asyncio.create_task(c.call("run.start", say("hello")))
        first = await script.read()
        script.socket.transport.abort()
        script = await connection(connections)
        hello = await script.welcome("second", resumed=True)
        assert hello["resume"] == {"session": "ses_1", "secret": "first"}
        again = await script.read()
        assert again["params"] == first["params"]
        assert first["params"]["key"]
        await script.send({"id": again["id"], "result": {"conv": "c1"}})
        async with asyncio.timeout(WAIT_S):
            assert await calling == {"conv": "c1"}
        script.socket.transport.abort()
        script = await connection(connections)
        assert (await script.welcome())["resume"]["secret"] == "second"


async def test_what_a_hub_that_goes_down_refuses_is_asked_of_the_one_that_comes_up():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        calling = asyncio.create_task(c.call("run.start", say("hello")))
        first = await script.read()
        error = {"code": 503, "message": "going down", "data": {"kind": "draining", "retry": True, "after_ms": 1000}}
        bye = {"code": 4000, "reason": "restart", "reconnect": True, "after_ms": 50}
        await script.send({"method": "bye", "params": bye}, {"id": first["id"], "error": error})
        await script.socket.close(4000)
        script = await connection(connections)
        await script.welcome()
        again = await script.read()
        assert again["params"] == first["params"]
        await script.send({"id": again["id"], "result": {"conv": "c1"}})
        async with asyncio.timeout(WAIT_S):
            assert await calling == {"conv": "c1"}


async def test_hello_asks_for_every_topic_where_it_stands_and_what_does_not_fit_is_asked_for_alone():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(3, ["old"])
        topic = await subscribing
        late = asyncio.create_task(c.subscribe("n:2"))
        assert (await script.read())["params"] == {"topic": "n:2"}
        script.socket.transport.abort()
        script = await connection(connections)
        later = {"error": {"code": 413, "message": "later", "data": {"kind": "topic.later", "retry": False}}}
        placed = {"t": 1, "mode": "replay", "gen": "g", "off": 3, "head": 4}
        hello = await script.welcome(topics={"n:1": placed, "n:2": later}, resumed=True)
        assert hello["topics"] == {"n:1": {"gen": "g", "off": 3}, "n:2": {}}
        await script.send(note(4, "new", r=1))
        await script.place(9, ["two"], t=2)
        async with asyncio.timeout(WAIT_S):
            assert (await late).state == {"notes": ["two"]}
        await topic.until(lambda state: state["notes"] == ["old", "new"])


async def test_a_server_that_falls_silent_is_left():
    async with scripted() as (url, connections), played(url, connections, every_ms=50, timeout_ms=50):
        again = await connection(connections)
        await again.welcome()


async def test_a_bye_that_wants_nobody_back_ends_the_client():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        subscribing = asyncio.create_task(c.subscribe("n:1"))
        await script.place(3, [])
        events = (await subscribing).events()
        calling = asyncio.create_task(c.call("run.list"))
        await script.read()
        bye = {"code": 4504, "reason": "access ended", "reconnect": False, "after_ms": 0}
        await script.send({"method": "bye", "params": bye})
        await script.socket.close(4504)
        for waiting in (calling, asyncio.create_task(anext(events)), asyncio.create_task(c.call("run.list"))):
            with pytest.raises(Fault) as raised:
                async with asyncio.timeout(WAIT_S):
                    await waiting
            assert raised.value.code == 4504
        assert connections.empty()


async def test_a_request_that_is_given_up_is_cancelled_at_the_hub():
    async with scripted() as (url, connections), played(url, connections) as (c, script):
        with pytest.raises(TimeoutError):
            await c.call("run.list", timeout_s=0.05)
        asked = await script.read()
        assert "key" not in asked["params"]
        assert await script.read() == {"method": "rpc.cancel", "params": {"id": asked["id"]}}


async def test_a_request_of_the_server_that_is_not_known_is_refused():
    async with scripted() as (url, connections), played(url, connections) as (_, script):
        await script.send(
            {"id": "s1", "method": "dance", "params": {}}, {"what": "ever"}, {"method": "news", "params": {}}
        )
        refused = await script.read()
        assert (refused["id"], refused["error"]["code"]) == ("s1", -32601)
