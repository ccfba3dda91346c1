"""The session's state machine: what each object that a client sends means, and when it ends the connection.

No input, no output, no clock: the connection feeds it text and asks it what to do. Two rules: a client says `hello`
first and waits for its answer; three bad frames in a row end it (protocol sections 2 and 8).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from msgspec import UNSET, Raw

from sag.errors import Fault
from sag.wire import frames
from sag.wire.closing import BAD_FRAME, Closing
from sag.wire.frames import Frame, Id

BAD_IN_A_ROW = 3


class Phase(Enum):
    """Where a connection stands."""

    HELLO = "hello"  # nothing was said
    GREETING = "greeting"  # hello came and is not answered
    OPEN = "open"
    CLOSED = "closed"


class Hello(NamedTuple):
    """The client introduces itself."""

    id: Id
    params: bytes


class Request(NamedTuple):
    """The client asks for something; it is answered under its id."""

    id: Id
    method: str
    params: bytes


class Notice(NamedTuple):
    """The client tells something."""

    method: str
    params: bytes


class Response(NamedTuple):
    """The client answers a request of the server."""

    id: Id
    result: bytes
    error: bytes


class Pong(NamedTuple):
    """The client is there."""


class Ping(NamedTuple):
    """The client asks whether the server is there; what it sent goes back."""

    value: bytes


class Refuse(NamedTuple):
    """Answer with an error; without an id where the frame had none that could be read."""

    id: Id | None
    fault: Fault


class End(NamedTuple):
    """Close the connection."""

    closing: Closing


Act = Hello | Request | Notice | Response | Pong | Ping | Refuse | End

# What an object means in a phase; what is not listed is refused.
_REQUESTS: dict[Phase, str] = {Phase.HELLO: "hello", Phase.GREETING: "", Phase.OPEN: "any", Phase.CLOSED: ""}


class SessionMachine:
    """One connection's protocol state.

    Args:
        inflight: How many requests may be unanswered.
    """

    __slots__ = ("_bad", "_inflight", "_limit", "phase")

    def __init__(self, inflight: int = 64) -> None:
        self.phase = Phase.HELLO
        self._limit = inflight
        self._inflight: set[Id] = set()
        self._bad = 0

    def receive(self, text: str | bytes) -> list[Act]:
        """What a text frame means, in order."""
        if self.phase is Phase.CLOSED:
            return []
        try:
            objects = frames.decode(text)
        except Fault as fault:
            return self._refuse_frame(fault)
        acts: list[Act] = []
        for thing in objects:
            if isinstance(thing, Fault):
                acts += self._refuse_frame(thing)
                continue
            act = self._meaning(thing)
            if isinstance(act, Fault):
                acts += self._refuse_frame(act)
            elif act is not None:
                self._bad = 0
                acts.append(act)
        return acts

    def receive_bytes(self) -> list[Act]:
        """What a binary frame means while no byte stream is open: it is a bad frame."""
        return self._refuse_frame(Fault("rpc.frame", "No byte stream is open."))

    def greeted(self) -> None:
        """Hello was answered."""
        self.phase = Phase.OPEN

    def try_again(self) -> None:
        """Hello did not fit; another one may come."""
        self.phase = Phase.HELLO

    def answered(self, id: Id) -> None:
        """A request was answered; its id may be used again."""
        self._inflight.discard(id)

    def close(self) -> None:
        """Nothing more is read."""
        self.phase = Phase.CLOSED

    def _refuse_frame(self, fault: Fault) -> list[Act]:
        self._bad += 1
        acts: list[Act] = [Refuse(None, fault)]
        if self._bad >= BAD_IN_A_ROW:
            self.phase = Phase.CLOSED
            acts.append(End(BAD_FRAME))
        return acts

    def _meaning(self, f: Frame) -> Act | Fault | None:
        if len(f.e):
            return None  # events come from the server alone; an unknown direction is ignored
        if f.method is not UNSET:
            if f.id is UNSET:
                return Notice(f.method, bytes(f.params)) if self.phase is Phase.OPEN else None
            if f.id is None or (isinstance(f.id, str) and not 0 < len(f.id) <= 200):
                return Fault("rpc.frame", "An id is an integer or a string of 1 to 200 characters.")
            return self._request(f.id, f.method, f.params)
        if f.id is not UNSET:
            if f.id is None:
                return None  # the answer to a frame of ours that it could not read
            if not len(f.result) and not len(f.error):
                return Fault("rpc.frame", "A response has a result or an error.")
            return Response(f.id, bytes(f.result), bytes(f.error)) if self.phase is Phase.OPEN else None
        if len(f.pong):
            return Pong()
        if len(f.ping):
            return Ping(bytes(f.ping))
        return Fault("rpc.frame", "The object is no event, request, notification, response or heartbeat.")

    def _request(self, id: Id, method: str, params: Raw) -> Act:
        allowed = _REQUESTS[self.phase]
        if allowed == "hello" and method == "hello":
            self.phase = Phase.GREETING
            return Hello(id, bytes(params))
        if allowed != "any":
            return Refuse(id, Fault("hello.first"))
        if method == "hello":
            return Refuse(id, Fault("request.bad", "hello was answered on this connection already."))
        if id in self._inflight:
            return Refuse(id, Fault("rpc.frame", "A request with this id is unanswered."))
        if len(self._inflight) >= self._limit:
            return Refuse(id, Fault("inflight.limit", after_ms=100))
        self._inflight.add(id)
        return Request(id, method, bytes(params))
