"""The run kind `completion`: a model answers a client of another API, whose tools are called where the client is.

A call of such a tool is an open question of the run (`ctx.ask`): the client's next request answers it and the run goes
on, after a restart too. Above: the doors, which start runs and give the answers. Below: the run interface alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sag.plugin import Agent, Hub, Message, Run, RunConfig, RunEnded, Tool, ToolContext, ToolError

Json = dict[str, Any]

KIND = "completion"
ORIGIN = "the client"  # of its tools; no plugin and no connector can have this name
ANSWERED, LEFT = "answer", "leave"
_ANSWER = {
    "type": "object",
    "properties": {"content": {"type": "string"}, "failed": {"type": "boolean"}},
    "required": ["content"],
}


class ClientTool(Struct):
    """A tool of a client's, as the model is offered it."""

    name: str
    description: str
    input: Json


def client_tool(name: str, description: str | None, schema: Any) -> ClientTool:
    """A client's tool; a schema that is left out, or is none, lets nothing be given."""
    return ClientTool(
        name, description or "", schema if isinstance(schema, dict) else {"type": "object", "properties": {}}
    )


class Given(Struct, omit_defaults=True):
    """What a request holds that has no place in a run's config; kept under a key as long as its run may need it.

    Attributes:
        messages: What the model is told in place of the conversation.
        tools: The client's tools.
        calls: Whether the model may call any tool, the hub's or the client's.
        parallel: Whether the calls of a round are made at once.
        answer_s: How long a call waits for the client before the run is given up; None is the hub's time for questions.
        count: How many messages the request had, and
        digest: what tells it from another one.
    """

    messages: list[Message] | None = None
    tools: list[ClientTool] = []
    calls: bool = True
    parallel: bool = True
    answer_s: float | None = None
    count: int = 0
    digest: str = ""


class CompletionConfig(RunConfig):
    """Config of a completion: that of every kind.

    Attributes:
        request: The key of what the client sent besides.
    """

    request: Annotated[str, Meta(max_length=64)] | None = None


def key_of(user: str, request: str) -> str:
    """Where a request of a user's is kept; of nobody else's, whatever a config names."""
    return f"given {user} {request}"[:200]


async def find(hub: Hub[Any], user: str, request: str | None) -> Given | None:
    """What a client sent, if it is kept still."""
    kept = await hub.kv.get(key_of(user, request)) if request else None
    return None if kept is None else msgspec.convert(kept, Given)


def make_completion(hub: Hub[Any]) -> Callable[[Run], Awaitable[None]]:
    """The run kind's coroutine."""

    async def completion(run: Run) -> None:
        """A model answers a client of another API, whose tools are called where the client is."""
        given = await find(hub, run.user.id, run.config().request) or Given()
        own = [_tool(one, given.answer_s) for one in given.tools] if given.calls else []

        def agent(config: CompletionConfig) -> Agent:
            # What the client answers is a request of its own, and counts for none of the rounds that the hub makes.
            answered = {call["step"] for call in run.calls() if call["origin"] == ORIGIN}
            return Agent(
                brief=given.messages,
                hears=True,
                own=own,
                offered=None if given.calls else (),
                settings={"rounds": config.rounds + len(answered)},
            )

        while run.wants_step:
            await run.turn(agent, parallel=given.parallel)

    return completion


def _tool(given: ClientTool, answer_s: float | None) -> Tool:
    async def call(args: Any, ctx: ToolContext) -> str:
        choice, data = await ctx.ask(
            f"The client is to answer {given.name}.", schema=_ANSWER, options=[ANSWERED, LEFT], expires_s=answer_s
        )
        if choice != ANSWERED or data is None:
            raise RunEnded  # nobody is there any more who would read an answer
        if data.get("failed"):
            raise ToolError(data["content"])
        return str(data["content"])

    # The arguments are the client's to check, and asking it again does no harm.
    return Tool(
        given.name, given.description, given.input, call, check=lambda args: args, risk="read", idempotent=True,
        origin=ORIGIN, policy="auto",
    )  # fmt: skip
