"""How HTTP of the MCP SDK (httpx2) leaves the hub: through the hub's own clients (httpx over aiohttp), guarded or not.

The SDK builds requests for an httpx2 client; the transport here hands each to the hub's guarded client, which looks at
the address of every socket before it connects, or, where an administrator named the host, to the one without that
guard. It follows no redirect, keeps no cookie and takes no compressed body. Above: the SDK's HTTP transports, the
sign-in, discovery. This module imports httpx2; import it when a server is connected to, not before.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol

import aiohttp
import httpx
import httpx2

from sag.plugin import Fault, Hub, Secret
from sag_mcp.address import Hosts, parse_url

MAX_BODY = 16 << 20  # bytes of an answer that is no event stream; the SDK has no limit of its own
CONNECT_S = 5.0
ANSWER_S = 30.0  # for the silence in an answer, unless it is an event stream's
BYE_S = 5.0  # for the end of a session, which nobody waits for
HEADERS = {"User-Agent": "sag", "Accept-Encoding": "identity"}


class Denied(httpx2.ConnectError):
    """The address is not one that the hub may connect to.

    Attributes:
        fault: As the hub's client told it.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class TooLarge(httpx2.StreamError):
    """An answer is larger than what is taken. The SDK fails the one request that it belongs to."""


class Signer(Protocol):
    """Who has the token of a server that wants one."""

    async def token(self) -> str | None:
        """The token of now, or None."""

    async def renew(self, stale: str) -> str | None:
        """Another one than that which was refused, or None.

        Raises:
            httpx2.TransportError: It cannot be had at the moment.
        """

    def refused(self, status: int, challenge: str) -> None:
        """The server wants somebody to sign in; `challenge` is its `WWW-Authenticate`."""


class HubTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2 requests through the hub's clients.

    Args:
        hub: Whose clients.
        hosts: Where the guard does not hold.
        signer: Signs the requests to `origin`, if there is one.
        origin: The server's, `https://host:port`.
    """

    def __init__(self, hub: Hub[Any], hosts: Hosts, signer: Signer | None = None, origin: str = "") -> None:
        self._hub, self._hosts, self._signer, self._origin = hub, hosts, signer, origin

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, with a token where there is one; one that is refused is renewed, and tried once more."""
        if self._signer is None or not self._is_own(request.url):
            return await self._send(request, None)
        token = await self._signer.token()
        response = await self._send(request, token)
        if response.status_code == 401 and token is not None and (newer := await self._renew(token, response)):
            await response.aclose()
            response = await self._send(request, newer)
        challenge = response.headers.get("www-authenticate", "")
        if response.status_code == 401 or (response.status_code == 403 and "insufficient_scope" in challenge):
            self._signer.refused(response.status_code, challenge)
        return response

    async def _renew(self, stale: str, response: httpx2.Response) -> str | None:
        assert self._signer is not None
        try:
            return await self._signer.renew(stale)
        except BaseException:
            await response.aclose()
            raise

    def _is_own(self, url: httpx2.URL) -> bool:
        try:
            return parse_url(str(url)).origin == self._origin
        except Fault:
            return False

    async def _send(self, request: httpx2.Request, token: str | None) -> httpx2.Response:
        if request.url.userinfo:
            raise httpx2.UnsupportedProtocol("a URL with a user's name in it is not asked", request=request)
        trusted = self._hosts.covers_url(str(request.url))
        with _translated():
            client = self._hub.configured_http if trusted else self._hub.http
            headers = [(k, v) for k, v in request.headers.raw if k.lower() not in (b"connection", b"transfer-encoding")]
            if token is not None:
                headers = [(k, v) for k, v in headers if k.lower() != b"authorization"]
                headers.append((b"Authorization", f"Bearer {token}".encode()))
            outgoing = client.build_request(
                request.method,
                str(request.url),
                headers=headers,
                content=_content(request),
                timeout=_timeout(request),
            )
            answer = await client.send(outgoing, stream=True, follow_redirects=False)
        streamed = answer.headers.get("content-type", "").lower().startswith("text/event-stream")
        response = httpx2.Response(
            answer.status_code,
            headers=answer.headers.raw,
            stream=_Body(answer, None if streamed else MAX_BODY),
            request=request,
        )
        if answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            await response.aclose()
            raise httpx2.RemoteProtocolError("a compressed answer, which was not asked for", request=request)
        return response


class _Body(httpx2.AsyncByteStream):
    """An answer's body, as it comes."""

    def __init__(self, answer: httpx.Response, limit: int | None) -> None:
        self._answer, self._limit = answer, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        with _translated():
            async for piece in self._answer.aiter_raw():
                size += len(piece)
                if self._limit is not None and size > self._limit:
                    raise TooLarge(f"the answer is larger than {self._limit >> 20} MiB")
                yield piece

    async def aclose(self) -> None:
        with _translated():
            await self._answer.aclose()


def make_client(
    hub: Hub[Any],
    hosts: Hosts,
    headers: Mapping[str, Secret] | None = None,
    *,
    signer: Signer | None = None,
    origin: str = "",
    silence_s: float | None = ANSWER_S,
) -> httpx2.AsyncClient:
    """A client for one connection; whoever asked for it closes it.

    Args:
        hub: Whose clients requests go through.
        hosts: Where the guard does not hold.
        headers: Sent with each request that the client builds; the SDK keeps to the server's own origin.
        signer: Signs the requests to `origin`.
        origin: The server's, `https://host:port`.
        silence_s: How long an answer may be silent; None for event streams, which are as long as they like.
    """
    sent = {name: value.reveal() for name, value in (headers or {}).items()}
    return httpx2.AsyncClient(
        transport=HubTransport(hub, hosts, signer, origin),
        headers={**HEADERS, **sent},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S, read=silence_s),
        follow_redirects=False,
        trust_env=False,
    )


def _content(request: httpx2.Request) -> Any:
    try:
        return request.content
    except httpx2.RequestNotRead:
        return _pieces(request)


async def _pieces(request: httpx2.Request) -> AsyncIterator[bytes]:
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    async for piece in request.stream:
        yield piece


def _timeout(request: httpx2.Request) -> httpx.Timeout:
    given = request.extensions.get("timeout")
    timeout = {"connect": CONNECT_S, "read": ANSWER_S, "write": ANSWER_S, "pool": CONNECT_S, **(given or {})}
    if request.method == "DELETE":
        timeout["read"] = BYE_S
    return httpx.Timeout(**timeout)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What the hub's client raises, as httpx2 would."""
    try:
        yield
    except Fault as e:
        raise Denied(e) from None
    except httpx.HTTPError as e:
        raise _twin(e) from e
    except httpx.StreamError as e:
        raise httpx2.StreamClosed() from e
    except httpx.InvalidURL as e:
        raise httpx2.UnsupportedProtocol(str(e)) from e
    except aiohttp.ClientError as e:
        raise httpx2.RemoteProtocolError(str(e) or type(e).__name__) from e


def _twin(e: httpx.HTTPError) -> httpx2.TransportError:
    """The same for httpx2; httpx-aiohttp calls whatever breaks a connection a timeout of connecting."""
    cause = e.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError):
        return httpx2.ConnectError(cause.os_error.strerror or str(cause))
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return httpx2.RemoteProtocolError("the server closed the connection")
    found = getattr(httpx2, type(e).__name__, None)
    twin = found if isinstance(found, type) and issubclass(found, httpx2.TransportError) else httpx2.TransportError
    return twin(str(e) or type(e).__name__)
