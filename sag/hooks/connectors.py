"""The hub's connectors: starts them, keeps what each offers now, stops them.

Nothing that a connector raises gets out of here: one that fails is shown as failed, and offers nothing. Above: the
plugin host and the engine. Below: the contract (`sag.hooks.connector`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, get_args

import msgspec

from sag.hooks.connector import Connector, ConnectorState, Health, Prompt, Resource
from sag.hooks.hub import one_line
from sag.hooks.tool import Tool

log = logging.getLogger("sag.hooks")
Json = dict[str, Any]

START_S = 30.0
STATES = frozenset(get_args(ConnectorState))
SHOWN = 500  # characters of a tool's description
STOP_S = 8.0  # a child process has its standard input closed, is asked to go, and is ended: 6 s at most


class Entry:
    """A connector and what was last read of it.

    Attributes:
        plugin: Who brought it.
        connector: The thing itself.
        health, tools, prompts, resources: As it told last.
    """

    def __init__(self, plugin: str, connector: Connector) -> None:
        self.plugin, self.connector = plugin, connector
        self.health = Health()
        self.tools: Sequence[Tool] = ()
        self.prompts: Sequence[Prompt] = ()
        self.resources: Sequence[Resource] = ()
        self.starting: asyncio.Task[None] | None = None
        self.dirty = False

    def view(self) -> Json:
        """What the topic `hub` shows of it: texts of a server's are shortened, for the topic has to fit a frame.

        Raises:
            TypeError: Something of it is no JSON.
        """
        tools = {tool.name: shown_tool(tool) for tool in self.tools}
        prompts = {p.name: msgspec.to_builtins(p) for p in self.prompts}
        status = {"status": self.health.status}  # of which a default is left out too
        told: Json = {**status, **msgspec.to_builtins(self.health), "plugin": self.plugin, "tools": tools}
        for member in ("error", "instructions"):
            if told.get(member):
                told[member] = told[member][: SHOWN * 8]
        return told | ({"prompts": prompts} if prompts else {}) | {"resources": len(self.resources)}


class Connectors(Mapping[str, Entry]):
    """All connectors by name.

    Args:
        on_change: Called on the event loop when something that a connector shows has changed.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._entries: dict[str, Entry] = {}
        self._running = False
        self._settling: set[asyncio.Future[None]] = set()

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, plugin: str, connector: Connector) -> None:
        """Take a connector; it is started now, or by `start`.

        Raises:
            ValueError: Its name is taken.
        """
        if connector.name in self._entries:
            raise ValueError(f"connector {connector.name!r} is there already")
        entry = self._entries[connector.name] = Entry(plugin, connector)
        if self._running:
            self._start(entry)

    def start(self) -> None:
        """Start all that were taken, at the same time; none is waited for."""
        self._running = True
        for entry in self._entries.values():
            self._start(entry)

    def _start(self, entry: Entry) -> None:
        name = entry.connector.name
        entry.starting = asyncio.create_task(self._started(entry), name=f"connector {name}")
        self._changed(entry)

    async def _started(self, entry: Entry) -> None:
        starting = asyncio.ensure_future(_safely(entry.connector.start, lambda: self._changed(entry)))
        try:
            done, _ = await asyncio.wait({starting}, timeout=START_S)
        finally:
            starting.cancel()
            await asyncio.wait({starting}, timeout=1)  # so that it is not stopped while it still starts
        e = starting.result() if done else TimeoutError(f"it did not come back within {START_S:g} s")
        if e is not None:
            self._fail(entry, "start", e)
        else:
            self._changed(entry)

    def _fail(self, entry: Entry, what: str, e: BaseException) -> None:
        log.error("connector %s: %s: %s", entry.connector.name, what, one_line(e), exc_info=e)
        entry.health = Health("failed", f"{what}: {one_line(e)}")
        entry.tools = entry.prompts = entry.resources = ()
        self._tell()

    def _changed(self, entry: Entry) -> None:
        """Read a connector anew, once for many changes in a turn of the loop."""
        if not entry.dirty:
            entry.dirty = True
            asyncio.get_running_loop().call_soon(self._read, entry)

    def _read(self, entry: Entry) -> None:
        entry.dirty = False
        connector = entry.connector
        if self._entries.get(connector.name) is not entry:
            return
        try:
            fresh = Entry(entry.plugin, connector)
            fresh.health, fresh.tools = connector.health(), tuple(connector.tools())
            fresh.prompts, fresh.resources = tuple(connector.prompts()), tuple(connector.resources())
            for tool in fresh.tools:
                tool.origin = tool.connector = connector.name
                tool.fingerprint  # noqa: B018 - raises where the definition is no JSON
            msgspec.json.encode([fresh.view(), fresh.resources])
            if fresh.health.status not in STATES:
                raise ValueError(f"{fresh.health.status!r} is no status")
        except Exception as e:
            self._fail(entry, "what it offers", e)
            return
        entry.health, entry.tools = fresh.health, fresh.tools
        entry.prompts, entry.resources = fresh.prompts, fresh.resources
        self._tell()

    def _tell(self) -> None:
        if not any(entry.health.status == "starting" for entry in self._entries.values()):
            for future in self._settling:
                if not future.done():
                    future.set_result(None)
        self.on_change()

    async def settle(self, seconds: float) -> None:
        """Wait until no connector is starting any more, for so long at most."""
        if any(entry.health.status == "starting" for entry in self._entries.values()):
            future = asyncio.get_running_loop().create_future()
            self._settling.add(future)
            await asyncio.wait({future}, timeout=seconds)
            self._settling.discard(future)

    def tools(self) -> list[Tool]:
        """The tools of all connectors."""
        return [tool for entry in self._entries.values() for tool in entry.tools]

    async def drop(self, name: str) -> None:
        """Stop a connector and forget it; one that is not there is no error."""
        if (entry := self._entries.pop(name, None)) is not None:
            self._tell()
            await self._stop(entry)

    def of(self, plugin: str) -> list[str]:
        """The names of a plugin's connectors."""
        return [name for name, entry in self._entries.items() if entry.plugin == plugin]

    async def stop(self) -> None:
        """Stop all, at the same time."""
        self._running = False
        entries = list(self._entries.values())
        self._entries.clear()
        await _all([self._stop(entry) for entry in entries])

    async def _stop(self, entry: Entry) -> None:
        name = entry.connector.name
        if entry.starting is None:
            return
        if not entry.starting.done():
            entry.starting.cancel()
            await asyncio.wait({entry.starting}, timeout=1)
        stopping = asyncio.ensure_future(_safely(entry.connector.stop))
        done, _ = await asyncio.wait({stopping}, timeout=STOP_S)  # not wait_for, whose cancel would be heeded by nobody
        if not done:
            log.error("connector %s does not stop", name)
            stopping.cancel()
        elif (e := stopping.result()) is not None:
            log.error("connector %s: stop: %s", name, one_line(e), exc_info=e)


async def _safely(do: Callable[..., Awaitable[None]], *given: Any) -> BaseException | None:
    """Do what a connector does, and give what it raises: SystemExit of a task, for one, would end the whole loop."""
    try:
        await do(*given)
    except BaseException as e:
        task = asyncio.current_task()
        if isinstance(e, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return e
    return None


async def _all(work: Sequence[Awaitable[None]]) -> None:
    if work:
        await asyncio.gather(*work)


def shown_tool(tool: Tool) -> Json:
    """What the topic `hub` shows of a tool."""
    shown: Json = {"description": tool.description[:SHOWN], "risk": tool.risk, "key": tool.key}
    if tool.title:
        shown["title"] = tool.title[:SHOWN]
    return shown | ({"policy": tool.policy} if tool.policy else {})
