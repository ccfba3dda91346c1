"""A hub without sockets: operations are called as the roads call them, and topics are read as they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sag.app import App
from sag.hooks.connector import Connector
from sag.hooks.kind import RunKind
from sag.hooks.tool import Tool, ToolError, tool
from sag.ops.dispatch import Call, User
from sag.settings import load
from sag.testing.provider import ScriptedProvider

ADA = User("ada", "Ada")


class Bench:
    """One hub, one user."""

    def __init__(self, app: App, provider: ScriptedProvider) -> None:
        self.app, self.provider = app, provider

    async def call(self, method: str, user: User = ADA, **params: Any) -> Any:
        app = self.app
        call = Call(user, "chat", begin=app.topics.begin)
        _, result = await app.dispatcher.call(call, app.registry.get(method), msgspec.json.encode(params))
        return msgspec.json.decode(result)

    async def start(self, text: str, **params: Any) -> Any:
        return await self.call("run.start", input=[{"kind": "text", "text": text}], **params)

    async def state(self, conv: str) -> dict[str, Any]:
        topic = await self.app.topics.find(ADA.id, f"conv:{conv}")
        assert topic is not None
        return topic.state

    async def until(self, conv: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The state once something holds of it."""
        state: dict[str, Any] = {}
        for _ in range(1000):
            state = await self.state(conv)
            if holds(state):
                return state
            await asyncio.sleep(0.005)
        raise AssertionError(f"never held; the state is {state}")

    async def end(self, started: Any, status: str = "done") -> dict[str, Any]:
        """The conversation's state once a run has closed, as it should."""
        closed = ("done", "cancelled", "failed", "limit", "interrupted")
        conv, run = started["conv"], started["run"]
        topic = await self.app.topics.find(ADA.id, f"conv:{conv}")
        assert topic is not None
        for _ in range(3):  # what was seen may not have been kept, and then it is otherwise in the end
            await self.until(conv, lambda s: s["runs"][run]["status"] in closed)
            if await topic.shown(lambda: topic.state["runs"][run]["status"] in closed):
                break
        state = await self.state(conv)
        assert state["runs"][started["run"]]["status"] == status, state["runs"][started["run"]].get("error")
        return state

    async def events(self, conv: str) -> list[tuple[str, Any]]:
        """The conversation's whole log."""
        topic = await self.app.topics.find(ADA.id, f"conv:{conv}")
        assert topic is not None
        await topic.settled()
        entries = await self.app.journal.read(topic.tid, 0, topic.head, 1 << 30)
        return [(e.name, msgspec.json.decode(e.body)) for e in entries]

    def texts(self, state: dict[str, Any], role: str = "assistant") -> list[str]:
        messages = [m for m in state["messages"] if m["role"] == role]
        return ["".join(p["text"] for p in m["parts"] if p["kind"] == "text") for m in messages]


CALLED: list[Any] = []


@tool(risk="read")
async def double(number: int) -> int:
    """Double a number."""
    CALLED.append(number)
    return number * 2


@tool(risk="danger")
async def launch(what: str) -> str:
    """Launch something."""
    CALLED.append(what)
    return f"launched {what}"


@tool(risk="read", timeout_s=0.05)
async def dawdle() -> str:
    """Take too long."""
    await asyncio.sleep(5)
    return "late"


@tool(risk="read")
async def grumble() -> str:
    """Fail."""
    raise ToolError("no milk")


@tool(risk="read")
async def ask_name(*, ctx: Any) -> str:
    """Ask for a name."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    choice, data = await ctx.ask("Your name?", schema=schema)
    return f"{choice} {data}"


TOOLS: tuple[Tool, ...] = (double, launch, dawdle, grumble, ask_name)


async def open_bench(
    folder: Path,
    provider: ScriptedProvider,
    connectors: Sequence[Connector] = (),
    kinds: Sequence[RunKind] = (),
    **hub: Any,
) -> Bench:
    settings = load({"SAG_DATA": str(folder)})
    for name, value in hub.items():
        setattr(settings.hub, name, value)
    app = App(settings)
    app.extensions.providers = {provider.name: provider}
    app.extensions.tools |= {t.name: t for t in TOOLS}
    app.extensions.kinds |= {k.name: k for k in kinds}
    for connector in connectors:
        app.extensions.connectors.add("test", connector)
    await app.start()
    return Bench(app, provider)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Opens hubs on one data folder; each is stopped before the next opens."""
    CALLED.clear()
    opened: list[Bench] = []

    async def open(*scripts: Any, **hub: Any) -> Bench:
        if opened:
            await opened.pop().app.stop()
        opened.append(await open_bench(tmp_path, ScriptedProvider(*scripts), **hub))
        return opened[-1]

    yield open
    for left in opened:
        await left.app.engine.drain(0)
        await left.app.stop()
