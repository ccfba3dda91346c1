"""A hub with a fake model and some tools, as the tests of tool chains need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sag.client import Client, Topic
from sag.plugin import ToolContext, ToolError, tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import Calls, FakeUpstream, Script, ToolCall
from tests.harness import until

Json = dict[str, Any]
ENDS = ("done", "cancelled", "failed", "limit", "interrupted")

CALLED: list[str] = []
GATES: list[asyncio.Event] = []  # that of the newest bench is the last
MET: list[str] = []


@tool(risk="read", hint="Use weather for anything about the sky.")
async def weather(city: str) -> Json:
    """Tell the weather of a city."""
    CALLED.append(f"weather {city}")
    return {"city": city, "sky": "clear"}


@tool(risk="read", hint="Use add for sums.")
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    CALLED.append(f"add {a} {b}")
    return a + b


@tool(risk="read")
async def broken() -> str:
    """Fail."""
    CALLED.append("broken")
    raise ToolError("no bread")


@tool(risk="read")
async def meet(name: str) -> str:
    """Wait until somebody else has come, too."""
    MET.append(name)
    await until(lambda: len(MET) >= 2, "the other one")
    return name


@tool(risk="write")
async def hold(*, ctx: ToolContext) -> str:
    """Wait until it may go on."""
    CALLED.append("hold")
    await GATES[-1].wait()
    return "held"


@tool(risk="read")
async def recite(count: int) -> str:
    """Say much."""
    return "word " * count


@tool(risk="danger")
async def launch(what: str) -> str:
    """Launch something."""
    CALLED.append(f"launch {what}")
    return "launched"


TOOLS = [weather, add, broken, meet, hold, recite, launch]


def calls(*made: tuple[str, Json | str]) -> Script:
    """An answer that calls tools."""
    return Script([Calls([ToolCall(name, arguments) for name, arguments in made])])


class Bench:
    """A hub, its model, a client of it, and the gate that the tool `hold` waits at."""

    def __init__(self, hub: RunningHub, model: FakeUpstream, client: Client) -> None:
        self.hub, self.model, self.client = hub, model, client
        self.gate = asyncio.Event()
        GATES.append(self.gate)

    async def start(self, text: str, **config: Any) -> tuple[str, Topic]:
        """Start a chain; gives the run and the topic of its conversation."""
        input = [{"kind": "text", "text": text}]
        started = await self.client.call("run.start", {"kind": "toolchain", "input": input, "config": config})
        return started["run"], await self.client.subscribe(f"conv:{started['conv']}")

    async def end(self, run: str, topic: Topic, status: str = "done") -> Json:
        """Wait for the end of a run; gives the conversation's state."""
        state = await topic.until(lambda state: state["runs"][run]["status"] in ENDS)
        assert state["runs"][run]["status"] == status, state["runs"][run]
        return state

    async def do(self, text: str, status: str = "done", **config: Any) -> tuple[Json, Json]:
        """Start a chain and wait for its end; gives the run's object and the conversation's state."""
        run, topic = await self.start(text, **config)
        state = await self.end(run, topic, status)
        return state["runs"][run], state

    def asked(self, at: int) -> list[Json]:
        """The messages of a request to the model."""
        messages: list[Json] = self.model.chats[at].json["messages"]
        return messages

    def offered(self, at: int) -> list[str]:
        """The names of the tools of a request to the model."""
        return [tool["function"]["name"] for tool in self.model.chats[at].json.get("tools", [])]


@asynccontextmanager
async def bench(
    flavor: Any = "openai", env: Json | None = None, tables: Json | None = None, **options: Any
) -> AsyncIterator[Bench]:
    """A hub on a fake model; `options` are the model's."""
    CALLED.clear()
    MET.clear()
    model = FakeUpstream(flavor, **options)
    async with model:
        name = "anthropic" if flavor == "anthropic" else "openai"
        given = {"LLM_PROVIDER": name, "LLM_BASE_URL": model.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"}
        env = given | (env or {})
        async with running_hub(env=env, tables=tables, tools=TOOLS) as hub, hub.client() as client:
            yield Bench(hub, model, client)


def said(state: Json, agent: str) -> list[str]:
    """What an agent said, message by message."""
    own = [m for m in state["messages"] if m.get("agent") == agent]
    return ["".join(p["text"] for p in m["parts"] if p["kind"] == "text") for m in own]


def statuses(state: Json) -> dict[str, str]:
    """How the calls of each tool ended."""
    return {t["name"]: t["status"] for t in state["tools"].values()}
