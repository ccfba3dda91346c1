"""Splits a body into server-sent events, on bytes; nothing here knows what the events hold.

Lines end with LF, CRLF or CR and with nothing else: U+2028, U+0085 and their like are legal inside of JSON, and parsers
that split on them break valid streams (reliability row 16). Bytes may be cut anywhere.
"""

from __future__ import annotations

LINE = 1 << 20
_BOM = b"\xef\xbb\xbf"


class TooLong(Exception):
    """A line, or the data of one event, is larger than the limit."""


class Events:
    """An incremental splitter.

    Args:
        limit: The most bytes of one line, and of the data of one event.
    """

    __slots__ = ("_at_start", "_data", "_limit", "_size", "_skip_lf", "_tail", "stray")

    def __init__(self, limit: int = LINE) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._skip_lf = False
        self._at_start = True
        self.stray: bytes | None = None
        """The first line that is none of server-sent events: JSON without `data:`, or something else altogether."""

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The events that are complete now, each as its data lines; events without data are left out.

        Raises:
            TooLong: Nothing can be decoded any more.
        """
        if b"\r" in data or self._skip_lf:
            data = self._unify(data)
        end = data.rfind(b"\n")
        tail = self._tail
        if data.find(b"\n") == end - 1 == len(data) - 2 and data.startswith(b"data:") and self._is_between(end):
            return [[data[5:-2]]]  # one whole event, as nearly every read is
        if end < 0:
            tail += data
            if len(tail) > self._limit:
                raise TooLong
            return []
        if tail:
            lines = (bytes(tail) + data[:end]).split(b"\n")
            tail.clear()
        else:
            lines = data[:end].split(b"\n")
        if len(data) > end + 1:
            tail += data[end + 1 :]
        return self._take(lines)

    def finish(self) -> list[list[bytes]]:
        """What the end of the body leaves: some servers end without a line end or a blank line."""
        lines = [bytes(self._tail), b""] if self._tail else [b""]
        self._tail.clear()
        return self._take(lines)

    def _is_between(self, size: int) -> bool:
        """Whether nothing of an event came yet, and one of this size may."""
        if self._tail or self._data or size > self._limit:
            return False
        self._at_start = False
        return True

    def _unify(self, data: bytes) -> bytes:
        # A \r ends its line at once, and a \n that comes with the next read belongs to it.
        if self._skip_lf and data.startswith(b"\n"):
            data = data[1:]
            self._skip_lf = False
        if data:
            self._skip_lf = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, lines: list[bytes]) -> list[list[bytes]]:
        events: list[list[bytes]] = []
        limit = self._limit
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            if not line:
                if self._data:
                    events.append(self._data)
                    self._data = []
                    self._size = 0
            elif line.startswith(b"data:"):
                self._size += len(line)
                if self._size > limit:
                    raise TooLong
                self._data.append(line[5:])
            elif line[:1] != b":" and not line.startswith((b"event", b"id", b"retry")) and self.stray is None:
                self.stray = line[:4096]
        return events
