"""uvicorn as the hub needs it: sockets that can be written past ASGI, freed when a peer stalls, and drained.

It subclasses classes inside uvicorn, which is why its version is bounded in pyproject.toml and tests hold what is
used of them. Reasons: RELIABILITY rows 1, 2, 3, 5, 9 and 11.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from sag.errors import StartError
from sag.settings import HubSettings

log = logging.getLogger("sag.web")
TEXT = 0x81  # a frame's first byte: a text, and all of it
MASKED, TWO_BYTES = 0x80, 126  # its second: masked as clients have to, and a size that follows in two bytes
HIGH, LOW = 64 << 10, 16 << 10
SNDBUF = 128 << 10
CLOSE_S = 3.0
TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)


class HubSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol as a `sag.hub.connection.Socket`."""

    sink: Any = None
    stall_s: float = 10.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(HIGH, LOW)
        sock = transport.get_extra_info("socket")
        if sock is not None and TCP_USER_TIMEOUT is not None:
            # It ends a peer with a small window that still reads (measured: 4 KiB at 2 KB/s after 12 s), so that
            # `OutgoingSocket` looks for progress itself.
            sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 0)
        self._takes_bytes = True

    def data_received(self, data: bytes) -> None:
        text = self._whole_text(data)
        if text is None:
            super().data_received(data)
        else:
            self.sink.sink.receive(text)

    def _whole_text(self, data: bytes) -> str | None:
        """The text of what is one whole frame, as nearly every read is; `websockets` takes five times as long for it.

        Anything else is left to it: what is no text, is cut or joined, larger than 64 KiB, wrong or unexpected.
        """
        if len(data) < 6 or data[0] != TEXT or self.sink is None or self.sink.sink is None:
            return None
        if not self._is_between_messages():
            return None
        size, at = data[1] - MASKED, 2
        if size == TWO_BYTES:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif not 0 <= size < TWO_BYTES:
            return None
        if len(data) != at + 4 + size or size > self.config.ws_max_size:
            return None
        mask, body = data[at : at + 4], data[at + 4 :]
        if any(mask):
            repeated = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
            body = (int.from_bytes(body, "big") ^ repeated).to_bytes(size, "big")
        try:
            return body.decode()
        except UnicodeDecodeError:
            return None

    def _is_between_messages(self) -> bool:
        """Whether a message may begin now, and nothing that came before it waits."""
        if self.frames or self.close_sent or self.conn.state is not State.OPEN or not self.queue.empty():
            return False
        waits: Any = self.conn.parser  # generators, each in the one before
        while (inner := waits.gi_yieldfrom) is not None:
            waits = inner
        return bool(waits.__name__ == "at_eof")  # and not within a frame

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions["sag.socket"] = OutgoingSocket(self)
        await super().run_asgi()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(5.0, self.transport.abort)

    def send_receive_event_to_app(self) -> None:
        """Give a text to its connection where it arrives, which waits for nothing.

        uvicorn's way there, a queue, the wake of a task and a pause of reading, costs several times as much.
        """
        connection = self.sink.sink if self.sink is not None else None
        if connection is None or self.curr_msg_data_type != "text" or self.close_sent or not self.queue.empty():
            super().send_receive_event_to_app()
            return
        try:
            text = b"".join(self.frames).decode()
        except UnicodeDecodeError:
            super().send_receive_event_to_app()
            return
        self.frames = []
        connection.receive(text)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._takes_bytes = False
        if self.sink is not None:
            self.sink.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._takes_bytes = True
        if self.sink is not None:
            self.sink.resumed()

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(2.0, self.transport.abort)


class OutgoingSocket:
    """Writes frames straight to the transport (measured: half the cost of ASGI's send)."""

    __slots__ = ("_protocol", "_timer", "_transport", "sink", "writable")

    def __init__(self, protocol: HubSocketProtocol) -> None:
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None
        self._transport = protocol.transport
        self.writable = True
        self.sink: Any = None
        protocol.sink = self

    def write(self, *frames: bytes) -> None:
        if self._transport.is_closing():  # uvloop would raise, into the commit that is being told to everybody
            self.writable = False
            return
        self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def paused(self) -> None:
        self.writable = False
        self._watch(self.unsent(), 0)

    def _watch(self, left: int, idle: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        protocol = self._protocol
        self._timer = protocol.loop.call_later(protocol.stall_s / 2, self._look, left, idle)

    def _look(self, left: int, idle: int) -> None:
        """Drop a peer that took nothing at two looks in a row; one that is only slow is waited for."""
        if self.writable or self._transport.is_closing():
            return
        now = self.unsent()
        if now >= left and idle:
            log.warning("slow: a reader took nothing for %g s and is dropped", self._protocol.stall_s)
            self._transport.abort()
            return
        self._watch(now, idle + 1 if now >= left else 0)

    def resumed(self) -> None:
        self.writable = True
        if self._timer is not None:
            self._timer.cancel()
        if self.sink is not None:
            self.sink.drained()

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size() + _kernel_queue(self._transport)

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(Exception):  # the peer may be gone already, in any of uvicorn's ways
            await self._protocol.send({"type": "websocket.close", "code": code, "reason": reason})
        # uvicorn waits 10 s for the answer of a peer that is gone; its place is wanted back sooner
        self._protocol.loop.call_later(CLOSE_S, self._transport.abort)

    def abort(self) -> None:
        self._transport.abort()


class AsgiSocket:
    """The same over ASGI's `send`, for other servers and tests; one task sends what waits."""

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self._send = send
        self.writable = True
        self.sink: Any = None
        self._waiting: list[Any] = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    def write(self, *frames: bytes) -> None:
        for frame in frames:
            n = frame[1]
            text = frame[2:] if n < 126 else frame[4:] if n == 126 else frame[10:]
            self._size += len(text)
            self._put({"type": "websocket.send", "text": text.decode()})

    def _put(self, message: Any) -> asyncio.Task[None]:
        self._waiting.append(message)
        self.writable = self._size < HIGH
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        return self._task

    async def _run(self) -> None:
        try:
            while self._waiting:
                message = self._waiting.pop(0)
                await self._send(message)
                self._size -= len(message.get("text", ""))
                if not self.writable and self._size < LOW:
                    self.writable = True
                    if self.sink is not None:
                        self.sink.drained()
        except Exception:  # the peer is gone; the reader is told by `receive`
            self.writable = False
        finally:
            self._task = None

    def unsent(self) -> int:
        return self._size

    async def close(self, code: int, reason: str) -> None:
        await asyncio.shield(self._put({"type": "websocket.close", "code": code, "reason": reason}))

    def abort(self) -> None:
        self.writable = False
        self._waiting.clear()


def _kernel_queue(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has not had acknowledged; 0 where it does not say."""
    sock = transport.get_extra_info("socket")
    if sock is None or not sys.platform.startswith("linux"):
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])
    except (OSError, ValueError):  # ValueError: the socket is closed
        return 0


class HubHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, plus: a request's head has to be complete in time."""

    head_s = 15.0
    _guard: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._watch()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unwatch()
        super().on_headers_complete()

    def _watch(self) -> None:
        self._unwatch()
        self._guard = self.loop.call_later(self.head_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None


class Server(uvicorn.Server):
    """uvicorn's server with the hub's drain before its own shutdown; a second signal ends it at once.

    Args:
        config: uvicorn's configuration.
        ready: Called when the hub serves.
        drain: Awaited when a signal came, before sockets are closed.
        signals: Whether SIGINT and SIGTERM end it; a hub inside a test is ended by `should_exit`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        drain: Callable[[asyncio.Event], Awaitable[None]],
        *,
        signals: bool = True,
    ) -> None:
        super().__init__(config)
        self._signals = signals
        self._ready = ready
        self._drain = drain
        self._hurry = asyncio.Event()
        self._drained = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._drained:
            self._drained = True
            await self._drain(self._hurry)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._hurry.set()
            self.force_exit = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again: an ordered end is exit status 0."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM) if self._signals else ()
        for sig in handled:
            loop.add_signal_handler(sig, self.handle_exit, sig, None)
        try:
            yield
        finally:
            for sig in handled:
                loop.remove_signal_handler(sig)


def listen(settings: HubSettings) -> socket.socket:
    """The listening socket. Accepted ones inherit the bounded send buffer and the timeout that frees a stalled peer.

    Raises:
        StartError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if TCP_USER_TIMEOUT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, settings.stall_ms)
        sock.bind((settings.host, settings.port))
        sock.listen(2048)
    except OSError as e:
        sock.close()
        raise StartError(f"cannot listen on {settings.host} port {settings.port}: {e.strerror or e}") from None
    sock.setblocking(False)
    return sock


def uvicorn_config(app: Any, settings: HubSettings) -> uvicorn.Config:
    """uvicorn's settings; each differs from its default for a measured reason (RELIABILITY)."""
    return uvicorn.Config(
        app,
        http=type("HubHttp", (HubHttpProtocol,), {"head_s": settings.head_ms / 1000}),
        ws=type("HubSocketProtocol", (HubSocketProtocol,), {"stall_s": settings.stall_ms / 1000}),
        ws_max_size=settings.limits.frame,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=5,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        lifespan="off",
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )


class QuietFilter(logging.Filter):
    """Drops uvicorn's lines that would print URLs with secrets, an error for each upgrade that is refused in order, or
    a traceback for each bad frame."""

    NOISE = ("[accepted]", "connection open", "without completing handshake")

    def filter(self, record: logging.LogRecord) -> bool:
        if any(noise in str(record.msg) for noise in self.NOISE):
            return False
        if "Invalid UTF-8" in str(record.msg):
            record.exc_info = None
        return True
