"""Providers: access to models. What is asked of one, and what it gives back.

A provider over HTTP is pure: it says what to send and decodes what arrives; the engine's transport owns connections,
deadlines, retries and cancel. One that is not HTTP streams by itself. Wire facts of vendors belong to plugins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct, field

from sag.errors import Fault
from sag.schema.events import Usage
from sag.secret import blot

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
Ability = Literal["tools", "images", "files", "reasoning", "json"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextPart(Struct, tag="text"):
    """Text of a message."""

    text: str


class FilePart(Struct, tag="file"):
    """A file or an image of a message; the type tells which.

    Attributes:
        mime: Its media type, `image/png`, `application/pdf`.
        name: Its name, as the user knows it.
        data: Its bytes.
    """

    mime: str
    name: str
    data: bytes

    @property
    def is_image(self) -> bool:
        return self.mime.startswith("image/")


class ThoughtPart(Struct, tag="thought"):
    """What a model thought.

    Attributes:
        text: In words; may be empty.
        replay: What the decoder gave as `Replay` with it; None if there was none or it is another provider's, since no
            vendor takes those of another.
    """

    text: str
    replay: Any = None


class CallRequest(Struct, tag="call"):
    """A tool call that a model made: the name as the model knows it, the arguments as the text that it wrote."""

    id: str
    name: str
    arguments: str


Part = TextPart | FilePart | ThoughtPart | CallRequest


class Message(Struct, omit_defaults=True):
    """One message of a transcript.

    Attributes:
        role: system, user, assistant or tool.
        parts: What it consists of, in order. An assistant's has text, thoughts and calls, each call answered by one
            tool message that follows; a user's and a tool's have text and files.
        call: Of a tool: the id of the call that it answers.
        failed: Of a tool: the call failed.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: list[Part] = field(default_factory=list)
    call: str | None = None
    failed: bool = False

    @property
    def text(self) -> str:
        """Its text."""
        if len(self.parts) == 1 and isinstance(part := self.parts[0], TextPart):  # as nearly every message's
            return part.text
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def calls(self) -> list[CallRequest]:
        """The tools that it calls."""
        return [part for part in self.parts if isinstance(part, CallRequest)]

    @property
    def files(self) -> list[FilePart]:
        """Its files and images."""
        return [part for part in self.parts if isinstance(part, FilePart)]

    @property
    def thoughts(self) -> list[ThoughtPart]:
        """What was thought before and between the rest."""
        return [part for part in self.parts if isinstance(part, ThoughtPart)]


def text_message(role: Literal["system", "user", "assistant", "tool"], text: str) -> Message:
    """A message of text alone."""
    return Message(role, [TextPart(text)])


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
        temperature, top_p, max_tokens, stop, seed: Sent only when somebody set them.
        reasoning: How much the model is to think; sent only when somebody set it.
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
    reasoning: Effort | None = None
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


class Replay(Struct):
    """What the vendor wants to have back unchanged with the thoughts that were told since the last text or call.

    It ends them; without any it stands for thoughts that are not shown. Plain JSON, kept in the conversation.
    """

    data: Any


class CallFragment(Struct):
    """A piece of a tool call. Fragments of one index make one call; id and name come with the first."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class UsageChunk(Struct):
    """Tokens of the round so far; the last one counts. A cost is given only where the vendor told it."""

    usage: Usage


class Finish(Struct):
    """Why the model stopped: stop, tools, length, refused."""

    reason: Literal["stop", "tools", "length", "refused"]


Chunk = Text | Reasoning | Replay | CallFragment | UsageChunk | Finish


class ProviderError(Fault):
    """A model round failed.

    Args:
        kind: provider.rate_limit, .overloaded, .auth, .context, .refused, .protocol, .disconnected, .truncated,
            .timeout or .unreachable.
        message: Words for a person; of the vendor's own text at most 200 characters, without control characters.
        after_s: How long the vendor asks to wait.
        retry: Whether trying again may help; by the kind where it is left out.
        status: The HTTP status of the answer, where there was one.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        after_s: float | None = None,
        retry: bool | None = None,
        status: int | None = None,
    ) -> None:
        after_ms = None if after_s is None else round(after_s * 1000)
        super().__init__(kind, printable(blot(message)), after_ms=after_ms, retry=retry)
        self.upstream = status
        """The HTTP status of the vendor's answer, where there was one."""
        self.request: str | None = None
        """The vendor's id of the answer, where it has told one."""


def printable(text: str, limit: int = 200) -> str:
    """A vendor's text, fit to be shown: no control characters, cut to a length."""
    return "".join(c if c.isprintable() else " " for c in text[: limit * 2])[:limit]


class Decoder(Protocol):
    """Decodes one streamed answer. Bytes may be cut anywhere.

    One that holds text back until it knows what it is has the member `held`, a count that grows meanwhile: so the
    upstream is not taken for silent.
    """

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """The chunks that are complete now.

        An error behind good chunks is held back until they were taken: the transport calls `feed(b"")` then, which
        otherwise does nothing.

        Raises:
            ProviderError: The answer is not of the protocol, or carries an error.
        """

    def finish(self) -> Sequence[Chunk]:
        """What remains, at the end of the body; for an error behind it `feed(b"")` is called as above.

        Raises:
            ProviderError: provider.truncated where the end mark is missing.
        """


class LongPrice(Struct, omit_defaults=True):
    """What all tokens of a round cost where more than `above` are sent; the other members are those of `Price`."""

    above: int
    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None


class Price(Struct, omit_defaults=True):
    """What tokens cost, in US dollars per million.

    Attributes:
        input, output: Tokens sent and written; reasoning counts as written.
        cached: Tokens sent that the vendor still had; like `input` where it is left out.
        cache_write: Tokens sent that the vendor keeps for later; like `input` where it is left out.
        long: The price of rounds that send very much, where that is another.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    long: LongPrice | None = None


class Model(Struct, omit_defaults=True):
    """A model as `hub` and `model.list` show it.

    Attributes:
        id: The vendor's name.
        label: For people.
        context: Tokens that fit, where known.
        output: The most tokens of one answer, where known.
        abilities: What it can do; None where that is not known.
        price: What it costs; None where that is not known.
        author: Who made it, where that is another than the provider.
        created: When it came out, Unix seconds.
        demo: It is scripted, and the interface says so.
        default: It is used where nobody chose another.
    """

    id: str
    label: str = ""
    context: int | None = None
    output: int | None = None
    abilities: list[Ability] | None = None
    price: Price | None = None
    author: str = ""
    created: int | None = None
    demo: bool = False
    default: bool = False


@runtime_checkable
class HttpProvider(Protocol):
    """A provider over HTTP. All of this is pure; what may ask the vendor are the optional members of `Optional`."""

    name: str

    def prepare(self, request: ModelRequest) -> HttpRequest:
        """What to send for one round."""

    def decoder(self, request: ModelRequest) -> Decoder:
        """A decoder for the answer to one request."""

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


class Optional(Protocol):
    """What a provider may have besides; each member by itself."""

    async def list_models(self, http: httpx.AsyncClient) -> Sequence[Model]:
        """Ask the vendor. The hub asks at the start and every hour, and shows these in place of `models()`.

        Raises:
            ProviderError: provider.auth and its like; runs on the provider are refused for it before they start.
        """

    async def headers(self, http: httpx.AsyncClient) -> Mapping[str, str]:
        """Headers that have to be fetched, such as a token that expires; asked before each round, so keep them.

        Raises:
            ProviderError: They cannot be had.
        """

    def count(self, request: ModelRequest) -> int:
        """About how many tokens a request takes; four bytes a token where this is left out."""

    def check(self, request: ModelRequest) -> None:
        """Refuse what cannot work before a run starts: a model that is not there, a member that it does not take.

        Raises:
            ProviderError: provider.refused or provider.auth, in words for a person.
        """

    async def generation(self, http: httpx.AsyncClient, id: str) -> Json | None:
        """What the vendor keeps of an answer, by its id; None if it knows none of that id."""


Provider = HttpProvider | StreamProvider

encode_json = msgspec.json.Encoder().encode
