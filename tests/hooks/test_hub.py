"""What a plugin gets as its hub: keys, topics, background work, and what it tells of itself."""

from __future__ import annotations

import asyncio
import sys
import threading

import httpx
import pytest

from sag.hooks.hub import Hub
from sag.ops.dispatch import User
from tests.hooks.fakes import FakeServices

SOURCE = """
kept = []
class P:
    name = "p"
    def models(self): return []
    async def stream(self, request): yield Text("x")
@event("dice", "rolled")
class Rolled(Event):
    sides: int
@event("dice", "other")
class Other(Event): ...
def fold(state, name, d): ...
@hookimpl
def register(hub):
    hub.add_provider(P())
    hub.add_topic({}, fold, [Rolled])
    kept.append(hub)
"""
ADA = User("u1", "Ada")


@pytest.fixture
async def running(plugin, make_host):
    """A plugin's module, its hub, the services and the host, all running."""
    ep = plugin("dice", SOURCE)
    host = make_host(ep)
    services = FakeServices()
    host.connect(services)
    await host.startup()
    module = sys.modules[ep.module]
    yield module, module.kept[0], services, host
    async with asyncio.timeout(5):
        await host.shutdown()


async def until(what) -> None:
    """Wait for something to be true."""
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.005)


async def test_keys_are_the_plugins_own(running):
    _, hub, services, _ = running
    await hub.kv.put("a/1", {"x": [1]})
    await hub.kv.put("b", 2)
    services.keys["other", "a/2"] = 3
    assert await hub.kv.get("a/1") == {"x": [1]}
    assert await hub.kv.get("a/2") is None
    assert await hub.kv.list("a/") == {"a/1": {"x": [1]}}
    await hub.kv.delete("b")
    assert await hub.kv.list() == {"a/1": {"x": [1]}}


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_a_key_that_is_empty_or_too_long_is_refused(key, running):
    with pytest.raises(ValueError, match="1 to 200"):
        await running[1].kv.put(key, 1)


async def test_what_is_published_goes_to_the_plugins_topic_with_the_keys_to_keep(running):
    module, hub, services, _ = running
    services.keys["dice", "old"] = 1
    off = await hub.topic("table").publish("u1", module.Rolled(4), keep={"last": 4, "old": None})
    assert off == 1
    assert services.events["u1", "dice:table"] == [("rolled", {"sides": 4})]
    assert await hub.kv.list() == {"last": 4}


async def test_an_event_that_was_not_declared_is_refused(running):
    module, hub, _, _ = running
    with pytest.raises(TypeError, match="Other is no event"):
        await hub.topic("table").publish("u1", module.Other())


async def test_a_subscription_gives_events_as_they_come(running):
    module, hub, _, _ = running
    got: list[tuple[str, object]] = []

    async def read() -> None:
        async for name, d in hub.subscribe("u1", "dice:table"):
            got.append((name, d))

    hub.spawn(read())
    await asyncio.sleep(0)
    await hub.topic("table").publish("u1", module.Rolled(1))
    await hub.topic("table").publish("u1", module.Rolled(2))
    await until(lambda: len(got) == 2)
    assert got == [("rolled", {"sides": 1}), ("rolled", {"sides": 2})]


async def test_patches_runs_and_models_go_to_the_services(running):
    module, hub, services, _ = running
    assert await hub.patch(ADA, "conv:c1", {"temperature": 0}) == {"temperature": 0}
    assert await hub.start_run(ADA, "Hello", kind="chat", key="k") == {"run": "r1"}
    assert services.patches == [("u1", "conv:c1", {"temperature": 0})]
    assert services.runs == [("u1", {"input": [{"kind": "text", "text": "Hello"}], "kind": "chat", "key": "k"})]
    hub.set_models("p", [module.Model("m")])
    assert services.models["p"][0].id == "m"
    with pytest.raises(ValueError, match="no provider 'q'"):
        hub.set_models("q", [])


async def test_the_http_client_is_the_services(running):
    _, hub, services, _ = running
    async with httpx.AsyncClient() as services.client:
        assert hub.http is services.client


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_background_task_that_fails_is_a_problem_and_the_plugin_stays_on(error, running):
    _, hub, _, host = running

    async def work() -> None:
        raise error

    await asyncio.wait([hub.spawn(work())], timeout=5)
    (problem,) = host.get("dice").problems
    assert type(error).__name__ in problem
    assert "work" in problem
    assert host.get("dice").status == "on"


async def test_a_timer_goes_on_after_an_exception_and_the_same_problem_is_listed_once(running):
    _, hub, _, host = running
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise ValueError("again")

    hub.every(0.005, call)
    await until(lambda: calls >= 3)
    assert len(host.get("dice").problems) == 1


async def test_a_timer_runs_a_plain_function_in_a_thread(running):
    threads: set[int] = set()
    running[1].every(0.005, lambda: threads.add(threading.get_ident()))
    await until(lambda: threads)
    assert threading.get_ident() not in threads


async def test_a_timer_set_in_register_begins_after_startup_and_ends_at_shutdown(plugin, make_host):
    source = """
        seen = []
        @hookimpl
        def register(hub): hub.every(0.005, lambda: seen.append(1))
        @hookimpl
        async def startup(hub): assert not seen
        """
    ep = plugin("dice", source)
    host = make_host(ep)
    host.connect(FakeServices())
    seen = sys.modules[ep.module].seen
    await host.startup()
    await until(lambda: seen)
    await host.shutdown()
    count = len(seen)
    await asyncio.sleep(0.03)
    assert len(seen) == count


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timer_needs_a_positive_number(seconds):
    with pytest.raises(ValueError, match="positive"):
        Hub("dice", None, {}).every(seconds, print)


async def test_notes_and_problems_are_told_once_a_turn_of_the_loop_and_do_not_add_up(plugin, make_host):
    told: list[object] = []
    ep = plugin("dice", SOURCE)
    host = make_host(ep, on_change=told.append)
    hub = sys.modules[ep.module].kept[0]
    host.connect(FakeServices())
    for i in range(100):
        hub.note(f"note {i}")
    await asyncio.to_thread(hub.note, "from a thread")
    await until(lambda: told)
    await asyncio.sleep(0)
    assert len(host.get("dice").notes) == 20
    assert host.get("dice").notes[-1] == "from a thread"
    assert len(told) <= 2
    assert host.get("dice").problems == []


async def test_the_loops_end_is_no_trouble_for_a_note_that_comes_late(plugin, make_host):
    ep = plugin("dice", SOURCE)
    host = make_host(ep, on_change=lambda info: None)

    async def run() -> None:
        host.connect(FakeServices())

    await asyncio.to_thread(asyncio.run, run())
    sys.modules[ep.module].kept[0].note("late")
    assert host.get("dice").notes == ["late"]


async def test_work_that_is_not_over_ends_with_the_hub(plugin, make_host):
    ep = plugin("dice", SOURCE)
    host = make_host(ep)
    host.connect(FakeServices())
    await host.startup()
    task = sys.modules[ep.module].kept[0].spawn(asyncio.Event().wait())
    await host.shutdown()
    assert task.done()
    assert host.get("dice").problems == []
