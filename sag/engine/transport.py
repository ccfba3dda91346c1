"""The engine's one transport: runs a single model round against a provider and hands its chunks on.

Owns the connection of a round, its deadlines, caps, cancel, and what each way of failing is called. It tries once;
when to try again is decided above it, and what bytes mean is the provider's decoder's business. No timer is touched
per chunk: one watchdog per round looks now and then at the moment since which the upstream is awaited.
"""

from __future__ import annotations

import asyncio
import io
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from sag.errors import Fault
from sag.hooks.provider import (
    CallFragment,
    Chunk,
    Decoder,
    Finish,
    HttpProvider,
    ModelRequest,
    Provider,
    ProviderError,
    Reasoning,
    StreamProvider,
    Text,
)
from sag.outbound import Outbound
from sag.settings import crash_at

if TYPE_CHECKING:
    import aiohttp

ERROR_BODY = 64 << 10  # bytes of an error's body that a provider gets to see
ERROR_BODY_S = 5.0
BODY = 64 << 20  # bytes of one streamed answer
WHOLE = 1 << 20  # bytes of a request that are written in one go
LINGER_S = 2.0  # how long usage and the end of the body may come after the model said that it is finished
CLOSE_S = 5.0  # how long a StreamProvider's generator may take to close


class Deadlines(Struct):
    """How long a round may wait, in seconds (reliability F22, F23).

    Attributes:
        connect_s: For a connection, name lookup and TLS included.
        first_token_s: From the start to the first chunk. Comments and empty deltas are no chunks.
        gap_s: For the next chunk, counted only while somebody waits for it.
        total_s: For the whole round.
    """

    connect_s: float = 5.0
    first_token_s: float = 60.0
    gap_s: float = 60.0
    total_s: float = 600.0


class Transport:
    """Runs model rounds.

    Args:
        outbound: Makes the HTTP client; base URLs of providers are trusted, they come from an administrator.
        body: The most bytes that one answer may have.
    """

    def __init__(self, outbound: Outbound, *, body: int = BODY) -> None:
        self._outbound = outbound
        self._body = body

    def open(
        self, provider: Provider, request: ModelRequest, deadlines: Deadlines | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Chunk]]]:
        """One attempt of one model round.

            async with transport.open(provider, request) as batches:
                async for batch in batches: ...

        Entering sends the request and returns when the answer has begun. Each batch holds the chunks of one read, in
        order, and is never empty. The iteration ends only if the answer ended properly. Leaving the block, by whatever
        way, closes the connection at once, or gives it back if the answer was read to its end. Enter, iterate and
        leave in one task.

        Raises:
            ProviderError: On entering and while iterating. provider.unreachable (refused, name, TLS, connect
                deadline), .timeout (another deadline), .disconnected (closed before or in the middle of the answer),
                .truncated (ended without its end mark), .protocol (no such stream, too large, undecodable), or what
                the provider makes of a status that is not 2xx.
        """
        deadlines = deadlines or Deadlines()
        # `isinstance` with a protocol costs as much as opening a connection.
        if hasattr(provider, "prepare"):
            return _HttpRound(cast(HttpProvider, provider), request, deadlines, self._outbound, self._body)
        return _StreamRound(provider, request, deadlines)


class _Round(ABC):
    """One round: the watchdog and the ways to end. Subclasses read.

    The watchdog breaks a wait by cancelling the task that waits, as `asyncio.timeout` does; the cancel is taken back
    where the wait is, so that the consumer sees a `ProviderError` and never a cancel that nobody asked for.
    """

    _task: asyncio.Task[Any]
    _next: Callable[[], Awaitable[Any]]

    def __init__(self, provider: Provider, request: ModelRequest, deadlines: Deadlines) -> None:
        self._provider = provider
        self._request = request
        self._deadlines = deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = False
        self._since = 0.0
        self._begun = False
        self._answering = False
        self._finished = False
        self._ended = False
        self._late = ""
        self._broke = False

    async def __aenter__(self) -> AsyncIterator[Sequence[Chunk]]:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._start = self._since = loop.time()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch()
        try:
            cancels = self._wait()
            try:
                await self._begin()
            except BaseException as e:
                self._fail(e, cancels)
            if self._arrive():
                self._settle(self._timeout())
            self._begun = True
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._close()

    def __aiter__(self) -> AsyncIterator[Sequence[Chunk]]:
        return self

    async def __anext__(self) -> Sequence[Chunk]:
        # Once per token: what is waited for is awaited here, with no coroutine in between (measured: 4 of 45 µs).
        if self._ended:
            raise StopAsyncIteration
        if self._answering:
            self._since = self._now()
        batch: Sequence[Chunk] | None
        if self._late:
            batch = self._settle(self._timeout())
        else:
            cancels = self._wait()
            try:
                batch = self._look()
                while batch is not None and not batch:
                    batch = self._take(await self._next())
            except BaseException as e:
                batch = self._fail(e, cancels)
            else:
                if self._arrive():
                    batch = self._settle(self._timeout())
        if not batch:
            self._ended = True
            raise StopAsyncIteration
        self._answering = True
        return batch

    def _wait(self) -> int:
        """Begin a wait under the watchdog; gives the cancels that the task had before."""
        self._waiting = True
        return self._task.cancelling()

    def _arrive(self) -> bool:
        """End a wait; whether the watchdog broke it and what was awaited swallowed the cancel."""
        self._waiting = False
        if not self._broke:
            return False
        self._broke = False
        self._task.uncancel()
        return True

    def _fail(self, e: BaseException, cancels: int) -> Sequence[Chunk]:
        """End a wait that raised, and give every failure its kind."""
        self._waiting = False
        if isinstance(e, asyncio.CancelledError):
            if not self._broke:
                raise e
            self._broke = False
            if self._task.uncancel() > cancels:
                raise e
            return self._settle(self._timeout())
        if isinstance(e, Fault):
            return self._settle(e)
        if isinstance(e, Exception):
            failure = self._name(e)
            failure.__cause__ = e
            return self._settle(failure)
        raise e

    def _settle(self, failure: Fault) -> Sequence[Chunk]:
        """What a failure leads to: an answer that was complete already is not spoiled by how its connection ends."""
        if self._begun and failure.kind in ("provider.timeout", "provider.disconnected"):
            try:
                rest = self._finish()
            except Fault as e:
                # The server said what is wrong before it left.
                raise (failure if e.kind == "provider.truncated" else e) from None
            if self._finished:
                return rest
        raise failure

    def _watch(self) -> None:
        now = self._now()
        due, why = self._due(now)
        if now < due:
            self._timer = asyncio.get_running_loop().call_at(due, self._watch)
            return
        self._timer = None
        self._late = why
        if self._waiting:
            self._broke = True
            self._task.cancel()

    def _due(self, now: float) -> tuple[float, str]:
        limits = self._deadlines
        due, why = self._start + limits.total_s, f"The model's answer took longer than {limits.total_s:g} s."
        if not self._answering:
            wait, text = limits.first_token_s, f"The model did not begin to answer within {limits.first_token_s:g} s."
        elif self._finished:
            wait, text = min(LINGER_S, limits.gap_s), "The model's server does not end its answer."
        else:
            wait, text = limits.gap_s, f"The model paused for longer than {limits.gap_s:g} s."
        since = self._since if self._waiting else now
        return min((due, why), (since + wait, text))

    def _timeout(self) -> ProviderError:
        return ProviderError("provider.timeout", self._late)

    def _clean(self, batch: Sequence[Chunk]) -> Sequence[Chunk]:
        """Drop empty chunks and replace what is no Unicode text; notice the end."""
        empty = False
        for chunk in batch:
            kind = chunk.__class__
            if kind is Text or kind is Reasoning:
                text: str = chunk.text  # type: ignore[union-attr]
                if not text:
                    empty = True
                elif not text.isascii():
                    chunk.text = _to_unicode(text)  # type: ignore[union-attr]
            elif kind is Finish:
                self._finished = True
            elif isinstance(chunk, CallFragment):
                if not chunk.arguments.isascii():
                    chunk.arguments = _to_unicode(chunk.arguments)
                if chunk.name is not None and not chunk.name.isascii():
                    chunk.name = _to_unicode(chunk.name)
        if empty:
            return [chunk for chunk in batch if not isinstance(chunk, Text | Reasoning) or chunk.text]
        return batch

    @abstractmethod
    async def _begin(self) -> None:
        """Send the request; return when the answer begins."""

    def _look(self) -> Sequence[Chunk] | None:
        """The chunks that are there before anything is read; None at the proper end."""
        return ()

    @abstractmethod
    def _take(self, data: Any) -> Sequence[Chunk] | None:
        """The chunks of what `_next` read; None at the proper end."""

    @abstractmethod
    def _finish(self) -> Sequence[Chunk]:
        """What remains when no more can be read; raises provider.truncated where that is not the end."""

    @abstractmethod
    def _name(self, e: Exception) -> ProviderError:
        """The error that an exception stands for."""

    @abstractmethod
    async def _close(self) -> None:
        """Close what is open."""


class _HttpRound(_Round):
    def __init__(
        self, provider: HttpProvider, request: ModelRequest, deadlines: Deadlines, outbound: Outbound, body: int
    ) -> None:
        super().__init__(provider, request, deadlines)
        self._http = provider
        self._outbound = outbound
        self._left = body
        self._response: aiohttp.ClientResponse | None = None
        self._body_ended = False
        self._decoding = False

    async def _begin(self) -> None:
        import aiohttp

        request = self._http.prepare(self._request)
        connect_s = self._deadlines.connect_s
        self._response = response = await self._outbound.session().request(
            request.method,
            request.url,
            # aiohttp writes large bytes in one go, and warns of it; a file it writes in pieces.
            data=request.body if len(request.body) < WHOLE else io.BytesIO(request.body),
            headers=request.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s),
        )
        crash_at("provider_sent")
        status = response.status
        if 300 <= status < 400:
            text = f"The model's server redirects elsewhere ({status}); check its address."
            raise ProviderError("provider.protocol", text, retry=False)
        if not 200 <= status < 300:
            raise self._http.error(status, response.headers, await self._read_error(response))
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ProviderError("provider.protocol", "The model's server sends compressed data unasked.")
        await self._check_type(response, request.headers)
        self._decoder: Decoder = self._http.decoder()
        self._feed = self._decoder.feed
        self._next = response.content.readany

    async def _check_type(self, response: aiohttp.ClientResponse, asked: Mapping[str, str]) -> None:
        """Refuse another media type than the provider's Accept; none given is taken as the right one."""
        accept = next((value.lower() for name, value in asked.items() if name.lower() == "accept"), "")
        media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not media or not accept or "*" in accept or media in accept:
            return
        if media.endswith("json"):
            body = await self._read_error(response)
            if b'"error"' in body:
                raise self._http.error(response.status, response.headers, body)
        raise ProviderError("provider.protocol", f"The model's server answers with {media} and not with {accept}.")

    async def _read_error(self, response: aiohttp.ClientResponse) -> bytes:
        """As much of an error's body as comes; that it is cut, slow or broken does not hide the error."""
        import aiohttp

        body = bytearray()
        if response.headers.get("content-encoding", "identity").lower() == "identity":
            try:
                async with asyncio.timeout(ERROR_BODY_S):
                    while len(body) < ERROR_BODY and (data := await response.content.readany()):
                        body += data
            except (aiohttp.ClientError, OSError):
                pass
        return bytes(body[:ERROR_BODY])

    def _look(self) -> Sequence[Chunk] | None:
        if self._body_ended:
            return None
        if self._answering:
            # A decoder gives the chunks before an error first; the error must not wait for more bytes to come.
            self._decode(b"")
        return ()

    def _take(self, data: bytes) -> Sequence[Chunk] | None:
        if not data:
            return self._finish() or None
        self._left -= len(data)
        if self._left < 0:
            raise ProviderError("provider.protocol", "The model's answer is too large.", retry=False)
        batch = self._decode(data)
        return self._clean(batch) if batch else batch

    def _decode(self, data: bytes) -> Sequence[Chunk]:
        self._decoding = True
        batch = self._feed(data)
        self._decoding = False
        return batch

    def _finish(self) -> Sequence[Chunk]:
        if self._body_ended:
            return ()
        self._body_ended = True
        self._decoding = True
        batch = self._decoder.finish()
        self._decoding = False
        return self._clean(batch)

    def _name(self, e: Exception) -> ProviderError:
        if self._decoding:
            return ProviderError("provider.protocol", "The model's answer cannot be decoded.")
        return _name_failure(e, begun=self._response is not None)

    async def _close(self) -> None:
        response = self._response
        if response is None:
            return
        # Where the body was read to its end, the connection went back to the pool and is no longer the response's.
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        response.close()


class _StreamRound(_Round):
    def __init__(self, provider: StreamProvider, request: ModelRequest, deadlines: Deadlines) -> None:
        super().__init__(provider, request, deadlines)
        self._source = provider
        self._chunks: AsyncIterator[Chunk] | None = None

    async def _begin(self) -> None:
        self._chunks = chunks = self._source.stream(self._request)
        crash_at("provider_sent")

        async def read() -> Chunk | None:
            try:
                return await chunks.__anext__()
            except StopAsyncIteration:
                return None

        self._next = read

    def _take(self, data: Chunk | None) -> Sequence[Chunk] | None:
        return self._clean([data]) if data is not None else self._finish() or None

    def _finish(self) -> Sequence[Chunk]:
        if not self._finished:
            raise ProviderError("provider.truncated", "The model's answer ended without its end mark.")
        return ()

    def _name(self, e: Exception) -> ProviderError:
        if isinstance(e, ConnectionError):
            return ProviderError("provider.disconnected", "The model's server dropped the connection.")
        if isinstance(e, TimeoutError):
            return ProviderError("provider.timeout", "The model's server did not answer in time.")
        return ProviderError("provider.protocol", f"The provider {self._source.name} failed.")

    async def _close(self) -> None:
        close = getattr(self._chunks, "aclose", None)
        if close is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await close()
        except Exception:
            pass  # what a provider's cleanup raises cannot change what was answered


def _to_unicode(text: str) -> str:
    """The text with U+FFFD for lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _name_failure(e: Exception, *, begun: bool) -> ProviderError:
    """The kind of an exception of aiohttp; `begun` means that the head of the answer had arrived."""
    import aiohttp
    from aiohttp import http_exceptions

    if isinstance(e, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ProviderError("provider.unreachable", "The model's server has no usable address.", retry=False)
    if isinstance(e, aiohttp.ClientConnectorCertificateError):
        return ProviderError("provider.unreachable", "The certificate of the model's server is not trusted.")
    if isinstance(e, aiohttp.ClientConnectorDNSError):
        return ProviderError("provider.unreachable", "The name of the model's server cannot be resolved.")
    if isinstance(e, aiohttp.ServerTimeoutError):
        return ProviderError("provider.unreachable", "The model's server did not accept the connection in time.")
    if isinstance(e, aiohttp.ClientConnectorError):
        return ProviderError("provider.unreachable", "The model's server cannot be reached.")
    # aiohttp reports a body that is cut as a fault of its framing.
    broken = (http_exceptions.ContentLengthError, http_exceptions.TransferEncodingError)
    cut = isinstance(e.__cause__, broken) and "enough data" in str(e.__cause__)
    garbled = isinstance(e, aiohttp.ClientResponseError) or isinstance(e.__cause__, http_exceptions.HttpProcessingError)
    if garbled and not cut:
        return ProviderError("provider.protocol", "The model's server does not answer in HTTP.")
    if isinstance(e, aiohttp.ClientError | OSError):
        where = "in the middle of its answer" if begun else "before it answered"
        return ProviderError("provider.disconnected", f"The model's server closed the connection {where}.")
    return ProviderError("provider.protocol", "The model's answer cannot be used.")
