"""The engine's one transport: runs a single model round against a provider and hands its chunks on.

Owns the course of a round: its deadlines, caps, cancel, and what each way of failing is called. It tries once; when to
try again is decided above it, what bytes mean is the provider's decoder's business, and HTTP is `sag.engine.stream`'s.
Chunks are handed on in the call that brings them, and the round's task sleeps until its end. No timer is touched per
chunk: one watchdog per round looks now and then at the moment since which the upstream is awaited.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from msgspec import Struct

from sag.engine.stream import Connection, Origin, Pool, unreachable, write_request
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
    printable,
)
from sag.hooks.streams import to_unicode
from sag.outbound import Outbound
from sag.settings import crash_at
from sag.topics.backlog import Backlog

ERROR_BODY = 64 << 10  # bytes of an error's body that a provider gets to see
ERROR_BODY_S = 5.0
BODY = 64 << 20  # bytes of one streamed answer
LINGER_S = 2.0  # how long usage and the end of the body may come after the model said that it is finished
CLOSE_S = 5.0  # how long a StreamProvider's generator may take to close

Take = Callable[[Sequence[Chunk]], None]

# Where vendors tell their id of an answer; OpenRouter's is the one that its records are found by.
_IDS = ("x-generation-id", "x-request-id", "request-id", "apim-request-id")


class Deadlines(Struct):
    """How long a round may wait, in seconds (reliability F22, F23).

    Attributes:
        connect_s: For a connection, name lookup and TLS included.
        first_token_s: From the start to the first chunk. Comments and empty deltas are no chunks.
        gap_s: For the next chunk, counted from when the last one was taken.
        total_s: For the whole round.
    """

    connect_s: float = 5.0
    first_token_s: float = 60.0
    gap_s: float = 60.0
    total_s: float = 600.0


class Exchange(Struct):
    """What is told of a round that was answered.

    Attributes:
        first_s: From the start to the first chunk.
        request: The vendor's id of the answer, where it tells one.
    """

    first_s: float = 0.0
    request: str | None = None


class Transport:
    """Runs model rounds.

    Args:
        outbound: Opens connections; base URLs of providers are trusted, they come from an administrator.
        backlog: Where what is taken waits; while it is full, nothing is read. None holds nobody up.
        body: The most bytes that one answer may have.
    """

    def __init__(self, outbound: Outbound, backlog: Backlog | None = None, *, body: int = BODY) -> None:
        self._pool = Pool(outbound)
        self._outbound = outbound
        self._backlog = backlog or Backlog()
        self._body = body

    async def run(
        self,
        provider: Provider,
        request: ModelRequest,
        deadlines: Deadlines,
        take: Take,
        begun: Callable[[], None] = lambda: None,
    ) -> Exchange:
        """One attempt of one model round; returns when the answer has ended properly.

        A cancel closes the connection at once.

        Args:
            provider: Whom to ask.
            request: What.
            deadlines: How long that may take.
            take: Is called with the chunks of each read as they come, in order, never with none. It must not block.
                What it raises ends the round and is raised here.
            begun: Is called once, when the server has begun to answer with a stream.

        Raises:
            ProviderError: provider.unreachable (refused, name, TLS, connect deadline), .timeout (another deadline),
                .disconnected (closed before or in the middle of the answer), .truncated (ended without its end mark),
                .protocol (no such stream, too large, undecodable), or what the provider makes of a status that is not
                2xx. Its `request` is the vendor's id of the answer, where there is one.
        """
        # `isinstance` with a protocol costs as much as opening a connection.
        if hasattr(provider, "prepare"):
            http = cast(HttpProvider, provider)
            return await _HttpRound(
                http, request, deadlines, take, begun, self._backlog, self._outbound, self._pool, self._body
            ).run()
        return await _StreamRound(provider, request, deadlines, take, begun, self._backlog).run()

    def close(self) -> None:
        """Close the connections that are kept for later."""
        self._pool.close()


class _Round(ABC):
    """One round: the watchdog, what is handed on and the ways to end. Subclasses read.

    Whoever sees the end first tells it to `_end`, which wakes the task that waits in `run`; later ends do not count.
    """

    def __init__(
        self,
        request: ModelRequest,
        deadlines: Deadlines,
        take: Take,
        begun: Callable[[], None],
        backlog: Backlog,
    ) -> None:
        self._request = request
        self._deadlines = deadlines
        self._take = take
        self._tell_begun = begun
        self._backlog = backlog
        self._exchange = Exchange()
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._start = self._since = self._now()
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False
        self._answering = False
        self._finished = self._lingering = False
        self._held = False
        self._ended = False
        self._failure: BaseException | None = None
        self._wake: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> Exchange:
        """The round; raises what it ended with."""
        self._watch()
        try:
            await self._read()
        except Fault as e:
            self._fail(e)
        except Exception as e:
            self._fail(self._name(e))
        finally:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            await self._close()
        if self._failure is not None:
            if isinstance(self._failure, ProviderError):
                self._failure.request = self._exchange.request
            raise self._failure
        return self._exchange

    def _hand_on(self, batch: Sequence[Chunk]) -> None:
        """Give chunks to the consumer."""
        batch = self._clean(batch)
        if not batch or self._ended:
            return
        try:
            self._take(batch)
        except BaseException as e:
            self._end(e)
            return
        self._since = self._now()
        if not self._answering:
            self._answering = True
            self._exchange.first_s = self._since - self._start
        if self._backlog.is_full and not self._held:
            self._held = True
            self._hold()
            self._backlog.when_lower(self._release)
        if self._finished and not self._lingering:
            self._lingering = True
            self._loop.call_soon(self._linger)  # most answers end with the read that finishes them

    def _linger(self) -> None:
        if not self._ended:
            self._watch_anew()

    def _release(self) -> None:
        if not self._ended:
            self._held = False
            self._watch_anew()
            self._go_on()

    def _end(self, failure: BaseException | None = None) -> None:
        """The round is over; the first call counts."""
        if self._ended:
            return
        self._ended = True
        self._failure = failure
        if not self._wake.done():
            self._wake.set_result(None)

    def _fail(self, failure: Fault) -> None:
        """End with a failure, but an answer that was complete already is not spoiled by how its connection ends."""
        if self._begun and not self._ended and failure.kind in ("provider.timeout", "provider.disconnected"):
            try:
                rest = self._finish()
            except Exception as e:
                # The server said what is wrong before it left.
                other = e if isinstance(e, Fault) else self._name(e)
                self._end(failure if other.kind == "provider.truncated" else other)
                return
            if self._finished or any(isinstance(chunk, Finish) for chunk in rest):
                self._hand_on(rest)
                self._end()
                return
        self._end(failure)

    def _watch_anew(self) -> None:
        """Await something else from now on; the timer would come too late for it."""
        if self._timer is not None:
            self._timer.cancel()
        self._since = self._now()
        self._watch()

    def _watch(self) -> None:
        due, why, limit = self._due()
        if self._now() < due:
            self._timer = self._loop.call_at(due, self._watch)
            return
        self._timer = None
        self._expire(ProviderError("provider.timeout", why.format(limit)))

    def _due(self) -> tuple[float, str, float]:
        """When the upstream has been awaited for too long, the words for it, and the limit that goes into them."""
        limits = self._deadlines
        due = self._start + limits.total_s, "The model's answer took longer than {:g} s.", limits.total_s
        if self._held:
            return due  # it is not the upstream that is awaited
        if not self._answering:
            limit, text = limits.first_token_s, "The model did not begin to answer within {:g} s."
        elif self._finished:
            limit, text = min(LINGER_S, limits.gap_s), "The model's server does not end its answer."
        else:
            limit, text = limits.gap_s, "The model paused for longer than {:g} s."
        return min(due, (self._since + limit, text, limit))

    def _expire(self, failure: ProviderError) -> None:
        """A deadline has passed."""
        self._fail(failure)

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
                    chunk.text = to_unicode(text)  # type: ignore[union-attr]
            elif kind is Finish:
                self._finished = True
            elif isinstance(chunk, CallFragment):
                if not chunk.arguments.isascii():
                    chunk.arguments = to_unicode(chunk.arguments)
                if chunk.name is not None and not chunk.name.isascii():
                    chunk.name = to_unicode(chunk.name)
        if empty:
            return [chunk for chunk in batch if not isinstance(chunk, Text | Reasoning) or chunk.text]
        return batch

    @abstractmethod
    async def _read(self) -> None:
        """Send the request and wait until the round has ended."""

    @abstractmethod
    def _finish(self) -> Sequence[Chunk]:
        """What remains when no more can be read; raises provider.truncated where that is not the end."""

    @abstractmethod
    def _name(self, e: Exception) -> ProviderError:
        """The error that an exception stands for."""

    @abstractmethod
    def _hold(self) -> None:
        """Take no more until `_go_on`, for what was taken is not kept yet."""

    @abstractmethod
    def _go_on(self) -> None:
        """Take more again."""

    @abstractmethod
    async def _close(self) -> None:
        """Close what is open."""


class _HttpRound(_Round):
    """A round over HTTP; it is the reader of its connection (`sag.engine.stream.Reader`)."""

    def __init__(
        self,
        provider: HttpProvider,
        request: ModelRequest,
        deadlines: Deadlines,
        take: Take,
        begun: Callable[[], None],
        backlog: Backlog,
        outbound: Outbound,
        pool: Pool,
        body: int,
    ) -> None:
        super().__init__(request, deadlines, take, begun, backlog)
        self._provider = provider
        self._outbound = outbound
        self._withheld = 0
        self._pool = pool
        self._left = body
        self._connection: Connection | None = None
        self._connecting = self._stale = False
        self._refusal: _Refusal | None = None

    async def _read(self) -> None:
        request = self._provider.prepare(self._request)
        if callable(headers := getattr(self._provider, "headers", None)):
            request.headers = {**request.headers, **await self._fetch(headers)}
        self._accept = next((value.lower() for name, value in request.headers.items() if name.lower() == "accept"), "")
        origin, head = write_request(request)
        kept = self._pool.take(origin)
        if kept is not None:
            self._send(kept, head, request.body)
            await self._wake
            if self._ended or not self._stale:
                return
            self._wake = self._loop.create_future()
        fresh = await self._connect(origin)
        if self._ended:
            fresh.drop()
            return
        self._send(fresh, head, request.body)
        await self._wake

    async def _fetch(self, headers: Callable[..., Awaitable[Mapping[str, str]]]) -> Mapping[str, str]:
        """Headers that the provider has to ask for."""
        left_s = self._start + min(self._deadlines.first_token_s, self._deadlines.total_s) - self._now()
        try:
            async with asyncio.timeout(left_s):
                return await headers(await self._outbound.warm_client(trusted=True))
        except TimeoutError as e:
            raise ProviderError("provider.timeout", "The key for the model's server did not come in time.") from e

    async def _connect(self, origin: Origin) -> Connection:
        limits = self._deadlines
        end = self._start + min(limits.first_token_s, limits.total_s)
        self._connecting = True
        try:
            async with asyncio.timeout_at(min(self._now() + limits.connect_s, end)):
                return await self._pool.connect(origin)
        except TimeoutError as e:
            raise _not_accepted() from e
        finally:
            self._connecting = False

    def _send(self, connection: Connection, head: bytes, body: bytes) -> None:
        self._connection = connection
        connection.send(head, body, self)

    # what the connection tells

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        crash_at("provider_sent")
        self._exchange.request = next((printable(headers[name], 100) for name in _IDS if headers.get(name)), None)
        try:
            self._judge(status, headers)
        except ProviderError as e:
            self._end(e)
        except Exception as e:
            self._end(_undecodable(e))

    def body(self, data: bytes) -> None:
        if self._refusal is not None:
            self._refusal.body += data
            if len(self._refusal.body) >= ERROR_BODY:
                self._refuse(self._refusal)
            return
        self._left -= len(data)
        if self._left < 0:
            self._fail(ProviderError("provider.protocol", "The model's answer is too large.", retry=False))
            return
        try:
            if batch := self._feed(data):
                self._hand_on(batch)
                # A decoder gives the chunks before an error first; the error must not wait for more bytes to come.
                self._feed(b"")
            elif (withheld := getattr(self._decoder, "held", 0)) != self._withheld:
                # What may become a call is an answer too, though nothing of it can be shown yet.
                self._withheld, self._since = withheld, self._now()
        except Fault as e:
            self._fail(e)
        except Exception as e:
            self._fail(_undecodable(e))

    def end(self, failure: ProviderError | None, *, stale: bool) -> None:
        self._connection = None
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif failure is None:
            self._settle()
        elif stale:
            self._stale = True
            if not self._wake.done():  # the round may be cancelled
                self._wake.set_result(None)
        else:
            self._fail(failure)

    # what comes of it

    def _judge(self, status: int, headers: Mapping[str, str]) -> None:
        """Whether an answer is a stream; one that is none is read as an error, as far as that goes."""
        if 300 <= status < 400:
            text = f"The model's server redirects elsewhere ({status}); check its address."
            raise ProviderError("provider.protocol", text, retry=False)
        plain = headers.get("content-encoding", "identity").lower() == "identity"
        if not 200 <= status < 300:
            self._read_refusal(_Refusal(status, headers), readable=plain)
            return
        if not plain:
            raise ProviderError("provider.protocol", "The model's server sends compressed data unasked.")
        # Another media type than the provider's Accept is refused; none given is taken as the right one.
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media and self._accept and "*" not in self._accept and media not in self._accept:
            text = f"The model's server answers with {media} and not with {self._accept}."
            self._read_refusal(_Refusal(status, headers, text), readable=media.endswith("json"))
            return
        self._decoder: Decoder = self._provider.decoder(self._request)
        self._feed = self._decoder.feed
        self._begun = True
        self._tell_begun()

    def _read_refusal(self, refusal: _Refusal, *, readable: bool) -> None:
        """Read as much of an error's body as comes; that it is cut, slow or broken does not hide the error."""
        self._refusal = refusal
        if not readable:
            self._refuse(refusal)
        else:
            self._watch_anew()

    def _refuse(self, refusal: _Refusal) -> None:
        body = bytes(refusal.body[:ERROR_BODY])
        if refusal.text and b'"error"' not in body:
            self._end(ProviderError("provider.protocol", refusal.text))
            return
        try:
            failure: object = self._provider.error(refusal.status, refusal.headers, body)
            # What is no error would end the round as if it had been answered.
            self._end(
                failure if isinstance(failure, Fault) else _undecodable(TypeError(f"an error that is {failure!r}"))
            )
        except Exception as e:
            self._end(_undecodable(e))

    def _due(self) -> tuple[float, str, float]:
        due = super()._due()
        return due if self._refusal is None else min(due, (self._since + ERROR_BODY_S, "", 0.0))

    def _expire(self, failure: ProviderError) -> None:
        if self._refusal is not None:
            self._refuse(self._refusal)
        else:
            self._fail(_not_accepted() if self._connecting else failure)

    def _settle(self) -> None:
        """The body has come to its end."""
        try:
            self._hand_on(self._finish())
        except Fault as e:
            self._end(e)
        except Exception as e:
            self._end(_undecodable(e))
        self._end()

    def _finish(self) -> Sequence[Chunk]:
        self._hand_on(self._decoder.finish())
        return self._feed(b"")  # an error behind the last chunks

    def _end(self, failure: BaseException | None = None) -> None:
        super()._end(failure)
        self._drop()

    def _name(self, e: Exception) -> ProviderError:
        failure = ProviderError("provider.protocol", "The model's answer cannot be used.")
        failure.__cause__ = e
        return failure

    def _hold(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def _go_on(self) -> None:
        if self._connection is not None:
            self._connection.go_on()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()
            self._connection = None

    async def _close(self) -> None:
        self._drop()


class _Refusal:
    """An answer that is no stream; `text` says why, where the status does not."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str = "") -> None:
        self.status, self.headers, self.text = status, headers, text
        self.body = bytearray()


class _StreamRound(_Round):
    """A round with a provider that streams by itself, in a task of its own, which a deadline can leave."""

    def __init__(
        self,
        provider: StreamProvider,
        request: ModelRequest,
        deadlines: Deadlines,
        take: Take,
        begun: Callable[[], None],
        backlog: Backlog,
    ) -> None:
        super().__init__(request, deadlines, take, begun, backlog)
        self._provider = provider
        self._begun = True
        self._free = asyncio.Event()
        self._free.set()

    async def _read(self) -> None:
        self._task = asyncio.create_task(self._iterate())
        await self._wake

    async def _iterate(self) -> None:
        try:
            chunks = self._provider.stream(self._request)
            crash_at("provider_sent")
            try:
                async for chunk in chunks:
                    if not self._answering:
                        self._tell_begun()
                    self._hand_on([chunk])
                    if self._held:
                        await self._free.wait()
                    if self._ended:
                        return
                self._finish()
                self._end()
            finally:
                if close := getattr(chunks, "aclose", None):
                    await close()
        except Fault as e:
            self._fail(e)
        except (Exception, asyncio.CancelledError, SystemExit) as e:  # the last would end the hub
            self._fail(self._name(e))

    def _finish(self) -> Sequence[Chunk]:
        if not self._finished:
            raise ProviderError("provider.truncated", "The model's answer ended without its end mark.")
        return ()

    def _name(self, e: BaseException) -> ProviderError:
        if isinstance(e, ConnectionError):
            failure = ProviderError("provider.disconnected", "The model's server dropped the connection.")
        elif isinstance(e, TimeoutError):
            failure = ProviderError("provider.timeout", "The model's server did not answer in time.")
        else:
            failure = ProviderError("provider.protocol", f"The provider {self._provider.name} failed.")
        failure.__cause__ = e
        return failure

    def _hold(self) -> None:
        self._free.clear()

    def _go_on(self) -> None:
        self._free.set()

    async def _close(self) -> None:
        # What a provider's cleanup raises cannot change what was answered.
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_S)


def _not_accepted() -> ProviderError:
    return unreachable("The model's server did not accept the connection in time.")


def _undecodable(e: Exception) -> ProviderError:
    failure = ProviderError("provider.protocol", "The model's answer cannot be decoded.")
    failure.__cause__ = e
    return failure
