"""A play for models: each request is answered by the next line of the agent that it is made for.

Who that is, is read from the prompt alone: `triage`, a specialist by its title, `planner`, `mend` (the planner, when a
plan is to be changed), the task of a step, or `writer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sag.plugin import ModelRequest
from sag.testing.provider import Script, ScriptedProvider

Json = dict[str, Any]
Line = Script | Callable[[ModelRequest], Script]

SPECIALISTS: Json = {
    "billing": {"title": "Billing", "description": "invoices", "tools": ["find_invoice"]},
    "stock": {"title": "Stock", "description": "what is in store", "tools": [], "temperature": 0.1},
    "travel": {"title": "Travel", "description": "trips", "system": "Trips are booked by train.", "model": "other/m"},
}


def who(system: str, brief: str) -> str:
    """For whom a request is made."""
    if found := re.search(r"You are (\w+), one of several specialists", system):
        return found[1].lower()
    if "You do one step of a larger plan" in system:
        return brief.rpartition("Your task:\n")[2]
    marks = {"You receive requests": "triage", "Call make_plan": "planner", "Call revise_plan": "mend"}
    marks |= {"Answer the user from the results": "writer"}
    return next((name for mark, name in marks.items() if mark in system), "assistant")


def asked(request: ModelRequest) -> str:
    """For whom a request is made."""
    system = request.messages[0].text if request.messages[0].role == "system" else ""
    return who(system, next((m.text for m in request.messages if m.role == "user"), ""))


class Play(ScriptedProvider):
    """A model that speaks its lines.

    Args:
        lines: The answers of each agent, in order.
    """

    def __init__(self, lines: Mapping[str, Sequence[Line]], name: str = "script") -> None:
        self.lines = {agent: list(given) for agent, given in lines.items()}
        super().__init__(self._next, name=name)

    def _next(self, request: ModelRequest) -> Script:
        waiting = self.lines.get(asked(request))
        assert waiting, f"{asked(request)} has nothing to say: {request.messages}"
        line = waiting.pop(0)
        return line(request) if callable(line) else line

    def of(self, agent: str) -> list[ModelRequest]:
        """What an agent was asked, in order."""
        return [request for request in self.requests if asked(request) == agent]


def hand(agent: str, note: str = "Please.") -> tuple[str, Json]:
    """A call that hands over."""
    return "hand_over", {"agent": agent, "note": note}


def step(id: str, *needs: str, **more: Any) -> Json:
    """A step of a plan, whose task is `do ID`."""
    return {"id": id, "title": id.capitalize(), "task": f"do {id}", "needs": list(needs), **more}


def steps(*given: Json) -> Json:
    """The arguments of a plan."""
    return {"steps": list(given)}
