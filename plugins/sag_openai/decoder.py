"""Decodes streamed chat completions of OpenAI and of the many servers that speak like it.

Owns the wire form of chunks and the oddities of servers; failures are named in `sag_openai.failure`. The common chunk
takes one typed decode of the members that are needed; what does not fit that (other types, broken Unicode) goes down a
lenient and slower road.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from sag.plugin import (
    CallFragment,
    Chunk,
    Finish,
    ProviderError,
    Reasoning,
    SseEvents,
    Text,
    Usage,
    UsageChunk,
    load_json,
    to_unicode,
)
from sag_openai.failure import name_failure

Reason = Literal["stop", "tools", "length", "refused"]

_REASONS: dict[str, Reason] = {
    "stop": "stop",
    "tool_calls": "tools",
    "function_call": "tools",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "refused",
}
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
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int | None = None


class _InputDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw | None = None
    object: str | None = None
    message: msgspec.Raw | None = None


_decode: Callable[[bytes], _Chunk] = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """The decoder of one answer (`sag.plugin.Decoder`).

    Args:
        secret: The key, which is blotted out of the vendor's words.
        limit: The most bytes of one line and of one event.
    """

    def __init__(self, secret: str = "", limit: int = 1 << 20) -> None:
        self._events = SseEvents(limit)
        self._secret = secret
        self._indexes: dict[int, int] = {}
        self._ids: list[str] = []
        self._filled: list[bool] = []
        self._failure: ProviderError | None = None
        self._refused = False
        self._finished = False
        self._done = False
        self._seen = False

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """The chunks that are complete now.

        Raises:
            ProviderError: provider.protocol, or what an error within the stream stands for.
        """
        if self._failure is not None:
            raise self._failure
        if not data:
            return ()
        events = self._events.feed(data)
        out: list[Chunk] = []
        try:
            for lines in events:
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
            ProviderError: provider.truncated without a finish_reason and `[DONE]`, provider.protocol if nothing that
                came was an event.
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
                if len(lines) > 1:
                    # A server that forgets blank lines.
                    for line in lines:
                        self._take(line, [line], out)
                    return
                if self._finished:
                    return
                raise ProviderError("provider.protocol", "The model's server sends data that is no JSON.") from None
            chunk = read
        self._seen = True
        if chunk.error is not None and chunk.error not in (b"null", b"{}", b'""', b"false"):
            raise name_failure({"error": load_json(bytes(chunk.error))}, self._secret)
        if chunk.object == "error" and chunk.message is not None:
            raise name_failure(load_json(data), self._secret)
        if chunk.choices:
            for choice in chunk.choices:
                if not choice.index:
                    self._take_choice(choice, out)
        if chunk.usage is not None:
            out.append(UsageChunk(_read_usage(chunk.usage)))

    def _take_choice(self, choice: _Choice, out: list[Chunk]) -> None:
        delta = choice.delta
        if delta is not None and not self._finished:
            if delta.reasoning:
                out.append(Reasoning(delta.reasoning))
            elif delta.reasoning_content:
                out.append(Reasoning(delta.reasoning_content))
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
            out.append(self._close(_REASONS.get(reason, "stop")))

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

    def _check_stray(self, line: bytes) -> None:
        # Some proxies put their error's JSON into the stream as it is.
        if line.startswith(b"{"):
            body = load_json(line)
            if isinstance(body, dict) and body.get("error"):
                raise name_failure(body, self._secret)


def _read_usage(usage: _Usage) -> Usage:
    inner, outer = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        input=usage.prompt_tokens or 0,
        output=usage.completion_tokens or 0,
        reasoning=(outer.reasoning_tokens if outer else 0) or 0,
        cached=(inner.cached_tokens if inner else 0) or usage.prompt_cache_hit_tokens or 0,
    )


def _read_leniently(data: bytes) -> _Chunk | None:
    """A chunk whose types or whose Unicode are not as they should be; None if it is none at all."""
    given = load_json(data)
    if not isinstance(given, dict):
        return None
    choices = []
    for choice in _dicts(given.get("choices")):
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        calls = [
            _Call(_int(call.get("index")), _text(call.get("id")), _function(call.get("function")))
            for call in _dicts(delta.get("tool_calls"))
        ]
        legacy = delta.get("function_call")
        read = _Delta(
            content=_text(delta.get("content")),
            reasoning=_text(delta.get("reasoning")),
            reasoning_content=_text(delta.get("reasoning_content")),
            refusal=_text(delta.get("refusal")),
            tool_calls=calls,
            function_call=_function(legacy) if legacy else None,
        )
        choices.append(_Choice(read, _text(choice.get("finish_reason")), _int(choice.get("index"))))
    usage = given.get("usage")
    error = given.get("error")
    return _Chunk(
        choices=choices,
        usage=_usage(usage) if isinstance(usage, dict) else None,
        error=msgspec.Raw(json.dumps(_clean(error)).encode()) if error else None,
        object=_text(given.get("object")),
        message=msgspec.Raw(b"1") if given.get("message") else None,
    )


def _usage(given: dict[str, Any]) -> _Usage:
    inner, outer = given.get("prompt_tokens_details"), given.get("completion_tokens_details")
    return _Usage(
        _int(given.get("prompt_tokens")),
        _int(given.get("completion_tokens")),
        _InputDetails(_int(inner.get("cached_tokens"))) if isinstance(inner, dict) else None,
        _OutputDetails(_int(outer.get("reasoning_tokens"))) if isinstance(outer, dict) else None,
        _int(given.get("prompt_cache_hit_tokens")),
    )


def _function(given: Any) -> _Function:
    if not isinstance(given, dict):
        return _Function()
    arguments = given.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(_clean(arguments), ensure_ascii=False)
    return _Function(_text(given.get("name")), _text(arguments))


def _text(given: Any) -> str | None:
    if isinstance(given, str):
        return to_unicode(given)
    if isinstance(given, list):
        # Content as parts: [{"type": "text", "text": …}]
        return "".join(_text(part.get("text")) or "" for part in _dicts(given))
    return None


def _dicts(given: Any) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


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
