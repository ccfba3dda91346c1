"""What a run says as one text: for clients that know a single voice.

Agents may speak at once; here one part is told to its end before the next, those of agents after their names. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field

from sag_gateway.exchange import Exchange, Heard

Json = dict[str, Any]

MEMBERS = {"text": "content", "reasoning": "reasoning_content"}


class Spoken(Struct):
    """A part that was begun: its `part.open`, what of it was told, what waits for its turn."""

    opened: Json
    told: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    closed: bool = False


class Answer:
    """Collects what is heard of a run.

    Args:
        exchange: Whose events are heard; it knows what agents are called.

    Attributes:
        finish: Why the model stopped last: stop, tools, length, refused.
        void: Something was told, and is void since.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._parts: dict[int, Spoken] = {}
        self._line: list[int] = []  # parts that are not told to their end, the one that speaks first
        self.finish = "stop"
        self.void = False

    def take(self, heard: Heard) -> Iterator[tuple[str, str]]:
        """What is to be told now: the member that it belongs to, and the text."""
        name, d = heard.name, heard.d
        if name == "step.close":
            self.finish = d["finish"]
        kind, number = heard.part.get("kind"), heard.part.get("part", -1)
        if kind not in MEMBERS:
            return
        if name == "part.open":
            self._parts[number] = Spoken(d)
            self._line.append(number)
        elif name == "delta":
            self._parts[number].waiting.append(d)
        elif name == "part.drop":
            self.void = self.void or bool(self._parts[number].told)
            del self._parts[number]
            if number in self._line:
                self._line.remove(number)
        elif name == "part.close":
            self._parts[number].closed = True
        while self._line:
            spoken = self._parts[self._line[0]]
            if text := "".join(spoken.waiting):
                spoken.waiting.clear()
                if not spoken.told:
                    text = self._lead(spoken.opened) + text
                spoken.told.append(text)
                yield MEMBERS[spoken.opened["kind"]], text
            if not spoken.closed:
                break
            self._line.pop(0)

    def _lead(self, opened: Json) -> str:
        """What stands before a part: a line between it and another message of its kind, its speaker's name."""
        before = [s.opened for s in self._parts.values() if s.told and s.opened["kind"] == opened["kind"]]
        if before and before[-1]["msg"] == opened["msg"]:
            return ""
        between = "\n\n" if before else ""
        agent = opened.get("agent")
        return f"{between}{self._exchange.title(agent)}: " if agent and opened["kind"] == "text" else between

    def text(self, kind: str) -> str:
        """All that was told of a kind, `text` or `reasoning`."""
        return "".join("".join(s.told) for s in self._parts.values() if s.opened["kind"] == kind)
