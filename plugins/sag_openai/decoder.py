"""Decodes streamed chat completions of OpenAI and of the many servers that speak like it.

Owns the wire form of chunks and the oddities of servers; failures are named in `sag_openai.failure`. The common chunk
takes one typed decode of the members that are needed; what does not fit that (other types, broken Unicode) goes down a
lenient and slower road.
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
)
from sag_openai import details, lenient
from sag_openai.failure import name_failure

Json = dict[str, Any]
Reason = Literal["stop", "tools", "length", "refused"]

_REASONS: dict[str, Reason] = {
    "stop": "stop",
    "tool_calls": "tools",
    "function_call": "tools",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "refused",
}
_TEXTS = ("content", "reasoning", "reasoning_content")
_PROBE = "5d1c9a7e"
_UNKNOWN = b"\n", b""
_BROKEN = ("error", "abort")  # OpenRouter and vLLM give these as reasons


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    reasoning_details: msgspec.Raw = lenient.NOTHING
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = None


class _InputDetails(Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _CostDetails(Struct, gc=False):
    upstream_inference_cost: float | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cost: float | None = None
    cost_details: _CostDetails | None = None
    is_byok: bool | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = lenient.NOTHING
    object: str | None = None
    message: msgspec.Raw = lenient.NOTHING


_decode: Callable[[bytes], _Chunk] = msgspec.json.Decoder(_Chunk).decode


class StreamDecoder(SseDecoder):
    """What the decoders of both of OpenAI's interfaces have in common.

    Args:
        secret: The key, which is blotted out of the vendor's words.
        limit: The most bytes of one line and of one event.
    """

    def __init__(self, secret: str = "", limit: int = 1 << 20) -> None:
        super().__init__(limit)
        self._secret = secret

    def _name(self, given: Any) -> ProviderError:
        return name_failure(given, self._secret)


class ChatDecoder(StreamDecoder):
    """The decoder of one answer of chat completions.

    Args:
        secret: The key, which is blotted out of the vendor's words.
        limit: The most bytes of one line and of one event.
        router: It comes from OpenRouter: thoughts are to be replayed, and the cost is told.
    """

    def __init__(self, secret: str = "", limit: int = 1 << 20, *, router: bool = False) -> None:
        super().__init__(secret, limit)
        self._indexes: dict[int, int] = {}
        self._ids: list[str] = []
        self._filled: list[bool] = []
        self._router = router
        self._known = _UNKNOWN
        self._member = ""
        self._details: list[Json] = []
        self._refused = False

    def _take(self, data: bytes, lines: list[bytes], out: list[Chunk]) -> None:
        if self._done:
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if data.strip() == b"[DONE]":
                self._done = True
                return
            read = _read_leniently(data)
            if read is None:
                self._take_lines(lines, out)
                return
            chunk = read
        self._seen = True
        if chunk.error and (error := load_json(bytes(chunk.error))):
            raise name_failure({"error": error}, self._secret)
        if chunk.object == "error" and chunk.message:
            raise name_failure(load_json(data), self._secret)
        if chunk.choices:
            for choice in chunk.choices:
                if not choice.index:
                    self._take_choice(choice, out)
        if chunk.usage is not None:
            out.append(UsageChunk(_read_usage(chunk.usage, self._router)))
        if len(lines) == 1 and not (data.startswith(self._known[0]) and data.endswith(self._known[1])):
            self._learn(data, chunk)

    def _learn(self, data: bytes, chunk: _Chunk) -> None:
        """Have events like this one skimmed, if there is nothing in it but text."""
        delta = chunk.choices[0].delta if chunk.choices else None
        name = next((name for name in _TEXTS if getattr(delta, name, None)), "")
        if name and name != self._member:  # thoughts that cannot be skimmed do not count for the text behind them
            self._member, self._lessons = name, self.LESSONS
        if not name or not self._lessons:
            return
        self._lessons -= 1
        head, found, foot = data.partition(b'"%b"' % getattr(delta, name).encode())
        try:
            probe = _decode(b'%b"%b"%b' % (head, _PROBE.encode(), foot)) if found else _Chunk()
        except msgspec.DecodeError:
            return
        # If another text in this place makes another text of the answer and nothing else, any text does.
        if probe.usage is None and not probe.error and not probe.message and len(probe.choices or ()) == 1:
            choice = (probe.choices or [])[0]
            delta = choice.delta
            if delta is not None and not choice.index and not choice.finish_reason and getattr(delta, name) == _PROBE:
                setattr(delta, name, None)
                if not any(msgspec.structs.astuple(delta)):
                    self._known = head, foot
                    self._skimmed = Text if name == "content" else Reasoning
                    self._events.learn(b'data:%b"' % head, b'"%b\n\n' % foot)

    def _take_choice(self, choice: _Choice, out: list[Chunk]) -> None:
        delta = choice.delta
        if delta is not None and not self._finished:
            if delta.reasoning:
                out.append(Reasoning(delta.reasoning))
            elif delta.reasoning_content:
                out.append(Reasoning(delta.reasoning_content))
            if delta.reasoning_details and self._router:
                self._take_details(delta, out)
            if self._details and (delta.content or delta.tool_calls):
                self._give_details(out)
            if delta.content:
                out.append(Text(delta.content))
            if delta.refusal:
                self._refused = True
                out.append(Text(delta.refusal))
            if delta.tool_calls:
                for call in delta.tool_calls:
                    self._take_call(call, out)
            if delta.function_call is not None:
                self._take_call(_Call(0, None, delta.function_call), out)
        if choice.finish_reason and not self._finished:
            reason = choice.finish_reason
            if reason in _BROKEN:
                raise ProviderError("provider.truncated", "The model's server broke its answer off.")
            if self._details:
                self._give_details(out)
            out.append(self._close(_REASONS.get(reason, "stop")))

    def _take_details(self, delta: _Delta, out: list[Chunk]) -> None:
        """Keep what is to be sent back; where it alone holds the thoughts, tell them from it."""
        self._events.forget()  # they are given before any text
        self._known = _UNKNOWN
        given = lenient.objects(load_json(bytes(delta.reasoning_details)))
        self._details += given
        if not delta.reasoning and not delta.reasoning_content and (text := details.text(given)):
            out.append(Reasoning(text))

    def _give_details(self, out: list[Chunk]) -> None:
        out.append(Replay(details.merge(self._details)))
        self._details = []

    def _take_call(self, call: _Call, out: list[Chunk]) -> None:
        """Pass a fragment on under an index of its own.

        Fragments carry the server's index, and id and name come with the first. Some servers send every call whole
        under index 0 and tell them apart by id, some repeat id and name, some leave the index or the id out.
        """
        function = call.function or _Function()
        given = call.index if call.index is not None else (len(self._ids) if call.id or function.name else -1)
        index = self._indexes.get(given, -1) if given >= 0 else len(self._ids) - 1
        if call.index is None and call.id in self._ids:
            index = self._ids.index(call.id)
        other = index < 0 or (self._ids[index] != call.id if call.id else bool(function.name) and self._filled[index])
        arguments = function.arguments or ""
        if not other:
            if arguments:
                self._filled[index] = True
                out.append(CallFragment(index, arguments=arguments))
            return
        index = len(self._ids)
        self._indexes[max(given, 0)] = index
        # Each call is answered under its id, so one that is used twice is replaced.
        id = call.id if call.id and call.id not in self._ids else f"call_{secrets.token_hex(8)}"
        self._ids.append(call.id or id)
        self._filled.append(bool(arguments))
        out.append(CallFragment(index, id, function.name or "", arguments))

    def _close(self, reason: Reason) -> Finish:
        self._finished = True
        if self._refused:
            return Finish("refused")
        if reason == "stop" and self._ids:
            # Several servers say stop though they call tools.
            return Finish("tools")
        if reason == "tools" and not self._ids:
            return Finish("stop")
        return Finish(reason)


def _read_usage(usage: _Usage, router: bool) -> Usage:
    inner, outer = usage.prompt_tokens_details, usage.completion_tokens_details
    cost = usage.cost if router else None
    if cost is not None and usage.is_byok and usage.cost_details is not None:
        # On one's own key at the vendor, the router's part is not the whole.
        cost += usage.cost_details.upstream_inference_cost or 0.0
    return Usage(
        input=usage.prompt_tokens or 0,
        output=usage.completion_tokens or 0,
        reasoning=(outer.reasoning_tokens if outer else 0) or 0,
        cached=(inner.cached_tokens if inner else 0) or usage.prompt_cache_hit_tokens or 0,
        cache_write=(inner.cache_write_tokens if inner else 0) or 0,
        cost_usd=cost,
    )


def _read_leniently(data: bytes) -> _Chunk | None:
    """A chunk whose types or whose Unicode are not as they should be; None if it is none at all."""
    given = load_json(data)
    if not isinstance(given, dict):
        return None
    choices = []
    for choice in lenient.objects(given.get("choices")):
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        calls = [
            _Call(lenient.whole(call.get("index")), lenient.text(call.get("id")), _function(call.get("function")))
            for call in lenient.objects(delta.get("tool_calls"))
        ]
        legacy = delta.get("function_call")
        read = _Delta(
            content=lenient.text(delta.get("content")),
            reasoning=lenient.text(delta.get("reasoning")),
            reasoning_content=lenient.text(delta.get("reasoning_content")),
            refusal=lenient.text(delta.get("refusal")),
            reasoning_details=lenient.raw(delta.get("reasoning_details")),
            tool_calls=calls,
            function_call=_function(legacy) if legacy else None,
        )
        choices.append(_Choice(read, lenient.text(choice.get("finish_reason")), lenient.whole(choice.get("index"))))
    usage = given.get("usage")
    return _Chunk(
        choices=choices,
        usage=_usage(usage) if isinstance(usage, dict) else None,
        error=lenient.raw(given.get("error")),
        object=lenient.text(given.get("object")),
        message=lenient.raw(given.get("message")),
    )


def _usage(given: Json) -> _Usage:
    inner, outer, costs = (
        found if isinstance(found := given.get(name), dict) else {}
        for name in ("prompt_tokens_details", "completion_tokens_details", "cost_details")
    )
    return _Usage(
        lenient.whole(given.get("prompt_tokens")),
        lenient.whole(given.get("completion_tokens")),
        _InputDetails(lenient.whole(inner.get("cached_tokens")), lenient.whole(inner.get("cache_write_tokens"))),
        _OutputDetails(lenient.whole(outer.get("reasoning_tokens"))),
        lenient.whole(given.get("prompt_cache_hit_tokens")),
        lenient.number(given.get("cost")),
        _CostDetails(lenient.number(costs.get("upstream_inference_cost"))),
        given.get("is_byok") is True,
    )


def _function(given: Any) -> _Function:
    if not isinstance(given, dict):
        return _Function()
    arguments = given.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(lenient.clean(arguments), ensure_ascii=False)
    return _Function(lenient.text(given.get("name")), lenient.text(arguments))
