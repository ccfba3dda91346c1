"""A device's switches and policies of MCP servers: one document over the device's own settings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sag.plugin import Fault
from sag.testing.provider import ScriptedProvider, call, say
from tests.mcp.loopback import House, Json, McpSite, house

ALLOW = {"allow": ["127.0.0.1"]}
PLAIN: Json = {"enabled": True, "policy": None, "tools": {}}


@pytest.fixture
async def home(plugin):
    """A hub with two servers, `weather` and `tides`."""
    first, second = McpSite(), McpSite(title="Tides")
    provider = ScriptedProvider(call(("weather__wipe", {}), ("weather__forecast", {})), say("ok"))
    async with first.serve(), second.serve(), house(ALLOW, providers=[provider]) as home, home.enter() as client:
        for site in (first, second):
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
        yield home


async def put(home: House, servers: Json, device: str = "hall-1", user: str = "") -> Json:
    answer = await home.http("PUT", f"/api/mcp/preferences/{device}", {"servers": servers}, user)
    assert answer.status_code == 200, answer.text
    shown: Json = answer.json()["servers"]
    return shown


async def test_a_device_that_decided_nothing_has_every_server(home):
    answer = await home.http("GET", "/api/mcp/preferences/hall-1")
    assert answer.json() == {"client_id": "hall-1", "servers": {"weather": PLAIN, "tides": PLAIN}}


async def test_what_is_set_is_the_devices_settings_and_all_devices_are_told(home):
    async with home.enter() as desk, home.enter(device="phone") as phone:
        topics = [await client.subscribe("client:hall-1") for client in (desk, phone)]
        wanted = {
            "enabled": False,
            "policy": "ask",
            "tools": {"wipe": {"policy": "deny"}, "forecast": {"enabled": True}},
        }
        given = {"client_id": "hall-1", "servers": {"weather": wanted}}
        answer = await desk.call("mcp.preference.set", given)
        assert answer == {"client_id": "hall-1", "servers": {"weather": wanted, "tides": PLAIN}}
        tools = {
            "weather": {"enabled": False, "policy": "ask"},
            "weather/wipe": {"policy": "deny"},
            "weather/forecast": {"enabled": True},
        }
        for topic in topics:
            await topic.until(lambda s: s["config"].get("tools") == tools)
        assert (await desk.call("config.get", {"scope": "client:hall-1"}))["config"]["tools"] == tools
        assert (await home.http("GET", "/api/mcp/preferences/hall-1")).json() == answer
        assert (await home.http("GET", "/api/mcp/preferences/desk")).json()["servers"]["weather"] == PLAIN


async def test_what_is_set_elsewhere_is_seen_here(home):
    async with home.enter() as client:
        patch = {
            "tools": {"tides": {"enabled": False}, "tides/wipe": {"policy": "auto"}, "time_now": {"enabled": False}}
        }
        await client.call("config.patch", {"scope": "client:hall-1", "patch": patch})
        servers = (await client.call("mcp.preference.get", {"client_id": "hall-1"}))["servers"]
        assert servers["tides"] == {"enabled": False, "policy": None, "tools": {"wipe": {"policy": "auto"}}}
        assert set(servers) == {"weather", "tides"}


async def test_a_server_that_is_named_is_replaced_and_others_stay(home):
    await put(home, {"weather": {"enabled": False, "tools": {"wipe": {"policy": "deny"}}}, "tides": {"policy": "ask"}})
    async with home.enter() as client:
        patch = {"tools": {"time_now": {"enabled": False}, "weatherman": {"policy": "deny"}}}
        await client.call("config.patch", {"scope": "client:hall-1", "patch": patch})
        servers = await put(home, {"weather": {"policy": "ask", "tools": {"forecast": {"enabled": False}}}})
        assert servers["weather"] == {"enabled": True, "policy": "ask", "tools": {"forecast": {"enabled": False}}}
        assert servers["tides"] == {"enabled": True, "policy": "ask", "tools": {}}
        assert await put(home, {"weather": {}}) == {"weather": PLAIN, "tides": servers["tides"]}
        tools = (await client.call("config.get", {"scope": "client:hall-1"}))["config"]["tools"]
        assert tools == {"tides": {"policy": "ask"}, "time_now": {"enabled": False}, "weatherman": {"policy": "deny"}}


async def test_the_same_set_again_changes_nothing_and_tells_nobody(home):
    wanted = {"weather": {"enabled": False, "policy": "ask", "tools": {"wipe": {"enabled": False}}}}
    await put(home, wanted)
    async with home.enter() as client:
        rev = (await client.call("config.get", {"scope": "client:hall-1"}))["rev"]
        before = await put(home, wanted)
        assert await put(home, wanted) == before
        assert await put(home, {}) == before
        assert (await client.call("config.get", {"scope": "client:hall-1"}))["rev"] == rev


async def test_sets_that_come_at_once_all_hold(home):
    async with home.enter() as client:
        await asyncio.gather(
            put(home, {"weather": {"policy": "ask"}}),
            put(home, {"tides": {"policy": "deny"}}),
            client.call("config.patch", {"scope": "client:hall-1", "patch": {"llm": {"temperature": 0.5}}}),
        )
        servers = (await client.call("mcp.preference.get", {"client_id": "hall-1"}))["servers"]
        assert (servers["weather"]["policy"], servers["tides"]["policy"]) == ("ask", "deny")


async def test_each_user_decides_for_their_own_devices(home):
    await put(home, {"weather": {"enabled": False}}, user="ada")
    for user, enabled in (("ada", False), ("ben", True), ("", True)):
        answer = await home.http("GET", "/api/mcp/preferences/hall-1", user=user)
        assert answer.json()["servers"]["weather"]["enabled"] is enabled


async def test_what_a_device_decides_holds_for_its_runs(home):
    await put(home, {"weather": {"tools": {"wipe": {"policy": "auto"}, "forecast": {"enabled": False}}}}, "desk")
    async with home.enter() as client:
        given = {"input": [{"kind": "text", "text": "?"}], "config": {"model": "script/m"}}
        run = await client.call("run.start", given)
        topic = await client.subscribe(f"conv:{run['conv']}")
        state = await topic.until(lambda s: s["runs"][run["run"]]["status"] == "done")
        assert {t["name"]: t["status"] for t in state["tools"].values()} == {
            "wipe": "ok",
            "weather__forecast": "invalid",
        }
        provider: Any = home.hub.app.extensions.providers["script"]
        offered = {spec.name for spec in provider.requests[0].tools}
        assert ("weather__wipe" in offered, "weather__forecast" in offered) == (True, False)


UNFIT: list[tuple[Json, str, int]] = [
    ({"servers": {"nobody": {}}}, "connector.unknown", 404),
    ({"servers": {"basics": {}}}, "connector.unknown", 404),
    ({"servers": {"weather": {"policy": "maybe"}}}, "rpc.params", 400),
    ({"servers": {"weather": {"enabled": "x"}}}, "rpc.params", 400),
    ({"servers": []}, "rpc.params", 400),
    ({}, "rpc.params", 400),
]


async def test_what_does_not_fit_is_refused_and_nothing_is_set(home):
    for given, kind, code in UNFIT:
        answer = await home.http("PUT", "/api/mcp/preferences/hall-1", given)
        assert (answer.json()["error"]["data"]["kind"], answer.status_code) == (kind, code), given
    assert (await home.http("GET", "/api/mcp/preferences/hall-1")).json()["servers"]["weather"] == PLAIN


async def test_a_name_that_no_device_can_have_is_404(home):
    assert (await home.http("GET", "/api/mcp/preferences/a%20b")).status_code == 404
    async with home.enter() as client:
        for method, more in (("get", {}), ("set", {"servers": {"weather": {"enabled": False}}})):
            with pytest.raises(Fault) as caught:
                await client.call(f"mcp.preference.{method}", {"client_id": "a/b", **more})
            assert caught.value.kind == "scope.unknown"
