"""HTTP on a socket, right and wrong. Plain asyncio, because no server library would send what this has to."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from sag.testing.upstream.flavor import Reply
from sag.testing.upstream.request import Request
from sag.testing.upstream.script import (
    Calls,
    Comment,
    Cut,
    Emit,
    Fail,
    Hang,
    LongLine,
    Raw,
    Refusal,
    Say,
    Script,
    Think,
    Wait,
)
from sag.testing.upstream.writer import Writer, encode

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_HEAD = 64 << 10
_BODY = 64 << 20
_BATCH = 16 << 10


class _Gone(Exception):
    """The script ends the connection."""


class Connection(asyncio.Protocol):
    """One connection: requests in turn, each answered by a task that ends when the client leaves."""

    def __init__(self, server: FakeUpstream) -> None:
        self._server = server
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._script = Script()
        self._head = b""
        self._held: list[bytes] = []
        self._held_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.join(self)

    def connection_lost(self, e: Exception | None) -> None:
        self._server.leave(self)
        if self._request is not None:
            self._request.close("client")
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.startswith(b"\x16\x03"):
            # A TLS client; it gets no further, as with any server that speaks plain HTTP.
            self._transport.abort()
            return
        if self._task is None:
            self._next()

    def drop(self) -> asyncio.Task[None] | None:
        """Close, and give the task that is ending."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _next(self) -> None:
        request = self._parse()
        if request is not None:
            self._request = request
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    def _parse(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD:
                self._transport.abort()
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, rest = first.partition(" ")
        size = int(headers.get("content-length", "0"))
        if size > _BODY or "transfer-encoding" in headers:
            self._transport.abort()
            return None
        if len(self._buffer) < end + 4 + size:
            return None
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        return Request(method, rest.rpartition(" ")[0], headers, body)

    async def _serve(self, request: Request) -> None:
        reply: Reply | None = None
        try:
            reply = await self._server.reply(request)
            await self._answer(request, reply)
            request.close("done")
        except _Gone:
            request.close("cut")
        except asyncio.CancelledError:
            request.close("client")
        except Exception:
            request.close("cut")
            self._transport.abort()
            raise
        finally:
            self._task = self._request = None
            if reply is not None and reply.writer is not None:
                reply.writer.ended(request)
        if not self._transport.is_closing() and self._buffer:
            self._next()

    async def _answer(self, request: Request, reply: Reply) -> None:
        script = self._script = reply.script
        if script.before_s:
            await asyncio.sleep(script.before_s)
        if script.head != "send":
            await self._misbehave(script.head)
        writer = reply.writer
        if writer is not None and reply.streams:
            framing = {"transfer-encoding": "chunked"} if script.framing == "chunked" else {"connection": "close"}
            media = {"content-type": "text/event-stream; charset=utf-8"}
            self._head = self._write_head(script, script.status, media | writer.headers() | framing)
            await self._stream(request, script, writer)
            return
        status, body = script.status, script.body
        if writer is not None:
            status, body = await self._whole(script, writer)
        elif body is None:
            body = b"".join(encode(self._server.write_error(step)) for step in script.steps if isinstance(step, Fail))
        more = {"content-type": "application/json", "content-length": str(len(body))}
        head = self._write_head(script, status, more | (writer.headers() if writer is not None else {}))
        await self._write(head + body if len(body) < _BATCH else head)
        for i in range(0, len(body) if len(body) >= _BATCH else 0, _BATCH):
            await self._write(body[i : i + _BATCH])

    def _write_head(self, script: Script, status: int, more: dict[str, str]) -> bytes:
        headers = self._server.headers(status, script.headers) | more
        headers |= {name.lower(): value for name, value in script.headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode("latin-1", "replace")

    async def _misbehave(self, how: str) -> None:
        if how == "hang":
            await asyncio.Event().wait()
        if how == "garbage":
            self._transport.write(b"\x15\x03\x01\x00\x02\x02\x16 this is no HTTP\r\n\r\n")
        if how == "rst":
            self._reset()
        self._transport.close()
        raise _Gone

    async def _whole(self, script: Script, writer: Writer) -> tuple[int, bytes]:
        """Status and body of an answer that is not streamed."""
        writer.open()
        for step in script.steps:
            if isinstance(step, Say | Think | Calls | Refusal):
                writer.write(step)
            elif isinstance(step, Fail):
                given = writer.fail_whole(step)
                if given is not None:
                    return 200, encode(given)
                return step.status, encode(self._server.write_error(step))
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Hang):
                await asyncio.Event().wait()
            elif isinstance(step, Cut):
                await self._misbehave(step.how)
        writer.close()
        return script.status, encode(writer.whole())

    async def _stream(self, request: Request, script: Script, writer: Writer) -> None:
        if script.bom:
            await self._send(b"\xef\xbb\xbf")
        await self._send(writer.open())
        rate = script.tokens_per_s or self._server.tokens_per_s
        clock = asyncio.get_running_loop().time
        due = clock()
        for step in script.steps:
            if isinstance(step, Fail):
                await self._send(writer.fail(step))
                break
            if not isinstance(step, Say | Think | Calls | Refusal):
                await self._do(step, writer)
                continue
            for piece in writer.write(step):
                if rate:
                    await self._flush()
                    due += 1 / rate
                    if (wait := due - clock()) > 0:
                        await asyncio.sleep(wait)
                request.tokens += 1
                self._held.append(piece)
                self._held_size += len(piece)
                if rate or self._held_size >= _BATCH:
                    await self._flush()
        else:
            await self._send(writer.close())
        if script.framing == "chunked":
            await self._flush(b"0\r\n\r\n")
        else:
            await self._flush()
            self._transport.close()

    async def _do(self, step: Emit | Raw | Comment | LongLine | Wait | Hang | Cut, writer: Writer) -> None:
        if isinstance(step, Emit):
            await self._send(writer.event(step.data))
        elif isinstance(step, Raw):
            await self._send(step.data)
        elif isinstance(step, Comment):
            sent = 0
            while step.count is None or sent < step.count:
                await self._send(b": " + step.text.encode() + writer.newline * 2)
                await self._flush()
                await asyncio.sleep(step.every_s)
                sent += 1
        elif isinstance(step, LongLine):
            await self._send(b"data: ")
            for left in range(step.size, 0, -_BATCH):
                await self._send(b"x" * min(left, _BATCH))
        else:
            await self._flush()
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Hang):
                await asyncio.Event().wait()
            else:
                await self._cut(step)

    async def _cut(self, step: Cut) -> None:
        if step.how == "rst":
            self._reset()
        else:
            # A chunk is announced and half of it sent.
            self._transport.write(b"40\r\ndata: {" if self._script.framing == "chunked" else b"data: {")
            self._transport.close()
        raise _Gone

    def _reset(self) -> None:
        handle: socket.socket = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _send(self, data: bytes) -> None:
        """Send a piece of the body. As fast as may be, several go in one write."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= _BATCH:
            await self._flush()

    async def _flush(self, end: bytes = b"") -> None:
        """Write what is held, behind the head if that has not gone yet, and the end of the body."""
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        size = self._script.segment
        if size:
            await self._write(self._take_head())
            for i in range(0, len(data), size):
                await self._write(self._frame(data[i : i + size]))
                await asyncio.sleep(0)
            await self._write(end)
        else:
            await self._write(self._take_head() + self._frame(data) + end)

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _frame(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if data and self._script.framing == "chunked" else data

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise asyncio.CancelledError
        if data:
            self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
