"""What an answer is made of: steps that say what happens, in words of no vendor. A format writes them."""

from __future__ import annotations

import gzip
import re
from typing import Any, Literal

from msgspec import Struct, field

Json = dict[str, Any]


class Say(Struct):
    """Text of the answer; a string is sent word by word, a list token by token."""

    text: str | list[str]


class Think(Struct):
    """Reasoning.

    Attributes:
        text: As in `Say`.
        member: Where it stands, if not where the format has it: in chat `reasoning` (vLLM, Ollama, OpenRouter) or
            `reasoning_content` (DeepSeek, older vLLM), in Responses `reasoning_text` for thoughts that are no summary.
        redacted: It is counted and not shown: a `redacted_thinking` block, `encrypted_content` alone, nothing in chat.
    """

    text: str | list[str]
    member: str = ""
    redacted: bool = False


class ToolCall(Struct):
    """A call; arguments given as text are sent as they are, valid or not.

    In an answer of Anthropic's that is not streamed, arguments are an object: text that is none becomes `{}` there.
    Empty text stands for a call without a single fragment of arguments.
    """

    name: str
    arguments: Json | str = field(default_factory=dict)
    id: str | None = None


class Calls(Struct):
    """Tool calls in parallel.

    Attributes:
        calls: The calls.
        chars: Characters of arguments per fragment; 3 cuts inside of escapes.
        interleaved: In chat, the fragments of all calls come in turn, told apart by index, else one call after the
            other, as in the other formats always.
        whole: In chat, each call comes in one fragment, all under index 0, as from older Ollama.
    """

    calls: list[ToolCall]
    chars: int = 3
    interleaved: bool = True
    whole: bool = False


class Refusal(Struct):
    """The model refuses: `refusal` of OpenAI's formats, the stop reason `refusal` with its details of Anthropic's."""

    text: str = "I cannot help with that."
    category: str | None = None


class Fail(Struct):
    """An error, in the vendor's form; in a stream it is the last that comes.

    Attributes:
        status: The HTTP status that it stands for.
        message, type, code, param: What it tells; the vendor's own for the status where they are left out.
        members: Further members of the error object, such as OpenRouter's `metadata`.
    """

    status: int = 500
    message: str = "It failed."
    type: str = ""
    code: str | int | None = None
    param: str | None = None
    members: Json = field(default_factory=dict)


class Emit(Struct):
    """Any object as an event: a chunk of another vendor, a `ping`, an event or a delta of a type that nobody knows.

    Where events have names (Responses, Anthropic), its `type` is the name.
    """

    data: Any


class Raw(Struct):
    """Bytes of the body, as they are."""

    data: bytes


class Comment(Struct):
    """Comments, such as OpenRouter's keep-alives; without a count until the client leaves."""

    text: str = "OPENROUTER PROCESSING"
    count: int | None = 1
    every_s: float = 0.0


class LongLine(Struct):
    """One line of so many bytes."""

    size: int


class Wait(Struct):
    """A pause in seconds."""

    seconds: float


class Hang(Struct):
    """Nothing more; the connection stays open until the client leaves."""


class Cut(Struct):
    """The connection ends here: by FIN in the middle of a chunk, or by RST."""

    how: Literal["fin", "rst"] = "fin"


Token = Say | Think | Calls | Refusal
Step = Token | Fail | Emit | Raw | Comment | LongLine | Wait | Hang | Cut


class Usage(Struct):
    """Tokens, each kind counted by itself: `input` is neither cached nor written to the cache.

    `reasoning` is part of `output`.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


class Script(Struct):
    """One answer.

    Attributes:
        steps: What is streamed, in order. To who wants no stream they come as one object; `Wait`, `Hang` and `Cut`
            happen before it, and what is of streams alone is left out.
        status: The HTTP status. An error's has a `Fail` as its only step.
        headers: Further headers; they win over the usual ones.
        body: A whole body instead of a stream.
        before_s: How long nothing happens before the head is sent, as while a model is loaded.
        head: Instead of an HTTP answer: nothing at all, FIN, RST, or bytes that are no HTTP.
        tokens_per_s: The pace; the server's own where it is left out.
        role: Whether the format's beginning comes: the chunk with the role alone, `message_start`, `response.created`.
        finish: Why it ends: `stop`, `length`, `tool_calls`, `content_filter`, or a word of the vendor's own such as
            `pause_turn` or `failed`. By default `tool_calls` after calls, else `stop`; "" leaves it out.
        usage: Whether usage is told (in chat if the client asked for it), or the numbers themselves: as `Usage`, or
            an object as it is.
        done: Whether the end mark comes: `[DONE]`, `message_stop`, `response.completed`.
        newline: The line end of events.
        bom: Whether the body begins with a byte order mark.
        segment: Bytes per write, for bodies that are cut anywhere; 0 for whole events.
        framing: `chunked`, or `close`: the body ends with the connection.
    """

    steps: list[Step] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    before_s: float = 0.0
    head: Literal["send", "hang", "fin", "rst", "garbage"] = "send"
    tokens_per_s: float | None = None
    role: bool = True
    finish: str | None = None
    usage: bool | Usage | Json = True
    done: bool = True
    newline: str = "\n"
    bom: bool = False
    segment: int = 0
    framing: Literal["chunked", "close"] = "chunked"


def say(text: str | list[str], **given: Any) -> Script:
    """An answer of text alone; `given` are further members of `Script`."""
    return Script([Say(text)], **given)


def call(name: str, arguments: Json | str | None = None, **given: Any) -> Script:
    """An answer that calls one tool."""
    return Script([Calls([ToolCall(name, arguments if arguments is not None else {})])], **given)


def fail(
    status: int,
    message: str = "It failed.",
    *,
    type: str = "",
    code: str | int | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> Script:
    """An error before the stream, with the vendor's body; `members` are further ones of its error object."""
    return Script([Fail(status, message, type, code, param, members)], status, headers or {})


def gzip_bomb(size: int = 50 << 20) -> Script:
    """A small compressed body that becomes `size` bytes."""
    body = gzip.compress(b"data: " + b"0" * size, 9)
    return Script(body=body, headers={"content-type": "text/event-stream", "content-encoding": "gzip"})


def split(text: str | list[str]) -> list[str]:
    """The tokens of a text."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or ([text] if text else []) if isinstance(text, str) else text


def join(text: str | list[str]) -> str:
    """The text of tokens."""
    return text if isinstance(text, str) else "".join(text)


def cut(text: str, size: int) -> list[str]:
    """Fragments of a text."""
    return [text[i : i + size] for i in range(0, len(text), size)]
