"""Connectors that come, go, change and misbehave: what each offers is kept, and nothing that it raises gets out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sag.hooks import connectors as module
from sag.hooks.connector import Connector, Health, Prompt, Resource
from sag.hooks.connectors import Connectors
from sag.hooks.tool import Tool
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.connectors import FakeConnector, make_tool
from tests.harness import until

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 0.2)
    monkeypatch.setattr(module, "STOP_S", 0.2)


@pytest.fixture
async def connectors() -> AsyncIterator[Connectors]:
    found = Connectors()
    found.start()
    yield found
    async with asyncio.timeout(5):
        await found.stop()
    await asyncio.sleep(0)
    left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and not t.done()]
    assert not [t for t in left if "stubborn" not in repr(t.get_coro())], left


def status(connectors: Connectors, name: str = "c") -> tuple[str, str | None]:
    health = connectors[name].health
    return health.status, health.error


async def settled(connectors: Connectors) -> None:
    await connectors.settle(5)
    await asyncio.sleep(0)


async def test_what_a_connector_offers_is_read_when_it_says_that_it_changed(connectors: Connectors) -> None:
    connector = FakeConnector("c", make_tool("one"))
    told: list[None] = []
    connectors.on_change = lambda: told.append(None)
    connectors.add("p", connector)
    assert status(connectors) == ("starting", None)
    assert connectors.tools() == []
    await settled(connectors)
    (tool,) = connectors.tools()
    assert (tool.name, tool.origin, tool.connector, tool.key) == ("one", "c", "c", "c/one")
    connector.offered = [make_tool("two"), make_tool("three")]
    assert len(connectors.tools()) == 1  # nothing is read unasked
    told.clear()
    for _ in range(100):
        connector.tell()
    await asyncio.sleep(0)
    assert [t.name for t in connectors.tools()] == ["two", "three"]
    assert len(told) == 1
    assert connectors.of("p") == ["c"]
    assert connectors.of("q") == []


@pytest.mark.parametrize(
    "error",
    [ValueError("no way"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(),
     BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("x")]), TimeoutError()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
async def test_one_that_raises_in_start_is_failed_and_the_others_work(
    connectors: Connectors, error: BaseException
) -> None:
    connectors.add("p", FakeConnector("bad", make_tool("x"), start=error))
    connectors.add("p", FakeConnector("good", make_tool("y")))
    await settled(connectors)
    assert connectors["bad"].health.status == "failed"
    assert (connectors["bad"].health.error or "").startswith("start: ")
    assert [t.key for t in connectors.tools()] == ["good/y"]


@pytest.mark.parametrize("what", ["health", "tools", "prompts", "resources"])
async def test_one_that_raises_when_it_is_looked_at_is_failed_until_it_is_well_again(
    connectors: Connectors, what: str
) -> None:
    connector = FakeConnector("c", make_tool("one"))
    connectors.add("p", connector)
    await settled(connectors)
    connector.wrong[what] = RuntimeError("boom")
    connector.tell()
    await asyncio.sleep(0)
    assert status(connectors) == ("failed", "what it offers: RuntimeError: boom")
    assert connectors.tools() == []
    connector.wrong.clear()
    connector.tell()
    await asyncio.sleep(0)
    assert status(connectors) == ("ready", None)
    assert len(connectors.tools()) == 1


def _bad(**given: Any) -> Any:
    tool = make_tool("x")
    for name, value in given.items():
        setattr(tool, name, value)
    return tool


@pytest.mark.parametrize(
    "give",
    [
        {"shown": None},
        {"shown": "ready"},
        {"shown": Health("well")},  # type: ignore[arg-type]
        {"shown": Health("ready", data={"x": object()})},
        {"shown": Health("ready", error=7)},  # type: ignore[arg-type]
        {"offered": None},
        {"offered": ["no tool"]},
        {"offered": [_bad(description=None)]},
        {"offered": [_bad(input={"x": object()})]},
        {"offered": [_bad(name="\ud800")]},
        {"offered": [_bad(description="\ud800")]},
        {"prompted": [object()]},
        {"readable": [object()]},
        {"readable": [Resource("u", "n", size=object())]},  # type: ignore[arg-type]
    ],
    ids=lambda give: next(iter(give)),
)
async def test_what_nobody_could_show_makes_it_failed_and_spoils_nothing_else(give: Json) -> None:
    connector = FakeConnector("c", make_tool("one"))
    async with running_hub(providers=[ScriptedProvider(say("ok"))]) as hub, hub.client() as client:
        connectors = hub.app.extensions.connectors
        connectors.add("p", connector)
        topic = await client.subscribe("hub")
        await topic.until(lambda s: s["connectors"].get("c", {}).get("status") == "ready")
        for member, value in give.items():
            setattr(connector, member, value)
        connector.tell()
        await topic.until(lambda s: s["connectors"]["c"]["status"] == "failed")
        assert topic.state["connectors"]["c"]["tools"] == {}
        connectors.add("p", FakeConnector("d", make_tool("two")))
        await topic.until(lambda s: s["connectors"].get("d", {}).get("status") == "ready")
        assert [t["key"] for t in (await client.call("tool.list"))["tools"] if t.get("connector")] == ["d/two"]
        await client.call("run.start", {"input": [{"kind": "text", "text": "hi"}]})


async def test_one_that_hangs_in_start_is_failed_and_holds_nothing_up(connectors: Connectors) -> None:
    connectors.add("p", FakeConnector("c", start=asyncio.Event()))
    began = time.monotonic()
    await connectors.settle(0.05)
    assert time.monotonic() - began < 0.15
    await connectors.settle(5)
    assert time.monotonic() - began < 2
    assert status(connectors)[0] == "failed"
    assert "did not come back" in (status(connectors)[1] or "")


class Stubborn(FakeConnector):
    """Does not heed that its `start` and `stop` are cancelled."""

    def __init__(self, name: str, *hangs_in: str) -> None:
        super().__init__(name)
        self._hangs_in = hangs_in
        self.free = asyncio.Event()

    async def _do(self, what: str) -> None:
        self.did.append(what)
        await self._hold_stubborn(what)

    async def _hold_stubborn(self, what: str) -> None:
        while what in self._hangs_in and not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize("hangs_in", [("start",), ("stop",), ("start", "stop")])
async def test_one_that_cannot_be_cancelled_is_left_behind(hangs_in: tuple[str, ...]) -> None:
    connectors = Connectors()
    connectors.start()
    stubborn, other = Stubborn("s", *hangs_in), FakeConnector("o")
    connectors.add("p", stubborn)
    connectors.add("p", other)
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await connectors.stop()
    assert time.monotonic() - began < 4
    assert other.did == ["start", "stop"]
    assert stubborn.did == ["start", "stop"]
    stubborn.free.set()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), asyncio.CancelledError(), BaseExceptionGroup("g", [KeyboardInterrupt()])])  # fmt: skip  # noqa: E501
async def test_one_that_raises_in_stop_does_not_keep_the_others_from_it(error: BaseException) -> None:
    connectors = Connectors()
    connectors.start()
    bad, good = FakeConnector("bad", stop=error), FakeConnector("good")
    connectors.add("p", bad)
    connectors.add("p", good)
    await settled(connectors)
    await connectors.stop()
    assert bad.did == good.did == ["start", "stop"]
    assert len(connectors) == 0


async def test_a_name_is_taken_once_and_free_again_after_a_drop(connectors: Connectors) -> None:
    first, second = FakeConnector("c", make_tool("one")), FakeConnector("c", make_tool("two"))
    connectors.add("p", first)
    with pytest.raises(ValueError, match="is there already"):
        connectors.add("q", second)
    await settled(connectors)
    await connectors.drop("c")
    assert first.did == ["start", "stop"]
    connectors.add("q", second)
    await settled(connectors)
    first.tell()  # one that is gone has nothing to say any more
    await asyncio.sleep(0)
    assert [t.name for t in connectors.tools()] == ["two"]
    await connectors.drop("nobody")


async def test_one_that_is_dropped_while_it_starts_keeps_no_run_waiting(connectors: Connectors) -> None:
    connectors.add("p", FakeConnector("c", start=asyncio.Event()))
    settling = asyncio.create_task(connectors.settle(5))
    await asyncio.sleep(0.02)
    began = time.monotonic()
    await connectors.drop("c")
    await settling
    assert time.monotonic() - began < 1.5


async def test_those_taken_before_the_start_are_started_together_and_stop_only_if_they_were() -> None:
    connectors = Connectors()
    early = [FakeConnector(f"c{n}") for n in range(3)]
    for connector in early:
        connectors.add("p", connector)
    await connectors.drop("c0")
    assert early[0].did == []
    connectors.start()
    await settled(connectors)
    assert [c.did for c in early[1:]] == [["start"], ["start"]]
    await connectors.stop()


# --- in a hub ---


async def test_the_topic_shows_what_changes_and_forgets_what_is_gone() -> None:
    connector = FakeConnector("files", make_tool("read", title="Read", policy="ask"))
    connector.shown = Health("ready", title="Files", kind="mcp", instructions="Be careful." * 10_000, notes=["x"])
    connector.prompted = [Prompt("sum", "Sum up")]
    connector.readable = [Resource("file:///a", "a")]
    async with running_hub() as hub, hub.client() as client:
        connectors = hub.app.extensions.connectors
        connectors.add("basics", connector)
        topic = await client.subscribe("hub")
        await topic.until(lambda s: s["connectors"].get("files", {}).get("status") == "ready")
        shown = topic.state["connectors"]["files"]
        assert (shown["title"], shown["kind"], shown["plugin"], shown["notes"]) == ("Files", "mcp", "basics", ["x"])
        assert shown["tools"] == {
            "read": {"description": "Does read.", "risk": "read", "key": "files/read", "title": "Read", "policy": "ask"}
        }
        assert shown["prompts"]["sum"]["title"] == "Sum up"
        assert shown["resources"] == 1
        assert len(shown["instructions"]) == 4000
        connector.offered, connector.shown = [make_tool("write")], Health("backoff", error="down")
        connector.tell()
        await topic.until(lambda s: s["connectors"]["files"]["status"] == "backoff")
        assert list(topic.state["connectors"]["files"]["tools"]) == ["write"]
        assert "title" not in topic.state["connectors"]["files"]
        await connectors.drop("files")
        await topic.until(lambda s: "files" not in s["connectors"])


async def test_a_connector_with_very_many_tools_leaves_the_topic_readable() -> None:
    many = [make_tool(f"tool_{n}", description="Does much. " * 1000) for n in range(512)]
    async with running_hub() as hub, hub.client() as client:
        hub.app.extensions.connectors.add("p", FakeConnector("big", *many))
        topic = await client.subscribe("hub")
        await topic.until(lambda s: len(s["connectors"].get("big", {}).get("tools", {})) == 512)
        async with hub.client("other") as other:
            assert len((await other.subscribe("hub")).state["connectors"]["big"]["tools"]) == 512


async def test_a_plugin_and_a_connector_of_one_name_show_both_their_tools() -> None:
    async with running_hub() as hub, hub.client() as client:
        hub.app.extensions.connectors.add("basics", FakeConnector("basics", make_tool("more")))
        topic = await client.subscribe("hub")
        await topic.until(lambda s: "more" in s["connectors"]["basics"]["tools"])
        assert "note_add" in topic.state["connectors"]["basics"]["tools"]


async def test_a_run_keeps_the_definitions_that_it_began_with_and_the_next_one_has_the_new() -> None:
    go = asyncio.Event()

    def ended(run: str) -> Callable[[Json], bool]:
        return lambda state: state["runs"][run]["status"] == "done"

    def named(text: str) -> Tool:
        async def say_text(args: Any, ctx: Any) -> str:
            return text

        return make_tool("it", say_text, description=text)

    connector = FakeConnector("c", named("old"))
    step = call(("c__it", {}))
    provider = ScriptedProvider(step, [go, *step], [*say("done")], step, say("done"))
    async with running_hub(providers=[provider]) as hub, hub.client() as client:
        hub.app.extensions.connectors.add("p", connector)
        await hub.app.extensions.connectors.settle(5)
        for expected in (["old", "old"], ["new"]):
            started = await client.call("run.start", {"input": [{"kind": "text", "text": "go"}]})
            topic = await client.subscribe(f"conv:{started['conv']}")
            await topic.until(lambda s: s["tools"])
            connector.offered = [named("new")]
            connector.tell()
            await asyncio.sleep(0)
            go.set()
            await topic.until(ended(started["run"]))
            assert [t["result"] for t in topic.state["tools"].values()] == expected
        offered = [next(s.description for s in r.tools if s.name == "c__it") for r in provider.requests]
        assert offered == ["old", "old", "old", "new", "new"]


async def test_a_run_waits_a_little_for_connectors_that_are_starting() -> None:
    slow = FakeConnector("slow", make_tool("it"))
    slow.shown = Health("starting")
    provider = ScriptedProvider(say("ok"))
    async with running_hub(providers=[provider]) as hub, hub.client() as client:
        hub.app.extensions.connectors.add("p", slow)
        started = await client.call("run.start", {"input": [{"kind": "text", "text": "go"}]})
        await asyncio.sleep(0.1)
        assert provider.requests == []
        slow.shown = Health("ready")
        slow.tell()
        topic = await client.subscribe(f"conv:{started['conv']}")
        await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done")
        assert "slow__it" in {s.name for s in provider.requests[0].tools}


# --- as plugins bring them ---

PLUGIN = """
from tests.connectors import FakeConnector, make_tool

FIRST = FakeConnector("first", make_tool("one"))

@hookimpl
def register(hub):
    hub.add_connector(FIRST)
    for wrong in (object(), FakeConnector, FakeConnector("9 no name"), FakeConnector("x" * 41), FakeConnector("")):
        try:
            hub.add_connector(wrong)
        except (TypeError, ValueError) as e:
            hub.note(str(e))

@hookimpl
async def startup(hub):
    hub.add_connector(FakeConnector("second", make_tool("two")))
"""


async def test_plugins_add_connectors_in_register_and_later_and_a_wrong_one_is_refused(plugin, make_host) -> None:
    class Live:
        """The part of the services that connectors need."""

        def __init__(self, connectors: Connectors) -> None:
            self._connectors = connectors

        def add_connector(self, name: str, connector: Connector) -> None:
            self._connectors.add(name, connector)

    taken = """
from tests.connectors import FakeConnector

@hookimpl
def register(hub):
    hub.add_connector(FakeConnector("first"))
    hub.add_connector(FakeConnector("third"))
"""
    host = make_host(plugin("one", PLUGIN), plugin("two", taken))
    one, two = (next(p for p in host.plugins if p.name == name) for name in ("one", "two"))
    assert one.provides.connectors == ["first"]
    assert len(one.notes) == 5
    assert (two.provides.connectors, two.problems) == (["third"], ["connector 'first' is there already"])
    connectors = host.extensions.connectors
    host.connect(Live(connectors))
    await host.startup()
    await settled(connectors)
    assert sorted(connectors) == ["first", "second", "third"]
    assert connectors.of("one") == ["first", "second"]
    await host.shutdown()
    assert len(connectors) == 0


async def test_the_connectors_of_a_plugin_that_fails_go_with_it(plugin, make_host) -> None:
    source = PLUGIN + "    raise RuntimeError('no')\n"
    host = make_host(plugin("one", source))

    class Live:
        def add_connector(self, name: str, connector: Connector) -> None:
            host.extensions.connectors.add(name, connector)

    host.connect(Live())
    await host.startup()
    await until(lambda: len(host.extensions.connectors) == 0, "no connector is left")
    assert next(p for p in host.plugins if p.name == "one").status == "failed"
    await host.shutdown()
