"""The shapes of frames, notifications and answers that the hub writes without a struct, or reads as raw JSON.

They serve the documents alone; a test holds them to what a connection really sends. Which shape belongs to which
method: `sag.ops.export.declared`. A `$ref` here is the bare name of a component.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from sag.ops.dispatch import User

Json = dict[str, Any]
OUTCOME = "SubscribeOutcome"
"""The component that stands for the answer to a subscriber, or why the topic cannot be had."""


class ErrorData(Struct, omit_defaults=True):
    """What a program goes by; further members depend on the kind.

    Attributes:
        kind: The stable name of what went wrong.
        retry: Whether the same request may succeed later.
        after_ms: How long to wait before.
        path: The member that does not fit, `$.input[0].text`.
        trace: Names the line of the hub's log.
    """

    kind: str
    retry: bool
    after_ms: int | None = None
    path: str | None = None
    trace: str | None = None


class ErrorBody(Struct):
    """Why a request was not fulfilled.

    Attributes:
        code: A JSON-RPC code below 0, else the HTTP status.
        message: Words for a person.
    """

    code: int
    message: str
    data: ErrorData


class TopicRefused(Struct):
    """Why a topic cannot be had; the rest of the answer holds all the same."""

    error: ErrorBody


class NoResult(Struct):
    """Nothing to tell."""


class ServerTold(Struct):
    """Who answers."""

    name: str
    version: str


class SessionTold(Struct):
    """The session.

    Attributes:
        id: Its id, for `resume`.
        secret: Goes with the id; a new one at each hello.
        resumed: Whether it is the one that was asked for.
        keep_ms: How long it is kept after a cut.
    """

    id: str
    secret: str
    resumed: bool
    keep_ms: int


class PingTold(Struct):
    """The heartbeat: how often the hub sends one, and how long it waits for the answer."""

    every_ms: int
    timeout_ms: int


class LimitsTold(Struct):
    """What a connection may take.

    Attributes:
        frame: Bytes of a frame.
        inflight: Requests that are not answered yet.
        topics: Subscriptions.
    """

    frame: int
    inflight: int
    topics: int


class HelloAnswer(Struct):
    """The answer to `hello`.

    Attributes:
        v: The version of the protocol.
        server: Who answers.
        user: Who the client is taken for.
        session: What to resume after a cut.
        tools_refused: Names of the client's tools that cannot be had.
        ping: The heartbeat's times.
        limits: What this connection may take.
        topics: For each topic that was asked for its answer, or why it cannot be had.
    """

    v: int
    server: ServerTold
    user: User
    session: SessionTold
    tools_refused: list[str]
    ping: PingTold
    limits: LimitsTold
    topics: Annotated[dict[str, Any], Meta(extra_json_schema={"additionalProperties": {"$ref": OUTCOME}})]


class Refreshed(Struct):
    """The token was taken; in how many ms it expires, null for never."""

    expires_ms: int | None


class Bye(Struct):
    """The connection will be closed: with which code, why, whether to come back, and after how long."""

    code: int
    reason: str
    reconnect: bool
    after_ms: int


class AuthExpiring(Struct):
    """The token will expire; without `auth.refresh` by then the connection ends with 4004."""

    in_ms: int


class TopicClosed(Struct):
    """A subscription ended. After `gen` and `behind` the client subscribes again.

    Attributes:
        t: The subscription's number.
        reason: Why.
    """

    t: int
    reason: Literal["deleted", "denied", "gen", "behind"]


class RpcCancel(Struct):
    """Whoever asked waits no longer; the request is still answered, with 499 if it was cancelled.

    Attributes:
        id: The id of the request.
    """

    id: int | str


class RpcProgress(Struct, omit_defaults=True):
    """How far the client is with a `tool.call`.

    Attributes:
        id: The id of the request.
        done, total: How much of how much.
        text: What it does now.
    """

    id: str
    done: float
    total: float | None = None
    text: str | None = None


class ToolCall(Struct):
    """Params of `tool.call`.

    Attributes:
        call: The call's id in the conversation.
        run: The run that it belongs to.
        name: As the client declared it.
        args: Fits the tool's `input`.
        deadline_ms: How long the client may take.
        redelivered: The call was sent before, on a connection that broke.
    """

    call: str
    run: str
    name: str
    args: Json
    deadline_ms: int
    redelivered: bool


class ToolAnswer(Struct):
    """What the tool gave: `content` holds parts, `{kind: "text", text}`; any other JSON object is kept as it is."""

    content: list[Json] = []


class EventFrame(Struct, omit_defaults=True):
    """An event of a topic; `d` is the event's struct.

    Attributes:
        t: The subscription's number, from the answer that made it.
        e: The event's name.
        o: The offset; of a merged frame the last of its range. Left out in events of class ephemeral.
        p: The offset that the frame follows, where that is not `o - 1`.
        r: 1 marks a replayed frame.
    """

    t: int
    e: str
    d: Any
    o: int | None = None
    p: int | None = None
    r: Literal[1] | None = None


class RequestFrame(Struct, omit_defaults=True):
    """A request. Ids of the hub are strings that begin with `s`."""

    id: int | str
    method: str
    params: Json | None = None


class NotificationFrame(Struct, omit_defaults=True):
    """A message that is not answered."""

    method: str
    params: Json | None = None


class ResultFrame(Struct):
    """The answer to a request."""

    id: int | str
    result: Any


class ErrorFrame(Struct):
    """The answer to a request that was not fulfilled; `id` is null where the frame had none that could be read."""

    id: int | str | None
    error: ErrorBody


class PingFrame(Struct, omit_defaults=True):
    """A heartbeat; the other side answers with `pong` and the same value.

    Attributes:
        ping: The sender's time, Unix ms.
        heads: The newest committed offset of topics for which nothing waits to be sent, by `t`.
    """

    ping: int
    heads: dict[str, int] | None = None


class PongFrame(Struct):
    """The answer to a heartbeat, with its value."""

    pong: Any


SERVER_FRAMES = (EventFrame, RequestFrame, NotificationFrame, ResultFrame, ErrorFrame, PingFrame, PongFrame)
CLIENT_FRAMES = (RequestFrame, NotificationFrame, ResultFrame, ErrorFrame, PingFrame, PongFrame)
