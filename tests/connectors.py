"""A connector that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sag.hooks.connector import Health, Prompt, PromptMessage, Resource
from sag.hooks.tool import Content, TextContent, Tool, ToolError

Json = dict[str, Any]
OBJECT: Json = {"type": "object"}


async def _say_ok(args: Any, ctx: Any) -> Any:
    return "ok"


def make_tool(name: str, call: Callable[[Any, Any], Awaitable[Any]] = _say_ok, **given: Any) -> Tool:
    """A tool of a connector; `risk` is read where it is left out."""
    given = {"risk": "read", "input": OBJECT, "description": f"Does {name}.", **given}
    return Tool(name, given.pop("description"), given.pop("input"), call, **given)


class FakeConnector:
    """Offers what its members hold; `tell` says that they changed. `wrong` holds what a method does instead.

    Attributes:
        offered, shown, prompted, readable: Tools, health, prompts and resources.
        wrong: By a method's name: an exception to raise, or an event to wait for.
        did: The methods that were called.
    """

    def __init__(self, name: str, *tools: Tool, **wrong: BaseException | asyncio.Event) -> None:
        self.name = name
        self.offered: Sequence[Any] = tools
        self.shown: Any = Health("ready", title=name.title())
        self.prompted: Sequence[Prompt] = ()
        self.readable: Sequence[Resource] = ()
        self.wrong: dict[str, BaseException | asyncio.Event] = dict(wrong)
        self.did: list[str] = []
        self.up = False
        self.tell: Callable[[], None] = lambda: None

    async def _do(self, what: str) -> None:
        self.did.append(what)
        wrong = self.wrong.get(what)
        if isinstance(wrong, asyncio.Event):
            await wrong.wait()
        elif wrong is not None:
            raise wrong

    def _look(self, what: str) -> None:
        if isinstance(wrong := self.wrong.get(what), BaseException):
            raise wrong

    async def start(self, changed: Callable[[], None]) -> None:
        self.tell = changed
        await self._do("start")
        self.up = True

    async def stop(self) -> None:
        await self._do("stop")

    def health(self) -> Health:
        self._look("health")
        health: Health = self.shown if self.up else Health()
        return health

    def tools(self) -> Sequence[Tool]:
        self._look("tools")
        return self.offered

    def prompts(self) -> Sequence[Prompt]:
        self._look("prompts")
        return self.prompted

    def resources(self) -> Sequence[Resource]:
        self._look("resources")
        return self.readable

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        await self._do("get_prompt")
        if name not in {p.name for p in self.prompted}:
            raise ToolError(f"no prompt {name}")
        return [PromptMessage("user", [TextContent(f"{name} {arguments}")])]

    async def read(self, uri: str) -> list[Content]:
        await self._do("read")
        if uri not in {r.uri for r in self.readable}:
            raise ToolError(f"nothing at {uri}")
        return [TextContent(f"what is at {uri}")]

    async def complete(self, kind: str, name: str, argument: str, value: str) -> list[str]:
        await self._do("complete")
        return [f"{value}{n}" for n in range(200)]
