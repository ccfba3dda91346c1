"""OpenAI's Responses interface: what is sent for a model round, and the decoder of its events.

Reasoning models think better on it: their thoughts are sent back to them, encrypted, since nothing is stored at the
vendor's. Chat completions are `sag_openai.chat` and `sag_openai.decoder`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    Message,
    ModelRequest,
    ProviderError,
    Reasoning,
    Replay,
    Text,
    TextPart,
    ThoughtPart,
    Usage,
    UsageChunk,
    load_json,
)
from sag_openai import lenient
from sag_openai.chat import IMAGES, data_url, unreadable, write_arguments
from sag_openai.decoder import StreamDecoder
from sag_openai.failure import name_failure

Json = dict[str, Any]

# What `input_file` takes, by the beginning of the media type.
_FILES = (
    "application/pdf",
    "text/",
    "application/json",
    "application/xml",
    "application/rtf",
    "application/msword",
    "application/vnd.ms-",
    "application/vnd.openxmlformats-officedocument.",
    "application/vnd.oasis.opendocument.",
)


# --- what is sent ---


def write(request: ModelRequest, *, reasons: bool, remembers: bool) -> Json:
    """The body of a request.

    Args:
        request: What is asked; `stop` and `seed` have no place in it.
        reasons: The model thinks: it is asked for a summary of its thoughts, and gets them back.
        remembers: The server can give thoughts in a form that it takes back.
    """
    system = [message for message in request.messages if message.role == "system"]
    body: Json = {
        "model": request.model,
        "input": [item for message in request.messages for item in _write(message, keep=reasons and remembers)],
        "stream": True,
        "store": False,
    }
    if system:
        body["instructions"] = "\n\n".join(message.text for message in system)
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input,
                "strict": False,  # it would demand schemas that list every member as required
            }
            for tool in request.tools
        ]
    if reasons and remembers:
        body["include"] = ["reasoning.encrypted_content"]
    if request.reasoning == "none":
        body["reasoning"] = {"effort": "none"}
    elif reasons or request.reasoning:
        effort = {"effort": request.reasoning} if request.reasoning else {}
        body["reasoning"] = {**effort, **({"summary": "auto"} if remembers else {})}
    members = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_output_tokens": request.max_tokens,
    }
    return body | {name: value for name, value in members.items() if value is not None}


def _write(message: Message, *, keep: bool) -> list[Json]:
    if message.role == "system":
        return []
    if message.role == "tool":
        output = _write_content(message) if message.files else message.text
        return [{"type": "function_call_output", "call_id": message.call, "output": output}]
    if message.role == "user":
        content = _write_content(message) if message.files else message.text
        return [{"type": "message", "role": "user", "content": content}]
    items: list[Json] = []
    thoughts: list[Json] = []  # they count only together with what they led to
    for part in message.parts:
        if isinstance(part, ThoughtPart):
            if keep and isinstance(part.replay, dict) and part.replay.get("type") == "reasoning":
                thoughts.append(part.replay)
        elif isinstance(part, TextPart):
            items += [*thoughts, {"type": "message", "role": "assistant", "content": part.text}]
            thoughts = []
        elif isinstance(part, CallRequest):
            arguments = write_arguments(part.arguments)
            call = {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments}
            items += [*thoughts, call]
            thoughts = []
    return items


def _write_content(message: Message) -> list[Json]:
    parts: list[Json] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            parts.append({"type": "input_text", "text": part.text})
        elif isinstance(part, FilePart):
            parts.append(_write_file(part))
    return parts


def _write_file(file: FilePart) -> Json:
    if file.mime in IMAGES:
        return {"type": "input_image", "image_url": data_url(file)}
    if file.mime.startswith(_FILES):
        return {"type": "input_file", "filename": file.name, "file_data": data_url(file)}
    return {"type": "input_text", "text": unreadable(file)}


# --- what comes ---


class _Event(Struct, gc=False):
    type: str = ""
    delta: str | None = None
    output_index: int | None = None
    item_id: str | None = None
    text: str | None = None
    arguments: str | None = None
    item: msgspec.Raw = lenient.NOTHING
    response: msgspec.Raw = lenient.NOTHING
    error: msgspec.Raw = lenient.NOTHING


class _Item(Struct):
    type: str = ""
    call_id: str | None = None
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _InputDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Incomplete(Struct):
    reason: str | None = None


class _Response(Struct):
    status: str | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: msgspec.Raw = lenient.NOTHING


_decode: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode
_NAMES = _Item.__struct_fields__
_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ResponsesDecoder(StreamDecoder):
    """The decoder of one answer of the Responses interface.

    Events that are not known are left out. An answer ends with `response.completed` or `.incomplete`; where that is
    missing it was cut.
    """

    def __init__(self, secret: str = "", limit: int = 1 << 20) -> None:
        # The last event holds the whole answer once more, in one line.
        super().__init__(secret, max(limit, 16 << 20))
        self._calls: dict[int | str | None, int] = {}  # the server's name of an item to our index
        self._filled: set[int] = set()
        self._told = False
        self._summed = False
        self._refused = False

    def _take(self, data: bytes, lines: list[bytes], out: list[Chunk]) -> None:
        if self._finished:
            return
        try:
            event = _decode(data)
        except _FAILURES:
            if data.strip() == b"[DONE]":
                return
            read = _read_leniently(data)
            if read is None:
                self._take_lines(lines, out)
                return
            event = read
        self._seen = True
        kind = event.type
        if kind == "response.output_text.delta":
            if event.delta:
                self._told = True
                out.append(Text(event.delta))
        elif kind == "response.function_call_arguments.delta":
            self._fill(_place(event), event.delta, out)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            if event.delta:
                self._summed = True
                out.append(Reasoning(event.delta))
        else:
            self._take_rare(event, data, out)

    def _take_rare(self, event: _Event, data: bytes, out: list[Chunk]) -> None:
        """Events that do not come by the token."""
        kind = event.type
        if kind == "response.output_item.added":
            self._begin(event, out)
        elif kind == "response.output_item.done":
            self._end_item(event, out)
        elif kind == "response.function_call_arguments.done":
            self._complete(_place(event), event.arguments, out)
        elif kind == "response.output_text.done":
            # A server that does not stream tells it all here.
            if event.text and not self._told:
                out.append(Text(event.text))
            self._told = False
        elif kind == "response.refusal.delta":
            self._refused = True
            out.append(Text(event.delta or ""))
        elif kind == "response.reasoning_summary_part.added":
            if self._summed:
                out.append(Reasoning("\n\n"))
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            self._end(event, out)
        elif kind == "error" or (not kind and event.error):
            given = load_json(data)
            raise name_failure(given, self._secret)

    def _begin(self, event: _Event, out: list[Chunk]) -> None:
        item = _read_item(event.item)
        if item.type == "function_call":
            self._open(_place(event, item), item, out)
            self._fill(_place(event, item), item.arguments, out)
        elif item.type == "reasoning":
            self._summed = False
        elif item.type == "message":
            self._told = False

    def _open(self, place: int | str | None, item: _Item, out: list[Chunk]) -> None:
        if place not in self._calls:
            self._calls[place] = len(self._calls)
            id = item.call_id or item.id or f"call_{secrets.token_hex(8)}"
            out.append(CallFragment(self._calls[place], id, item.name or ""))

    def _fill(self, place: int | str | None, arguments: str | None, out: list[Chunk]) -> None:
        index = self._calls.get(place)
        if index is not None and arguments:
            self._filled.add(index)
            out.append(CallFragment(index, arguments=arguments))

    def _complete(self, place: int | str | None, arguments: str | None, out: list[Chunk]) -> None:
        """A call is whole; some servers tell its arguments only now."""
        if self._calls.get(place) not in self._filled:
            self._fill(place, arguments, out)

    def _end_item(self, event: _Event, out: list[Chunk]) -> None:
        item = _read_item(event.item)
        if item.type == "function_call":
            self._open(_place(event, item), item, out)
            self._complete(_place(event, item), item.arguments, out)
        elif item.type == "reasoning":
            whole = load_json(bytes(event.item))
            # Without its encrypted form the item is only a name, for what the vendor was asked not to store.
            if isinstance(whole, dict) and whole.get("encrypted_content"):
                out.append(Replay(lenient.clean(whole)))

    def _end(self, event: _Event, out: list[Chunk]) -> None:
        response = _read_response(event.response)
        if event.type == "response.failed":
            given = load_json(bytes(response.error)) or "The answer failed."
            raise name_failure({"error": given}, self._secret)
        if event.type == "response.cancelled":
            raise ProviderError("provider.truncated", "The model's server broke its answer off.")
        self._finished = True
        if response.usage is not None:
            out.append(UsageChunk(_read_usage(response.usage)))
        why = response.incomplete_details.reason if response.incomplete_details else None
        if self._refused or why == "content_filter":
            out.append(Finish("refused"))
        elif event.type == "response.incomplete":
            out.append(Finish("length"))
        else:
            out.append(Finish("tools" if self._calls else "stop"))


def _place(event: _Event, item: _Item | None = None) -> int | str | None:
    """What tells one item of an answer from the others."""
    if event.output_index is not None:
        return event.output_index
    return item.id if item is not None else event.item_id


def _read_item(given: msgspec.Raw) -> _Item:
    try:
        return msgspec.json.decode(given or b"{}", type=_Item)
    except _FAILURES:
        loose = load_json(bytes(given))
        texts = {name: lenient.text(loose.get(name)) for name in _NAMES} if isinstance(loose, dict) else {}
        return _Item(**{name: text for name, text in texts.items() if text is not None})


def _read_response(given: msgspec.Raw) -> _Response:
    try:
        return msgspec.json.decode(given or b"{}", type=_Response)
    except _FAILURES:
        try:
            return msgspec.convert(lenient.clean(load_json(bytes(given))), _Response, strict=False)
        except msgspec.ValidationError:
            return _Response()  # how it ended is told by the event itself


def _read_usage(usage: _Usage) -> Usage:
    inner, outer = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        input=usage.input_tokens or 0,
        output=usage.output_tokens or 0,
        reasoning=(outer.reasoning_tokens if outer else 0) or 0,
        cached=(inner.cached_tokens if inner else 0) or 0,
        cache_write=(inner.cache_write_tokens if inner else 0) or 0,
    )


def _read_leniently(data: bytes) -> _Event | None:
    """An event whose types or whose Unicode are not as they should be; None if it is none at all."""
    given = load_json(data)
    if not isinstance(given, dict):
        return None
    return _Event(
        type=lenient.text(given.get("type")) or "",
        delta=lenient.text(given.get("delta")),
        output_index=lenient.whole(given.get("output_index")),
        item_id=lenient.text(given.get("item_id")),
        text=lenient.text(given.get("text")),
        arguments=lenient.text(given.get("arguments")),
        item=lenient.raw(given.get("item")),
        response=lenient.raw(given.get("response")),
        error=lenient.raw(given.get("error")),
    )
