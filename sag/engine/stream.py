"""A client of HTTP/1.1 for streamed answers: what arrives is handed on where it arrives, with no task in between.

Waking a task for each read costs more than all that is done with a token (measured: 25 of 47 µs), so a connection calls
its reader from `data_received`. Owns connections, which are kept and used again, and the framing of requests and
answers. What an answer means, and how long it may take, is the reader's business; sockets come from `sag.outbound`.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

import httptools

from sag.hooks.provider import HttpRequest, ProviderError
from sag.outbound import KEEPALIVE_S, Outbound

HEAD = 64 << 10  # bytes that may come without one of the body among them: a head, trailers, the framing of chunks
JOINED = 64 << 10  # bytes of a request that are copied so that it leaves in one packet

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNPRINTABLE = re.compile(r"[\0\r\n]")
_OURS = ("connection", "content-length", "transfer-encoding")


class Origin(NamedTuple):
    """Where connections lead."""

    tls: bool
    host: str
    port: int


class Reader(Protocol):
    """Reads one answer. It is called from the event loop and must not raise.

    `head` comes once, then `body` any number of times, then `end`; after `end` or `Connection.drop` nothing comes.
    """

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The final head; those of the class 1xx are left out."""

    def body(self, data: bytes) -> None:
        """More of the body, never empty."""

    def end(self, failure: ProviderError | None, *, stale: bool) -> None:
        """The body came to its proper end, or why it did not.

        Args:
            failure: provider.disconnected or provider.protocol.
            stale: The connection had been kept, and closed before anything was answered: the server had closed it
                while the request was on its way, and a new connection may do.
        """


class Headers(Mapping[str, str]):
    """Headers of an answer; names in any case, the first of a name counts."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def add(self, name: bytes, value: bytes) -> None:
        self._values.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own raises and catches for what is not there
        return self._values.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def write_request(request: HttpRequest) -> tuple[Origin, bytes]:
    """Where a request goes, and its head.

    Raises:
        ProviderError: provider.unreachable where the URL is none of HTTP, provider.protocol for headers that would
            break out of their line.
    """
    origin, path, given = _locate(request.url)
    fields = dict(given)
    for name, value in request.headers.items():
        if not _TOKEN.fullmatch(name) or _UNPRINTABLE.search(value):
            raise ProviderError("provider.protocol", "A header of the request cannot be sent.", retry=False)
        if name.lower() not in _OURS:
            fields[name.lower()] = (name, value)
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.values()])
    if not _TOKEN.fullmatch(request.method):
        raise ProviderError("provider.protocol", "The request's method cannot be sent.", retry=False)
    head = f"{request.method} {path} HTTP/1.1\r\n{lines}Content-Length: {len(request.body)}\r\n\r\n"
    return origin, head.encode()


@lru_cache(64)
def _locate(address: str) -> tuple[Origin, str, dict[str, tuple[str, str]]]:
    """Where a URL leads, the path to ask for, and the headers that every request there has."""
    try:
        url = urlsplit(address)
        host = url.hostname or ""
        if not host.isascii():
            host = host.encode("idna").decode()
        tls = url.scheme == "https"
        origin = Origin(tls, host, url.port if url.port is not None else 443 if tls else 80)
    except ValueError:
        origin = Origin(False, "", 0)
    if not origin.host or url.scheme not in ("http", "https"):
        raise ProviderError("provider.unreachable", "The model's server has no usable address.", retry=False)
    path = quote(url.path or "/", safe="/%:@!$&'()*+,;=~")
    if url.query:
        path += "?" + quote(url.query, safe="/%:@!$&'()*+,;=~?")
    named = f"[{host}]" if ":" in host else host
    fields = {
        "host": ("Host", named if url.port is None else f"{named}:{url.port}"),
        "user-agent": ("User-Agent", "sag"),
        "accept": ("Accept", "*/*"),
        "accept-encoding": ("Accept-Encoding", "identity"),
    }
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        fields["authorization"] = ("Authorization", f"Basic {base64.b64encode(login).decode()}")
    return origin, path, fields


class Connection(asyncio.Protocol):
    """One connection, on which one request after the other is answered; idle ones lie in the pool.

    The parser's callbacks only note what came; readers are called once it is through, so that no fault of theirs is
    taken for one of the framing.
    """

    _transport: asyncio.Transport

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.kept = False
        self.idle: asyncio.TimerHandle | None = None
        self._pool = pool
        self._reader: Reader | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # the parser looks it up once, and calls no Python for a piece
        self._lost = self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        # What servers in the wild do, and aiohttp and browsers take.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    @property
    def open(self) -> bool:
        return not self._lost and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, reader: Reader) -> None:
        """Send a request and have its answer read."""
        self._reader = reader
        self._heard = self._told = self._complete = self._keep = self._to_close = False
        self._status = self._quiet = 0
        if not self.open:
            self._fail("closed the connection before it answered")
        elif len(body) < JOINED:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def pause(self) -> None:
        """Read no more until `go_on`, so that the server has to wait."""
        if self.open and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self.open and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close at once; the reader is told nothing more."""
        self._reader = None
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None
        if not self._lost:
            self._transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        # Once per token, as nearly every read is one.
        if self._reader is None:
            self._pool.forget(self)  # nobody asked for anything
            return
        self._heard = True
        self._quiet += len(data)
        garbled = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            garbled = True
        if not self._told and self._status:
            self._told = True
            self._reader.head(self._status, self._headers)
        pieces = self._pieces
        if pieces:
            self._quiet = 0
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if self._reader is not None:
                self._reader.body(data)
        if self._complete:
            self._end(keep=self._keep and not garbled)
        elif garbled or self._quiet > HEAD:
            self._fail("does not answer in HTTP", "provider.protocol")

    def eof_received(self) -> None:
        self._leave(None)

    def connection_lost(self, e: Exception | None) -> None:
        self._lost = True
        self._leave(e)
        del self._parser  # it holds methods of this object, and nothing comes any more

    def _leave(self, e: Exception | None) -> None:
        if self._reader is None:
            self._pool.forget(self)
        elif e is None and self._told and self._to_close:
            self._end(keep=False)
        else:
            where = "in the middle of its answer" if self._told else "before it answered"
            self._fail(f"closed the connection {where}", stale=self.kept and not self._heard)

    # the parser

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("an answer that nobody asked for")
        self._headers = Headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.add(name, value)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._status = status
        framed = "chunked" in self._headers.get("transfer-encoding", "").lower() or "content-length" in self._headers
        self._to_close = not framed and status not in (204, 304)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._keep = self._parser.should_keep_alive()

    # ends

    def _end(self, *, keep: bool) -> None:
        reader, self._reader = self._reader, None
        if keep and reader is not None and self.open:
            self.go_on()
            self._pool.keep(self)
        else:
            self.drop()
        if reader is not None:
            reader.end(None, stale=False)

    def _fail(self, what: str, kind: str = "provider.disconnected", *, stale: bool = False) -> None:
        reader = self._reader
        self.drop()
        if reader is not None:
            reader.end(ProviderError(kind, f"The model's server {what}."), stale=stale)


class Pool:
    """Keeps connections that are not in use.

    Args:
        outbound: Opens new ones; addresses are trusted, they come from an administrator.
    """

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._idle: dict[Origin, list[Connection]] = {}
        self._closed = False

    def take(self, origin: Origin) -> Connection | None:
        """The connection that was used last, if there is one."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            assert connection.idle is not None
            connection.idle.cancel()
            connection.idle = None
            if connection.open:
                connection.kept = True
                return connection
        return None

    def keep(self, connection: Connection) -> None:
        """Take a connection back."""
        if self._closed:
            connection.drop()
            return
        connection.idle = asyncio.get_running_loop().call_later(KEEPALIVE_S, self.forget, connection)
        self._idle.setdefault(connection.origin, []).append(connection)

    def forget(self, connection: Connection) -> None:
        """Close a connection that is not in use."""
        connection.drop()
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.origin, None)

    async def connect(self, origin: Origin) -> Connection:
        """A new connection. How long it may take is the caller's to say.

        Raises:
            ProviderError: provider.unreachable.
        """
        try:
            return await self._outbound.dial(lambda: Connection(self, origin), *origin[1:], tls=origin.tls)
        except ssl.CertificateError as e:
            raise unreachable("The certificate of the model's server is not trusted.") from e
        except (socket.gaierror, UnicodeError) as e:  # the latter of names that can be none
            raise unreachable("The name of the model's server cannot be resolved.") from e
        except OSError as e:
            raise unreachable("The model's server cannot be reached.") from e

    def close(self) -> None:
        """Close all that are not in use, and keep none any more."""
        self._closed = True
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.drop()
        self._idle.clear()


def unreachable(text: str) -> ProviderError:
    return ProviderError("provider.unreachable", text)
