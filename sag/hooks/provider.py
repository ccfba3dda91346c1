"""Providers: access to models. What is asked of one, and what it gives back.

A provider over HTTP is pure: it says what to send and decodes what arrives; the engine's transport owns connections,
deadlines, retries and cancel. One that is not HTTP streams by itself. Wire facts of vendors belong to plugins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct, field

from sag.errors import Fault
from sag.schema.events import Usage

Json = dict[str, Any]


class CallRequest(Struct):
    """A tool call that a model made: the name as the model knows it, the arguments as the text that it wrote."""

    id: str
    name: str
    arguments: str


class Message(Struct, omit_defaults=True):
    """One message of a transcript.

    Attributes:
        role: system, user, assistant or tool.
        text: Its text.
        calls: Of an assistant: the tools it called; each is answered by one tool message that follows.
        call: Of a tool: the id of the call that it answers.
        reasoning: Of an assistant: what it thought, for vendors that want it back.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    calls: list[CallRequest] = field(default_factory=list)
    call: str | None = None
    reasoning: str | None = None


class ToolSpec(Struct):
    """A tool as a model is offered it; the name fits `[a-zA-Z0-9_-]{1,64}`."""

    name: str
    description: str
    input: Json


class ModelRequest(Struct):
    """One model round.

    Attributes:
        model: The vendor's name of the model, without the provider's.
        messages: The transcript, the system prompt first.
        tools: What it may call.
        temperature, top_p, max_tokens, stop, seed, reasoning: Sent only when somebody set them.
        extra: Members for the vendor, sent as they are.
    """

    model: str
    messages: list[Message]
    tools: list[ToolSpec] = field(default_factory=list)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    reasoning: str | None = None
    extra: Json = field(default_factory=dict)


class HttpRequest(Struct):
    """What to send. `headers` may hold secrets; they are not logged.

    With an `Accept` header an answer of another media type is refused; JSON with an `error` goes to `Provider.error`.
    """

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


class Text(Struct):
    """More of the answer."""

    text: str


class Reasoning(Struct):
    """More of what the model thinks."""

    text: str


class CallFragment(Struct):
    """A piece of a tool call. Fragments of one index make one call; id and name come with the first."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class UsageChunk(Struct):
    """Tokens of the round so far; the last one counts."""

    usage: Usage


class Finish(Struct):
    """Why the model stopped: stop, tools, length, refused."""

    reason: Literal["stop", "tools", "length", "refused"]


Chunk = Text | Reasoning | CallFragment | UsageChunk | Finish


class ProviderError(Fault):
    """A model round failed.

    Args:
        kind: provider.rate_limit, .overloaded, .auth, .context, .refused, .protocol, .disconnected, .truncated,
            .timeout or .unreachable.
        message: Words for a person; of the vendor's own text at most 200 characters, without control characters.
        after_s: How long the vendor asks to wait.
    """

    def __init__(self, kind: str, message: str, *, after_s: float | None = None, retry: bool | None = None) -> None:
        after_ms = None if after_s is None else round(after_s * 1000)
        super().__init__(kind, printable(message), after_ms=after_ms, retry=retry)


def printable(text: str, limit: int = 200) -> str:
    """A vendor's text, fit to be shown: no control characters, cut to a length."""
    return "".join(c if c.isprintable() else " " for c in text[: limit * 2])[:limit]


class Decoder(Protocol):
    """Decodes one streamed answer. Bytes may be cut anywhere."""

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """The chunks that are complete now.

        An error behind good chunks is held back until they were taken: the transport calls `feed(b"")` then, which
        otherwise does nothing.

        Raises:
            ProviderError: The answer is not of the protocol, or carries an error.
        """

    def finish(self) -> Sequence[Chunk]:
        """What remains, at the end of the body.

        Raises:
            ProviderError: provider.truncated where the end mark is missing.
        """


class Model(Struct, omit_defaults=True):
    """A model as `hub` and `model.list` show it.

    Attributes:
        id: The vendor's name.
        label: For people.
        context: Tokens that fit, where known.
        demo: It is scripted, and the interface says so.
        default: It is used where nobody chose another.
    """

    id: str
    label: str = ""
    context: int | None = None
    demo: bool = False
    default: bool = False


@runtime_checkable
class HttpProvider(Protocol):
    """A provider over HTTP. All but `models` is pure."""

    name: str

    def prepare(self, request: ModelRequest) -> HttpRequest:
        """What to send for one round."""

    def decoder(self) -> Decoder:
        """A decoder for one answer."""

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error of an answer that is not 2xx; the body is cut at 64 KiB."""

    def models(self) -> Sequence[Model]:
        """The models that are known without asking anybody."""


@runtime_checkable
class StreamProvider(Protocol):
    """A provider that is not HTTP."""

    name: str

    def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        """The chunks of one round, as they come; `Finish` is the last, without it the answer counts as cut."""

    def models(self) -> Sequence[Model]:
        """The models that are known without asking anybody."""


Provider = HttpProvider | StreamProvider

encode_json = msgspec.json.Encoder().encode
