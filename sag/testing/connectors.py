"""What every connector has to do, as tests: subclass `ConnectorContract`.

    class TestMine(ConnectorContract):
        tool = ("look_up", {"query": "x"})

        def make_connector(self):
            return MyConnector("mine")

The tests need pytest with pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import jsonschema
import msgspec
import pytest
import pytest_asyncio

from sag.hooks.connector import Connector, Health
from sag.hooks.hub import CONNECTOR_NAME
from sag.hooks.tool import Sampled, SampleMessage, Tool, ToolError, plain_json
from sag.ops.dispatch import User

Json = dict[str, Any]

START_S = 1.0
STOP_S = 8.0
UP = ("ready", "idle")


class Recorder:
    """A `ToolContext` that remembers what it was told.

    Attributes:
        told: Progress, as (done, total, text).
        written: What the tool wrote while it worked.
        answer: What `ask` answers.
    """

    def __init__(self) -> None:
        self.user = User("ada", "Ada")
        self.client, self.conv, self.run, self.call = "test", "c1", "r1", "k1"
        self.log = logging.getLogger("sag.testing")
        self.told: list[tuple[float, float | None, str | None]] = []
        self.written = ""
        self.answer: tuple[str | None, Json | None] = ("decline", None)
        self.cancelled = False

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self.told.append((done, total, text))

    async def output(self, text: str) -> None:
        self.written += text

    async def ask(
        self,
        title: str,
        *,
        schema: Json | None = None,
        url: str | None = None,
        options: list[str] | None = None,
        expires_s: float | None = None,
    ) -> tuple[str | None, Json | None]:
        return self.answer

    async def sample(
        self,
        messages: Sequence[SampleMessage],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: list[str] | None = None,
    ) -> Sampled:
        raise ToolError("There is no model here.")

    async def patch(self, scope: str, patch: Json) -> Json:
        return {}


class ConnectorContract(ABC):
    """What every connector has to do.

    Attributes:
        tool: A tool that it offers, by name, and arguments with which it works.
        ready_s: How long it may take until it is up.
    """

    pytestmark = pytest.mark.asyncio
    tool: ClassVar[tuple[str, Json]]
    ready_s: float = 20.0

    @abstractmethod
    def make_connector(self) -> Connector:
        """A connector that was not started; called once for each test."""

    @pytest_asyncio.fixture
    async def started(self) -> AsyncIterator[tuple[Connector, asyncio.Event]]:
        """A connector that is up, and what is set when it says that something changed."""
        connector, changed = self.make_connector(), asyncio.Event()
        await asyncio.wait_for(connector.start(changed.set), START_S)
        try:
            await self._until_up(connector, changed)
            yield connector, changed
        finally:
            await asyncio.wait_for(connector.stop(), STOP_S)

    async def _until_up(self, connector: Connector, changed: asyncio.Event) -> None:
        async with asyncio.timeout(self.ready_s):
            while connector.health().status not in UP:
                await changed.wait()
                changed.clear()

    def _find(self, connector: Connector) -> Tool:
        name, _ = self.tool
        return next(tool for tool in connector.tools() if tool.name == name)

    async def test_it_is_a_connector_with_a_name(self) -> None:
        connector = self.make_connector()
        assert isinstance(connector, Connector)
        assert CONNECTOR_NAME.fullmatch(connector.name)

    async def test_it_can_be_looked_at_before_it_is_started(self) -> None:
        connector = self.make_connector()
        assert isinstance(connector.health(), Health)
        list(connector.tools())
        list(connector.prompts())
        list(connector.resources())

    async def test_what_it_shows_is_json(self, started: tuple[Connector, asyncio.Event]) -> None:
        connector, _ = started
        shown = [connector.health(), list(connector.prompts()), list(connector.resources())]
        msgspec.json.encode(shown)

    async def test_its_tools_can_be_offered(self, started: tuple[Connector, asyncio.Event]) -> None:
        connector, _ = started
        tools = list(connector.tools())
        assert len({tool.name for tool in tools}) == len(tools)
        for tool in tools:
            assert re.fullmatch(r"\S.{0,127}", tool.name)
            assert isinstance(tool.description, str)
            assert tool.input.get("type") == "object"
            jsonschema.Draft202012Validator.check_schema(tool.input)
            assert 0 < tool.timeout_s <= tool.longest_s
            msgspec.json.encode(tool.definition)

    async def test_its_tools_are_the_same_as_long_as_nothing_changed(
        self, started: tuple[Connector, asyncio.Event]
    ) -> None:
        connector, _ = started
        first, second = ({t.name: t.fingerprint for t in connector.tools()} for _ in range(2))
        assert first == second

    async def test_a_tool_works(self, started: tuple[Connector, asyncio.Event]) -> None:
        connector, _ = started
        tool = self._find(connector)
        result = await asyncio.wait_for(tool.call(tool.check(self.tool[1]), Recorder()), tool.timeout_s)
        plain_json(getattr(result, "data", result))

    async def test_calls_do_not_hinder_each_other(self, started: tuple[Connector, asyncio.Event]) -> None:
        connector, _ = started
        tool = self._find(connector)
        cancelled = asyncio.ensure_future(tool.call(tool.check(self.tool[1]), Recorder()))
        others = [asyncio.ensure_future(tool.call(tool.check(self.tool[1]), Recorder())) for _ in range(5)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await asyncio.wait_for(asyncio.gather(*others), tool.timeout_s)

    async def test_what_is_not_there_is_told_in_words(self, started: tuple[Connector, asyncio.Event]) -> None:
        connector, _ = started
        with pytest.raises(ToolError, match=r"\w"):
            await connector.get_prompt("no such prompt", {})
        with pytest.raises(ToolError, match=r"\w"):
            await connector.read("none://nowhere")
        assert await connector.complete("prompt", "no such prompt", "x", "") == []

    async def test_a_tool_that_is_left_over_says_that_it_cannot_work(self) -> None:
        connector, changed = self.make_connector(), asyncio.Event()
        await connector.start(changed.set)
        try:
            await self._until_up(connector, changed)
            tool = self._find(connector)
        finally:
            await asyncio.wait_for(connector.stop(), STOP_S)
        work = asyncio.ensure_future(tool.call(tool.check(self.tool[1]), Recorder()))
        done, _ = await asyncio.wait({work}, timeout=tool.timeout_s)
        assert done, "the call hangs"
        assert work.exception() is None or not isinstance(work.exception(), BaseExceptionGroup)

    async def test_it_stops_while_it_starts_and_more_than_once(self) -> None:
        connector = self.make_connector()
        await asyncio.wait_for(connector.start(lambda: None), START_S)
        await asyncio.wait_for(connector.stop(), STOP_S)
        await asyncio.wait_for(connector.stop(), STOP_S)

    async def test_nothing_of_it_is_left(self) -> None:
        before = asyncio.all_tasks()
        connector, changed = self.make_connector(), asyncio.Event()
        await connector.start(changed.set)
        await self._until_up(connector, changed)
        await asyncio.wait_for(connector.stop(), STOP_S)
        for _ in range(100):
            left = {task for task in asyncio.all_tasks() - before if not task.done()}
            if not left:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"these tasks go on: {left}")
