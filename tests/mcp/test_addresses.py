"""No address that leads elsewhere than to the public internet is connected to, however it is written or changes."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sag.plugin import Fault
from sag_mcp.address import Hosts, parse_ports, parse_url
from tests.mcp.loopback import McpSite, Reply, house, kinds

CONNECT = ("mcp.server.connect", ("POST", "/api/mcp/servers"))
DISCOVER = ("mcp.server.discover", ("POST", "/api/mcp/servers/discover"))
PUBLIC = "8.8.8.8"

SPELLINGS = [
    *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "127.0.0.1.", "127.1", "127.0.1", "0", "0.0.0.0"),
    *("2130706433", "0x7f000001", "0x7F.0.0.1", "0177.0.0.1", "0177.0.0.01", "017700000001", "127.0.0.0x1"),
    *("①②⑦.0.0.1", "127。0。0。1", "127．0．0．1", "１２７.0.0.1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[::ffff:a9fe:a9fe]"),
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "[fe80::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]"),
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
    *("user@127.0.0.1", "127.0.0.1:80@127.0.0.1", "a.example:80#@127.0.0.1", "a.example?@127.0.0.1", "127.0.0.1%2f"),
    *("a.example\\@127.0.0.1", "127.0.0.1\t", "127.0.0.1 ", "%31%32%37.0.0.1", "[::1%25lo]", "[127.0.0.1]"),
]


@pytest.fixture
async def site():
    """A server on loopback, which nobody may reach."""
    site = McpSite()
    async with site.serve():
        yield site


@pytest.fixture
def network(monkeypatch, wire):
    """Names that resolve as a test says, and connections that are recorded but made to loopback alone."""
    names: dict[str, list[list[str]]] = {}
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host, port, *args, **given):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in names and not name.endswith(".example"):
            return resolve(host, port, *args, **given)
        wire.resolved.append(name)
        answers = names.get(name, [[]])
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        if not now:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in now]

    def connecting(sock, address):
        if isinstance(address, tuple) and not address[0].startswith(("127.", "::1")):
            wire.connected.append(address[:2])
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(sock, address)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    return names


@pytest.mark.parametrize("user", ["", "ada"])
async def test_no_spelling_of_a_private_address_is_connected_to_on_any_road(plugin, site, network, wire, user):
    async with house({"ports": [site.port]}) as home:

        async def check(host: str) -> None:
            urls = (f"http://{host}:{site.port}/mcp", f"https://{host}/mcp", f"http://{host}:{site.port}")
            outcomes = [o for url in urls for o in await home.on_every_road(*CONNECT, {"url": url}, user)]
            assert all("error" in o for o in outcomes), (host, outcomes)
            for given in ({"url": urls[0]}, {"host": host}, {"host": f"{host}:{site.port}"}):
                outcomes += await home.on_every_road(*DISCOVER, given, user)
            # Some name hosts that do not exist: `a.example?@…`, and on some machines `localhost.`.
            assert all("error" in o or o["endpoints"] == [] for o in outcomes), (host, outcomes)
            found = set(kinds([o for o in outcomes if "error" in o]))
            assert found <= {"outbound.denied", "rpc.params", "connector.failed"}, (host, outcomes)

        await home.on_every_road(*CONNECT, {"url": ""}, user)
        await asyncio.gather(*map(check, SPELLINGS))
        assert wire.beside(home.url) == []
        assert site.requests == []


async def test_a_name_is_judged_by_the_address_that_is_connected_to(plugin, site, network, wire):
    url = f"http://rebound.example:{site.port}/mcp"
    network["rebound.example"] = [[PUBLIC], ["127.0.0.1"]]
    async with house() as home:
        assert kinds(await home.on_every_road(*CONNECT, {"url": url})) == ["connector.failed"] * 3
        assert set(wire.beside(home.url)) == {(PUBLIC, site.port)}
    wire.connected.clear()
    async with house() as home:  # the name has changed, and nothing that was known of it counts
        assert kinds(await home.on_every_road(*CONNECT, {"url": url})) == ["outbound.denied"] * 3
        assert kinds(await home.on_every_road(*DISCOVER, {"url": url})) == ["outbound.denied"] * 3
        assert wire.beside(home.url) == []
    assert "rebound.example" in wire.resolved


async def test_a_private_address_among_public_ones_is_passed_over(plugin, site, network, wire):
    network["mixed.example"] = [[PUBLIC, "127.0.0.1", "169.254.169.254"]]
    async with house() as home:
        outcomes = await home.on_every_road(*CONNECT, {"url": f"http://mixed.example:{site.port}/mcp"})
        assert set(kinds(outcomes)) <= {"connector.failed", "outbound.denied"}
        assert set(wire.beside(home.url)) == {(PUBLIC, site.port)}


async def test_a_redirect_to_a_private_address_is_not_connected_to(plugin, site, wire):
    door = McpSite()
    async with door.serve(), house({"allow": [f"127.0.0.1:{door.port}"]}) as home:
        for target in (f"http://127.0.0.1:{site.port}/mcp", "http://169.254.169.254/latest/", f"//127.1:{site.port}/"):
            for status in (301, 302, 303, 307, 308):
                reply = Reply(status, headers={"location": target})
                door.over = lambda r: reply  # noqa: B023 - the one of now
                outcomes = await home.on_every_road(*CONNECT, {"url": f"{door.url}/mcp"})
                assert kinds(outcomes) == ["connector.failed"] * 3
                outcomes = await home.on_every_road(*DISCOVER, {"url": f"{door.url}/mcp"})
                assert [o["endpoints"] for o in outcomes] == [[]] * 3
        assert wire.beside(home.url, door.url) == []
        assert site.requests == []


async def test_a_server_that_redirects_once_it_is_connected_leads_nowhere(plugin, site, wire):
    door = McpSite()
    async with door.serve(), house({"allow": [f"127.0.0.1:{door.port}"]}) as home, home.enter() as client:
        await client.call("mcp.server.connect", {"url": f"{door.url}/mcp"})
        door.over = lambda r: Reply(307, headers={"location": f"{site.url}/mcp"})
        assert (await client.call("mcp.server.refresh", {"id": "weather"}))["status"] != "ready"
        assert wire.beside(home.url, door.url) == []


async def test_where_a_server_sends_people_to_sign_in_is_judged_too(plugin, site, wire):
    door = McpSite()
    door.tokens = set()
    async with door.serve(), house({"allow": [f"127.0.0.1:{door.port}"]}) as home, home.enter() as client:
        id = (await client.call("mcp.server.connect", {"url": f"{door.url}/mcp"}))["id"]
        metadata = {"resource": f"{door.url}/mcp", "authorization_servers": [site.url]}
        told = {
            "/.well-known/oauth-protected-resource/mcp": Reply(body=metadata),
            "/.well-known/oauth-protected-resource": Reply(body=metadata),
        }
        for challenge in ("Bearer", f'Bearer resource_metadata="{site.url}/.well-known/oauth-protected-resource"'):
            door.challenge = challenge
            door.over = lambda r: told.get(r.path)
            with pytest.raises(Fault) as caught:
                await client.call("mcp.server.sign_in", {"id": id})
            assert caught.value.kind == "connector.failed"
        assert wire.beside(home.url, door.url) == []
        assert site.requests == []


def test_a_url_has_one_spelling():
    address = parse_url(" HTTPS://MCP.Example.ORG:443/a/B?q=1#frag ")
    assert (address.url, address.shown) == ("https://mcp.example.org/a/B?q=1", "https://mcp.example.org/a/B")
    assert parse_url("http://[0:0::1]:80").origin == "http://[::1]"
    assert parse_url("https://münchen.example/").host == "xn--mnchen-3ya.example"


def test_hosts_cover_what_they_name_and_nothing_beside():
    hosts = Hosts(["nas.home", "10.0.0.5:8000", "[::1]"])
    for url in ("http://nas.home/", "https://NAS.home:99/x", "http://10.0.0.5:8000/", "http://[0:0::1]:5/"):
        assert hosts.covers_url(url), url
    for url in (
        *("http://nas.home./", "http://x.nas.home/", "http://10.0.0.5/", "http://167772165:8000/", "http://[::2]/"),
        *("http://nas.home@evil.example/", "http://nas.home\\@evil.example/", "http://evil.example#nas.home"),
        *("http://nas.home evil.example/", "ftp://nas.home/", "nas.home", "http://nas.home:bad/"),
    ):
        assert not hosts.covers_url(url), url


@pytest.mark.parametrize("entry", ["http://x", "*", "*.home", "a/b", "", "a b", "a:b", "a:1:2", "@", "[::1", "u@h"])
def test_what_is_no_host_is_refused(entry):
    with pytest.raises(ValueError, match="no host"):
        Hosts([entry])


def test_ports_and_ranges_become_one_list():
    assert parse_ports([80, "8000-8002", "80"]) == [80, 8000, 8001, 8002]
    for wrong in ("0", "65536", "2-1", "a", "1-2-3", "-1"):
        with pytest.raises(ValueError, match="neither a port"):
            parse_ports([wrong])
