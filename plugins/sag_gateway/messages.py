"""What clients of the OpenAI API send, and what it means to the hub. Pure, but for pictures that are fetched.

A parameter that is not known is ignored, as servers of this API do. One that would change the answer and cannot be had
is refused, unless it says what holds anyhow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from sag.plugin import CallRequest, FilePart, Message, Part, TextPart, legal_name
from sag_gateway.completion import ClientTool, client_tool
from sag_gateway.files import inline, refuse

Json = dict[str, Any]
Fetch = Callable[[str], Awaitable[FilePart]]

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ImageUrl(Struct):
    """Where a picture is: a `data:` URL, or one to fetch."""

    url: str


class InlineFile(Struct):
    """A file as a `data:` URL."""

    file_data: str | None = None
    filename: str = ""


class Content(Struct):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    file: InlineFile | None = None


class Function(Struct):
    """A call of a function: its name, its arguments as the model wrote them."""

    name: str
    arguments: str = ""


class ToolCall(Struct):
    """A call in an assistant's message."""

    id: str
    function: Function


class Said(Struct):
    """A message of a request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Struct):
    """A function that the client has."""

    name: str
    description: str | None = None
    parameters: Json | None = None


class ToolDefinition(Struct):
    """A tool of the client's; `function` is the only type there is."""

    type: str
    function: FunctionDefinition | None = None


class StreamOptions(Struct):
    """What a stream tells besides."""

    include_usage: bool | None = None


class CompletionRequest(Struct):
    """The body of `POST /openai/v1/chat/completions`, as far as it is read.

    Attributes:
        config: A patch on the config of the run kind, which is the hub's own addition to the API.
    """

    model: str
    messages: Annotated[list[Said], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    config: Json | None = None
    n: int | None = None
    response_format: Any = None
    functions: Any = None
    function_call: Any = None
    logprobs: bool | None = None
    logit_bias: Json | None = None
    modalities: list[str] | None = None
    audio: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


# Of parameters that cannot be had: what holds anyhow.
_HELD: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none",),
    "logprobs": (False,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tool_choice": ("auto", "none"),
}


def check(asked: CompletionRequest) -> None:
    """Refuse what cannot be had.

    Raises:
        Fault: request.bad, with `param`.
    """
    for name, held in _HELD.items():
        value = getattr(asked, name)
        if value is not None and value not in held:
            but = f"; {' or '.join(msgspec.json.encode(one).decode() for one in held)} is" if held else ""
            raise refuse(name, f"This value of `{name}` is not supported{but}.", unsupported=True)
    for i, one in enumerate(asked.tools or ()):
        if one.type != "function" or one.function is None:
            raise refuse(f"tools[{i}].type", "Only tools of the type `function` are supported.", unsupported=True)
        if not NAME.fullmatch(one.function.name):
            raise refuse(f"tools[{i}].function.name", "A name is 1 to 64 letters, digits, `_` or `-`.")
    names = [one.function.name for one in asked.tools or () if one.function is not None]
    if len(set(names)) < len(names):
        raise refuse("tools", "Two tools have the same name.")
    _check_calls(asked.messages)
    if asked.messages[-1].role == "assistant":
        raise refuse(
            f"messages[{len(asked.messages) - 1}].role", "The last message has to be another's than the model's."
        )


def _check_calls(messages: Sequence[Said]) -> None:
    """Each call is answered once, by the messages that follow it."""
    left: list[str] = []
    for i, said in enumerate(messages):
        if said.role == "tool":
            if said.tool_call_id not in left:
                raise refuse(f"messages[{i}].tool_call_id", "A `tool` message answers a call of the message before it.")
            left.remove(said.tool_call_id)
            continue
        if left:
            break
        left = [call.id for call in said.tool_calls or ()] if said.role == "assistant" else []
    if left:
        raise refuse("messages", f"These `tool_calls` are not answered by `tool` messages: {', '.join(left)}.")


def config_of(asked: CompletionRequest) -> Json:
    """The config that a request stands for."""
    config = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "stop": [asked.stop] if isinstance(asked.stop, str) else asked.stop or None,
        "seed": asked.seed,
        "reasoning": asked.reasoning_effort,
    }
    return {k: v for k, v in config.items() if v is not None} | (asked.config or {})


def tools_of(asked: CompletionRequest) -> list[ClientTool]:
    """The client's tools."""
    given = [one.function for one in asked.tools or () if one.function is not None]
    return [client_tool(one.name, one.description, one.parameters) for one in given]


def digest(asked: CompletionRequest, count: int) -> str:
    """What tells a request with its first messages from others; how it wants to be told the answer is left out."""
    same = msgspec.structs.replace(asked, messages=asked.messages[:count], stream=None, stream_options=None)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()


def text_of(said: Said) -> str:
    """The words of a message."""
    if said.content is None or isinstance(said.content, str):
        return said.content or said.refusal or ""
    return "\n".join(part.text or part.refusal or "" for part in said.content)


async def transcript(messages: Sequence[Said], fetch: Fetch) -> list[Message]:
    """The messages as a model is sent them.

    Raises:
        Fault: request.bad, or what fetching raises.
    """
    return [await _message(said, f"messages[{i}]", fetch) for i, said in enumerate(messages)]


async def _message(said: Said, path: str, fetch: Fetch) -> Message:
    if said.role in ("system", "developer"):
        return Message("system", [TextPart(text_of(said))])
    if said.role == "tool":
        return Message("tool", [TextPart(text_of(said))], said.tool_call_id)
    if said.role == "user":
        return Message("user", await parts_of(said, path, fetch))
    parts: list[Part] = [TextPart(text)] if (text := text_of(said)) else []
    for call in said.tool_calls or ():
        parts.append(CallRequest(call.id, legal_name(call.function.name), call.function.arguments or "{}"))
    return Message("assistant", parts)


async def parts_of(said: Said, path: str, fetch: Fetch) -> list[Part]:
    """What a user's message consists of.

    Raises:
        Fault: request.bad, or what fetching raises.
    """
    if not isinstance(said.content, list):
        return [TextPart(said.content or "")]
    out: list[Part] = []
    for i, part in enumerate(said.content):
        at = f"{path}.content[{i}]"
        if part.type == "text":
            out.append(TextPart(part.text or ""))
        elif part.type == "image_url" and part.image_url is not None:
            url = part.image_url.url
            out.append(inline(url, "", at) if url.startswith("data:") else await fetch(url))
        elif part.type == "file" and part.file is not None and part.file.file_data:
            out.append(inline(part.file.file_data, part.file.filename, at))
        else:
            raise refuse(at, f"A part of the type `{part.type}` is not supported here.", unsupported=True)
    return out


def retold(messages: Sequence[tuple[str, str]]) -> str:
    """What was said before as text, for run kinds that take one message; each with its role."""
    names = {"user": "User", "assistant": "Assistant", "tool": "Tool", "system": "Instructions"}
    lines = [f"{names.get(role, 'Instructions')}: {text}" for role, text in messages if text.strip()]
    return "What was said before:\n\n" + "\n\n".join(lines) if lines else ""
