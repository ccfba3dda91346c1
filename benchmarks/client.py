"""The load's side of a WebSocket: an asyncio protocol that costs little, and the two dialects that servers speak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from benchmarks.process import LITELLM_KEY, Server
from benchmarks.upstream import token

ANSWER_S = 60.0
TURNS = 10  # questions in one conversation of the hub's; all of it goes to the model's server each time
decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


_open: list[Socket | SseAsker] = []


class Socket(asyncio.Protocol):
    """One WebSocket; `take` is called with the text of each frame."""

    def __init__(self, path: str, take: Callable[[bytes], None]) -> None:
        self.take = take
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path = path
        _open.append(self)
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("refused"))

    def data_received(self, data: bytes) -> None:
        if self._data:
            data = self._data + data
        if not self.opened.done():
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._data = data
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(ConnectionError(head.decode("latin-1").split("\r\n")[0]))
                return
            self.opened.set_result(None)
            data = rest
        while len(data) >= 2:
            n, at = data[1], 2
            if n == 126:
                n, at = int.from_bytes(data[2:4], "big"), 4
            elif n == 127:
                n, at = int.from_bytes(data[2:10], "big"), 10
            if len(data) < at + n:
                break
            if data[0] == 0x81:
                self.take(data[at : at + n])
            data = data[at + n :]
        self._data = data

    def send(self, text: bytes) -> None:
        """Send a text, masked with zeros."""
        n = len(text)
        head = bytes((0x81, 0x80 | n)) if n < 126 else b"\x81\xfe" + n.to_bytes(2, "big")
        self.transport.write(head + b"\0\0\0\0" + text)


def drop_sockets() -> None:
    """Drop every socket that was opened."""
    for socket in _open:
        if not socket.transport.is_closing():
            socket.transport.abort()
    _open.clear()


async def open_socket(server: Server, path: str, take: Callable[[bytes], None]) -> Socket:
    """Connect and upgrade."""
    loop = asyncio.get_running_loop()
    _, socket = await loop.create_connection(lambda: Socket(path, take), "127.0.0.1", server.port)
    await asyncio.wait_for(asyncio.shield(socket.opened), ANSWER_S)
    return socket


class Asker(Protocol):
    """A client that has answers streamed."""

    async def open(self) -> None:
        """Connect."""

    async def ask(self) -> tuple[float, str]:
        """Ask; gives the seconds to the first token, and the whole text."""


class BareAsker:
    """Against `raw` and `bare`, which send `{"d":TEXT}` and at last `{"end":1}`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._texts: list[str] = []
        self._first = 0.0
        self._done: asyncio.Future[None] | None = None

    async def open(self) -> None:
        self._socket = await open_socket(self._server, "/relay", self._take)
        self._now = time.perf_counter  # uvloop counts in whole milliseconds

    async def ask(self) -> tuple[float, str]:
        self._texts.clear()
        self._done = asyncio.get_running_loop().create_future()
        asked = self._now()
        self._socket.send(b"Tell me something.")
        await asyncio.wait_for(self._done, ANSWER_S)
        return self._first - asked, "".join(self._texts)

    def _take(self, text: bytes) -> None:
        given = decode(text)
        if "d" in given:
            if not self._texts:
                self._first = self._now()
            self._texts.append(given["d"])
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)


class SagClient:
    """Against the hub: hello, requests, and the text that comes in deltas."""

    def __init__(self, server: Server, name: str = "bench") -> None:
        self._server, self.name = server, name
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._conv: str | None = None
        self._asked = 0
        self._texts: list[str] = []
        self._first = 0.0
        self._done: asyncio.Future[None] | None = None
        self.heads: dict[int, int] = {}

    async def open(self, *topics: str) -> Any:
        """Connect and say hello."""
        self.socket = await open_socket(self._server, "/ws", self.take)
        self._now = time.perf_counter  # uvloop counts in whole milliseconds
        hello = {"v": 1, "client": {"id": self.name, "kind": "bench"}, "topics": {topic: {} for topic in topics}}
        result = await self.call("hello", hello)
        errors = [answer for answer in result["topics"].values() if "error" in answer]
        if errors:
            raise RuntimeError(errors[0]["error"])
        return result

    async def call(self, method: str, params: Any) -> Any:
        """A request and its answer."""
        self._next += 1
        future = self._answers[self._next] = asyncio.get_running_loop().create_future()
        self.socket.send(encode({"id": self._next, "method": method, "params": params}))
        return await asyncio.wait_for(future, ANSWER_S)

    async def ask(self) -> tuple[float, str]:
        self._texts.clear()
        self._done = asyncio.get_running_loop().create_future()
        params: dict[str, Any] = {"input": [{"kind": "text", "text": "Tell me something."}]}
        self._asked += 1
        if self._conv is not None and self._asked % TURNS == 0:
            await self.call("topic.unsubscribe", {"topic": f"conv:{self._conv}"})
            self._conv = None
        if self._conv is not None:
            params["conv"] = self._conv
        asked = self._now()
        started = await self.call("run.start", params)
        self._conv = started["conv"]
        await asyncio.wait_for(self._done, ANSWER_S)
        return self._first - asked, "".join(self._texts)

    def hand_over(self, take: Callable[[bytes], None]) -> None:
        """Give what comes from now on to somebody else, but heartbeats."""
        self.socket.take = lambda text: self.take(text) if text.startswith(b'{"ping"') else take(text)

    @property
    def conv(self) -> str:
        assert self._conv is not None
        return self._conv

    def take(self, text: bytes) -> None:
        """A frame: check that offsets follow each other, as a client has to, and gather what it says."""
        given = decode(text)
        for object in given if type(given) is list else (given,):
            name = object.get("e")
            if name is not None:
                t, off = object["t"], object["o"]
                if object.get("p", off - 1) != self.heads.get(t, object.get("p", off - 1)):
                    raise RuntimeError(f"a gap before offset {off}")
                self.heads[t] = off
                if name == "delta":
                    if not self._texts:
                        self._first = self._now()
                    self._texts.extend(object["d"][1::2])
                elif name == "run.close" and self._done is not None and not self._done.done():
                    if object["d"]["status"] == "done":
                        self._done.set_result(None)
                    else:
                        self._done.set_exception(RuntimeError(str(object["d"])))
            elif "id" in object:
                future = self._answers.pop(object["id"])
                if "error" in object:
                    future.set_exception(RuntimeError(str(object["error"])))
                else:
                    future.set_result(object["result"])
            elif "ping" in object:
                self.socket.send(b'{"pong":%d}' % object["ping"])


class SseAsker(asyncio.Protocol):
    """Against LiteLLM's proxy, which has no socket: server-sent events over HTTP/1.1, on a connection that is kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done: asyncio.Future[None] | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._server.port)
        _open.append(self)
        self._now = time.perf_counter

    async def ask(self) -> tuple[float, str]:
        if not self.transport.is_closing():
            try:
                return await self._ask()
            except ConnectionResetError:  # it keeps nobody for long who is quiet, and may let go just now
                if self._begun:
                    raise
        await self.open()
        return await self._ask()

    async def _ask(self) -> tuple[float, str]:
        self._data, self._body = b"", b""
        self._texts: list[str] = []
        self._begun = False
        self._done = asyncio.get_running_loop().create_future()
        body = encode(
            {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "Tell me something."}]}
        )
        asked = self._now()
        self.transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (LITELLM_KEY.encode(), len(body), body)
        )
        await asyncio.wait_for(self._done, ANSWER_S)
        return self._first - asked, "".join(self._texts)

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        if not self._begun:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._data = data
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._fail(RuntimeError(data.decode("utf-8", "replace")[:500]))
                return
            self._begun, data = True, rest
        at = 0
        while (end_of_size := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:end_of_size], 16)
            if len(data) < end_of_size + size + 4:
                break
            self._body += data[end_of_size + 2 : end_of_size + 2 + size]
            at = end_of_size + size + 4
            if not size and self._done is not None and not self._done.done():
                self._done.set_result(None)
        self._data = data[at:]
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                continue
            for choice in decode(event[6:])["choices"]:
                if text := choice["delta"].get("content"):
                    if not self._texts:
                        self._first = self._now()
                    self._texts.append(text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError("the connection was closed"))

    def _fail(self, why: Exception) -> None:
        if self._done is not None and not self._done.done():
            why.add_note(self._server.name)
            self._done.set_exception(why)


def make_asker(server: Server) -> Asker:
    """A client in the server's dialect."""
    if server.name == "litellm":
        return SseAsker(server)
    return SagClient(server) if server.name == "sag" else BareAsker(server)


def expected(tokens: int) -> str:
    """The text of an answer."""
    return "".join(token(number) for number in range(tokens))
