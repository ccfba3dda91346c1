"""What a format has to do: read what is asked, and write what a script says happens."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import msgspec

from sag.testing.upstream.request import Asked, Request
from sag.testing.upstream.script import Fail, Json, Script, Token, ToolCall, Usage

if TYPE_CHECKING:
    from sag.testing.upstream.flavor import Flavor

encode = msgspec.json.Encoder().encode


class Format(ABC):
    """A wire format, as one vendor's server has it."""

    def __init__(self, flavor: Flavor) -> None:
        self.flavor = flavor

    @abstractmethod
    def read(self, body: Json) -> Asked:
        """What is asked.

        Raises:
            Refused: The request breaks the contract.
        """

    @abstractmethod
    def writer(self, body: Json, asked: Asked, script: Script, number: int) -> Writer:
        """A writer of one answer; `number` tells it from all others of this server."""


class Writer(ABC):
    """Writes one answer: as a stream, piece by piece, or as one object.

    Both ways take `open`, then `write` for each step with tokens, then `close`; `whole` gives the object after that.
    """

    def __init__(self, flavor: Flavor, body: Json, asked: Asked, script: Script, number: int) -> None:
        self.flavor, self.body, self.asked, self.script, self.number = flavor, body, asked, script, number
        self.newline = script.newline.encode()
        self.model = str(body["model"])
        self.tokens = 0
        self.thoughts = 0
        self.called = False

    @abstractmethod
    def open(self) -> bytes:
        """What comes first."""

    @abstractmethod
    def write(self, step: Token) -> list[bytes]:
        """The pieces of a step, one for each of its tokens."""

    @abstractmethod
    def event(self, data: Any) -> bytes:
        """Any object as an event."""

    @abstractmethod
    def fail(self, fail: Fail) -> bytes:
        """An error in the stream, and what comes behind it."""

    @abstractmethod
    def close(self) -> bytes:
        """How it finished, usage, and the end mark."""

    @abstractmethod
    def whole(self) -> Json:
        """The answer as one object."""

    def headers(self) -> dict[str, str]:
        """Headers that belong to this answer."""
        return {}

    def fail_whole(self, fail: Fail) -> Json | None:
        """The object of an answer that failed in the middle, if it has status 200 with this vendor."""
        return None

    def ended(self, request: Request) -> None:
        """The answer has ended; `request.ended` tells how."""
        return

    @property
    def finish(self) -> str:
        """Why it ends, in words of no vendor; empty if that is left out."""
        if self.script.finish is not None:
            return self.script.finish
        return "tool_calls" if self.called else "stop"

    @property
    def usage(self) -> Usage:
        """What it took, as the script tells it or as it was counted."""
        if isinstance(self.script.usage, Usage):
            return self.script.usage
        return Usage(self.asked.input, self.tokens, reasoning=self.thoughts)


def write_arguments(call: ToolCall) -> str:
    """The arguments of a call as text."""
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
