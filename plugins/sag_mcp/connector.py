"""One MCP server as a `Connector` of the hub: supervised, so that it is there again after whatever happened to it.

A task of its own makes one connection after the other: at once, when somebody needs a lazy server, and after a failure
later and later. Tools find the connection of the moment when they are called. Nothing here imports the SDK; the module
that does is imported in a thread when a server is first connected to. Above: the plugin's servers. Below: a connection
(`sag_mcp.connection`).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct, field

from sag.plugin import (
    Content,
    Health,
    Hub,
    Prompt,
    PromptMessage,
    Resource,
    Result,
    Tool,
    ToolContext,
    ToolError,
    ToolLost,
)
from sag_mcp import convert
from sag_mcp.ends import Down, Lost, Malformed
from sag_mcp.spec import ServerSettings

if TYPE_CHECKING:
    import httpx2

    from sag_mcp.connection import Connection

Json = dict[str, Any]
T = TypeVar("T")
Kind = Literal["stdio", "http", "sse"]
Status = Literal["starting", "ready", "idle", "auth", "backoff", "failed", "off"]

STDERR_SHOWN = 2000
DROPPED_TOLD = 100
SHORTEST_SECRET = 8  # shorter ones would blot out ordinary words


class Pace(NamedTuple):
    """When things are done, in seconds.

    Attributes:
        first_s, most_s: Between two attempts to connect, at first and at most; it doubles, and varies by a fifth.
        failures: So many in a row and the server is given up: it is tried every `most_s`, and nobody waits for it.
        healthy_s: A connection that lasted so long ends a row of failures.
        probe_s: An idle server is looked at so often.
        settle_s: From the first news that a list has changed to reading it.
        relist_least_s, relist_s: From one reading of lists to the next, at least; at most where changes are not told.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    failures: int = 5
    healthy_s: float = 10.0
    probe_s: float = 30.0
    settle_s: float = 0.1
    relist_least_s: float = 1.0
    relist_s: float = 300.0


PACE = Pace()


class Offer(Struct, omit_defaults=True):
    """What a server offered when it was last asked, as JSON that can be kept.

    Attributes:
        tools: As the server listed them (the specification's objects), those that can be used.
        prompts, resources: As the hub shows them; templates are among the resources.
        title, version, instructions: What it says of itself.
        protocol: The protocol's revision that was spoken.
        notes: What was left out, and why.
    """

    tools: list[Json] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)
    title: str = ""
    version: str = ""
    instructions: str = ""
    protocol: str = ""
    notes: list[str] = field(default_factory=list)


class McpConnector:
    """One MCP server.

    Args:
        name: The connector's name.
        settings: How it is reached, and its limits; title, policy and tools may change while it runs.
        hub: The plugin's hub.
        make_client: Makes the HTTP client of one connection, for a server with a URL; it is closed with the connection.
        cached: What it offered last; a server that is not connected shows this.
        on_offer: Told what it offers now, each time that it is something new.
        on_auth: Called when the server answers 401 in spite of what `make_client` gave. Nothing is tried then (health
            `auth`) until `refresh` is called.
        pace: When things are done.
    """

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        hub: Hub[Any],
        *,
        make_client: Callable[[], httpx2.AsyncClient] | None = None,
        cached: Offer | None = None,
        on_offer: Callable[[Offer], None] | None = None,
        on_auth: Callable[[], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.name, self.settings = name, settings
        self._log = hub.log.getChild(name)
        self._make_client, self._on_offer, self._on_auth = make_client, on_offer, on_auth
        self._pace = pace or PACE
        self._offer = cached
        self._changed: Callable[[], None] = lambda: None
        self._status: Status = "starting" if settings.enabled else "off"
        self._error: str | None = None
        self._stderr = ""
        self._failures = 0  # in a row
        self._attempt = self._failed = 0  # the newest to connect, and the newest that failed
        self._ever, self._restarts = False, 0  # whether it was connected, and how often again
        self._up_at: float | None = None  # of the newest connection, once it was made
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = self._needed = self._again = False
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()  # replaced at each change of the state
        self._kind: Kind | None = None  # the transport that worked
        self._legacy = settings.era == "handshake" or (cached is not None and "2024" <= cached.protocol < "2026")
        self._built: tuple[Any, list[Tool]] = (None, [])

    # what the hub calls

    async def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        if self.settings.enabled:
            self._task = asyncio.create_task(self._supervise(), name=f"mcp {self.name}")

    async def stop(self) -> None:
        """End the connection, and a process with all that it started; takes 7 s at most."""
        self._stopping = True
        self._wake.set()
        connection, task = self._connection, self._task
        if task is not None:
            if connection is not None:
                connection.leave()
                await asyncio.wait({task}, timeout=1.0)
                connection.cut()
            # Not cancelled: the SDK's way out is proof against its own cancelling alone.
            _, late = await asyncio.wait({task}, timeout=6.0)
            if late:
                self._log.error("does not stop")
        self._tell("off")

    async def refresh(self) -> None:
        """Reconnect at once if it is down (given up or not signed in to included), else list anew; waits for that.

        Raises:
            ToolError: It is connected, and does not list what it offers.
        """
        if self._task is None or self._stopping:
            return
        connection = self._connection
        if connection is not None and connection.ready:
            await connection.relist()
            return
        self._failures, self._needed, self._again = 0, True, True
        self._tell("starting")
        self._wake.set()
        await self._settled(self.settings.connect_s + 1)

    def health(self) -> Health:
        offer, connection = self._offer or Offer(), self._connection
        data: Json = {"transport": self._kind or ("stdio" if self.settings.command else self.settings.transport)}
        data |= {"protocol": offer.protocol} if offer.protocol else {}
        data |= {"restarts": self._restarts} if self._restarts else {}
        data |= {"stderr": self._stderr} if self._stderr and self._error else {}
        return Health(
            self._status,
            self._error,
            self.settings.title or offer.title or self.name,
            "mcp",
            offer.version,
            offer.instructions,
            [*offer.notes, *self._unknown(offer)] if connection is not None or self._offer else [],
            data,
        )

    def tools(self) -> Sequence[Tool]:
        offer, settings = self._offer, self.settings
        if offer is None or self._status in ("failed", "off"):
            return ()
        of = (id(offer), settings.policy, dict(settings.tools), dict(settings.risks))
        if self._built[0] != of:
            tools = [
                convert.make_tool(raw, settings, self.name, self._call)
                for raw in offer.tools
                if settings.tools.get(raw["name"], True)
            ]
            self._built = (of, tools)
        return self._built[1]

    def prompts(self) -> Sequence[Prompt]:
        return self._offer.prompts if self._offer is not None and self._status not in ("failed", "off") else ()

    def resources(self) -> Sequence[Resource]:
        return self._offer.resources if self._offer is not None and self._status not in ("failed", "off") else ()

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        _, raw = await self._use(lambda c: c.ask("prompts/get", lambda client: client.get_prompt(name, arguments)))
        return _well_formed(convert.prompt_messages, raw)

    async def read(self, uri: str) -> list[Content]:
        _, raw = await self._use(lambda c: c.ask("resources/read", lambda client: client.read_resource(uri)))
        return _well_formed(convert.resource_contents, raw)

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        try:
            return await self._use(lambda c: c.complete(kind, name, argument, value))
        except ToolError as e:
            self._log.info("no completion: %s", e)
            return []

    def _unknown(self, offer: Offer) -> list[str]:
        names = {raw["name"] for raw in offer.tools}
        if not names:
            return []
        wrong = sorted((self.settings.tools.keys() | self.settings.risks.keys()) - names)
        return [f"The settings name a tool that is not there: {name}." for name in wrong[:10]]

    # calls

    async def _call(self, tool: Tool, args: Json, ctx: ToolContext) -> Result:
        async def work(connection: Connection) -> Json:
            return await connection.call(tool.name, args, ctx)

        raw = await self._use(work, idempotent=tool.idempotent)
        try:
            return convert.result_of(raw, tool.output)
        except Malformed as e:
            raise ToolError(str(e), kind="mcp.protocol") from None

    async def _use(self, work: Callable[[Connection], Awaitable[T]], *, idempotent: bool | None = None) -> T:
        """Do something on the connection of now, and once more on the next where that does no harm.

        Args:
            work: What to do.
            idempotent: Whether a tool's call may be repeated; None for what is no tool's call, and may.

        Raises:
            ToolError: It failed, or there is no connection.
            ToolLost: It was cut on its way to a server that may have done it.
        """
        repeats = 0 if idempotent is False else 1
        for attempt in (1, 2, 3):
            connection = await self._connected()
            try:
                if idempotent is not None:
                    return await work(connection)
                async with asyncio.timeout(self.settings.call_s):
                    return await work(connection)
            except Malformed as e:
                raise ToolError(str(e), kind="mcp.protocol") from None
            except TimeoutError:
                raise ToolError(f"No answer within {self.settings.call_s:g} s.", kind="tool.timeout") from None
            except Lost as e:
                over = connection.kind == "stdio" or e.kind != "mcp.closed"
                if attempt == 3 or e.kind == "mcp.auth" or (e.sent and over):
                    raise ToolError(str(e), kind=e.kind) from None
                if e.sent and repeats == 0 and idempotent is None:
                    raise ToolError(str(e), kind=e.kind) from None
                if e.sent and repeats == 0:
                    raise ToolLost(f"{e} Whether it did its work is not known.") from None
                repeats -= e.sent
        raise AssertionError("unreachable")

    async def _connected(self) -> Connection:
        """The connection, once there is one.

        Raises:
            ToolError: There will be none soon; nothing was sent.
        """
        # An attempt that begins from now on decides, or the one that is going on and has not been up yet.
        over = self._connection is None or self._was_up()
        failed = self._attempt if over else self._attempt - 1
        until = time.monotonic() + self.settings.connect_s + 1
        while True:
            connection = self._connection
            if connection is not None and connection.ready:
                return connection
            kind = "mcp.auth" if self._status == "auth" else "mcp.closed"
            given_up = self._status in ("failed", "auth", "off") or self._stopping or self._failed > failed
            left = until - time.monotonic()
            if given_up or left <= 0:
                raise ToolError(f"The server is not connected: {self._error or self._status}", kind=kind)
            self._needed = True
            self._wake.set()
            await self._turned(left)

    async def _settled(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._status == "starting" and (left := until - time.monotonic()) > 0:
            await self._turned(left)

    async def _turned(self, seconds: float) -> None:
        """Until something changes, for so long at most."""
        turn = self._turn
        try:
            async with asyncio.timeout(seconds):
                await turn.wait()
        except TimeoutError:
            pass

    def _tell(self, status: Status, error: str | None = None) -> None:
        self._status, self._error = status, error
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()
        self._changed()

    # its task

    async def _supervise(self) -> None:
        while not self._stopping:
            if self.settings.lazy and self._offer is not None and not self._needed:
                self._tell("idle")
                await self._rest(None)
                continue
            try:
                down = await self._connect()
            except Exception as e:  # a fault of ours; it must not end the supervision
                self._log.exception("connecting failed")
                down = Down("mcp.closed", f"{type(e).__name__}: {e}")
            if down is not None and not self._stopping:
                await self._recover(down)

    async def _recover(self, down: Down) -> None:
        """Tell of a failure, and wait until it is time for another attempt."""
        error, self._stderr = self._blot(str(down)), self._blot(down.stderr[-STDERR_SHOWN:])
        self._failed = self._attempt
        self._needed = False
        if down.kind == "mcp.auth":
            self._log.warning("%s", error)
            self._tell("auth", error)
            if self._on_auth is not None:
                self._on_auth()
            while self._status == "auth" and not self._stopping:
                await self._rest(None)
            return
        lasted = self._up_at is not None and time.monotonic() - self._up_at >= self._pace.healthy_s
        self._failures = 1 if lasted else self._failures + 1
        given_up = self._failures >= self._pace.failures
        delay_s = self._pace.most_s
        if not given_up:
            delay_s = min(self._pace.first_s * 2 ** (self._failures - 1), delay_s)
        delay_s *= random.uniform(0.8, 1.2)
        self._log.warning("%s Next attempt in %.1f s.", error, delay_s)
        self._tell("failed" if given_up else "backoff", error)
        await self._rest(delay_s)

    async def _rest(self, seconds: float | None) -> None:
        """Wait before the next attempt: less where somebody needs the server, not at all where it is asked for."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._stopping:
            if self._again or (seconds is None and self._needed and self._status == "idle"):
                break
            until = None if seconds is None else began + seconds
            if until is not None and self._needed and self._status == "backoff":
                until = min(until, began + self._pace.first_s)
            if until is not None and loop.time() >= until:
                break
            self._wake.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                break
        self._again = False

    async def _connect(self) -> Down | None:
        """Make a connection and stay with it; gives why it ended, None where it was to end."""
        self._attempt += 1
        if self._offer is None and self._failures == 0:
            self._tell("starting")
        settings = self.settings
        if settings.command is not None:
            return (await self._connect_by("stdio"))[0]
        if settings.transport != "auto":
            return (await self._connect_by(settings.transport))[0]
        if self._kind is not None:
            return (await self._connect_by(self._kind))[0]
        down, status = await self._connect_by("http")
        refused = status is not None and 400 <= status < 500 and status not in (401, 403, 408, 429)
        if down is None or down.kind == "mcp.auth" or self._up_at is not None or not refused or self._stopping:
            return down
        older, _ = await self._connect_by("sse")  # the specification's way to find servers of the first kind
        return older if self._was_up() else down

    def _was_up(self) -> bool:
        return self._up_at is not None

    async def _connect_by(self, kind: Kind) -> tuple[Down | None, int | None]:
        """The same by one transport; gives the HTTP status of the last response too."""
        parts = await asyncio.to_thread(_load)
        if self._stopping:
            return None, None
        connection: Connection = parts.Connection(
            self.settings,
            kind,
            "legacy" if self._legacy else "auto",
            self._make_client,
            self._pace,
            self._log,
            self._take_offer,
        )
        self._connection, self._up_at = connection, None

        def ready() -> None:
            self._kind, self._legacy = kind, connection.handshake
            self._restarts += self._ever
            self._ever, self._needed, self._up_at = True, False, time.monotonic()
            self._tell("ready")

        down: Down | None = None
        try:
            await connection.run(ready)
        except Down as e:
            down = e
            if not self._was_up() and self.settings.era == "auto":
                # A process may have died of what it does not know.
                self._legacy = not self._legacy and kind == "stdio" and e.kind == "mcp.closed"
        finally:
            self._connection = None
            if sum(connection.dropped.values()) >= DROPPED_TOLD:
                self._log.info("not listened to: %s", connection.dropped)
        return down, connection.status

    def _take_offer(self, offer: Offer) -> None:
        new = offer != self._offer
        self._offer = offer
        if new:
            for note in offer.notes:
                self._log.warning("%s", note)
            if self._on_offer is not None:
                self._on_offer(offer)
        self._changed()

    def _blot(self, text: str) -> str:
        """A text of the server's without what it was given to keep secret."""
        settings = self.settings
        secrets = [value.reveal() for value in (*settings.env.values(), *settings.headers.values())]
        if settings.url is not None:
            secrets.append(urlsplit(settings.url).query)
        for secret in secrets:
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "…")
        return text


def _load() -> Any:
    """The module that imports the SDK: most of a second of work, and 60 MB that stay."""
    is_new = "sag_mcp.connection" not in sys.modules
    parts = importlib.import_module("sag_mcp.connection")
    if is_new:
        gc.freeze()  # measured: with the SDK's models in it a full collection stops the loop for 70 ms
    return parts


def _well_formed(read: Callable[[Json], T], raw: Json) -> T:
    try:
        return read(raw)
    except Malformed as e:
        raise ToolError(str(e), kind="mcp.protocol") from None
