"""What the generated documents are made from: operations, events, notifications, requests of the hub.

Operations and events come as they are declared; what belongs to a connection alone (`hello`, `topic.*`) is no entry
of the registry and is handed in by the composition root as `SocketOperation`. Nothing here renders anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from sag.ops.export import frames
from sag.ops.operation import Operation, Registry, Who
from sag.schema.events import EVENTS, Delta, Event

FAMILIES = ("conv", "user", "client", "hub")
"""The hub's own families of topics; plugins add theirs."""

TOPIC_NAMES = {"conv": "conv:<id>", "user": "user:me", "client": "client:<id>", "hub": "hub"}

Direction = Literal["server", "client", "both"]


class SocketOperation(Struct, frozen=True):
    """A request that exists on the socket alone, since it is about the connection.

    Attributes:
        method: As on the wire.
        params, result: Structs; `result` may be any type that msgspec describes.
        text: What it does.
    """

    method: str
    params: type[Any]
    result: Any
    text: str


class Notification(Struct, frozen=True):
    """A message that is not answered; `sender` is who may send it."""

    method: str
    params: type[Any]
    sender: Direction

    @property
    def text(self) -> str:
        return (self.params.__doc__ or "").strip()


NOTIFICATIONS = (
    Notification("auth.expiring", frames.AuthExpiring, "server"),
    Notification("bye", frames.Bye, "server"),
    Notification("rpc.cancel", frames.RpcCancel, "both"),
    Notification("rpc.progress", frames.RpcProgress, "client"),
    Notification("topic.closed", frames.TopicClosed, "server"),
)

SERVER_REQUESTS = (
    SocketOperation(
        "tool.call",
        frames.ToolCall,
        frames.ToolAnswer,
        "The hub calls a tool that the client declared in `hello`. It stays open over a cut until its deadline.",
    ),
)


def socket_operations(
    hello: type[Any], subscribe: type[Any], unsubscribe: type[Any], subscribed: type[Any], auth: type[Any]
) -> Sequence[SocketOperation]:
    """The operations that belong to a connection, from the structs that the connection decodes and encodes.

    Args:
        hello: Params of `hello`.
        subscribe: Params of `topic.subscribe`.
        unsubscribe: Params of `topic.unsubscribe`.
        subscribed: The result of `topic.subscribe`.
        auth: Params of `auth.refresh`.
    """
    return (
        SocketOperation(
            "auth.refresh",
            auth,
            frames.Refreshed,
            "Replace the token of this connection by a newer one of the same user.",
        ),
        SocketOperation(
            "hello",
            hello,
            frames.HelloAnswer,
            "The first request of a connection: who it is, which topics it follows, which tools it offers, which "
            "session it goes on with.",
        ),
        SocketOperation(
            "topic.subscribe",
            subscribe,
            subscribed,
            "Follow a topic from a position, or from its state; the events come after the answer, under its `t`.",
        ),
        SocketOperation("topic.unsubscribe", unsubscribe, frames.NoResult, "Follow a topic no longer."),
    )


class Declared(Struct):
    """All that is declared.

    Attributes:
        operations: By method.
        socket: What exists on the socket alone, by method.
        families: Names of the families of topics whose events are told.
        version: The hub's version.
        routes: HTTP routes of plugins, `GET /api/dice/{id}`, and what they do.
    """

    operations: list[Operation]
    socket: list[SocketOperation]
    families: list[str]
    version: str
    routes: dict[str, str] = {}

    def requests(self) -> list[Operation | SocketOperation]:
        """All that a client can ask for: the operations, then what exists on the socket alone."""
        return [*self.operations, *self.socket]

    def events(self) -> Iterator[tuple[str, str, type[Event]]]:
        """Family, name and struct of every event."""
        for family in self.families:
            for name, cls in events_of(family).items():
                yield family, name, cls


def events_of(family: str) -> Mapping[str, type[Event]]:
    """A family's events by name, in the order in which they are declared; `delta` is written without a struct."""
    found: dict[str, type[Event]] = {}
    for name, cls in EVENTS.get(family, {}).items():
        found[name] = cls
        if family == "conv" and name == "part.open":
            found["delta"] = Delta
    return found


def declared(
    registry: Registry,
    version: str,
    socket: Sequence[SocketOperation] = (),
    families: Collection[str] = FAMILIES,
    routes: Mapping[str, str] | None = None,
) -> Declared:
    """Gather what is declared.

    Args:
        registry: The operations.
        version: The hub's version.
        socket: The operations of a connection.
        families: Which families of topics there are; the hub's own come first, the others by name.
        routes: HTTP routes of plugins, and what they do.
    """
    own = [f for f in FAMILIES if f in families]
    others = sorted(f for f in families if f not in FAMILIES and f in EVENTS)
    return Declared(list(registry), sorted(socket, key=lambda s: s.method), own + others, version, dict(routes or {}))


def topic_name(family: str) -> str:
    """How a family's topics are called."""
    return TOPIC_NAMES.get(family, f"{family}:<id>")


def who_may(who: Who) -> str:
    """Who may call, in words."""
    return {"anyone": "anyone", "user": "a signed-in user", "admin": "an administrator"}[who]
