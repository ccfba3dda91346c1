"""The HTTP client that the MCP SDK is given: what it sends and takes, through the clients of a hub that runs."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp.client.streamable_http import streamable_http_client

from sag.plugin import Hub, Secret
from sag_mcp import http
from sag_mcp.address import Hosts
from tests.mcp.loopback import McpSite, Reply, Request, Site, event, house, until

LOOPBACK = Hosts(["127.0.0.1"])


@pytest.fixture
async def site():
    site = Site()
    async with site.serve():
        yield site


@pytest.fixture
async def hub(plugin):
    """The plugin's side of a hub that runs."""
    async with house() as home:
        yield home.hub.app.host._hubs["mcp"]


@pytest.fixture
async def client(hub):
    async with http.make_client(hub, LOOPBACK, silence_s=None) as client:
        yield client


def answering(site: Site, *replies: Reply) -> None:
    """Have a site answer these, the last one from then on."""
    left = list(replies)

    async def answer(request: Request) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    site.answer = answer  # type: ignore[method-assign]


def streaming(*pieces: bytes, then: asyncio.Event | None = None, kind: str = "text/event-stream") -> Reply:
    """A reply in pieces; then an event is waited for."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if then is not None:
            await then.wait()

    return Reply(headers={"content-type": kind}, stream=stream)


async def test_headers_are_sent_as_they_were_given_and_nothing_is_asked_for_compressed(hub, site):
    answering(site, Reply(200, "ok"))
    async with http.make_client(hub, LOOPBACK, {"X-Key": Secret("secret-1"), "User-Agent": Secret("mine")}) as client:
        answer = await client.post(f"{site.url}/x?a=1&a=2", json={"q": 1}, headers=[("X-More", "1")])
    assert (answer.status_code, answer.text) == (200, "ok")
    (request,) = site.requests
    assert (request.method, request.path, request.json, request.query) == ("POST", "/x", {"q": 1}, {"a": "1"})
    told = {name: request.headers.get(name) for name in ("x-key", "user-agent", "x-more", "accept-encoding")}
    assert told == {"x-key": "secret-1", "user-agent": "mine", "x-more": "1", "accept-encoding": "identity"}
    assert request.headers["content-length"] == "7"


async def test_a_body_is_sent_in_pieces_as_they_come(client, site):
    answering(site, Reply(200, "ok"))

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(100):
            yield b"%03d" % i * 1000

    await client.post(site.url, content=pieces())
    assert site.requests[0].body == b"".join(b"%03d" % i * 1000 for i in range(100))


async def test_events_are_given_as_they_come_however_long_the_silence(client, site, monkeypatch):
    monkeypatch.setattr(http, "ANSWER_S", 0.05)
    more = asyncio.Event()
    answering(site, streaming(event({"n": 1}), then=more))
    async with client.stream("GET", site.url) as answer:
        pieces = answer.aiter_raw()
        assert b'"n": 1' in await anext(pieces)
        silent = asyncio.ensure_future(anext(pieces, None))
        done, _ = await asyncio.wait({silent}, timeout=0.3)
        assert not done
        more.set()
        assert await silent is None


async def test_nothing_else_is_waited_for_for_ever(hub, client, site, monkeypatch):
    monkeypatch.setattr(http, "ANSWER_S", 0.1)
    monkeypatch.setattr(http, "BYE_S", 0.1)
    answering(site, streaming(then=asyncio.Event()))
    bare = httpx2.Request("POST", site.url, content=b"x", extensions={"timeout": {}})
    async with http.make_client(hub, LOOPBACK, silence_s=0.1) as other:
        for work in (client.send(bare), client.delete(site.url), other.get(site.url)):
            began = time.monotonic()
            with pytest.raises(httpx2.ReadTimeout):
                await work
            assert time.monotonic() - began < 5


async def test_the_server_is_told_when_nobody_waits_any_more(client, site):
    begun = asyncio.Event()

    async def read() -> None:
        async with client.stream("GET", site.url) as answer:
            async for _ in answer.aiter_raw():
                begun.set()

    answering(site, streaming(event({}), then=asyncio.Event()))
    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    await asyncio.wait({reading}, timeout=2)
    assert reading.cancelled()
    await until(lambda: site.gone == 1)
    # before the answer's head, too
    answering(site, Reply(200, "late"))
    hold, site.answer = site.answer, _held
    waiting = asyncio.create_task(client.get(site.url))
    await until(lambda: len(site.requests) == 2)
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=2)
    assert waiting.cancelled()
    site.answer = hold
    assert (await client.get(site.url)).text == "late"


async def _held(request: Request) -> Reply:
    await asyncio.sleep(30)
    return Reply()


async def test_an_answer_may_be_so_large_and_no_larger(client, site, monkeypatch):
    monkeypatch.setattr(http, "MAX_BODY", 1 << 20)
    answering(site, Reply(200, b"x" * (1 << 20)))
    assert len((await client.get(site.url)).content) == 1 << 20
    endless = asyncio.Event()
    for reply in (
        Reply(200, b"x" * ((1 << 20) + 1)),
        streaming(*[b"x" * 65536] * 17, then=endless, kind="application/json"),
    ):
        answering(site, reply)
        with pytest.raises(httpx2.StreamError, match="larger than 1 MiB"):
            await client.get(site.url)
    answering(site, streaming(*[event("x" * 65536)] * 20))
    assert len((await client.get(site.url)).content) > 1 << 20  # of events each has its own limit
    assert (await client.get(site.url)).status_code == 200


async def test_no_redirect_is_followed_and_no_cookie_kept(client, site):
    other = Site()
    async with other.serve():
        for target in ("/there", f"{other.url}/"):
            answering(site, Reply(302, headers={"location": target, "set-cookie": "a=b"}))
            assert (await client.get(site.url)).status_code == 302
        assert other.requests == []
    assert all("cookie" not in request.headers for request in site.requests)
    assert len(site.requests) == 2


async def test_a_compressed_answer_is_refused(client, site):
    answering(site, Reply(200, gzip.compress(b"x" * 1_000_000), {"content-encoding": "gzip"}))
    with pytest.raises(httpx2.RemoteProtocolError, match="compressed"):
        await client.get(site.url)


async def test_what_goes_wrong_is_told_in_the_terms_of_the_client_that_the_sdk_knows(hub, client, site):
    closed = Site()
    async with closed.serve():
        url = closed.url
    with pytest.raises(httpx2.ConnectError, match=r"\w"):
        await client.get(url)
    for bad in ("ftp://127.0.0.1/", "http://user@127.0.0.1/"):
        with pytest.raises(httpx2.TransportError):
            await client.get(bad)
    async with http.make_client(hub, Hosts()) as guarded:
        with pytest.raises(http.Denied) as caught:
            await guarded.get(site.url)
    assert caught.value.fault.kind == "outbound.denied"
    assert isinstance(caught.value, httpx2.ConnectError)
    for answer in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", b"nonsense\r\n\r\n"):
        async with Raw(answer) as url:
            with pytest.raises(httpx2.TransportError):
                await client.get(url)


class Raw:
    """A server that answers these bytes and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answer)
        writer.close()


class Tokens:
    """A signer with one token after the other."""

    def __init__(self, *tokens: str | None) -> None:
        self.left = list(tokens)
        self.now = self.left.pop(0)
        self.told: list[tuple[int, str]] = []

    async def token(self) -> str | None:
        return self.now

    async def renew(self, stale: str) -> str | None:
        assert stale == self.now
        self.now = self.left.pop(0)
        return self.now

    def refused(self, status: int, challenge: str) -> None:
        self.told.append((status, challenge))


async def ask(hub: Hub[Any], site: Site, signer: Tokens) -> int:
    async with http.make_client(hub, LOOPBACK, signer=signer, origin=site.url) as client:
        answer = await client.post(f"{site.url}/mcp", json={"n": 1})
    return int(answer.status_code)


async def test_a_token_that_is_refused_is_renewed_and_the_request_sent_again_once(hub):
    site = McpSite()
    site.tokens = {"good"}
    async with site.serve():
        signer = Tokens("old", "good")
        assert await ask(hub, site, signer) == 202
        assert [r.headers["authorization"] for r in site.requests] == ["Bearer old", "Bearer good"]
        assert [r.json for r in site.requests] == [{"n": 1}] * 2
        assert signer.told == []
        for tokens, count in ((("old", "older"), 2), (("old", None), 1), ((None,), 1)):
            site.requests.clear()
            signer = Tokens(*tokens)
            assert await ask(hub, site, signer) == 401
            assert len(site.requests) == count
            assert signer.told == [(401, site.challenge)]


async def test_more_rights_are_asked_for_where_the_server_says_so_and_at_no_other_403(hub, site):
    for challenge, told in (('Bearer error="insufficient_scope", scope="a b"', 1), ("Bearer", 0), ("", 0)):
        answering(site, Reply(403, headers={"www-authenticate": challenge}))
        signer = Tokens("good")
        assert await ask(hub, site, signer) == 403
        assert len(signer.told) == told


async def test_a_token_goes_to_its_own_server_alone(hub, site):
    other = Site()
    async with other.serve(), http.make_client(hub, LOOPBACK, signer=Tokens("good"), origin=site.url) as client:
        for url in (f"{other.url}/", f"http://localhost:{site.port}/", f"http://user@127.0.0.1:{site.port}/"):
            with contextlib.suppress(http.Denied, httpx2.UnsupportedProtocol):
                await client.get(url)
        await client.get(site.url)
    assert [r.headers.get("authorization") for r in other.requests] == [None]
    assert [r.headers.get("authorization") for r in site.requests if r.headers.get("authorization")] == ["Bearer good"]


async def test_the_sdks_own_transport_works_over_it(hub):
    from mcp import Client

    site = McpSite()
    async with (
        site.serve(),
        http.make_client(hub, LOOPBACK) as client,
        Client(streamable_http_client(f"{site.url}/mcp", http_client=client), mode="legacy") as mcp,
    ):
        tools = await mcp.list_tools()
        result = await mcp.call_tool("forecast", {"city": "Oslo"})
    assert [tool.name for tool in tools.tools] == ["forecast", "wipe"]
    assert [item.type == "text" and item.text for item in result.content] == ["Sunny in Oslo"]
