"""The watchdog: a plugin that holds the event loop is named with its place (RELIABILITY F42)."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time

import pytest

from sag.hooks.watchdog import Watchdog
from tests.hooks.fakes import FakeServices

SPIN = """
import time
def spin(until):
    while time.monotonic() < until: pass
def sleep(until):
    time.sleep(until - time.monotonic())
@hookimpl
def register(hub): ...
"""


@pytest.fixture
async def watched(plugin, make_host):
    """A plugin that can hold the loop, and a host with a watchdog."""
    ep = plugin("slow", SPIN)
    host = make_host(ep)
    host.connect(FakeServices())
    watchdog = Watchdog(host.owner, host.stalled, limit_s=0.2, every_s=0.02)
    watchdog.start()
    await asyncio.sleep(0.05)
    yield sys.modules[ep.module], host
    watchdog.stop()
    assert all(thread.name != "watchdog" for thread in threading.enumerate())


@pytest.mark.parametrize("how", ["spin", "sleep"])
async def test_a_plugin_that_holds_the_loop_is_named_once_with_its_place_and_the_loop_goes_on(how, watched, caplog):
    module, host = watched
    with caplog.at_level(logging.WARNING, "sag.hooks.watchdog"):
        getattr(module, how)(time.monotonic() + 0.7)
        await asyncio.sleep(0.1)
    (problem,) = host.get("slow").problems
    assert problem.startswith(f"held the event loop for more than 0.2 s in {how} ({module.__name__}, line ")
    assert host.get("slow").status == "on"
    assert "plugin slow held the event loop" in caplog.text
    assert f"in {how}" in caplog.text
    assert "the event loop goes on after" in caplog.text
    assert sum("held the event loop" in r.message for r in caplog.records if r.name == "sag.hooks.watchdog") == 1


async def test_a_stall_in_the_hub_itself_blames_no_plugin(watched, caplog):
    _, host = watched
    with caplog.at_level(logging.WARNING, "sag.hooks.watchdog"):
        time.sleep(0.5)
        await asyncio.sleep(0.1)
    assert "something in the hub held the event loop" in caplog.text
    assert host.get("slow").problems == []


async def test_a_loop_that_is_merely_busy_is_left_alone(watched, caplog):
    _, host = watched
    with caplog.at_level(logging.WARNING, "sag.hooks.watchdog"):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            await asyncio.sleep(0)
    assert caplog.records == []
    assert host.get("slow").problems == []


def test_a_watchdog_ends_with_its_loop(plugin, make_host):
    host = make_host(plugin("slow", SPIN))
    watchdog = Watchdog(host.owner, host.stalled, limit_s=0.1, every_s=0.01)

    async def run() -> None:
        watchdog.start()
        await asyncio.sleep(0.03)

    asyncio.run(run())
    watchdog._thread.join(2)  # type: ignore[union-attr]
    assert not watchdog._thread.is_alive()  # type: ignore[union-attr]


def test_a_module_below_a_plugins_own_belongs_to_it(plugin, make_host):
    ep = plugin("slow", SPIN)
    host = make_host(ep)
    assert host.owner(ep.module) == "slow"
    assert host.owner(f"{ep.module}.inner.part") == "slow"
    assert host.owner(f"{ep.module}x") is None
