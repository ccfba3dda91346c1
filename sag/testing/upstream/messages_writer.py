"""Writes the events of Anthropic's Messages; text deltas from a template, because they are many."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sag.testing.upstream.flavor import Flavor
from sag.testing.upstream.request import Asked, seal
from sag.testing.upstream.script import (
    Calls,
    Fail,
    Json,
    Refusal,
    Script,
    Think,
    Token,
    ToolCall,
    Usage,
    cut,
    join,
    split,
)
from sag.testing.upstream.writer import Writer, encode, write_arguments

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesWriter(Writer):
    """Writes one answer. One block is open at a time; steps of one kind in a row go on with it.

    Args:
        sent: What of the prompt is new, was cached, and is cached from now on.
        keep: Is told the content once it is complete.
    """

    def __init__(
        self,
        flavor: Flavor,
        body: Json,
        asked: Asked,
        script: Script,
        number: int,
        sent: Usage,
        keep: Callable[[list[Json]], None],
    ) -> None:
        super().__init__(flavor, body, asked, script, number)
        self._sent, self._keep = sent, keep
        self._omits = (body.get("thinking") or {}).get("display") == "omitted"
        self._block: Json | None = None
        self._text: list[str] = []
        self._pinged = False
        self._refusal: Refusal | None = None
        self.content: list[Json] = []
        self.message: Json = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
        }

    def event(self, data: Any) -> bytes:
        name = data.get("type", "message") if isinstance(data, dict) else "message"
        return b"event: %b%bdata: %b%b" % (str(name).encode(), self.newline, encode(data), self.newline * 2)

    def open(self) -> bytes:
        if not self.script.role:
            return b""
        usage = self._write_usage() | {"output_tokens": 1}
        return self.event({"type": "message_start", "message": {**self.message, "content": [], "usage": usage}})

    def write(self, step: Token) -> list[bytes]:
        if isinstance(step, Calls):
            self.called = True
            return [piece for one in step.calls for piece in self._write_call(one, step.chars)]
        if isinstance(step, Refusal):
            self._refusal = step
            return []
        tokens = split(step.text)
        self.tokens += len(tokens)
        if isinstance(step, Think):
            self.thoughts += len(tokens)
            if step.redacted:
                data = seal("redacted", join(step.text))
                out = self._end() + self._begin({"type": "redacted_thinking", "data": data})
                return [out + self._end()]
            out = self._begin_or_go_on({"type": "thinking", "thinking": "", "signature": ""})
            if self._omits:
                return [out]
        else:
            out = self._begin_or_go_on({"type": "text", "text": ""})
        self._text += tokens
        member = "thinking" if isinstance(step, Think) else "text"
        pieces = self._write_deltas(member, tokens)
        return [out + pieces[0], *pieces[1:]] if pieces else [out]

    def _write_deltas(self, member: str, tokens: list[str]) -> list[bytes]:
        before, _, after = self._delta(type=f"{member}_delta", **{member: "X"}).rpartition(b'"X"')
        return [before + encode(token) + after for token in tokens]

    def _delta(self, **delta: Any) -> bytes:
        return self.event({"type": "content_block_delta", "index": len(self.content), "delta": delta})

    def _begin_or_go_on(self, block: Json) -> bytes:
        if self._block is not None and self._block["type"] == block["type"]:
            return b""
        return self._end() + self._begin(block)

    def _begin(self, block: Json) -> bytes:
        self._block = block
        out = self.event({"type": "content_block_start", "index": len(self.content), "content_block": block})
        if not self._pinged:
            self._pinged = True
            out += self.event({"type": "ping"})
        return out

    def _end(self) -> bytes:
        """Close the block that is open."""
        block = self._block
        if block is None:
            return b""
        out = b""
        text = "".join(self._text)
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block |= {"thinking": text, "signature": seal("thinking", text)}
            out = self._delta(type="signature_delta", signature=block["signature"])
        out += self.event({"type": "content_block_stop", "index": len(self.content)})
        self.content.append(block)
        self._block = None
        self._text.clear()
        return out

    def _write_call(self, call: ToolCall, chars: int) -> list[bytes]:
        before = self._end()
        arguments = write_arguments(call)
        id = call.id or f"toolu_{self.number}_{len(self.content)}"
        block: Json = {"type": "tool_use", "id": id, "name": call.name, "input": {}}
        pieces = [before + self._begin(block)]
        fragments = ["", *cut(arguments, chars)] if arguments else []
        pieces += [self._delta(type="input_json_delta", partial_json=one) for one in fragments]
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            given = {}
        self._block = {**block, "input": given if isinstance(given, dict) else {}}
        pieces[-1] += self._end()
        self.tokens += len(pieces)
        return pieces

    def fail(self, fail: Fail) -> bytes:
        return self.event(self.flavor.write_error(fail))

    def close(self) -> bytes:
        out = self._end()
        reason: str | None = _REASONS.get(self.finish, self.finish) or None
        if self._refusal is not None and self.script.finish is None:
            reason = "refusal"
        self.message["stop_reason"] = reason
        if reason == "stop_sequence":
            self.message["stop_sequence"] = (self.body.get("stop_sequences") or [None])[0]
        if reason == "refusal":
            told = self._refusal or Refusal()
            details = {"type": "refusal", "category": told.category, "explanation": told.text}
            self.message["stop_details"] = details
        self._keep(self.content)
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
        if reason:
            usage = self._write_usage() if self.script.usage else {"output_tokens": 0}
            out += self.event({"type": "message_delta", "delta": delta, "usage": usage})
        if self.script.done:
            out += self.event({"type": "message_stop"})
        return out

    def _write_usage(self) -> Json:
        given = self.script.usage
        if isinstance(given, dict):
            return dict(given)
        usage = given if isinstance(given, Usage) else self._sent
        return {
            "input_tokens": usage.input,
            "cache_creation_input_tokens": usage.cache_write,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.output if isinstance(given, Usage) else self.tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning or self.thoughts},
        }

    def whole(self) -> Json:
        return {**self.message, "usage": self._write_usage()}
