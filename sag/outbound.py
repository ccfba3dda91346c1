"""The one way out: httpx clients over aiohttp with the guard for addresses that others supplied, and bare connections.

Owns connection pools of clients, TLS trust, name lookup and the rule which addresses may be fetched; everything that
opens a connection to the world gets it here. It knows nothing of what is fetched: streams of tokens are
`sag.engine.stream`'s work, their deadlines `sag.engine.transport`'s, and what an answer means is the caller's. httpx
and aiohttp are imported when the first client is made, not before.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from sag.errors import Fault

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import httpx
    from httpx_aiohttp import AiohttpTransport

CONNECT_S = 5.0
ANSWER_S = 30.0
KEEPALIVE_S = 30.0  # shorter than what large vendors keep, so that few requests meet a connection that is just closing
POOL = 4096
REDIRECTS = 5
RACE_S = 0.25  # the head start that an address has before the next one is tried beside it
NAMES_S = 10.0  # how long a name's addresses are believed
_HEADERS = {"User-Agent": "sag", "Accept-Encoding": "identity"}

P = TypeVar("P", bound=asyncio.BaseProtocol)

_ALLOWED = re.compile(r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?")

# What `ipaddress` calls global and what leads to an IPv4 address or to nobody all the same (measured on 3.11 to 3.13):
# 6to4 and its relays, and documentation. NAT64, v4-compatible and reserved ones lie outside of 2000::/3.
_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_REFUSED4 = (ipaddress.IPv4Network("192.88.99.0/24"),)
_REFUSED6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def is_public(address: str) -> bool:
    """Whether an address is global unicast, and not one of those that lead elsewhere.

    An allow rule (reliability row 24): loopback, private, link-local, shared (100.64/10), multicast, reserved,
    documentation, NAT64, 6to4, Teredo and v4-compatible addresses are not. A v4-mapped one is judged as the IPv4
    address that is really connected to.

    Args:
        address: A numeric address as `getaddrinfo` returns it.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return ip in _UNICAST6 and ip.is_global and ip.scope_id is None and not any(ip in n for n in _REFUSED6)
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in n for n in _REFUSED4)


class Outbound:
    """Makes the HTTP clients of one hub, and keeps them.

    Untrusted clients take URLs that a person or a model supplied. They connect to public addresses alone; the check
    is made on the address of each socket just before it connects, so neither odd spellings of an address nor a name
    that resolves differently the second time gets past it. They follow up to 5 redirects, each checked in the same
    way. Trusted clients take the base URLs that an administrator configured; they follow none.

    No client keeps cookies, reads proxy settings or netrc, or asks for compression.

    Args:
        allow: Hosts (`nas.home`, `10.0.0.5`, `[::1]`), with a port or without, that untrusted clients may reach
            whatever their address is.

    Raises:
        ValueError: An entry of `allow` is no host and no host with a port.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._allow = [entry.strip().lower() for entry in allow]
        for entry in self._allow:
            if not _ALLOWED.fullmatch(entry):
                raise ValueError(f"{entry!r} is no host and no host:port")
        self._clients: dict[tuple[bool, bool], httpx.AsyncClient] = {}
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._tls: ssl.SSLContext | None = None
        self._loading = asyncio.Lock()
        self._names: dict[tuple[str, int], tuple[float, asyncio.Future[list[Any]]]] = {}
        self._closed = False

    def client(self, *, trusted: bool = False, stream: bool = False) -> httpx.AsyncClient:
        """The shared client for a purpose; it is not closed by its users.

        Args:
            trusted: An administrator configured the URL.
            stream: The caller times reads by itself; else reads wait 30 s at most.

        Returns:
            A client whose requests raise `Fault` outbound.denied where the address or scheme is refused, besides
            httpx's own errors, and `aiohttp.ClientError` for answers that are not HTTP.

        Raises:
            RuntimeError: The outbound was closed.
        """
        if self._closed:
            raise RuntimeError("outbound is closed")
        client = self._clients.get((trusted, stream))
        if client is None:
            client = self._clients[trusted, stream] = self._make(trusted, stream)
        return client

    async def dial(self, make: Callable[[], P], host: str, port: int, *, tls: bool) -> P:
        """Open a connection for a protocol, to an address that an administrator configured.

        For streams of tokens: a request through httpx costs 0.4 ms more, 40 ms where a hundred begin at once, and
        several times as much per token (measured). How long it may take is the caller's to say; a cancel closes what
        was begun.

        Raises:
            OSError: No name, no way, no trust: `socket.gaierror`, `ssl.SSLError` and their like.
            RuntimeError: The outbound was closed.
        """
        from aiohappyeyeballs import start_connection

        if self._closed:
            raise RuntimeError("outbound is closed")
        context = await self._load_trust() if tls else None
        addresses = await self._resolve(host, port)
        loop = asyncio.get_running_loop()
        # Addresses are raced (RFC 8305), which uvloop's create_connection does not do.
        sock = await start_connection(addresses, happy_eyeballs_delay=RACE_S, interleave=1, loop=loop)
        name = host.rstrip(".") if tls else None
        _, protocol = await loop.create_connection(make, sock=sock, ssl=context, server_hostname=name)
        return protocol

    async def warm(self) -> None:
        """Import the libraries and load the certificates, in a thread: the first request would hold the loop for it."""
        if self._tls is None:
            async with self._loading:
                await asyncio.to_thread(self._load)

    async def warm_client(self, *, trusted: bool = False) -> httpx.AsyncClient:
        """`client`, once making it does not hold the loop."""
        await self.warm()
        return self.client(trusted=trusted)

    async def close(self) -> None:
        """Close all clients and their connections."""
        self._closed = True
        clients, sessions = list(self._clients.values()), list(self._sessions.values())
        self._clients.clear()
        self._sessions.clear()
        for client in clients:
            await client.aclose()
        for session in sessions:
            await session.close()

    def _make(self, trusted: bool, stream: bool) -> httpx.AsyncClient:
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx
        from httpx_aiohttp import AiohttpTransport

        # httpx logs whole URLs, and some vendors want their key in the query.
        logging.getLogger("httpx").setLevel(logging.WARNING)

        def transport(checked: bool) -> AiohttpTransport:
            return AiohttpTransport(verify=self._trust(), client=lambda: self._open(checked))

        return httpx.AsyncClient(
            transport=transport(checked=not trusted),
            mounts={} if trusted else {f"all://{host}": transport(checked=False) for host in self._allow},
            timeout=httpx.Timeout(None if stream else ANSWER_S, connect=CONNECT_S, pool=CONNECT_S),
            headers=_HEADERS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=not trusted,
            max_redirects=REDIRECTS,
            trust_env=False,
            event_hooks={} if trusted else {"request": [_check_scheme], "response": [_check_encoding]},
        )

    async def _resolve(self, host: str, port: int) -> list[Any]:
        """A name's addresses; who asks meanwhile, and shortly after, shares them."""
        loop = asyncio.get_running_loop()
        until, lookup = self._names.get((host, port), (0.0, None))
        if lookup is None or until < loop.time() or (lookup.done() and (lookup.cancelled() or lookup.exception())):
            lookup = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._names = {key: kept for key, kept in self._names.items() if kept[0] >= loop.time()}
            self._names[host, port] = (loop.time() + NAMES_S, lookup)
        return await asyncio.shield(lookup)

    async def _load_trust(self) -> ssl.SSLContext:
        await self.warm()
        return self._trust()

    def _load(self) -> None:
        import aiohttp  # noqa: F401
        import httpx_aiohttp  # noqa: F401

        self._trust()

    def _trust(self) -> ssl.SSLContext:
        import httpx

        if self._tls is None:
            # The system's authorities (SSL_CERT_FILE included), and certifi's for machines that have none.
            tls = httpx.create_ssl_context(trust_env=False)
            tls.load_default_certs()
            self._tls = tls
        return self._tls

    def _open(self, checked: bool) -> aiohttp.ClientSession:
        import aiohttp

        session = self._sessions.get(checked)
        if session is None:
            connector = aiohttp.TCPConnector(
                limit=POOL,
                keepalive_timeout=KEEPALIVE_S,
                ssl=self._trust(),
                resolver=aiohttp.ThreadedResolver(),
                # Racing addresses hides what a socket factory raises, so a guarded connection tries them in turn.
                happy_eyeballs_delay=None if checked else RACE_S,
                socket_factory=_open_public if checked else None,
            )
            session = self._sessions[checked] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,
                trust_env=False,
            )
        return session


async def read_body(response: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
    """Read a streamed response's body, as far as `limit` bytes.

    Args:
        response: From `client.stream` or `client.send(…, stream=True)`; the caller closes it.
        limit: Bytes.
        cut: Give the first `limit` bytes of a larger body rather than refuse it.

    Raises:
        Fault: outbound.large (502), if the body is larger and is not to be cut.
    """
    parts: list[bytes] = []
    size = 0
    async with aclosing(response.aiter_bytes()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                if not cut:
                    raise Fault("outbound.large", f"The answer is larger than {limit} bytes.", code=502)
                break
    return b"".join(parts)[:limit]


def _open_public(info: tuple[Any, ...]) -> socket.socket:
    family, kind, proto, _, address = info
    if not is_public(address[0]) or (len(address) == 4 and address[3]):
        raise Fault("outbound.denied", f"{address[0]} is not an address that the hub may fetch.")
    return socket.socket(family, kind, proto)


async def _check_scheme(request: httpx.Request) -> None:
    if request.url.scheme not in ("http", "https") or not request.url.host:
        raise Fault("outbound.denied", "Only http and https addresses can be fetched.")


async def _check_encoding(response: httpx.Response) -> None:
    # Compression was not asked for; who sends it all the same may mean to fill the memory.
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        import httpx

        raise httpx.DecodingError("a compressed body, which was not asked for", request=response.request)
