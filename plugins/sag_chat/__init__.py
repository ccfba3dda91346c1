"""The run kind `chat`: the model answers, calls tools as long as it wants to, and reads what is said meanwhile."""

from __future__ import annotations

from sag.plugin import Hub, Run, RunConfig, hookimpl


class ChatConfig(RunConfig):
    """Config of a chat: that of every kind (see `RunConfig`)."""


async def chat(run: Run) -> None:
    """Turn by turn until the model has answered and nothing is unread."""
    while run.wants_step:
        await run.turn()


@hookimpl
def register(hub: Hub[None]) -> None:
    hub.add_run_kind("chat", ChatConfig, chat)
