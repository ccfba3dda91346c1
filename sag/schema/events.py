"""The events of the hub's own topics, each declared once: its name, its members, its class.

From these structs follow what the hub emits, AsyncAPI, the TypeScript types and the reference.
Optional members that are not given are left out of the wire form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

from msgspec import Struct

EventClass = Literal["durable", "state", "ephemeral"]
RunStatus = Literal["queued", "running", "waiting", "paused"]
RunEnd = Literal["done", "cancelled", "failed", "limit", "interrupted"]
ToolStatus = Literal["ok", "error", "denied", "invalid", "timeout", "cancelled", "lost"]
PartKind = Literal["text", "reasoning", "tool_args", "tool_output", "image", "file"]
Json = dict[str, Any]


class Event(Struct, omit_defaults=True):
    """What a topic's log holds; a subclass is made known with `event`."""

    NAME: ClassVar[str] = ""
    CLASS: ClassVar[EventClass] = "durable"
    KEY: ClassVar[str | None] = None


EVENTS: dict[str, dict[str, type[Event]]] = {}

E = TypeVar("E", bound=type[Event])


def event(family: str, name: str, klass: EventClass = "durable", key: str | None = None) -> Callable[[E], E]:
    """Declare an event of a family of topics (`conv`, `user`, `client`, `hub`, or a plugin's name).

    Args:
        family: The part of the topic's name before the colon.
        name: The event's name on the wire.
        klass: durable, state (the newest of a key wins when frames are merged) or ephemeral.
        key: For class state, the member that tells the keys apart.
    """

    def declare(cls: E) -> E:
        cls.NAME, cls.CLASS, cls.KEY = name, klass, key
        EVENTS.setdefault(family, {})[name] = cls
        return cls

    return declare


class Usage(Struct, omit_defaults=True):
    """Tokens and cost of a step or a run.

    Attributes:
        input, output: Tokens sent and written.
        reasoning: How many of those written are thoughts.
        cached: How many of those sent the vendor still had.
        cache_write: How many of those sent the vendor keeps for later.
        cost_usd: In US dollars; left out where the price is not known.
    """

    input: int
    output: int
    reasoning: int = 0
    cached: int = 0
    cache_write: int = 0
    cost_usd: float | None = None

    def plus(self, other: Usage) -> Usage:
        cost = None
        if self.cost_usd is not None or other.cost_usd is not None:
            cost = (self.cost_usd or 0.0) + (other.cost_usd or 0.0)
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.reasoning + other.reasoning,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            cost,
        )


class RunError(Struct):
    """Why a run failed: a stable kind, words for a person, whether trying again may help."""

    kind: str
    message: str
    retry: bool = False


# conv:<id>


@event("conv", "message.add")
class MessageAdd(Event):
    """A user's message with its parts, or the beginning of an assistant's with none.

    Of one that is given back by an import, `model` and what follows it say what else `step.close` tells of a message.
    """

    msg: str
    role: Literal["user", "assistant"]
    ts: int
    parts: list[Json]
    run: str | None = None
    agent: str | None = None
    by: str | None = None
    parent: str | None = None
    step: int | None = None
    model: str | None = None
    usage: Usage | None = None
    finish: str | None = None
    ms: int | None = None
    request: str | None = None
    error: RunError | None = None
    notes: list[str] | None = None


@event("conv", "message.drop")
class MessageDrop(Event):
    """A message is gone."""

    msg: str


@event("conv", "run.open")
class RunOpen(Event):
    """A run was accepted. `base` is the config of the layers below it, frozen when it begins, `begun` its turn."""

    run: str
    kind: str
    by: str
    client: str
    config: Json
    rev: int
    status: Literal["queued", "running"]
    ts: int
    base: Json | None = None
    begun: int | None = None


@event("conv", "run")
class RunPatch(Event):
    """A merge patch on the run's object of the snapshot."""

    run: str
    patch: Json


@event("conv", "step.open")
class StepOpen(Event):
    """A model round begins; it runs on the config of this moment."""

    run: str
    step: int
    model: str
    agent: str | None = None
    ts: int | None = None


@event("conv", "step.close")
class StepClose(Event):
    """A model round ended: `stop`, `tools`, `length`, `refused`, `config`, `fallback`, `cancelled`, `failed` …

    `ms` is how long it took, `request` the vendor's id of the answer, `error` why another model takes over.
    `notes` holds `decode` where bytes of the answer were no Unicode and stand as U+FFFD, `model` who answered where no
    message tells it.
    """

    run: str
    step: int
    finish: str
    usage: Usage | None = None
    ms: int | None = None
    request: str | None = None
    error: RunError | None = None
    notes: list[str] | None = None
    model: str | None = None


@event("conv", "agent.open")
class AgentOpen(Event):
    """An agent begins to act in the run; `title` is what people call it."""

    run: str
    agent: str
    title: str | None = None
    ts: int | None = None


@event("conv", "agent.close")
class AgentClose(Event):
    """An agent has finished."""

    run: str
    agent: str


@event("conv", "part.open")
class PartOpen(Event):
    """A piece of a message begins; deltas fill it."""

    part: int
    run: str
    msg: str
    kind: PartKind
    ts: int
    call: str | None = None
    agent: str | None = None
    name: str | None = None


@event("conv", "part.close")
class PartClose(Event):
    """A piece is complete. `len` counts Unicode code points; `partial` means that it was cut.

    Of reasoning, `ms` is how long the model thought, and `replay` what its vendor wants to have back.
    """

    part: int
    len: int
    partial: bool = False
    ms: int | None = None
    replay: Json | None = None


@event("conv", "part.drop")
class PartDrop(Event):
    """What came is void."""

    part: int
    why: Literal["provider_retry", "fallback", "config"]


@event("conv", "tool.open")
class ToolOpen(Event):
    """A tool call begins; `origin` names the connector or plugin, `connector` the same where it is a connector.

    `agent` is who called it. `again` is the lost call that it repeats. `ends` tells that it ends its agent's turn.
    """

    call: str
    run: str
    name: str
    origin: str
    args: Any
    risk: str
    ts: int
    step: int | None = None
    connector: str | None = None
    title: str | None = None
    agent: str | None = None
    again: str | None = None
    ends: bool | None = None


@event("conv", "tool.progress", "state", "call")
class ToolProgress(Event):
    """How far a call is."""

    call: str
    done: float
    total: float | None = None
    text: str | None = None


@event("conv", "tool.close")
class ToolClose(Event):
    """A call ended. `ms` is how long it took, `ref` the file that holds the whole of a result that is shown cut."""

    call: str
    status: ToolStatus
    ms: int
    result: Any = None
    error: Json | None = None
    ref: str | None = None


@event("conv", "ask.open")
class AskOpen(Event):
    """The hub wants a person: an approval, a form, a URL to visit or a choice. `name` is what the run kind calls it."""

    ask: str
    run: str
    kind: Literal["approval", "form", "url", "choice"]
    title: str
    options: list[str]
    expires_at: int
    on_expiry: str
    ts: int
    call: str | None = None
    subject: Json | None = None
    schema: Json | None = None
    url: str | None = None
    name: str | None = None


@event("conv", "ask.close")
class AskClose(Event):
    """The question is settled; `by` is null where no person did it, and `why` tells then: `expired` or `run`."""

    ask: str
    by: str | None
    choice: str | None
    client: str | None = None
    why: Literal["expired", "run"] | None = None
    args: Json | None = None
    data: Json | None = None


@event("conv", "config")
class ConfigPatched(Event):
    """A config patch was accepted."""

    scope: str
    rev: int
    patch: Json
    by: str
    ts: int | None = None


@event("conv", "config.applied")
class ConfigApplied(Event):
    """A step has started on this revision."""

    scope: str
    rev: int
    step: int


@event("conv", "run.close")
class RunClose(Event):
    """The run's last event."""

    run: str
    status: RunEnd
    usage: Usage
    ts: int
    error: RunError | None = None


@event("conv", "conv")
class ConvPatch(Event):
    """A merge patch on the conversation's properties."""

    patch: Json


class Delta(Event):
    """Text for parts: `[part, text, part, text, …]`; on the wire an array, not an object."""

    NAME: ClassVar[str] = "delta"


# user:me


@event("user", "conv")
class InboxConv(Event):
    """A conversation is new or changed."""

    conv: str
    patch: Json


@event("user", "conv.drop")
class InboxConvDrop(Event):
    """A conversation was deleted."""

    conv: str


@event("user", "run.open")
class InboxRunOpen(Event):
    """A run was accepted in one of the user's conversations."""

    run: str
    conv: str
    kind: str
    status: str


@event("user", "run")
class InboxRun(Event):
    """A run's status changed."""

    run: str
    conv: str
    patch: Json


@event("user", "run.close")
class InboxRunClose(Event):
    """A run ended."""

    run: str
    conv: str
    status: RunEnd


@event("user", "ask.open")
class InboxAskOpen(Event):
    """A question waits for the user."""

    ask: str
    conv: str
    run: str
    kind: str
    title: str


@event("user", "ask.close")
class InboxAskClose(Event):
    """A question is settled."""

    ask: str
    conv: str


# client:<id>


@event("client", "config")
class ClientConfig(Event):
    """A patch of the device's settings was accepted."""

    scope: str
    rev: int
    patch: Json
    by: str
    ts: int | None = None


@event("client", "client")
class ClientPatch(Event):
    """A merge patch on the device's state."""

    patch: Json


# hub


class _HubPatch(Event):
    id: str
    patch: Json | None


@event("hub", "plugin")
class HubPlugin(_HubPatch):
    """A plugin's state; null removes it."""


@event("hub", "connector")
class HubConnector(_HubPatch):
    """A source of tools and its tools; null removes it."""


@event("hub", "model")
class HubModel(_HubPatch):
    """A model that runs can use; null removes it."""
