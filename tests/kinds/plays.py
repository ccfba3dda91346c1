"""What the plays of all kinds here share: how often they are cut, and the tools that their models call."""

from __future__ import annotations

from sag.hooks.provider import ModelRequest
from sag.hooks.tool import tool
from sag.testing.kinds import RunKindContract
from tests.harness import times


class Play(RunKindContract):
    """The contract, with all moments and all commits where the whole suite runs."""

    cancels = times(6, 1000)
    kills = times(8, 1000)


@tool(risk="read")
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


@tool(risk="write")
async def write_down(word: str) -> str:
    """Write a word down."""
    return f"{word} is written"


def answered(request: ModelRequest) -> int:
    """How many results of tools a model was told."""
    return sum(message.role == "tool" for message in request.messages)


def system(request: ModelRequest) -> str:
    """The system prompt of a request."""
    return "".join(message.text for message in request.messages if message.role == "system")
