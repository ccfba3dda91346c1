"""Asking an address whether an MCP server answers there, without becoming its client.

Two requests say most: `server/discover` of 2026-07-28, and the handshake of `initialize` for a server that does not
know it, which answers with JSON-RPC, if only with an error; an older server sends an event `endpoint` to whoever opens
its stream. Above: the operations. Below: `http`, whose client decides what may be asked. This module imports httpx2, as
that one does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import httpx2
from msgspec import Struct

from sag.plugin import Fault, load_json, printable
from sag_mcp.address import Address
from sag_mcp.http import Denied, TooLarge, make_client

__all__ = ["PATHS", "Found", "Nothing", "Search", "make_client", "probe", "search"]

Json = dict[str, Any]

PATHS = ("/mcp", "/sse", "/")
ANSWER_S = 4.0  # for one address; what is slower is no server that one wants to find
SEARCH_S = 20.0
AT_ONCE = 16
MAX_PLACES = 256
MAX_READ = 64 << 10
REDIRECTS = 2
PROTOCOL, STATELESS = "2025-11-25", "2026-07-28"
META = "io.modelcontextprotocol/"
UNSUPPORTED = -32022  # a revision that a server of the stateless kind does not speak
CLIENT = {"name": "sag", "version": "1"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


class Found(Struct, omit_defaults=True):
    """An MCP server that answered.

    Attributes:
        url: Where.
        transport: `http` (streamable HTTP) or `sse` (the older way).
        title, version: What it says of itself.
        auth: It wants somebody to sign in, or a key in a header.
    """

    url: str
    transport: Literal["http", "sse"]
    title: str = ""
    version: str = ""
    auth: bool = False


class Nothing(Exception):
    """No MCP server answers there; the text says what did.

    Attributes:
        down: Whether nothing did.
    """

    def __init__(self, why: str, *, down: bool = False) -> None:
        super().__init__(why)
        self.down = down


async def probe(
    client: httpx2.AsyncClient,
    url: str,
    transport: Literal["auto", "http", "sse"] = "auto",
    timeout_s: float = ANSWER_S,
) -> Found:
    """Ask one address.

    Args:
        client: Made for this, or for the server.
        url: The address.
        transport: What to ask for; `auto` asks for both, the newer first.
        timeout_s: For each.

    Raises:
        Fault: outbound.denied: the address may not be asked.
        Nothing: It is no MCP server, or cannot be reached.
    """
    why = ""
    for ask, name in ((_ask_http, "http"), (_ask_sse, "sse")):
        if transport not in ("auto", name):
            continue
        try:
            async with asyncio.timeout(timeout_s):
                found = await ask(client, url)
        except Denied as e:
            raise Fault("outbound.denied", e.fault.message) from None
        except TimeoutError:
            found = "it does not answer in time"
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as e:
            raise Nothing(f"it cannot be reached: {printable(str(e))}", down=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, TooLarge) as e:
            found = printable(str(e) or type(e).__name__)
        if isinstance(found, Found):
            return found
        why = why or found
    raise Nothing(why)


async def _ask_http(client: httpx2.AsyncClient, url: str) -> Found | str:
    """Ask for streamable HTTP, of the newest revision and then of those before it."""
    return await _ask_stateless(client, url) or await _ask_session(client, url)


async def _ask_stateless(client: httpx2.AsyncClient, url: str) -> Found | None:
    """Send `server/discover`; None where that is not known."""
    meta = {f"{META}protocolVersion": STATELESS, f"{META}clientInfo": CLIENT, f"{META}clientCapabilities": {}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": meta}}
    headers = ACCEPT | {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "server/discover"}
    async with contextlib.AsyncExitStack() as stack:
        response = await _send(stack, client, "POST", url, headers, request)
        if response.status_code == 401:
            return Found(url, "http", auth=True)
        message = await _message(response) or {}
        result, error = message.get("result"), message.get("error")
        if isinstance(result, dict) and "supportedVersions" in result:
            told = result.get("_meta")
            return _named(url, told.get(f"{META}serverInfo") if isinstance(told, dict) else None)
        if isinstance(error, dict) and error.get("code") == UNSUPPORTED:
            return _named(url, None)
    return None


def _named(url: str, info: Any) -> Found:
    if not isinstance(info, dict):
        info = {}
    title = printable(str(info.get("title") or info.get("name") or ""), 80)
    return Found(url, "http", title, printable(str(info.get("version") or ""), 40))


async def _ask_session(client: httpx2.AsyncClient, url: str) -> Found | str:
    """Send `initialize`; the session that it may have opened is closed."""
    hello = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": CLIENT}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    async with contextlib.AsyncExitStack() as stack:
        response = await _send(stack, client, "POST", url, ACCEPT, request)
        if response.status_code == 401:
            return Found(url, "http", auth=True)
        message = await _message(response)
        if session := response.headers.get("mcp-session-id"):
            with contextlib.suppress(httpx2.HTTPError):
                await client.request("DELETE", str(response.request.url), headers={"Mcp-Session-Id": session})
        if message is None:
            return _said(response)
        result = message.get("result")
        return _named(url, result.get("serverInfo") if isinstance(result, dict) else None)


async def _ask_sse(client: httpx2.AsyncClient, url: str) -> Found | str:
    """Open the event stream of the older way; its first event names the address to post to."""
    async with contextlib.AsyncExitStack() as stack:
        response = await _send(stack, client, "GET", url, {"Accept": "text/event-stream"})
        if response.status_code == 401:
            return Found(url, "sse", auth=True)
        if response.status_code != 200 or not _is_stream(response):
            return _said(response)
        event = await _first_event(response)
        return (
            Found(url, "sse") if b"event:endpoint" in event.replace(b": ", b":") else "an event stream of another sort"
        )


async def _send(
    stack: contextlib.AsyncExitStack,
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    headers: dict[str, str],
    json: Json | None = None,
) -> httpx2.Response:
    """Send a request and follow redirects within its origin, as the SDK does."""
    request = client.build_request(method, url, headers=headers, json=json)
    for _ in range(REDIRECTS + 1):
        response = await stack.enter_async_context(contextlib.aclosing(await client.send(request, stream=True)))
        follow = response.next_request
        if follow is None or follow.method != method or _origin(follow.url) != _origin(request.url):
            break
        request = follow
    return response


def _origin(url: httpx2.URL) -> tuple[str, str, int | None, bytes]:
    return url.scheme, url.host, url.port, url.userinfo


async def _message(response: httpx2.Response) -> Json | None:
    """The JSON-RPC message of an answer, if it is one."""
    if _is_stream(response):
        event = await _first_event(response, b'"jsonrpc"')
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    else:
        data = await _read(response, lambda body: False)
    message = load_json(data)
    return message if isinstance(message, dict) and message.get("jsonrpc") == "2.0" else None


async def _first_event(response: httpx2.Response, having: bytes = b"") -> bytes:
    """The first event of a stream that has something in it."""

    def event(body: bytes) -> bytes | None:
        *whole, _ = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
        return next((text for text in whole if having in text and not text.startswith(b":")), None)

    body = await _read(response, lambda body: event(body) is not None)
    return event(body) or b""


async def _read(response: httpx2.Response, enough: Callable[[bytes], bool]) -> bytes:
    body = b""
    async with contextlib.aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > MAX_READ or enough(body):
                break
    return body[:MAX_READ]


def _is_stream(response: httpx2.Response) -> bool:
    return str(response.headers.get("content-type", "")).lower().startswith("text/event-stream")


def _said(response: httpx2.Response) -> str:
    if response.next_request is not None:
        return (
            f"it redirects to {response.next_request.url.copy_with(query=None, fragment=None)}, which is not followed"
        )
    return f"what answers is no MCP server (HTTP {response.status_code})"


class Search(Struct):
    """What a search came to.

    Attributes:
        found: Servers.
        asked: How many addresses were.
        complete: Whether all that were to be asked were asked in time.
    """

    found: list[Found]
    asked: int
    complete: bool


async def search(client: httpx2.AsyncClient, addresses: Sequence[Address]) -> Search:
    """Ask many addresses; of one origin that cannot be reached no further ones are.

    Args:
        client: Made for this.
        addresses: Which; no more than 256 are asked.

    Raises:
        Fault: outbound.denied: none of them may be asked.
    """
    by_origin: dict[str, list[Address]] = {}
    for address in addresses[:MAX_PLACES]:
        by_origin.setdefault(address.origin, []).append(address)
    out = Search([], 0, len(addresses) <= MAX_PLACES)
    denied: list[Fault] = []
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(places: list[Address]) -> None:
        for address in places:
            async with turn:
                out.asked += 1
                try:
                    out.found.append(await probe(client, address.url))
                except Fault as e:
                    denied.append(e)
                    return
                except Nothing as e:
                    if e.down:
                        return

    tasks = [asyncio.ensure_future(ask(places)) for places in by_origin.values()]
    try:
        _, late = await asyncio.wait(tasks, timeout=SEARCH_S)
        out.complete = out.complete and not late
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (e := task.exception()) is not None:
            raise e
    if denied and len(denied) == len(by_origin):
        raise denied[0]
    order = {address.url: i for i, address in enumerate(addresses)}
    out.found.sort(key=lambda found: order[found.url])
    return out
