"""From log entries to wire objects: what a reader is sent for a contiguous range of a topic's log.

Pure. Deltas that stand together become one, which names each part once; a state event that a newer one of its key
follows in the range is left out and covered by the `p` of the next object (protocol section 3). The bytes are the
same for every reader but for its topic handle, so they are made once, without their first member `{"t":N,`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

encode = msgspec.json.Encoder().encode
_decode_delta = msgspec.json.Decoder(list[int | str]).decode


class Entry(Struct, gc=False, eq=False):
    """One event of a log; the garbage collector, to whom there are very many of them, need not look at it.

    Attributes:
        off: Its offset.
        name: The event's name.
        key: For class state the value of its key, else None.
        ts: When it was appended, Unix ms.
        body: `d` as JSON.
    """

    off: int
    name: str
    key: str | None
    ts: int
    body: bytes


def join_deltas(parts: Sequence[Any]) -> list[int | str]:
    """One flat list in which each part stands once, in the order of its first text."""
    texts: dict[int, list[str]] = {}
    for i in range(0, len(parts), 2):
        texts.setdefault(parts[i], []).append(parts[i + 1])
    out: list[int | str] = []
    for part, pieces in texts.items():
        out += (part, "".join(pieces))
    return out


def tail(off: int, follows: int, name: str, body: bytes, replay: bool) -> bytes:
    """The wire object of an event without its first member, `"o":…}`."""
    p = b"" if follows == off - 1 else b'"p":%d,' % follows
    r = b'"r":1,' if replay else b""
    return b'"o":%d,%b%b"e":"%b","d":%b}' % (off, p, r, name.encode(), body)


def tails(entries: Sequence[Entry], after: int, *, replay: bool = False, limit: int = 256 << 10) -> list[bytes]:
    """The wire objects for a contiguous range.

    Args:
        entries: The range, in order, beginning at `after + 1`.
        after: The offset that the reader has.
        replay: Whether they are marked as replayed.
        limit: Where merging stops, in bytes of merged bodies.

    Returns:
        Objects without their first member; the last one's `o` is that of the last entry.
    """
    if len(entries) == 1:
        e = entries[0]
        return [tail(e.off, after, e.name, e.body, replay)]
    newest = {(e.name, e.key): e.off for e in entries if e.key is not None}
    out: list[bytes] = []
    deltas: list[Entry] = []
    size = 0
    done = after  # what the objects in `out` cover

    def flush() -> None:
        nonlocal done, size
        if not deltas:
            return
        if len(deltas) == 1:
            body = deltas[0].body
        else:
            body = encode(join_deltas([x for e in deltas for x in _decode_delta(e.body)]))
        out.append(tail(deltas[-1].off, done, "delta", body, replay))
        done = deltas[-1].off
        deltas.clear()
        size = 0

    for e in entries:
        if e.name == "delta":
            if size and size + len(e.body) > limit:
                flush()
            deltas.append(e)
            size += len(e.body)
        elif e.key is not None and newest[(e.name, e.key)] != e.off:
            continue
        else:
            flush()
            out.append(tail(e.off, done, e.name, e.body, replay))
            done = e.off
    flush()
    return out


def frame(t: int, objects: Sequence[bytes]) -> bytes:
    """The text of one frame: an object, or an array of them, under one topic handle."""
    head = b'{"t":%d,' % t
    if len(objects) == 1:
        return head + objects[0]
    return b"[" + b",".join([head + o for o in objects]) + b"]"
