"""Who takes a step of a run: the assistant of the conversation, or an agent with words and tools of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from msgspec import Struct

from sag.hooks.provider import Message
from sag.hooks.tool import Tool


class Agent(Struct, kw_only=True, frozen=True):
    """Who speaks, and what is its own; what is left out is the run's.

    Attributes:
        name: As events name it; None is the assistant of the conversation. An agent's own words are the assistant's to
            it, and those of everybody else the user's.
        title: What people call it.
        system: Its system prompt, in place of the config's.
        model: `provider/model` in place of the run's.
        settings: Other members of the config in place of the run's: `temperature`, `max_tokens` …
        brief: What it is told in place of the conversation; its own rounds in this run follow.
        recalls: Whether they do; else the brief is all that it is told, and within a turn the rounds of that turn.
        hears: Whether what users say while the run goes on follows too; the brief stands for what began it.
        offered: Which of the run's tools it may call: their keys, or names of connectors for all of theirs, or a
            function that says it of each; None means all.
        own: Tools of the run kind's, offered to it beside those.
        ends: Names of `own` tools whose call, if it is done well, ends the agent's turn.
        marked: Whether the words of others begin with their names.
        whole: Whether its answer is told when it is complete, rather than word by word.
    """

    name: str | None = None
    title: str | None = None
    system: str | None = None
    model: str | None = None
    settings: dict[str, Any] = {}
    brief: Sequence[Message] | None = None
    recalls: bool = True
    hears: bool = False
    offered: Collection[str] | Callable[[Tool], bool] | None = None
    own: Sequence[Tool] = ()
    ends: Collection[str] = ()
    marked: bool = True
    whole: bool = False

    def may_call(self, tool: Tool) -> bool:
        """Whether it is offered a tool of the run's."""
        if self.offered is None or callable(self.offered):
            return self.offered is None or self.offered(tool)
        return tool.key in self.offered or (bool(tool.connector) and tool.connector in self.offered)


Speaker = Agent | Callable[[Any], Agent]
"""An agent, or what makes one of the config that a step runs on."""

ASSISTANT = Agent()
