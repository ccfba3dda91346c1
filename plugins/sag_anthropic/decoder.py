"""Decodes streamed answers of Anthropic's Messages API.

Owns the wire form of its events; failures are named in `sag_anthropic.failure`. The common event takes one typed decode
of the members that are needed; what does not fit that (other types, broken Unicode) goes down a lenient and slower
road. Events, blocks and deltas that are not known are ignored, as Anthropic asks its clients to.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from sag.plugin import (
    CallFragment,
    Chunk,
    Finish,
    ProviderError,
    Reasoning,
    Replay,
    SseDecoder,
    Text,
    Usage,
    UsageChunk,
    load_json,
    to_unicode,
)
from sag_anthropic.failure import name_failure

Reason = Literal["stop", "tools", "length", "refused"]
Json = dict[str, Any]

# `pause_turn` leaves a turn of the vendor's own tools unfinished. It is not done, so it counts as cut for its length.
_REASONS: dict[str, Reason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tools",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "refusal": "refused",
}


class _Details(Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _Message(Struct, gc=False):
    usage: _Usage | None = None


class _StopDetails(Struct, gc=False):
    explanation: str | None = None


class _Delta(Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


class _Event(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    content_block: msgspec.Raw | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decode: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode


class _Block:
    """A content block that is open: what it began with, and what its deltas add."""

    __slots__ = ("call", "filled", "given", "kind", "signature", "thinking")

    def __init__(self, given: Json) -> None:
        self.given = given
        self.kind = given.get("type")
        self.call = -1
        self.filled = False
        self.thinking: list[str] = []
        self.signature = ""


class MessagesDecoder(SseDecoder):
    """The decoder of one answer (`sag.plugin.Decoder`).

    Args:
        limit: The most bytes of one line and of one event.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        super().__init__(limit)
        self._blocks: dict[int, _Block] = {}
        self._ids: set[str] = set()
        self._calls = 0
        self._spoke = False
        self._usage = [0, 0, 0, 0, 0]
        self._untold = False
        self._reason = ""
        self._explanation = ""

    def _name(self, given: Any) -> ProviderError:
        return name_failure(given)

    def _take(self, data: bytes, lines: list[bytes], out: list[Chunk]) -> None:
        if self._finished:
            return
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if data.strip() == b"[DONE]":  # a proxy's habit
                return
            read = _read_leniently(data)
            if read is None:
                self._take_lines(lines, out)
                return
            event = read
        self._seen = True
        before = len(out)
        self._read(event, out)
        if self._untold and len(out) > before:
            # What the input took comes at once, long before the model begins to answer; it is told when that does.
            self._untold = False
            out.insert(before, self._write_usage())

    def _read(self, event: _Event, out: list[Chunk]) -> None:
        kind = event.type
        if kind == "content_block_delta":
            self._take_delta(event.index or 0, event.delta, out)
        elif kind == "content_block_start":
            self._open(event, out)
        elif kind == "content_block_stop":
            self._close(event.index or 0, out)
        elif kind == "message_start":
            if event.message is not None and event.message.usage is not None:
                self._count(event.message.usage)
                self._untold = True
        elif kind == "message_delta":
            self._take_message(event, out)
        elif kind == "message_stop":
            self._end(out)
        elif kind == "error" or (kind is None and event.error is not None):
            raise name_failure({"error": load_json(bytes(event.error or b"null"))})

    def _open(self, event: _Event, out: list[Chunk]) -> None:
        index = event.index or 0
        self._close(index, out)
        given = load_json(bytes(event.content_block or b"null"))
        block = self._blocks[index] = _Block(_clean(given) if isinstance(given, dict) else {})
        if block.kind == "tool_use":
            given_id = block.given.get("id")
            id = given_id if isinstance(given_id, str) and given_id else ""
            if not id or id in self._ids:  # each call is answered under its id
                id = f"toolu_{secrets.token_hex(8)}"
            self._ids.add(id)
            block.call = self._calls
            self._calls += 1
            name = block.given.get("name")
            out.append(CallFragment(block.call, id, name if isinstance(name, str) else ""))
        elif block.kind in ("text", "thinking"):
            # Anthropic begins blocks empty; some who speak like it do not.
            began = {kind: text for kind in ("text", "thinking") if isinstance(text := block.given.get(kind), str)}
            self._take_delta(index, _Delta(text=began.get("text"), thinking=began.get("thinking")), out)

    def _take_delta(self, index: int, delta: _Delta | None, out: list[Chunk]) -> None:
        if delta is None:
            return
        block = self._blocks.get(index)
        if delta.text:
            self._spoke = True
            out.append(Text(delta.text))
        elif delta.thinking:
            if block is not None:
                block.thinking.append(delta.thinking)
            out.append(Reasoning(delta.thinking))
        elif delta.partial_json:
            if block is not None and block.call >= 0:
                block.filled = True
                out.append(CallFragment(block.call, arguments=delta.partial_json))
        elif delta.signature and block is not None:
            block.signature = delta.signature

    def _close(self, index: int, out: list[Chunk]) -> None:
        block = self._blocks.pop(index, None)
        if block is None:
            return
        if block.call >= 0:
            if not block.filled:
                given = block.given.get("input")
                arguments = json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else "{}"
                out.append(CallFragment(block.call, arguments=arguments))
        elif block.kind == "redacted_thinking":
            out.append(Replay(block.given))
        elif block.kind == "thinking":
            signature = block.signature or block.given.get("signature")
            if signature:  # without one it cannot go back
                thought = {"thinking": "".join(block.thinking), "signature": signature}
                out.append(Replay({**block.given, **thought}))

    def _take_message(self, event: _Event, out: list[Chunk]) -> None:
        delta = event.delta
        if delta is not None:
            self._reason = delta.stop_reason or self._reason
            if delta.stop_details is not None:
                self._explanation = delta.stop_details.explanation or self._explanation
        if event.usage is not None:
            self._count(event.usage)
            self._untold = False
            out.append(self._write_usage())

    def _count(self, usage: _Usage) -> None:
        # All counts are cumulative, and those of the input may come with the first event alone.
        details = usage.output_tokens_details
        told = (
            usage.input_tokens,
            usage.cache_creation_input_tokens,
            usage.cache_read_input_tokens,
            usage.output_tokens,
            details.thinking_tokens if details is not None else None,
        )
        self._usage = [max(known, new or 0) for known, new in zip(self._usage, told, strict=True)]

    def _write_usage(self) -> UsageChunk:
        fresh, written, cached, output, thinking = self._usage
        return UsageChunk(Usage(fresh + written + cached, output, thinking, cached, written))

    def _end(self, out: list[Chunk]) -> None:
        for index in sorted(self._blocks):
            self._close(index, out)
        self._finished = True
        reason = _REASONS.get(self._reason, "tools" if self._calls else "stop")
        if reason == "tools" and not self._calls:
            reason = "stop"
        if reason == "refused" and not self._spoke and self._explanation:
            out.append(Text(self._explanation))
        out.append(Finish(reason))


def _read_leniently(data: bytes) -> _Event | None:
    """An event whose types or whose Unicode are not as they should be; None if it is none at all."""
    given = load_json(data)
    if not isinstance(given, dict):
        return None
    delta, message = _dict(given.get("delta")), _dict(given.get("message"))
    return _Event(
        type=_text(given.get("type")),
        index=_int(given.get("index")),
        delta=_Delta(
            text=_text(delta.get("text")),
            thinking=_text(delta.get("thinking")),
            signature=_text(delta.get("signature")),
            partial_json=_text(delta.get("partial_json")),
            stop_reason=_text(delta.get("stop_reason")),
            stop_details=_StopDetails(_text(_dict(delta.get("stop_details")).get("explanation"))),
        ),
        content_block=_raw(given.get("content_block")),
        message=_Message(_usage(message.get("usage"))),
        usage=_usage(given.get("usage")),
        error=_raw(given.get("error")),
    )


def _usage(given: Any) -> _Usage | None:
    if not isinstance(given, dict):
        return None
    return _Usage(
        _int(given.get("input_tokens")),
        _int(given.get("cache_creation_input_tokens")),
        _int(given.get("cache_read_input_tokens")),
        _int(given.get("output_tokens")),
        _Details(_int(_dict(given.get("output_tokens_details")).get("thinking_tokens"))),
    )


def _raw(given: Any) -> msgspec.Raw | None:
    return msgspec.Raw(json.dumps(_clean(given)).encode()) if given else None


def _dict(given: Any) -> Json:
    return given if isinstance(given, dict) else {}


def _text(given: Any) -> str | None:
    return to_unicode(given) if isinstance(given, str) else None


def _int(given: Any) -> int | None:
    return int(given) if isinstance(given, int | float) and given == given and abs(given) < 1 << 53 else None


def _clean(given: Any) -> Any:
    if isinstance(given, str):
        return to_unicode(given)
    if isinstance(given, dict):
        return {to_unicode(str(k)): _clean(v) for k, v in given.items()}
    if isinstance(given, list):
        return [_clean(v) for v in given]
    return given
