"""Writes what a model says, chunk by chunk, into the parts of one message of the conversation's topic."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sag.engine.ends import RunEnded, RunLimit
from sag.hooks.provider import CallFragment, Chunk, Finish, Reasoning, Replay, Text, UsageChunk, encode_json, printable
from sag.schema.events import PartClose, PartDrop, PartOpen, Usage
from sag.schema.ids import new_id, now_ms
from sag.settings import crash_at
from sag.store.usage import MOST_TOKENS, TOKENS, to_nano
from sag.topics.topic import Transaction

if TYPE_CHECKING:
    from sag.engine.run import Run

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

MAX_CALLS = 64
MAX_REPLAY = 256 << 10
MAX_ARGUMENTS = 512 << 10  # a call's event has to fit a frame


class PartWriter:
    """Writes the chunks of one model round into parts of its message.

    Args:
        run: Whose round it is.
        msg: The message.
        agent: On whose behalf.
        provider: Who answers: thoughts go back to it alone.
        model: Which of its models, by its full name.
        whole: Tell nothing before `tell`.

    Attributes:
        parts: The numbers of the parts so far.
        calls: Tool calls by the vendor's index: our id, the name, the part, its bytes, the bytes of all its parts, each
            as JSON.
        finish: Why the model stopped.
        notes: `decode`, where the answer held what was no Unicode.
        usage: What the attempts so far took, as far as their vendor said; each is priced by itself.
    """

    def __init__(
        self, run: Run, msg: str, agent: str | None, provider: str, model: str, *, whole: bool = False
    ) -> None:
        self._run, self._msg, self._agent, self._provider, self._model = run, msg, agent, provider, model
        self._kept: list[Chunk] | None = [] if whole else None
        self._topics, self._topic = run._topics, run._topic
        self._limit = run._engine.part_bytes
        self._text: tuple[str, int] | None = None  # kind and number of the open text or reasoning part
        self._size = 0
        self.parts: list[int] = []
        self._open: set[int] = set()
        self.calls: dict[int, list[Any]] = {}
        self._thinking_since: dict[int, int] = {}
        self._spent: Usage | None = None  # by attempts that were dropped
        self._now: Usage | None = None
        self.finish = "stop"
        self.notes: list[str] | None = None
        self._first = True

    def take(self, batch: Sequence[Chunk]) -> None:
        """Write a batch of chunks.

        Raises:
            RunLimit: Too many calls, or arguments too long.
            RunEnded: The run was closed.
        """
        if self._run.closed:
            raise RunEnded
        if self._topic.lost:
            raise self._topic.lost
        if self._kept is not None:
            self._kept += batch
            for told in batch:
                if isinstance(told, UsageChunk):  # it was taken, whether or not the rest is told
                    self._now = _possible(told.usage)
            return
        for chunk in batch:
            kind = type(chunk)
            if kind is Text:
                self._write("text", chunk.text)  # type: ignore[union-attr]
            elif kind is Reasoning:
                self._write("reasoning", chunk.text)  # type: ignore[union-attr]
            elif isinstance(chunk, CallFragment):
                self._call(chunk)
            elif isinstance(chunk, UsageChunk):
                self._now = _possible(chunk.usage)
            elif isinstance(chunk, Replay):
                self._end_thought(chunk.data)
            elif isinstance(chunk, Finish):
                self.finish = chunk.reason

    def tell(self) -> None:
        """Tell what was kept back, now that the answer is complete."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self.take(kept)

    @property
    def usage(self) -> Usage | None:
        if self._now is None:
            return self._spent
        now = self._run._engine.models.cost(self._model, self._now)
        return now if self._spent is None else self._spent.plus(now)

    def _write(self, kind: Literal["text", "reasoning"], text: str) -> None:
        if not text:
            return
        if self._first:
            self._first = False
            crash_at("first_delta")
        if not text.isascii() and "\ufffd" in text:
            self.notes = ["decode"]
        size = _size(text)
        if self._text is not None and self._text[0] == kind and self._size + size <= self._limit:
            self._size += size
            self._topics.delta(self._topic, self._text[1], text)
            return
        for piece in _pieces(text, self._limit):
            self._end_text()
            self._text = (kind, self._new_part(kind, piece))
            self._size = _size(piece)

    def _end_text(self, replay: Json | None = None) -> None:
        if self._text is not None:
            tx = self._run._begin()
            self._close_part(tx, self._text[1], replay)
            tx.submit()
            self._text = None

    def _end_thought(self, data: Any) -> None:
        replay = {"provider": self._provider, "data": data}
        if (size := len(msgspec.json.encode(replay))) > MAX_REPLAY:
            log.warning(
                "run %s: %s wants %d bytes back with a thought, which is too much", self._run.id, self._provider, size
            )
            return
        if self._text is None or self._text[0] != "reasoning":
            self._end_text()
            self._text = ("reasoning", self._new_part("reasoning", ""))
        self._end_text(replay)

    def _new_part(self, kind: Any, text: str, call: str | None = None, name: str | None = None) -> int:
        if self._run.closed:
            raise RunEnded
        part: int = self._topic.fold.last_part + 1  # type: ignore[attr-defined]
        now = now_ms()
        if kind == "reasoning":
            self._thinking_since[part] = now
        event = PartOpen(part, self._run.id, self._msg, kind, now, call, self._agent, name)
        self._topics.open_part(self._topic, event, part, text)
        self.parts.append(part)
        self._open.add(part)
        return part

    def _call(self, fragment: CallFragment) -> None:
        call = self.calls.get(fragment.index)
        text = fragment.arguments
        size = _size(text)
        if (size if call is None else call[4] + size) > MAX_ARGUMENTS:
            raise RunLimit(f"The arguments of a tool call are larger than {MAX_ARGUMENTS} bytes.")
        if call is None:
            if len(self.calls) >= MAX_CALLS:
                raise RunLimit(f"The model asked for more than {MAX_CALLS} tool calls in one step.")
            self._end_text()
            first, *rest = _pieces(text, self._limit)
            id, name = new_id("k"), printable(fragment.name or "")
            part = self._new_part("tool_args", first, id, name)
            call = self.calls[fragment.index] = [id, name, part, _size(first), 0]
        elif call[3] + size <= self._limit:
            rest = []
            if text:
                self._topics.delta(self._topic, call[2], text)
                call[3] += size
        else:
            rest = _pieces(text, self._limit)
        call[4] += size
        for piece in rest:
            tx = self._run._begin()
            self._close_part(tx, call[2])
            tx.submit()
            call[2], call[3] = self._new_part("tool_args", piece, call[0], call[1]), _size(piece)

    def cut(self, tx: Transaction) -> None:
        """Close what is open as it is."""
        for part in sorted(self._open):
            self._close_part(tx, part, partial=True)
        self._text = None

    def _close_part(self, tx: Transaction, part: int, replay: Json | None = None, *, partial: bool = False) -> None:
        self._topics.flush_deltas(self._topic, tx)
        found = self._topic.fold.parts.get(part)  # type: ignore[attr-defined]
        since = self._thinking_since.pop(part, None)
        ms = None if since is None else max(0, now_ms() - since)
        tx.append(self._topic, PartClose(part, len(found[1]["text"]) if found else 0, partial, ms, replay))
        self._topics.close_part(self._topic, part)
        self._open.discard(part)

    def close(self, tx: Transaction) -> str:
        """Close what is open, in order, and give the text. An empty answer is an empty part: the round was not cut."""
        if not self.parts:
            self._new_part("text", "")
        for part in sorted(self._open):
            self._close_part(tx, part)
        self._text = None
        parts = self._topic.fold.parts  # type: ignore[attr-defined]
        return "".join(parts[n][1]["text"] for n in self.parts if n in parts and parts[n][1]["kind"] == "text")

    def drop(self, tx: Transaction, why: Literal["provider_retry", "fallback", "config"]) -> None:
        """Void what came."""
        self._topics.flush_deltas(self._topic, tx)
        for part in self.parts:
            tx.append(self._topic, PartDrop(part, why))
            self._topics.close_part(self._topic, part)
        self.parts, self._open, self.calls, self._text = [], set(), {}, None
        self._kept = None if self._kept is None else []
        self._spent, self._now = self.usage, None


class Ear:
    """Takes a model round that nobody sees: what a tool asked the model.

    Args:
        run: Whose round it is.
        model: Which model, by its full name.

    Attributes:
        text, finish, usage: As of a `PartWriter`.
    """

    def __init__(self, run: Run, model: str) -> None:
        self._run, self._model = run, model
        self._pieces: list[str] = []
        self._spent: Usage | None = None
        self._now: Usage | None = None
        self.finish = "stop"

    def take(self, batch: Sequence[Chunk]) -> None:
        """Take a batch of chunks.

        Raises:
            RunEnded: The run was closed.
        """
        if self._run.closed:
            raise RunEnded
        for chunk in batch:
            if isinstance(chunk, Text):
                self._pieces.append(chunk.text)
            elif isinstance(chunk, UsageChunk):
                self._now = _possible(chunk.usage)
            elif isinstance(chunk, Finish):
                self.finish = chunk.reason

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def usage(self) -> Usage | None:
        if self._now is None:
            return self._spent
        now = self._run._engine.models.cost(self._model, self._now)
        return now if self._spent is None else self._spent.plus(now)

    def drop(self, tx: Transaction, why: str) -> None:
        """Void what came."""
        self._pieces.clear()
        self._spent, self._now = self.usage, None


def _possible(usage: Usage) -> Usage:
    """A vendor's figures, those that cannot be bounded as where they are counted (`sag.store.usage`)."""
    tokens = {name: min(max(int(getattr(usage, name)), 0), MOST_TOKENS) for name in TOKENS}
    return Usage(**tokens, cost_usd=usage.cost_usd if to_nano(usage.cost_usd) is not None else None)


def _size(text: str) -> int:
    """The bytes of a text within JSON, which is what events and snapshots are bounded by: a control character has 6."""
    return len(encode_json(text)) - 2


def _pieces(text: str, limit: int) -> list[str]:
    """Text in pieces of at most `limit` bytes."""
    if len(text) * 6 <= limit or len(text) < 2 or _size(text) <= limit:
        return [text]
    middle = len(text) // 2
    return _pieces(text[:middle], limit) + _pieces(text[middle:], limit)
