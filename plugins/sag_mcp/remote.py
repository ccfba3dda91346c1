"""A server that is reached over HTTP: the SDK's transports, watched and bounded.

What the SDK leaves open is set here: how long a request may be silent, how much a response may hold and a connection
carry, that nothing comes compressed; the status of refusals, which the SDK does not tell; and that one request which
does not get through is no end of all the others. Addresses, redirects and sign-in are the business of the HTTP client
that it is given. Imports the SDK, so it is imported when a server is first connected to. Above: a connection. Below:
the SDK, the sieve.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from types import TracebackType
from typing import Any, Literal

import anyio
import httpx2
import msgspec
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from sag_mcp.ends import Broken
from sag_mcp.sieve import MAX_MESSAGE, MAX_MINUTE, REQUEST, Bucket, Sieve
from sag_mcp.stdio import note

DELETE_S = 2.0  # to say goodbye
NOTE_S = 10.0  # for a server to take a notification or an answer of ours; all else waits behind it
CONNECT_S = 10.0


class Remote:
    """The transport, as the SDK takes one: enter it for a pair of streams, once.

    Args:
        url: The server's address.
        kind: `http` (streamable HTTP) or `sse` (the older way).
        make_client: Makes the HTTP client.
        sieve: What decides on each message.
        ended: Called when nothing comes any more.

    Attributes:
        broken: Why it was given up, if it was.
        status: The HTTP status of the newest response.
        refused: It wanted somebody to sign in, and has taken nothing since: the SDK goes on with another revision's
            first request, whose refusal may say something else.
    """

    def __init__(
        self,
        url: str,
        kind: Literal["http", "sse"],
        make_client: Callable[[], httpx2.AsyncClient],
        sieve: Sieve,
        ended: Callable[[], None],
    ) -> None:
        self.url, self.kind, self.sieve = url, kind, sieve
        self.broken: Broken | None = None
        self.status: int | None = None
        self.refused = False
        self._make_client, self._ended = make_client, ended
        self._minute = Bucket(MAX_MINUTE / 60, MAX_MINUTE)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> tuple[_Reader, _Writer]:
        async with contextlib.AsyncExitStack() as stack:
            client = self._make_client()
            client.timeout = httpx2.Timeout(CONNECT_S, read=30.0)
            hooks = client.event_hooks
            client.event_hooks = {
                "request": [*hooks.get("request", []), self._before],
                "response": [*hooks.get("response", []), self._after],
            }
            client.send = _contained(client.send)  # type: ignore[method-assign, assignment]
            if self.kind == "http":
                await stack.enter_async_context(client)
                streams = streamable_http_client(self.url, http_client=client, max_sse_event_size=MAX_MESSAGE)
            else:  # it enters the client itself
                streams = sse_client(self.url, httpx_client_factory=lambda *_, **__: client)
            read, write = await stack.enter_async_context(streams)
            self._stack = stack.pop_all()
        return _Reader(self, read, self._ended), _Writer(self.sieve, write)

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, e, trace)

    async def _before(self, request: httpx2.Request) -> None:
        request.headers["accept-encoding"] = "identity"
        read_s: float | None = 30.0
        if request.method == "DELETE":
            request.extensions["timeout"] = httpx2.Timeout(DELETE_S).as_dict()
            return
        if request.method == "GET" and "text/event-stream" in request.headers.get("accept", ""):
            read_s = None
        elif request.method == "POST" and request.headers.get("content-type", "").startswith("application/json"):
            message = _peek(request.content)
            if "method" in message and "id" in message:
                read_s = None  # a person may have to answer first; whoever asks has limits of his own
            elif "method" in message or "id" in message:
                read_s = NOTE_S
        request.extensions["timeout"] = httpx2.Timeout(CONNECT_S, read=read_s).as_dict()

    async def _after(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.refused = response.status_code == 401 or (self.refused and response.is_error)
        if (request := REQUEST.get()) is not None:
            request.status = response.status_code
        if response.headers.get("content-encoding", "identity") not in ("", "identity"):
            raise self._break(Broken("mcp.closed", "The server compresses what it sends, though asked not to."))
        events = response.headers.get("content-type", "").startswith("text/event-stream")
        response.stream = _Counted(response.stream, self, None if events else MAX_MESSAGE)

    def count(self, size: int, left: int | None) -> int | None:
        """So many bytes came, of a response that may hold `left` more; gives what it may hold then.

        Raises:
            httpx2.StreamError: It may not hold so much.
            Broken: The connection may not carry so much.
        """
        if not self._minute.take(size):
            raise self._break(Broken("mcp.too_big", f"The server sent more than {MAX_MINUTE >> 20} MiB in a minute."))
        if left is not None and size > left:
            text = f"The server sent an answer of more than {MAX_MESSAGE >> 20} MiB."
            if (request := REQUEST.get()) is not None:
                request.broken = Broken("mcp.too_big", text)
            raise httpx2.StreamError(text)  # the SDK fails the one request with it
        return None if left is None else left - size

    def _break(self, broken: Broken) -> Broken:
        self.broken = self.broken or broken
        self._ended()
        return broken


class _Counted(httpx2.AsyncByteStream):
    """A response's body, counted."""

    def __init__(self, inner: Any, remote: Remote, limit: int | None) -> None:
        self._inner, self._remote, self._left = inner, remote, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                self._left = self._remote.count(len(chunk), self._left)
                yield chunk
        except httpx2.TransportError as e:
            if self._left is None or (request := REQUEST.get()) is None:
                raise
            request.cut = _reason(e)
            raise httpx2.StreamError(request.cut) from None  # the SDK fails the one request with it

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Reader:
    """What the SDK reads from: its own transport's stream, past the sieve."""

    def __init__(self, remote: Remote, inner: Any, ended: Callable[[], None]) -> None:
        self._remote, self._inner, self._ended = remote, inner, ended

    @property
    def last_context(self) -> Context | None:
        """The context of the request that the newest message came along with."""
        context: Context | None = self._inner.last_context
        return context

    async def receive(self) -> SessionMessage | Exception:
        while True:
            try:
                item: SessionMessage | Exception = await self._inner.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                self._ended()
                raise
            if isinstance(item, Exception) or self._passes(item):
                return item

    def _passes(self, item: SessionMessage) -> bool:
        sieve = self._remote.sieve
        match item.message:
            case JSONRPCNotification(method=method, params=params):
                context = self.last_context
                return sieve.notification(method, params, context.get(REQUEST) if context is not None else None)
            case JSONRPCRequest(id=id, method=method):
                return sieve.request(id, method)
            case JSONRPCResponse(id=id, result=result) as response:
                seen = sieve.response(id, result)
                if seen is not None:
                    response.result = seen
                return seen is not None
            case JSONRPCError(id=id):
                return sieve.response(id, None) is not None

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> _Reader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Writer:
    """What the SDK writes to: the same the other way."""

    def __init__(self, sieve: Sieve, inner: Any) -> None:
        self._sieve, self._inner = sieve, inner

    async def send(self, item: SessionMessage, /) -> None:
        note(self._sieve, item)
        await self._inner.send(item)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _Writer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _contained(send: Callable[..., Awaitable[httpx2.Response]]) -> Callable[..., Awaitable[httpx2.Response]]:
    """Have a request of ours that does not get through answered with an error; the SDK would end the connection."""

    async def contained(request: httpx2.Request, **given: Any) -> httpx2.Response:
        try:
            return await send(request, **given)
        except httpx2.TransportError as e:
            asked, message = REQUEST.get(), _peek(request.content) if request.method == "POST" else {}
            if asked is None or "method" not in message or "id" not in message:
                raise
            asked.cut, asked.unsent = _reason(e), isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout)
            error = {"code": CONNECTION_CLOSED, "message": asked.cut}
            return httpx2.Response(200, json={"jsonrpc": "2.0", "id": message["id"], "error": error}, request=request)

    return contained


def _reason(e: httpx2.TransportError) -> str:
    return f"The server cannot be reached: {' '.join(str(e).split())[:300] or type(e).__name__}"


def _peek(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
