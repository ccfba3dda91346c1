"""MCP servers in a hub: kept over restarts, those of plugins.toml, what is told of them, and who may change them."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sag.client import Client
from sag.plugin import Fault, Secret
from sag.testing.provider import ScriptedProvider, call, say
from sag_mcp import Settings
from sag_mcp.address import Hosts, parse_ports
from tests.mcp.loopback import Json, McpSite, Site, house, until

ALLOW = {"allow": ["127.0.0.1"]}
KEY = "sk-very-secret-key-1"


@pytest.fixture
async def site():
    site = McpSite()
    async with site.serve():
        yield site


async def connect(client: Client, site: McpSite, **more: Any) -> Json:
    made: Json = await client.call("mcp.server.connect", {"url": f"{site.url}/mcp", **more})
    return made


async def test_a_server_is_connected_by_its_url_and_listed_with_its_tools(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        made = await connect(client, site)
        assert made["id"] == "weather"
        assert (made["status"], made["source"], made["tool_count"]) == ("ready", "user", 2)
        for path in ("/api/mcp/servers/", "/api/mcp/servers"):
            assert (await home.http("GET", path)).json() == {"servers": [made]}
        tools = (await home.http("GET", "/api/mcp/servers/weather/tools")).json()["tools"]
        assert [(t["key"], t["risk"]) for t in tools] == [("weather/forecast", "read"), ("weather/wipe", "danger")]


async def test_every_device_sees_a_server_come_change_and_go_on_the_hubs_topic(plugin, site):
    async with house(ALLOW) as home, home.enter() as client, home.enter(device="phone") as phone:
        hub = await phone.subscribe("hub")
        await connect(client, site)
        state = await hub.until(lambda state: state["connectors"].get("weather", {}).get("status") == "ready")
        shown = state["connectors"]["weather"]
        assert (shown["data"]["source"], shown["data"]["url"]) == ("user", f"{site.url}/mcp")
        assert (shown["title"], shown["kind"], set(shown["tools"])) == ("Weather", "mcp", {"forecast", "wipe"})
        await client.call("mcp.server.update", {"id": "weather", "title": "Rain", "policy": "ask"})
        await hub.until(lambda state: state["connectors"]["weather"]["title"] == "Rain")
        await hub.until(lambda state: state["connectors"]["weather"]["tools"]["forecast"].get("policy") == "ask")
        await client.call("mcp.server.update", {"id": "weather", "tools": {"wipe": False}})
        await hub.until(lambda state: set(state["connectors"]["weather"]["tools"]) == {"forecast"})
        await client.call("mcp.server.remove", {"id": "weather"})
        await hub.until(lambda state: "weather" not in state["connectors"])


async def test_what_was_connected_and_changed_is_there_after_a_restart(plugin, site, tmp_path):
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        await connect(client, site, headers={"X-Key": KEY}, policy="ask")
        before = await client.call("mcp.server.update", {"id": "weather", "title": "Rain", "tools": {"wipe": False}})
    count = len(site.requests)
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        await until(lambda: home.connectors()["weather"]["status"] == "ready")
        (after,) = (await client.call("mcp.server.list"))["servers"]
        assert after == before
        assert (after["title"], after["policy"], after["tools"]) == ("Rain", "ask", {"wipe": False})
        assert {r.headers["x-key"] for r in site.requests[count:]} == {KEY}


async def test_a_lazy_server_shows_what_it_offered_last_and_is_left_alone_until_it_is_needed(plugin, site, tmp_path):
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        assert (await connect(client, site, lazy=True))["lazy"] is True
    count = len(site.requests)
    async with house(ALLOW, data=tmp_path) as home:
        assert home.connectors()["weather"]["status"] == "idle"
        assert set(home.connectors()["weather"]["tools"]) == {"forecast", "wipe"}
        assert len(site.requests) == count


async def test_a_server_that_is_removed_is_forgotten_with_all_that_it_was_trusted_with(plugin, site, tmp_path):
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        await client.call("mcp.server.connect", {"url": f"{site.url}/mcp?key=in-the-query", "headers": {"X-Key": KEY}})
        assert (await home.http("DELETE", "/api/mcp/servers/weather")).json() == {"id": "weather"}
        assert (await home.http("DELETE", "/api/mcp/servers/weather")).status_code == 404
        assert await home.hub.app.kv.list("mcp") == {}
        assert await home.hub.app.kv.list("sag.secret") == {}
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        assert (await client.call("mcp.server.list"))["servers"] == []


async def test_headers_and_queries_are_sent_and_neither_told_nor_kept_in_clear(plugin, site, tmp_path):
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        hub = await client.subscribe("hub")
        url = f"{site.url}/mcp?api_key=query-secret-2"
        made = await client.call("mcp.server.connect", {"url": url, "headers": {"X-Key": KEY}})
        assert made["headers"] == {"X-Key": {"set": True}}
        assert made["url"] == f"{site.url}/mcp"
        assert {(r.headers.get("x-key"), r.query.get("api_key")) for r in site.requests} == {(KEY, "query-secret-2")}
        await hub.until(lambda state: "weather" in state["connectors"])
        patched = await home.http("PATCH", "/api/mcp/servers/weather", {"headers": {"X-Other": "another-secret-3"}})
        told = [made, (await client.call("mcp.server.list")), hub.state, patched.text]
        told.append(await client.call("mcp.server.tools", {"id": "weather"}))
        await until(lambda: site.requests[-1].headers.get("x-other") == "another-secret-3")
        assert site.requests[-1].headers["x-key"] == KEY
    with sqlite3.connect(tmp_path / "sag.db") as db:
        dump = "\n".join(db.iterdump())
    for secret in (KEY, "query-secret-2", "another-secret-3"):
        assert secret not in json.dumps(told)
        assert secret not in dump
        assert secret.encode().hex().upper() not in dump.upper()


async def test_a_header_is_replaced_whatever_its_case_and_taken_away_by_null(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        await connect(client, site, headers={"X-Key": KEY, "X-Stays": "stays"})
        await client.call("mcp.server.update", {"id": "weather", "headers": {"x-key": "other"}})
        await until(lambda: site.requests[-1].headers.get("x-key") == "other")
        view = await client.call("mcp.server.update", {"id": "weather", "headers": {"X-KEY": None}})
        assert view["headers"] == {"X-Stays": {"set": True}}
        await until(lambda: "x-key" not in site.requests[-1].headers)
        assert site.requests[-1].headers["x-stays"] == "stays"


async def test_a_server_that_is_switched_off_is_not_connected_to_until_it_is_switched_on(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        await connect(client, site)
        off = await client.call("mcp.server.update", {"id": "weather", "enabled": False})
        assert (off["status"], off["tool_count"], off["enabled"]) == ("off", 0, False)
        count = len(site.requests)
        assert (await client.call("mcp.server.refresh", {"id": "weather"}))["status"] == "off"
        assert len(site.requests) == count
        await client.call("mcp.server.update", {"id": "weather", "enabled": True})
        await until(lambda: home.connectors()["weather"]["status"] == "ready")


async def test_a_refresh_shows_what_the_server_offers_now(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        await connect(client, site)
        site.tools.append(site.tool("radar", {}))
        assert (await client.call("mcp.server.refresh", {"id": "weather"}))["tool_count"] == 3


async def test_patches_that_come_at_once_all_hold(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        await connect(client, site)
        patches: list[Json] = [{"title": "Rain"}, {"policy": "deny"}, {"tools": {"a": False}}, {"tools": {"b": False}}]
        patches += [{"headers": {f"X-{i}": "v"}} for i in range(4)]
        await asyncio.gather(*(client.call("mcp.server.update", {"id": "weather", **patch}) for patch in patches))
        (view,) = (await client.call("mcp.server.list"))["servers"]
        assert (view["title"], view["policy"], view["tools"]) == ("Rain", "deny", {"a": False, "b": False})
        assert set(view["headers"]) == {"X-0", "X-1", "X-2", "X-3"}
        back = await client.call("mcp.server.update", {"id": "weather", "title": "", "policy": None})
        assert back["title"] == "Weather"
        assert "policy" not in back


async def test_servers_of_plugins_toml_are_shown_with_the_name_of_their_program_alone(plugin, site):
    table = {
        "servers": {
            "files": {
                "command": ["/opt/bin/server-files", "--key", KEY],
                "env": {"TOKEN": KEY},
                "title": "Files",
                "enabled": False,
            },
            "sky": {"url": f"{site.url}/mcp", "headers": {"X-Key": KEY}},
        }
    }
    async with house(table) as home, home.enter() as client:
        await until(lambda: home.connectors()["sky"]["status"] == "ready")
        files, sky = (await client.call("mcp.server.list"))["servers"]
        assert (files["command"], files["source"], files["title"]) == ("server-files", "config", "Files")
        assert (sky["url"], sky["headers"], sky["title"]) == (f"{site.url}/mcp", {"X-Key": {"set": True}}, "Weather")
        assert home.connectors()["files"]["data"] == {"source": "config", "command": "server-files"}
        assert KEY not in json.dumps([files, sky, home.connectors()])
        assert site.requests[-1].headers["x-key"] == KEY  # although its address is private


async def test_what_is_patched_of_a_server_of_plugins_toml_outlives_a_restart_and_nothing_else_is(
    plugin, site, tmp_path
):
    table = {"servers": {"sky": {"url": f"{site.url}/mcp", "title": "Sky", "headers": {"X-Key": KEY}}}}
    async with house(table, data=tmp_path) as home, home.enter() as client:
        for change in ({"url": "https://elsewhere.example/mcp"}, {"command": ["sh"]}):
            with pytest.raises(Fault) as caught:
                await client.call("mcp.server.update", {"id": "sky", **change})
            assert (caught.value.kind, caught.value.code) == ("connector.fixed", 409)
        with pytest.raises(Fault) as caught:
            await client.call("mcp.server.remove", {"id": "sky"})
        assert caught.value.kind == "connector.fixed"
        await client.call(
            "mcp.server.update",
            {"id": "sky", "title": "Heaven", "policy": "ask", "headers": {"X-Key": None, "X-B": "b"}},
        )
    async with house(table, data=tmp_path) as home, home.enter() as client:
        await until(lambda: home.connectors()["sky"]["status"] == "ready")
        (sky,) = (await client.call("mcp.server.list"))["servers"]
        assert (sky["title"], sky["policy"], set(sky["headers"])) == ("Heaven", "ask", {"X-B"})
        assert "x-key" not in site.requests[-1].headers


async def test_a_server_that_plugins_toml_has_now_wins_over_one_that_was_connected_under_its_name(
    plugin, site, tmp_path
):
    async with house(ALLOW, data=tmp_path) as home, home.enter() as client:
        await connect(client, site, name="sky", title="Mine")
    table = {**ALLOW, "servers": {"sky": {"url": f"{site.url}/mcp"}}}
    async with house(table, data=tmp_path) as home, home.enter() as client:
        for _ in range(100):  # the title is the server's own, which is asked meanwhile
            (sky,) = (await client.call("mcp.server.list"))["servers"]
            if sky["title"] != "sky":
                break
            await asyncio.sleep(0.02)
        assert (sky["source"], sky["title"]) == ("config", "Weather")
        info = home.hub.app.host.get("mcp")
        assert info is not None
        assert "plugins.toml has one of that name" in info.notes[0]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"servers": {"x": {}}}, r"\[mcp.servers.x\] needs either"),
        ({"servers": {"x": {"url": "http://a/", "command": ["b"]}}}, r"\[mcp.servers.x\] needs either"),
        ({"servers": {"x": {"url": "ftp://a/"}}}, r"\[mcp.servers.x\] url: Only http"),
        ({"servers": {"x y": {"url": "http://a/"}}}, "'x y' is no connector's name"),
        ({"servers": {"x": {"url": "http://a/", "comand": ["b"]}}}, r"servers\[...\].comand"),
        ({"allow": ["http://a"]}, r"\[mcp\] 'http://a' is no host"),
        ({"ports": ["9-1"]}, r"\[mcp\] '9-1' is neither a port"),
    ],
)
async def test_a_table_that_is_wrong_switches_the_plugin_off_and_says_where(plugin, table, why):
    with pytest.raises(AssertionError, match=why):
        async with house(table):
            pass


def test_the_plugin_is_loaded_without_the_sdk():
    code = "import sys, sag_mcp; sys.exit(any(m in sys.modules for m in ('mcp', 'mcp_types', 'httpx2', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


async def test_the_operations_are_in_the_documents_of_the_hub(plugin):
    async with house() as home:
        paths = (await home.http("GET", "/schema/openapi.json")).json()["paths"]
    assert {"get", "post"} <= {verb for path in ("/api/mcp/servers/", "/api/mcp/servers") for verb in paths[path]}
    assert set(paths["/api/mcp/servers/{id}"]) == {"patch", "delete"}
    assert set(paths["/api/mcp/preferences/{client_id}"]) == {"get", "put"}


def test_the_tables_of_the_guide_are_what_the_plugin_takes():
    page = (Path(__file__).parents[2] / "docs/how-to/connect-tools.md").read_text()
    tables = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)]
    assert len(tables) >= 4
    for table in tables:
        settings = msgspec.convert(table["mcp"], Settings, dec_hook=lambda kind, value: Secret(value))
        assert set(table["mcp"]) <= set(Settings.__struct_fields__)
        Hosts(settings.allow)
        parse_ports(settings.ports)


async def test_names_are_made_of_titles_and_hosts_and_are_free(plugin):
    first, second, third = McpSite(title="Time & Weather!"), McpSite(title=""), McpSite(title="天気")
    async with first.serve(), second.serve(), third.serve(), house(ALLOW) as home, home.enter() as client:
        assert (await connect(client, first))["id"] == "time-weather"
        assert (await connect(client, first, title="Time Weather"))["id"] == "time-weather-2"
        assert (await connect(client, first, name="Own_Name"))["id"] == "Own_Name"
        assert (await connect(client, second))["id"] == "server"
        assert (await connect(client, third))["id"] == "server-2"
        # A plugin's own tools stand under its name on the topic `hub`.
        assert (await connect(client, second, title="Basics"))["id"] == "basics-2"
        for name, kind in (("Own_Name", "connector.exists"), ("basics", "connector.exists"), ("a b", "rpc.params")):
            with pytest.raises(Fault) as caught:
                await connect(client, second, name=name, title="Other")
            assert caught.value.kind == kind


async def test_the_same_asked_again_is_the_same_server(plugin, site):
    async with house(ALLOW) as home, home.enter() as client:
        first = await connect(client, site, key="k1")
        assert await connect(client, site, key="k1") == first
        assert (await connect(client, site))["id"] == first["id"]  # the answer was lost, and the key with it
        assert (await connect(client, site, title="Other"))["id"] != first["id"]
        with pytest.raises(Fault) as caught:
            await connect(client, site, key="k1", lazy=True)
        assert caught.value.kind == "key.mismatch"


async def test_what_is_no_mcp_server_is_not_kept(plugin):
    site = Site()
    async with site.serve(), house(ALLOW) as home, home.enter() as client:
        with pytest.raises(Fault) as caught:
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
        assert (caught.value.kind, caught.value.code) == ("connector.failed", 502)
        assert "HTTP 404" in caught.value.message
        closed = site.url
    async with house(ALLOW) as home, home.enter() as client:
        with pytest.raises(Fault, match="cannot be reached"):
            await client.call("mcp.server.connect", {"url": f"{closed}/mcp"})
        assert (await client.call("mcp.server.list"))["servers"] == []
        assert await home.hub.app.kv.list("mcp") == {}


async def test_others_see_a_server_and_only_its_owner_or_an_administrator_changes_it(plugin, site):
    table = {**ALLOW, "servers": {"sky": {"url": f"{site.url}/mcp"}}}
    async with house(table) as home, home.enter() as admin, home.enter("ada") as ada, home.enter("ben") as ben:
        assert (await connect(ada, site))["can_change"] is True
        shown = {s["id"]: s for s in (await ben.call("mcp.server.list"))["servers"]}
        assert (shown["weather"]["by"], shown["weather"]["can_change"]) == ("ada", False)
        assert (await ben.call("mcp.server.refresh", {"id": "weather"}))["status"] == "ready"
        assert len((await ben.call("mcp.server.tools", {"id": "weather"}))["tools"]) == 2
        for user, id in ((ben, "weather"), (ada, "sky"), (ben, "sky")):
            for method, more in (("update", {"title": "x"}), ("sign_in", {}), ("remove", {})):
                if (method, id) == ("remove", "sky"):
                    continue
                with pytest.raises(Fault) as caught:
                    await user.call(f"mcp.server.{method}", {"id": id, **more})
                assert (caught.value.kind, caught.value.code) == ("access.denied", 403)
        assert (await ada.call("mcp.server.update", {"id": "weather", "title": "Ada's"}))["title"] == "Ada's"
        assert (await admin.call("mcp.server.update", {"id": "weather", "title": "Ours"}))["title"] == "Ours"
        assert (await admin.call("mcp.server.update", {"id": "sky", "title": "Sky"}))["title"] == "Sky"


async def test_only_an_administrator_lets_all_calls_go_ahead_for_everybody(plugin, site):
    async with house(ALLOW) as home, home.enter() as admin, home.enter("ada") as ada:
        with pytest.raises(Fault) as caught:
            await connect(ada, site, policy="auto")
        assert caught.value.kind == "access.denied"
        assert (await connect(ada, site, policy="ask"))["policy"] == "ask"
        with pytest.raises(Fault):
            await ada.call("mcp.server.update", {"id": "weather", "policy": "auto"})
        assert (await admin.call("mcp.server.update", {"id": "weather", "policy": "auto"}))["policy"] == "auto"


async def test_defaults_hold_for_servers_that_people_connect(plugin, site):
    table = {**ALLOW, "defaults": {"policy": "ask", "call_s": 7}, "servers": {"sky": {"url": f"{site.url}/mcp"}}}
    async with house(table) as home, home.enter() as client:
        assert (await connect(client, site))["policy"] == "ask"
        await until(lambda: home.connectors()["sky"]["status"] == "ready")
        shown = home.hub.app.extensions.connectors
        assert [(t.timeout_s, t.policy) for t in shown["weather"].tools] == [(7, "ask")] * 2
        assert [(t.timeout_s, t.policy) for t in shown["sky"].tools] == [(60, None)] * 2


async def test_a_model_calls_a_tool_of_a_connected_server(plugin, site):
    provider = ScriptedProvider(call(("weather__forecast", {"city": "Oslo"})), say("Sunny."))
    async with house(ALLOW, providers=[provider]) as home, home.enter() as client:
        await connect(client, site)
        given = {"input": [{"kind": "text", "text": "?"}], "config": {"model": "script/m"}}
        started = await client.call("run.start", given)
        topic = await client.subscribe(f"conv:{started['conv']}")
        state = await topic.until(lambda state: state["runs"][started["run"]]["status"] == "done")
        (tool,) = state["tools"].values()
        assert (tool["status"], tool["origin"]) == ("ok", "weather")
        assert site.calls == [{"city": "Oslo"}]
