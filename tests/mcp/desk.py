"""One connector without a hub around it: what tests of single servers stand on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from sag.plugin import Health, Hub, Sampled, SampleMessage, Tool, User
from sag_mcp.connector import McpConnector, Offer, Pace
from sag_mcp.spec import ServerSettings
from tests.mcp.scripted import command

Json = dict[str, Any]

FAST = Pace(first_s=0.1, most_s=0.6, healthy_s=2.0, probe_s=0.4, settle_s=0.02, relist_least_s=0.05, relist_s=60.0)


class Context:
    """What a tool is given, with a person who answers as the test says."""

    def __init__(self, *answers: tuple[str | None, Json | None]) -> None:
        self.user, self.client, self.conv, self.run, self.call = User("ada", "Ada"), "c", "v", "r", "k"
        self.log = logging.getLogger("test.call")
        self.cancelled = False
        self.answers = list(answers)
        self.told: list[tuple[float, float | None, str | None]] = []
        self.outputs: list[str] = []
        self.asked: list[Json] = []
        self.sampled: list[Any] = []
        self.thinking_s = 0.0
        self.withdrawn = 0
        self.model: Callable[[Sequence[SampleMessage]], Sampled] = lambda m: Sampled("a pixel", "p/m", "stop")

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self.told.append((done, total, text))

    async def output(self, text: str) -> None:
        self.outputs.append(text)

    async def ask(self, title: str, **given: Any) -> tuple[str | None, Json | None]:
        self.asked.append({"title": title, **{k: v for k, v in given.items() if v is not None}})
        try:
            if not self.answers:
                await asyncio.sleep(30)
            await asyncio.sleep(self.thinking_s)
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        return self.answers.pop(0)

    async def sample(self, messages: Sequence[SampleMessage], **given: Any) -> Sampled:
        self.sampled.append((messages, given))
        return self.model(messages)

    async def patch(self, scope: str, patch: Json) -> Json:
        return {}


class Desk:
    """A connector that was started.

    Attributes:
        offers: What it told of itself.
        states: The states that it was in, each once in a row.
    """

    def __init__(self, settings: ServerSettings, name: str = "srv", **given: Any) -> None:
        self.offers: list[Offer] = []
        self.states: list[str] = []
        self.auths = 0
        self.hub: Hub[Any] = Hub("mcp", None, {})
        self.connector = McpConnector(
            name, settings, self.hub, on_offer=self.offers.append, on_auth=self._auth, **({"pace": FAST} | given)
        )

    def _auth(self) -> None:
        self.auths += 1

    def _changed(self) -> None:
        status = self.connector.health().status
        if self.states[-1:] != [status]:
            self.states.append(status)

    async def start(self) -> Desk:
        await self.connector.start(self._changed)
        return self

    @property
    def health(self) -> Health:
        return self.connector.health()

    @property
    def tools(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.connector.tools()}

    async def is_(self, status: str, within_s: float = 8.0) -> Health:
        """Wait for a state."""
        await until(lambda: self.health.status == status, lambda: f"{status}: {self.health}", within_s)
        return self.health

    async def call(self, tool: str, ctx: Context | None = None, **args: Any) -> Any:
        return await self.tools[tool].call(args, ctx or Context())


async def until(holds: Callable[[], object], what: Callable[[], str] = lambda: "", within_s: float = 8.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what()}")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def desk(settings: ServerSettings | None = None, *, wait: str = "ready", **given: Any) -> AsyncIterator[Desk]:
    """A started connector, by default of a scripted server with the options given; stopped at the end."""
    own = {k: given.pop(k) for k in ("name", "pace", "cached", "make_client") if k in given}
    if settings is None:
        env = given.pop("env", {})
        members = {
            k: given.pop(k) for k in list(given) if k in ServerSettings.__struct_fields__ and k not in ("tools",)
        }
        settings = ServerSettings(command=command(**given), env=env, **members)
    made = Desk(settings, **own)
    await made.start()
    try:
        if wait:
            await made.is_(wait)
        yield made
    finally:
        began = time.monotonic()
        await made.connector.stop()
        assert time.monotonic() - began < 7.5
        assert made.health.status == "off"


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """How much later than asked the loop ran, in seconds, every 2 ms; less what it waited for a processor."""
    late: list[float] = []
    stop = False
    gc.collect()
    gc.freeze()  # as the hub does when it starts: what tests leave lying about is none of its

    def waited_s() -> float:
        with open(f"/proc/self/task/{threading.get_native_id()}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9

    async def look() -> None:
        while not stop:
            began, before = time.perf_counter(), waited_s()
            await asyncio.sleep(0.002)
            late.append(time.perf_counter() - began - 0.002 - (waited_s() - before))

    task = asyncio.create_task(look())
    try:
        yield late
    finally:
        stop = True
        await task
        late.sort()
        gc.unfreeze()


def p99(late: list[float]) -> float:
    return late[int(len(late) * 0.99)]


def bearers(canary: str) -> list[int]:
    """The processes that have a text in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if canary.encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
    return found
