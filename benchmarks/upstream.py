"""A model's server that costs next to nothing, paced or flooding: OpenAI's streaming format on one asyncio protocol.

It lives in the load's own loop, so that the moment of a request and that of a first token are on one clock.
`sag.testing.upstream` is the fake that can do everything; this one can do one thing, with little noise.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Self

import msgspec

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
MODELS = b'{"object":"list","data":[{"id":"fake","object":"model","created":1735689600,"owned_by":"bench"}]}'


def token(number: int) -> str:
    """The text of a token."""
    return f" t{number:03d}"


def _chunk(choices: str, usage: str = "") -> bytes:
    text = (
        'data: {"id":"chatcmpl-9fXw1u4yTQ2v8k3m5n7p","object":"chat.completion.chunk","created":1735689600,'
        f'"model":"fake","system_fingerprint":"fp_44709d6fcb","choices":[{choices}]{usage}}}\n\n'
    ).encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


def _delta(delta: str, finish: str = "null") -> bytes:
    return _chunk(f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}')


class Upstream:
    """The server.

    Attributes:
        tokens: How many an answer has.
        every_s: The pace; 0 is as fast as the reader takes it.
        burst: How many tokens go in one write then, for a flood comes in reads of many events.
    """

    def __init__(self, tokens: int = 96, every_s: float = 0.02, burst: int = 16) -> None:
        self.tokens, self.every_s, self.burst = tokens, every_s, burst
        self.url = ""
        self._started = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Answer(self), "127.0.0.1", 0, backlog=2048)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *given: object) -> None:
        assert self._server is not None
        self._server.close()

    def phase_s(self) -> float:
        """Where in the pace's interval the next stream has its tokens: streams of people do not march in step."""
        self._started += 1
        return self.every_s * (self._started * 0.381966 % 1.0)


class _Answer(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._timer: asyncio.Handle | None = None
        self._writable = True
        self._held = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._held:
            self._held = False
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET"):
            self._data = b""
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                                 % (len(MODELS), MODELS))  # fmt: skip
            return
        at = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[at:].split(b"\r\n", 1)[0]):
            return
        self._data = b""
        self._usage = bool(msgspec.json.decode(body).get("stream_options"))
        self._next = 1
        self.transport.write(HEAD + _delta('{"role":"assistant","content":""}') + _tokens(0, 1))
        self._begun = self._loop.time() + self._upstream.phase_s() - self._upstream.every_s / 2
        self._go_on()

    def _go_on(self) -> None:
        if self._next >= self._upstream.tokens:
            out = _delta("{}", '"stop"')
            if self._usage:
                count = f'"prompt_tokens":9,"completion_tokens":{self._next},"total_tokens":{self._next + 9}'
                out += _chunk("", f',"usage":{{{count}}}')
            self.transport.write(out + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        elif self._upstream.every_s:
            self._timer = self._loop.call_at(self._begun + self._next * self._upstream.every_s, self._send, 1)
        elif self._writable:
            # All streams flow side by side, each until its reader holds it up.
            self._timer = self._loop.call_soon(self._send, self._upstream.burst)
        else:
            self._held = True

    def _send(self, count: int) -> None:
        begin, self._next = self._next, min(self._next + count, self._upstream.tokens)
        self.transport.write(_tokens(begin, self._next))
        self._go_on()


@functools.cache
def _tokens(begin: int, end: int) -> bytes:
    """The events of some tokens, each a chunk of the body by itself."""
    return b"".join([_delta('{"content":"%s"}' % token(number)) for number in range(begin, end)])  # noqa: UP031
