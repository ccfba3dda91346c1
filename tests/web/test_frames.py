"""A text that arrives as one whole frame means what uvicorn's parser makes of it, however the bytes are cut and joined.

`Before` is the hub's protocol without its own reading of whole frames; both are fed the same reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from sag.settings import HubSettings
from sag.testing.hub import running_hub
from sag.web.server import HubSocketProtocol, uvicorn_config

MASK = b"\x01\xfe\x37\x80"
LIMIT = 80_000  # of a frame, so that those of more than 64 KiB are allowed and larger ones are not
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, BINARY, CONT, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


class Before(HubSocketProtocol):
    """As it was before: each read goes to the parser."""

    def data_received(self, data: bytes) -> None:
        WebSocketsSansIOProtocol.data_received(self, data)


def frame(
    body: bytes | str = b"", opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, mask: bytes = MASK, head: int = 0
) -> bytes:
    """A client's frame.

    Args:
        mask: Its mask; an empty one leaves the frame unmasked.
        head: How many bytes the size takes: 1, 3 or 9; by default as few as will do.
    """
    data = body.encode() if isinstance(body, str) else body
    size = len(data)
    head = head or (1 if size < 126 else 3 if size < 65536 else 9)
    masked = 0x80 if mask else 0
    first = (0x80 if fin else 0) | rsv | opcode
    sizes = bytes([size]) if head == 1 else struct.pack("!BH" if head == 3 else "!BQ", 126 if head == 3 else 127, size)
    if mask:
        data = (int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")).to_bytes(
            size, "big"
        )
    return bytes((first, sizes[0] | masked, *sizes[1:])) + mask + data


class Wire(asyncio.Transport):
    """What a protocol writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Listener:
    """Stands for a connection. A text that is `close` has the hub close in order, as `Connection.end` does."""

    def __init__(self, socket: Any) -> None:
        self.heard: list[Any] = []
        self._socket = socket
        self._closing: asyncio.Task[None] | None = None
        socket.sink = self

    def receive(self, text: str | None, data: bytes | None = None) -> None:
        self.heard.append(data if text is None else text)
        if text == "close":
            self._closing = asyncio.ensure_future(self._socket.close(4000, "enough"))

    def paused(self) -> None: ...

    def resumed(self) -> None: ...


class Peer:
    """One protocol, fed by hand."""

    def __init__(self, kind: type[HubSocketProtocol], config: uvicorn.Config, *, answers: bool = True) -> None:
        self.wire = Wire()
        self.heard: list[Any] = []
        self.accepts = asyncio.Event()
        if answers:
            self.accepts.set()
        self.protocol = kind(config=config, server_state=ServerState(), app_state={})
        self.protocol.app = self._app
        self.protocol.connection_made(self.wire)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await self.accepts.wait()
        await send({"type": "websocket.accept"})
        listener = Listener(scope["extensions"]["sag.socket"])
        self.heard = listener.heard
        while (message := await receive())["type"] != "websocket.disconnect":
            listener.receive(message.get("text"), message.get("bytes"))
        self.heard.append((message["code"], message.get("reason")))

    async def read(self, *reads: bytes, rests: bool = False) -> None:
        """Have reads arrive; `rests` lets everybody else do what they can in between."""
        for data in reads:
            if rests or self.wire.paused:
                await settle()
            if self.wire.closed:  # the loop reads nothing more then
                return
            assert not self.wire.paused
            if data:
                self.protocol.data_received(data)

    async def over(self) -> tuple[list[Any], bytes, bool]:
        """What was understood, written, and whether the connection was closed; then it is lost."""
        self.accepts.set()
        await settle()
        seen = [*self.heard], self.wire.written, self.wire.closed
        self.wire.closed = True
        self.protocol.connection_lost(None)
        await settle()
        return seen


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


@functools.cache
def config(limit: int = LIMIT) -> uvicorn.Config:
    settings = HubSettings()
    settings.limits.frame = limit
    made = uvicorn_config(lambda scope, receive, send: None, settings)
    made.load()
    return made


async def understood(
    kind: type[HubSocketProtocol], reads: Sequence[bytes], *, rests: bool = False, early: int = 0, limit: int = LIMIT
) -> tuple[list[Any], bytes, bool]:
    """What a protocol makes of reads, the first `early` of which come before the upgrade is answered."""
    peer = Peer(kind, config(limit), answers=not early)
    await peer.read(UPGRADE % b"")
    if early:
        left = [*reads]
        while left and not peer.wire.paused and early > 0:
            await peer.read(left.pop(0))
            early -= 1
        if peer.wire.paused:  # the kernel keeps the rest, until it is wanted
            left = [b"".join(left)]
        await settle()
        peer.accepts.set()
        await settle()
        await peer.read(*left, rests=rests)
    else:
        await settle()
        await peer.read(*reads, rests=rests)
    return await peer.over()


async def same(reads: Sequence[bytes], **how: Any) -> tuple[list[Any], bytes, bool]:
    """Hold what is made of reads now against what was made of them before."""
    now, before = [await understood(kind, reads, **how) for kind in (HubSocketProtocol, Before)]
    assert now == before, [data[:20] for data in reads]
    return now


def cuts(data: bytes, upto: int = 40) -> Iterator[list[bytes]]:
    """Data in one, in two at each byte of its beginning and end, and byte by byte where it is short."""
    yield [data]
    for i in sorted({*range(1, min(upto, len(data))), *range(max(1, len(data) - 9), len(data))}):
        yield [data[:i], data[i:]]
    if len(data) <= 300:
        yield [data[i : i + 1] for i in range(len(data))]


def closes_with(written: bytes) -> int:
    """The code of the close frame that was written last."""
    at = written.rindex(b"\x88")
    return int.from_bytes(written[at + 2 : at + 4], "big")


AFTER = frame("after")
GOOD: dict[str, bytes] = {
    "nothing": frame(""),
    "one": frame("x"),
    "short": frame('{"ping":1}'),
    "other letters": frame("zwölf Boxkämpfer 🥊"),
    "no mask to speak of": frame("zero", mask=bytes(4)),
    "nulls": frame("\0" * 9),
    "125": frame("a" * 125),
    "126": frame("b" * 126),
    "127": frame("c" * 127),
    "65535": frame("d" * 65535),
    "65536": frame("e" * 65536),
    "the limit": frame("f" * LIMIT),
    "a long size for a short text": frame("abc", head=3),
    "the longest size for a short text": frame("abc", head=9),
    "the longest size for nothing": frame("", head=9),
    "bytes": frame(b"\0\1", BINARY),
    "ping": frame(b"hi", PING),
    "pong": frame(b"", PONG),
    "a mark of order": frame("\ufeffx"),
}
BAD: dict[str, tuple[bytes, int]] = {
    "bad letters": (frame(b"\xff\xfe"), 1007),
    "a surrogate": (frame(b"\xed\xa0\x80"), 1007),
    "half a letter": (frame("ö".encode()[:1]), 1007),
    "unmasked": (frame("hello!", mask=b""), 1002),
    "unmasked and of six bytes": (frame("four", mask=b""), 1002),
    "rsv1": (frame("x", rsv=0x40), 1002),
    "rsv2": (frame("x", rsv=0x20), 1002),
    "rsv3": (frame("x", rsv=0x10), 1002),
    "what goes on with nothing": (frame("x", CONT), 1002),
    "an opcode that is none": (frame("x", 0x3), 1002),
    "a long ping": (frame("x" * 126, PING), 1002),
    "a ping in pieces": (frame("x", PING, fin=False), 1002),
    "above the limit": (frame("x" * (LIMIT + 1)), 1009),
    "far above the limit": (b"\x81\xff" + b"\x7f" * 8 + MASK, 1009),
    "a short close": (frame(b"\3", CLOSE), 1002),
    "a text in a message that is open": (frame("a", fin=False) + frame("b"), 1002),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_frame_means_the_same_wherever_it_is_cut(name: str) -> None:
    for reads in cuts(GOOD[name]):
        heard, _, closed = await same([*reads, AFTER])
        assert heard[-1] == "after"
        assert not closed


async def test_an_empty_text_with_a_long_size_means_the_same_wherever_it_is_cut() -> None:
    for reads in cuts(frame("", head=3)):
        assert await same([*reads, AFTER]) == (["", "after"], *(await understood(Before, []))[1:])


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_frame_ends_the_connection_with_the_code_that_it_had(name: str) -> None:
    data, code = BAD[name]
    for reads in cuts(data):
        heard, written, closed = await same([frame("good"), *reads, AFTER])
        assert heard[0] == "good"
        assert "after" not in heard
        assert (closed, closes_with(written)) == (True, code)


@pytest.mark.parametrize("limit", [100, 125, 126, 1000])
async def test_a_small_limit_holds_for_whole_frames_too(limit: int) -> None:
    assert await same([frame("x" * limit), AFTER], limit=limit) == (
        ["x" * limit, "after"],
        *(await understood(Before, []))[1:],
    )
    heard, written, closed = await same([frame("x" * (limit + 1)), AFTER], limit=limit)
    assert ("after" in heard, closes_with(written), closed) == (False, 1009, True)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 125, 126, 127, 255, 256, 65535])
async def test_a_whole_text_is_not_given_to_the_parser(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(HubSocketProtocol, config())
    await peer.read(UPGRADE % b"")
    await settle()
    parsed: list[bytes] = []
    monkeypatch.setattr(WebSocketsSansIOProtocol, "data_received", lambda self, data: parsed.append(data))
    text = ("äbc" * size).encode()[:size].decode(errors="ignore").ljust(size, ".")[:size]
    text = text if len(text.encode()) == size else "x" * size
    for mask in (MASK, bytes(4), b"\0\0\0\1", b"\xff" * 4):
        await peer.read(frame(text, mask=mask))
    assert (peer.heard, parsed) == ([text] * 4, [])
    await peer.over()


async def test_bytes_within_a_frame_that_look_like_a_whole_one_are_its_text() -> None:
    inner = frame("evil")
    for lead in (0, 1, 7, 130):
        size = lead + len(inner) + 3
        head = frame("\0" * size, mask=bytes(4))[: -size or None]
        # its bytes have to be letters, unmasked; the first ones of a frame are none, so that the message is bytes
        data = bytes([0x82]) + head[1:]
        reads = [data + b"x" * lead, inner, b"xyz", AFTER]
        heard, _, _ = await same(reads)
        assert heard == [b"x" * lead + inner + b"xyz", "after"]
    # in a text: masked so that what arrives looks like a frame
    reads = [b"\x81" + bytes([0x80 | (4 + len(inner))]) + b"\xc1" * 4 + b"\xc1" * 4, inner, AFTER]
    await same(reads)


async def test_a_read_that_looks_whole_is_left_to_the_parser_at_each_place_within_a_head() -> None:
    for data in (frame("x" * 300), frame("y" * 9), frame(b"z" * 66_000, BINARY), frame("", head=9)):
        for at in range(1, 16):
            for rest in (frame("evil"), frame(""), frame("e" * 200)):
                await same([data[:at], rest, data[at:], AFTER])


async def test_a_message_in_pieces_is_whole_whatever_comes_in_between() -> None:
    pieces = [frame("on", fin=False), frame("", CONT, fin=False), frame("e", CONT)]
    between = [b"", frame(b"p", PING), frame(b"", PONG), frame(b"p", PING) * 2]
    for first in between:
        for second in between:
            reads = [pieces[0], first, pieces[1], second, pieces[2], AFTER]
            for how in (reads, [b"".join(reads)], [b"".join(reads[:3]), b"".join(reads[3:])]):
                heard, written, _ = await same(how)
                assert heard == ["one", "after"]
                assert written.count(b"\x8a\x01p") == b"".join(reads).count(frame(b"p", PING))
    for opcode in (TEXT, BINARY):  # an empty first piece opens a message too
        heard, written, _ = await same([frame("", opcode, fin=False), AFTER])
        assert (heard[:-1], closes_with(written)) == ([], 1002)


async def test_what_comes_after_a_close_is_not_heard() -> None:
    bye = struct.pack("!H", 1000)
    for reads in (
        [frame("a"), frame(bye, CLOSE), AFTER],
        [frame("a") + frame(bye, CLOSE) + AFTER],
        [frame("a"), frame(b"", CLOSE), AFTER, AFTER],
    ):
        heard, _, closed = await same(reads)
        assert ("after" in heard, closed) == (False, True)
    for rests in (False, True):
        # the hub closes: what comes until the peer has answered is dropped
        reads = [frame("close"), AFTER, AFTER + AFTER, AFTER[:3], AFTER[3:], frame(b"p", PING), AFTER]
        heard, _, _ = await same(reads, rests=rests)
        assert heard.count("after") == (0 if rests else 5)  # what came in the same turn is older than the close
        _, _, closed = await same([*reads, frame(bye, CLOSE), AFTER], rests=rests)
        assert closed or not rests


async def test_nothing_is_heard_after_the_hub_shuts_down() -> None:
    seen = []
    for kind in (HubSocketProtocol, Before):
        peer = Peer(kind, config())
        await peer.read(UPGRADE % b"")
        await settle()
        await peer.read(frame("a"))
        peer.protocol.shutdown()
        peer.wire.closed = False  # bytes that were read already
        with contextlib.suppress(Exception):
            peer.protocol.data_received(AFTER)
        seen.append(await peer.over())
    assert seen[0] == seen[1]


@pytest.mark.parametrize("early", [1, 2, 3])
async def test_texts_that_come_before_the_upgrade_is_answered_keep_their_order(early: int) -> None:
    one, two = frame("one"), frame("two")
    for reads in (
        [one, two, AFTER],
        [one[:4], one[4:], two, AFTER],
        [one + two[:5], two[5:], AFTER],
        [one, two + AFTER],
    ):
        heard, _, _ = await same(reads, early=early)
        assert heard == ["one", "two", "after"]


async def test_texts_and_bytes_keep_their_order() -> None:
    reads = [frame("1"), frame(b"2", BINARY), frame("3"), frame(b"4", BINARY) + frame("5"), frame("6"), frame("7")]
    for rests in (False, True):
        assert (await same(reads, rests=rests))[0] == ["1", b"2", "3", b"4", "5", "6", "7"]


async def test_a_text_that_a_paused_transport_gives_all_the_same_waits_for_what_came_before_it() -> None:
    for early in (False, True):
        seen = []
        for kind in (HubSocketProtocol, Before):
            peer = Peer(kind, config(), answers=not early)
            await peer.read(UPGRADE % b"")
            await settle()
            for data in (frame(b"1", BINARY), frame("2"), frame("3")):
                peer.protocol.data_received(data)
            assert peer.wire.paused
            seen.append(await peer.over())
        assert seen[0] == seen[1]
        assert seen[0][0] == [b"1", "2", "3"]


async def test_what_comes_in_one_read_with_the_upgrade_means_what_it_meant() -> None:
    for rest in ([AFTER], [AFTER + AFTER], [AFTER[:5]], [AFTER + AFTER[:5]]):
        seen = []
        for kind in (HubSocketProtocol, Before):
            peer = Peer(kind, config())
            await peer.read(UPGRADE % b"" + rest[0])
            await settle()
            await peer.read(AFTER[5:] if rest[0].endswith(AFTER[:5]) else frame("x"), frame("y"))
            seen.append(await peer.over())
        assert seen[0] == seen[1]
        assert seen[0][0][-1] == "y"


async def test_random_frames_in_random_reads_mean_the_same() -> None:
    chance = random.Random(7)
    pool: list[Callable[[], bytes]] = [
        *(functools.partial(bytes, data) for name, data in GOOD.items() if len(data) < 1000),
        *(functools.partial(bytes, data) for data, _ in BAD.values() if len(data) < 1000),
        lambda: frame("piece", fin=False),
        lambda: frame("of", CONT, fin=False),
        lambda: frame("it", CONT),
        lambda: frame("close"),
        lambda: frame(struct.pack("!H", 1001) + b"bye", CLOSE),
    ]
    good = len(GOOD) - 3
    for _ in range(1500):
        frames = [chance.choice(pool[:good] if chance.random() < 0.85 else pool)() for _ in range(chance.randint(1, 9))]
        data, reads = b"".join(frames), []
        ends = [sum(map(len, frames[: i + 1])) for i in range(len(frames))]
        at = 0
        while at < len(data):  # mostly at the ends of frames
            to = chance.choice([e for e in ends if e > at]) if chance.random() < 0.7 else at + chance.randint(1, 9)
            reads.append(data[at:to])
            at = to
        await same([*reads, AFTER], rests=chance.random() < 0.3)


# --- over a real socket ---


async def upgraded(port: int, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = UPGRADE % "".join(f"{h}\r\n" for h in headers).encode()
    writer.write(head.replace(b"Host: hub", b"Host: 127.0.0.1:%d" % port))
    async with asyncio.timeout(5):
        return reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode().lower()


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(5):
        first, size = await reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        return first & 0xF, await reader.readexactly(size)


async def test_a_hub_answers_in_order_whatever_the_reads_are_and_compresses_nothing() -> None:
    hello = json.dumps({"id": 0, "method": "hello", "params": {"v": 1, "client": {"id": "raw"}}})
    pings = [frame(f'{{"ping":{i}}}') for i in range(40)]
    async with running_hub() as hub:
        port = hub.app.settings.hub.port
        reader, writer, head = await upgraded(port, "Sec-WebSocket-Extensions: permessage-deflate")
        assert " 101 " in head.splitlines()[0]
        assert "sec-websocket-extensions" not in head
        # before `hello`, whole and in pieces
        writer.write(frame('{"ping":"early"}'))
        assert await read_frame(reader) == (TEXT, b'{"pong":"early"}')
        writer.write(frame(hello[:20], fin=False))
        await asyncio.sleep(0.02)
        writer.write(frame(b"", PING) + frame(hello[20:], CONT))
        assert await read_frame(reader) == (PONG, b"")
        assert b'"session"' in (await read_frame(reader))[1]
        # each by itself, joined, and cut
        for data in (*pings[:8], b"".join(pings[8:30])):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.002)
        rest = b"".join(pings[30:])
        for at in range(0, len(rest), 13):
            writer.write(rest[at : at + 13])
            await asyncio.sleep(0.002)
        answers = [json.loads((await read_frame(reader))[1])["pong"] for _ in pings]
        assert answers == list(range(40))
        writer.write(frame(b'{"ping":"\xff"}'))
        opcode, body = await read_frame(reader)
        assert (opcode, body[:2]) == (CLOSE, struct.pack("!H", 1007))
        writer.close()
        # a frame that is larger than the limit, in a read that is cut
        reader, writer, _ = await upgraded(port)
        writer.write(frame("x")[:1] + struct.pack("!BQ", 0xFF, hub.app.settings.hub.limits.frame + 1))
        opcode, body = await read_frame(reader)
        assert (opcode, body[:2]) == (CLOSE, struct.pack("!H", 1009))
        writer.close()
