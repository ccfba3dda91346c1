"""Echo, fan-out and relay on asyncio protocols alone: `python -m benchmarks.servers.raw UPSTREAM`.

Just enough of HTTP and of WebSockets to be right with the benchmark's own peers; the least that the work can cost.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
from typing import Any

import msgspec
import uvloop

from benchmarks.servers.openai import decode, encode

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(text: bytes) -> bytes:
    n = len(text)
    if n < 126:
        return bytes((0x81, n)) + text
    return b"\x81\x7e" + n.to_bytes(2, "big") + text


class Socket(asyncio.Protocol):
    """The server's side of a WebSocket; what a text means depends on the path."""

    subscribers: dict[Socket, None] = {}

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._data = b""
        self._take: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.subscribers.pop(self, None)

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        if self._take is None:
            data = self._upgrade(data)
        while len(data) >= 6:
            n, at = data[1] & 127, 2
            if n == 126:
                n, at = int.from_bytes(data[2:4], "big"), 4
            if len(data) < at + 4 + n:
                break
            mask = data[at : at + 4]
            text = data[at + 4 : at + 4 + n]
            data = data[at + 4 + n :]
            if mask != b"\0\0\0\0":
                repeated = int.from_bytes((mask * (n // 4 + 1))[:n], "big")
                text = (int.from_bytes(text, "big") ^ repeated).to_bytes(n, "big")
            self._take(text)
        self._data = data

    def _upgrade(self, data: bytes) -> bytes:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return data
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        path = head.split(b" ", 2)[1]
        self._take = {b"/echo": self._echo, b"/fanout": self._publish, b"/relay": self._relay}[path]
        return rest

    def _echo(self, text: bytes) -> None:
        self.transport.write(frame(text))

    def _publish(self, text: bytes) -> None:
        if text == b"join":
            self.subscribers[self] = None
            return
        data = frame(text)
        for subscriber in self.subscribers:
            subscriber.transport.write(data)

    def _relay(self, text: bytes) -> None:
        task = asyncio.ensure_future(
            asyncio.get_running_loop().create_connection(lambda: Upstream(self, text), *self._upstream)
        )
        task.add_done_callback(lambda t: t.result())


class Upstream(asyncio.Protocol):
    """One streamed answer: chunked HTTP/1.1, server-sent events, JSON; each token is a frame of its own."""

    def __init__(self, socket: Socket, prompt: bytes) -> None:
        self._socket = socket
        self._prompt = prompt
        self._data = b""
        self._body = b""
        self._begun = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        body = msgspec.json.encode(
            {"model": "fake", "stream": True, "messages": [{"role": "user", "content": self._prompt.decode()}]}
        )
        transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: upstream\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        if not self._begun:
            _, end, data = data.partition(b"\r\n\r\n")
            if not end:
                return
            self._begun = True
        pieces = [self._body]
        at = 0
        while (end_of_size := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:end_of_size], 16)
            if len(data) < end_of_size + size + 4:
                break
            pieces.append(data[end_of_size + 2 : end_of_size + 2 + size])
            at = end_of_size + size + 4
        self._data = data[at:]
        *events, self._body = b"".join(pieces).split(b"\n\n")
        # What one read brought leaves in one write: a write of its own would cost each token more than all else.
        frames = []
        for event in events:
            if event == b"data: [DONE]":
                frames.append(frame(b'{"end":1}'))
                self.transport.close()
                break
            for choice in decode(event[6:]).choices:
                if choice.delta.content:
                    frames.append(frame(b'{"d":%b}' % encode(choice.delta.content)))
        if frames:
            self._socket.transport.write(b"".join(frames))


async def main(upstream: str) -> None:
    host, _, port = upstream.removeprefix("http://").partition(":")
    server = await asyncio.get_running_loop().create_server(
        lambda: Socket((host, int(port or 0))), "127.0.0.1", 0, backlog=2048
    )
    print(f"ready at :{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1] if len(sys.argv) > 1 else ""))
