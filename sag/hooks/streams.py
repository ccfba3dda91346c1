"""What the decoders of all vendors need: a splitter of server-sent events, lenient JSON, how long to wait.

Pure; nothing here knows what an event or a body holds.
"""

from __future__ import annotations

import json
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from sag.hooks.provider import Chunk, ProviderError, Reasoning, Text

LINE = 1 << 20
SKIMMED = 4096  # bytes of an event that is cut by a read which are put together again to be skimmed
LONGEST_S = 86_400.0
_decode_texts = msgspec.json.Decoder(list[str]).decode
_BOM = b"\xef\xbb\xbf"
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


class SseEvents:
    """Splits a body into server-sent events, on bytes.

    Lines end with LF, CRLF or CR and with nothing else: U+2028, U+0085 and their like are legal inside of JSON, and
    parsers that split on them break valid streams. Bytes may be cut anywhere.

    Args:
        limit: The most bytes of one line, and of the data of one event.
    """

    __slots__ = (
        "_at_start", "_data", "_foot", "_head", "_limit", "_line", "_lines", "_size", "_skip_lf", "_slice", "_tail",
        "stray",
    )  # fmt: skip

    def __init__(self, limit: int = LINE) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._skip_lf = False
        self._at_start = True
        self._head = self._foot = b""
        self.stray: bytes | None = None
        """The first line that is none of server-sent events: JSON without `data:`, or something else altogether."""

    def learn(self, head: bytes, foot: bytes) -> None:
        """Have `skim` take events that are the same up to the text of one JSON string.

        Args:
            head: Such an event up to the text, the string's quotation mark included.
            foot: What is behind the text, from the other quotation mark to the blank line.
        """
        self._head, self._foot = head, foot
        self._line, self._lines = head.count(b"\n"), head.count(b"\n") + foot.count(b"\n")
        self._slice = slice(len(head) - head.rfind(b"\n") - 1, foot.index(b"\n") * -1)

    def forget(self) -> None:
        """Have nothing skimmed, until something is learnt again."""
        self._head = b""

    def skim(self, data: bytes) -> tuple[str, bytes]:
        """Take the events that `learn` told of off the data, all at once.

        Most of an answer is such events, and a server that floods sends dozens in one read.

        Returns:
            Their texts joined, and what is left to be fed; that is all where something else comes first.
        """
        head, foot, tail = self._head, self._foot, self._tail
        if not head or self._data or self._skip_lf or len(tail) > SKIMMED:
            return "", data
        if tail:
            data = bytes(tail) + data
            tail.clear()
        if not data.startswith(head):
            return "", data
        if data.endswith(foot) and b"\n" not in (one := data[len(head) : -len(foot)]):
            texts, end = [one], len(data)  # as nearly every read is
        elif (end := data.rfind(foot) + len(foot)) >= len(foot):
            texts = [line[self._slice] for line in data[: end - 2].split(b"\n")[self._line :: self._lines]]
            if head + (foot + head).join(texts) + foot != data[:end]:
                return "", data
        else:
            return "", data
        text = _join(texts)
        return ("", data) if text is None else (text, data[end:])

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The events that are complete now, each as its data lines; events without data are left out.

        Raises:
            ProviderError: provider.protocol for a line that is too long; nothing can be decoded any more.
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
                raise _too_long()
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
                    raise _too_long()
                self._data.append(line[5:])
            elif line[:1] != b":" and not line.startswith((b"event", b"id", b"retry")) and self.stray is None:
                self.stray = line[:4096]
        return events


class SseDecoder(ABC):
    """What decoders of server-sent events have in common (`Decoder`): a subclass says what one event means.

    It sets `_seen` with the first event that it knows, `_finished` with the end mark, and `_done` where nothing that
    follows counts. With `_skimmed` and `SseEvents.learn` it may have events of mere text read all at once.

    Args:
        limit: The most bytes of one line and of one event.
    """

    LESSONS = 4  # events of a kind that are learnt from without a gain, as where each has something of its own

    def __init__(self, limit: int = LINE) -> None:
        self._events = SseEvents(limit)
        self._failure: ProviderError | None = None
        self._finished = self._done = False
        self._seen = False
        self._skimmed: type[Text] | type[Reasoning] = Text
        self._lessons = self.LESSONS

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """The chunks that are complete now.

        Raises:
            ProviderError: provider.protocol, or what an error within the stream stands for.
        """
        if self._failure is not None:
            raise self._failure
        if not data:
            return ()
        out: list[Chunk] = []
        try:
            # What is learnt from the first events of a read holds for the others already.
            for last in (False, False, True):
                if not self._finished and not self._done:
                    text, data = self._events.skim(data)
                    if text:
                        out.append(self._skimmed(text))
                        self._lessons = self.LESSONS
                if not data:
                    break
                end = 0 if last else data.find(b"\n\n") + 2
                first, data = (data[:end], data[end:]) if end > 1 else (data, b"")
                for lines in self._events.feed(first):
                    self._take(lines[0] if len(lines) == 1 else b"\n".join(lines), lines, out)
            if self._events.stray is not None:
                self._check_stray(self._events.stray)
        except ProviderError as e:
            if not out:
                raise
            # What came before the error counts, however the two were cut; the error follows with the next call.
            self._failure = e
        return out

    def finish(self) -> Sequence[Chunk]:
        """What remains at the end of the body.

        Raises:
            ProviderError: provider.truncated without the end mark, provider.protocol if nothing that came was an event.
        """
        if self._failure is not None:
            raise self._failure
        out: list[Chunk] = []
        try:
            for lines in self._events.finish():
                self._take(b"\n".join(lines), lines, out)
        except ProviderError as e:
            # What was cut in the middle of an event is no JSON, but cut.
            if e.kind != "provider.protocol":
                raise
        if not self._finished:
            stray = self._events.stray
            if stray is not None:
                self._check_stray(stray)
                if not self._seen:
                    raise ProviderError("provider.protocol", "The model's server answers with no event stream.")
            raise ProviderError("provider.truncated", "The model's answer ended without its end mark.")
        return out

    @abstractmethod
    def _take(self, data: bytes, lines: list[bytes], out: list[Chunk]) -> None:
        """Decode one event: its data, and the lines that it came in."""

    @abstractmethod
    def _name(self, given: Any) -> ProviderError:
        """The error that JSON with an `error` stands for."""

    def _take_lines(self, lines: list[bytes], out: list[Chunk]) -> None:
        """An event whose data is no JSON: of a server that forgets blank lines, or of none."""
        if len(lines) > 1:
            for line in lines:
                self._take(line, [line], out)
        elif not self._finished:
            raise ProviderError("provider.protocol", "The model's server sends data that is no JSON.")

    def _check_stray(self, line: bytes) -> None:
        # Some proxies put their error's JSON into the stream as it is.
        if line.startswith(b"{"):
            body = load_json(line)
            if isinstance(body, dict) and body.get("error"):
                raise self._name(body)


def _join(texts: list[bytes]) -> str | None:
    """The inner parts of JSON strings, decoded and joined; None if one is not whole or is no text."""
    joined = texts[0] if len(texts) == 1 else b"".join(texts)
    try:
        if b"\\" in joined:
            # One that ends with a backslash may go on behind what looks like its end.
            given = _decode_texts(b'["%b"]' % b'","'.join(texts))
            whole = len(given) == len(texts) and not any(text.endswith(b"\\") for text in texts)
            return "".join(given) if whole else None
        return None if b'"' in joined or b"\r" in joined else joined.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _too_long() -> ProviderError:
    return ProviderError("provider.protocol", "The model's server sends a line that is too long.")


def load_json(data: bytes) -> Any:
    """JSON as Python's own reader takes it: control characters in strings, invalid UTF-8 and half surrogates pass.

    Returns:
        What it holds; None if it is no JSON.
    """
    try:
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def to_unicode(text: str) -> str:
    """The text with U+FFFD for lone surrogates."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_wait(headers: Mapping[str, str]) -> float | None:
    """How many seconds a server asks to wait, from 0 to a day; None if it does not say so in a way that is known.

    In this order: `retry-after-ms`, `retry-after` in seconds or as an HTTP date, and the reset of that
    `x-ratelimit-…` of which nothing remains.
    """
    wait = _number(headers.get("retry-after-ms"))
    if wait is not None:
        return _bound(wait / 1000)
    after = headers.get("retry-after", "").strip()
    wait = _number(after)
    if wait is not None:
        return _bound(wait)
    if after:
        try:
            then = parsedate_to_datetime(after).timestamp()
        except (ValueError, OverflowError):
            then = math.nan
        if then == then:
            return _bound(then - _server_time(headers))
    waits = [
        _duration(headers.get(f"x-ratelimit-reset-{what}", ""))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
    ]
    known = [wait for wait in waits if wait is not None]
    return _bound(max(known)) if known else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _bound(wait_s: float) -> float:
    return min(max(wait_s, 0.0), LONGEST_S)


def _server_time(headers: Mapping[str, str]) -> float:
    # Against the server's own clock, where it tells it: ours may be off by hours.
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return time.time()


def _duration(text: str) -> float | None:
    """`6m0s`, `1s`, `20ms` in seconds."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not match[0]:
        return None
    days, hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds + millis / 1000
