"""Operations on MCP servers on every road: none starts a process, and what is looked for is found within bounds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from sag.plugin import Fault
from tests.mcp.loopback import Json, McpSite, Reply, Request, Site, event, house, kinds

ALLOW = {"allow": ["127.0.0.1"]}
CONNECT = ("mcp.server.connect", ("POST", "/api/mcp/servers"))
DISCOVER = ("mcp.server.discover", ("POST", "/api/mcp/servers/discover"))
UPDATE = ("mcp.server.update", ("PATCH", "/api/mcp/servers/weather"))


@pytest.fixture
async def site():
    site = McpSite()
    async with site.serve():
        yield site


class OlderSite(Site):
    """An MCP server of the older way: an event stream that names the address to post to."""

    async def answer(self, request: Request) -> Reply:
        if (request.method, request.path) != ("GET", "/sse"):
            return Reply(404)

        async def stream() -> AsyncIterator[bytes]:
            yield b": hello\n\n"
            yield event("/messages?session=1", "endpoint")
            await asyncio.Event().wait()

        return Reply(headers={"content-type": "text/event-stream"}, stream=stream)


# nothing is started


@pytest.mark.parametrize("user", ["", "ada"])
async def test_no_operation_on_any_road_starts_a_program(plugin, site, wire, user):
    async with house(ALLOW) as home, home.enter(user) as client:
        await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
        count = len(site.requests)
        for command in (["touch", "/tmp/owned"], "touch /tmp/owned", {"x": 1}, []):
            for (method, rest), given in (
                (CONNECT, {"url": f"{site.url}/mcp", "name": "other"}),
                (CONNECT, {"url": ""}),
                (DISCOVER, {"url": f"{site.url}/mcp"}),
                (DISCOVER, {"host": "127.0.0.1"}),
                (UPDATE, {"id": "weather"}),
            ):
                outcomes = await home.on_every_road(method, rest, {**given, "command": command, "args": ["x"]}, user)
                assert kinds(outcomes) == ["access.denied"] * 3
                assert "plugins.toml" in outcomes[0]["error"]["message"]
        assert len(site.requests) == count
        assert [name for name, shown in home.connectors().items() if shown["plugin"] == "mcp"] == ["weather"]
    assert wire.started == []


async def test_what_is_no_web_address_is_refused(plugin, wire):
    async with house() as home:
        for url in ("stdio:///bin/sh", "file:///bin/sh", "command:sh", "sh -c id", "unix:///run/x.sock"):
            for method, rest in (CONNECT, DISCOVER):
                outcomes = await home.on_every_road(method, rest, {"url": url, "transport": "http"})
                assert set(kinds(outcomes)) <= {"outbound.denied", "rpc.params"}
        outcomes = await home.on_every_road(*CONNECT, {"url": "https://a.example/", "transport": "stdio"})
        assert kinds(outcomes) == ["rpc.params"] * 3
        assert wire.beside(home.url) == []
    assert wire.started == []


async def test_there_is_no_other_operation_that_takes_a_command(plugin):
    async with house() as home:
        schema = (await home.http("GET", "/schema/jsonschema.json")).json()
    takers = {
        name
        for name, op in schema["x-operations"].items()
        if "command" in schema["$defs"].get(op["params"].get("$ref", "").rpartition("/")[2], {}).get("properties", {})
    }
    assert takers == {"mcp.server.connect", "mcp.server.discover", "mcp.server.update"}


# connecting


async def test_only_an_administrator_allows_a_private_host_and_for_that_server_alone(plugin, site, wire):
    other = McpSite(title="Other")
    async with other.serve(), house() as home, home.enter() as admin, home.enter("ada") as ada:
        given = {"url": f"{site.url}/mcp", "allow": True}
        assert kinds(await home.on_every_road(*CONNECT, given, "ada")) == ["access.denied"] * 3
        assert kinds(await home.on_every_road(*CONNECT, {"url": given["url"]})) == ["outbound.denied"] * 3
        assert wire.beside(home.url) == []
        made = await admin.call("mcp.server.connect", given)
        assert (made["status"], made["allow"]) == ("ready", [f"127.0.0.1:{site.port}"])
        # It is that server's: neither another one nor a search gets there, nor another port.
        for user in (admin, ada):
            for url in (f"{site.url}/mcp?again", f"{other.url}/mcp"):
                with pytest.raises(Fault) as caught:
                    await user.call("mcp.server.connect", {"url": url})
                assert caught.value.kind == "outbound.denied"
            with pytest.raises(Fault) as caught:
                await user.call("mcp.server.discover", {"url": f"{site.url}/mcp"})
            assert caught.value.kind == "outbound.denied"
        assert other.requests == []


async def test_a_host_that_is_allowed_for_everybody_is_anybodys_to_connect_to(plugin, site):
    for table, given in (
        ({"allow": [f"127.0.0.1:{site.port}"]}, {}),
        ({"allow": ["127.0.0.1"]}, {"transport": "http"}),
    ):
        async with house(table) as home, home.enter("ada") as ada:
            made = await ada.call("mcp.server.connect", {"url": f"{site.url}/mcp", **given})
            assert made["status"] == "ready"


UNFIT: list[tuple[Json, str]] = [
    ({"url": "not a url"}, "$.url"),
    ({"url": "https://user:secret-pass@a.example/mcp"}, "$.url"),
    ({"url": "https://a.example:0/"}, "$.url"),
    ({"url": "https://a.example:65536/"}, "$.url"),
    ({"url": "https://a.example\\@b.example/"}, "$.url"),
    ({"url": "https://a.example/\r\nX: y"}, "$.url"),
    ({"url": "https://" + "a" * 3000}, "$.url"),
    ({"url": "https://[::1%25eth0]/"}, "$.url"),
    ({"url": "https://-a.example/"}, "$.url"),
    ({"url": "https:///mcp"}, "$.url"),
    ({"url": "https://a.example/", "name": "1st"}, "$.name"),
    ({"url": "https://a.example/", "headers": {"Host": "b.example"}}, "$.headers.Host"),
    ({"url": "https://a.example/", "headers": {"Bad Name": "x"}}, "$.headers"),
    ({"url": "https://a.example/", "headers": {"X": "a\r\nY: b"}}, "$.headers"),
    ({"url": "https://a.example/", "headers": {f"X-{i}": "x" for i in range(33)}}, "$.headers"),
    ({"url": "https://a.example/", "policy": "sometimes"}, "$.policy"),
    ({}, "$"),
]


async def test_params_that_do_not_fit_are_refused_before_anything_is_asked(plugin, wire):
    async with house() as home:
        for given, path in UNFIT:
            outcomes = await home.on_every_road(*CONNECT, given)
            assert kinds(outcomes) == ["rpc.params"] * 3, given
            assert path in outcomes[1]["error"]["data"]["path"], given
            assert "secret-pass" not in json.dumps(outcomes)
        assert wire.beside(home.url) == []


async def test_credentials_that_the_server_refuses_are_told(plugin, site):
    site.tokens = set()
    async with house(ALLOW) as home, home.enter() as client:
        with pytest.raises(Fault, match="refuses the credentials"):
            await client.call(
                "mcp.server.connect", {"url": f"{site.url}/mcp", "headers": {"authorization": "Bearer wrong"}}
            )
        site.tokens = {"right"}
        given = {"url": f"{site.url}/mcp", "headers": {"Authorization": "Bearer right"}}
        assert (await client.call("mcp.server.connect", given))["status"] == "ready"


async def test_a_server_that_nobody_answers_for_is_not_waited_for_for_ever(plugin, site):
    async def stream():
        await asyncio.Event().wait()
        yield b""

    site.over = lambda request: Reply(headers={"content-type": "application/json"}, stream=stream)
    async with house({**ALLOW, "defaults": {"connect_s": 0.3}}) as home, home.enter() as client:
        began = time.monotonic()
        with pytest.raises(Fault, match="does not answer in time"):
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
        assert time.monotonic() - began < 5


async def test_people_can_connect_so_many_servers_and_no_more(plugin, site, monkeypatch):
    monkeypatch.setattr("sag_mcp.servers.MAX_SERVERS", 2)
    async with house(ALLOW) as home, home.enter() as client:
        for i in range(2):
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp", "title": f"n{i}"})
        with pytest.raises(Fault) as caught:
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp", "title": "n3"})
        assert (caught.value.kind, caught.value.code) == ("mcp.limit", 429)


async def test_an_unknown_server_is_404_and_so_is_another_plugins_connector(plugin):
    async with house() as home, home.enter() as client:
        for method in ("refresh", "update", "sign_in", "remove", "tools"):
            for id in ("nobody", "basics"):
                with pytest.raises(Fault) as caught:
                    await client.call(f"mcp.server.{method}", {"id": id})
                assert (caught.value.kind, caught.value.code) == ("connector.unknown", 404)


# looking for servers


async def test_a_search_tells_what_answers_and_what_is_connected_already(plugin, site):
    older, root, wrong = OlderSite(), McpSite(path="/", title="Root"), Site()
    async with older.serve(), root.serve(), wrong.serve():
        sites = (site, older, root, wrong)
        async with house({**ALLOW, "ports": [s.port for s in sites]}) as home, home.enter() as client:
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
            found = await client.call("mcp.server.discover", {"host": "127.0.0.1"})
            assert found["complete"] is True
            assert found["endpoints"] == [
                {
                    "url": f"{site.url}/mcp",
                    "transport": "http",
                    "title": "Weather",
                    "version": "1.2",
                    "server": "weather",
                },
                {"url": f"{older.url}/sse", "transport": "sse"},
                {"url": f"{root.url}/", "transport": "http", "title": "Root", "version": "1.2"},
            ]
            for road in ("/rpc/mcp.server.discover", "/api/mcp/servers/discover"):
                assert (await home.http("POST", road, {"host": "127.0.0.1"})).json() == found


async def test_a_search_of_a_url_asks_there_first_and_a_host_that_is_not_allowed_nowhere_else(plugin, site, wire):
    other = McpSite(title="Other")
    async with other.serve():
        for allow, expected in (("127.0.0.1", [site, other]), (f"127.0.0.1:{site.port}", [site])):
            async with house({"allow": [allow], "ports": [other.port]}) as home, home.enter() as client:
                found = await client.call("mcp.server.discover", {"url": f"{site.url}/mcp"})
                assert [e["url"] for e in found["endpoints"]] == [f"{s.url}/mcp" for s in expected]
                wire.connected.clear()
        async with house({"ports": [other.port]}) as home, home.enter() as client:
            for given in ({"host": "127.0.0.1"}, {"host": f"127.0.0.1:{site.port}"}, {"url": site.url}):
                with pytest.raises(Fault) as caught:
                    await client.call("mcp.server.discover", given)
                assert caught.value.kind == "outbound.denied"
            assert wire.beside(home.url) == []


async def test_a_server_that_wants_a_sign_in_is_found_as_such(plugin, site):
    site.tokens = set()
    async with house({**ALLOW, "ports": [site.port]}) as home, home.enter() as client:
        found = await client.call("mcp.server.discover", {"host": "127.0.0.1"})
        assert {"url": f"{site.url}/mcp", "transport": "http", "auth": True} in found["endpoints"]


async def test_a_search_ends_in_time_whatever_answers(plugin, site, monkeypatch):
    async def stream():
        while True:
            yield b" " * 1000
            await asyncio.sleep(0.01)

    monkeypatch.setattr("sag_mcp.discovery.SEARCH_S", 0.5)
    site.over = lambda request: Reply(headers={"content-type": "text/event-stream"}, stream=stream)
    async with house({**ALLOW, "ports": [site.port]}) as home, home.enter() as client:
        began = time.monotonic()
        found = await client.call("mcp.server.discover", {"host": "127.0.0.1"})
        assert (found["endpoints"], found["complete"]) == ([], False)
        assert time.monotonic() - began < 5
        async with asyncio.timeout(5):
            while site.gone < 1:
                await asyncio.sleep(0.01)


async def test_a_search_asks_so_many_addresses_and_no_more(plugin, monkeypatch, wire):
    import sag_mcp.discovery as discovery

    monkeypatch.setattr(discovery, "MAX_PLACES", 9)
    async with house({**ALLOW, "ports": ["20000-20100"]}) as home, home.enter() as client:
        found = await client.call("mcp.server.discover", {"host": "127.0.0.1"})
        assert (found["asked"] <= 9, found["complete"]) == (True, False)
        assert len(set(wire.beside(home.url))) <= 3


async def test_a_search_needs_a_host_or_a_url(plugin, wire):
    async with house() as home:
        for given in ({}, {"host": "a", "url": "https://a/"}, {"host": "a/b"}, {"host": "a b"}, {"host": "@"}):
            assert kinds(await home.on_every_road(*DISCOVER, given)) == ["rpc.params"] * 3
        assert wire.beside(home.url) == []


async def test_a_redirect_within_the_origin_is_followed_and_any_other_is_not(plugin, site):
    other = McpSite(title="Other")
    async with other.serve(), house(ALLOW) as home, home.enter() as client:
        site.path = "/mcp/"
        site.over = lambda r: Reply(307, headers={"location": "/mcp/"}) if r.path == "/mcp" else None
        found = await client.call("mcp.server.discover", {"url": f"{site.url}/mcp"})
        assert next(e["url"] for e in found["endpoints"]) == f"{site.url}/mcp"
        site.over = lambda r: Reply(307, headers={"location": f"{other.url}/mcp?secret=1"})
        with pytest.raises(Fault, match=f"it redirects to {other.url}/mcp, which is not followed"):
            await client.call("mcp.server.connect", {"url": f"{site.url}/mcp"})
        assert other.requests == []
