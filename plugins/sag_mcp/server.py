"""One MCP server: the hub's connector of it, above the connection that is the SDK's.

What is known of it beforehand, what people changed since, who may change it, and signing in to it are settled here;
the connection below (`sag_mcp.connector`) is made anew when its settings change. Above: `servers`, which has all of
them and keeps what is to be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from sag.plugin import (
    Connector,
    Content,
    Fault,
    Health,
    Policy,
    Prompt,
    PromptMessage,
    Resource,
    Secret,
    Tool,
    ToolContext,
    ToolError,
    User,
    printable,
)
from sag_mcp.address import Hosts, parse_url
from sag_mcp.connector import McpConnector, Offer
from sag_mcp.spec import ServerSettings

if TYPE_CHECKING:
    import httpx2

    from sag_mcp.oauth import Flow, SignIn
    from sag_mcp.servers import Servers

Json = dict[str, Any]

MOUNT = "/oauth/mcp"
WAIT_S = 5.0  # between two signs of life of a call that waits for a sign-in
RUNS = 256  # of which it is known that somebody was asked


class Changes(Struct, omit_defaults=True):
    """What was changed of a server's settings; members that are unset stand as they were given first."""

    title: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    lazy: bool | UnsetType = UNSET
    policy: Policy | UnsetType | None = UNSET
    tools: dict[str, bool] | UnsetType = UNSET

    def given(self) -> Json:
        """Those that are set."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


class Kept(Struct, omit_defaults=True):
    """What is kept of a server, in the plugin's keys. One of plugins.toml has `changes` alone.

    Attributes:
        url: Its address without the query.
        transport: As it was asked for.
        allow: Hosts that an administrator allowed it.
        by: Who connected it.
        ts: When, Unix ms.
        changes: Its other settings.
    """

    url: str = ""
    transport: Literal["auto", "http", "sse"] = "auto"
    allow: list[str] = field(default_factory=list)
    by: str = ""
    ts: int = 0
    changes: Changes = field(default_factory=Changes)


class KeptSecret(Struct, omit_defaults=True):
    """What is kept of a server as a secret: headers (None takes one of plugins.toml away), and the URL's query."""

    headers: dict[str, str | None] = field(default_factory=dict)
    query: str = ""


class ServerConnector(Connector, Protocol):
    """What is below a `Server`."""

    async def refresh(self) -> None:
        """Reconnect at once if it is down, else list anew; waits for it."""


class Server:
    """One MCP server as the hub's connector.

    Args:
        servers: All of them.
        name: Its name.
        given: As plugins.toml or who connected it gave it.
        kept: What people changed.
        secret: The same of what is secret.

    Attributes:
        source: `config` for plugins.toml, `user` for one that somebody connected.
        settings: As they are now.
        address: Of its URL, if it has one.
        offer: What it offered when it was last asked.
    """

    def __init__(
        self,
        servers: Servers,
        name: str,
        given: ServerSettings,
        kept: Kept | None = None,
        secret: KeptSecret | None = None,
    ) -> None:
        self.name, self.given, self.kept, self.secret = name, given, kept or Kept(), secret or KeptSecret()
        self.source: Literal["config", "user"] = "user" if self.kept.url else "config"
        self.address = parse_url(given.url) if given.url is not None else None
        self.offer: Offer | None = None
        self.settings = msgspec.structs.replace(given)
        self.sign_in: SignIn | None = None
        self._servers, self._hub = servers, servers.hub
        self._inner: ServerConnector | None = None
        self._changed: Callable[[], None] = lambda: None
        self._stopped = False
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._apply()

    def _apply(self) -> None:
        """Settings of now: as given, with what was changed since. The connector looks at the same object."""
        for member, value in (msgspec.structs.asdict(self.given) | self.kept.changes.given()).items():
            setattr(self.settings, member, {**self.given.tools, **value} if member == "tools" else value)
        headers = {k: v for k, v in self.given.headers.items() if self.secret.headers.get(k, "") is not None}
        self.settings.headers = headers | {k: Secret(v) for k, v in self.secret.headers.items() if v is not None}

    # the hub's connector

    async def start(self, changed: Callable[[], None]) -> None:
        """Read what people changed, and begin to connect."""
        self._changed, self._stopped = changed, False
        if self.source == "config":
            self.kept, self.secret = await self._servers.read(self.name)
            self._apply()
        self.offer = await self._servers.read_offer(self.name)
        async with self._lock:
            await self._open()

    async def stop(self) -> None:
        """End the connection."""
        self._stopped = True
        if self.sign_in is not None:
            self.sign_in.end()
        async with self._lock:
            await self._close()

    async def _open(self) -> None:
        if self._stopped or not self.settings.enabled:
            return
        self._inner = McpConnector(
            self.name,
            self.settings,
            self._hub,
            make_client=self._make_client if self.address is not None else None,
            cached=self.offer,
            on_offer=self._take_offer,
            on_auth=self._notice,
        )
        await self._inner.start(self._notice)

    async def _reopen(self) -> None:
        async with self._lock:
            await self._close()
            await self._open()
        self._notice()

    async def _close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.stop()

    def _notice(self) -> None:
        self._news.set()
        self._changed()

    def _take_offer(self, offer: Offer) -> None:
        if offer != self.offer:
            self.offer = offer
            self._hub.spawn(self._servers.keep_offer(self.name, offer))
        self._notice()

    def health(self) -> Health:
        """How it is, with where it is and where it comes from."""
        inner = self._inner
        health = msgspec.structs.replace(inner.health()) if inner is not None else Health(self._idle_status, kind="mcp")
        known = self.offer.title if self.offer is not None else ""
        health.title = self.settings.title or health.title or known or self.name
        if health.error and self.address is not None and self.address.query:
            health.error = health.error.replace(self.address.query, "…")
        health.data = {**health.data, "source": self.source, **self.place}
        if health.status == "auth" and self.can_sign_in:
            health.data["auth_url"] = f"{self._servers.base}{MOUNT}/start/{self.name}"
        return health

    @property
    def _idle_status(self) -> Literal["starting", "off"]:
        return "starting" if self.settings.enabled and not self._stopped else "off"

    @property
    def place(self) -> Json:
        """Where it is: its URL without the query, or the program's name alone."""
        if self.address is not None:
            return {"url": self.address.shown}
        return {"command": PurePath((self.settings.command or [""])[0]).name}

    def tools(self) -> Sequence[Tool]:
        """Its tools; those of a server over HTTP ask for a sign-in where one is needed."""
        tools = self._inner.tools() if self._inner is not None else ()
        return [self._signed(tool) for tool in tools] if self.can_sign_in else tools

    def prompts(self) -> Sequence[Prompt]:
        """Its prompts."""
        return self._inner.prompts() if self._inner is not None else ()

    def resources(self) -> Sequence[Resource]:
        """Its resources and templates."""
        return self._inner.resources() if self._inner is not None else ()

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        """Fill in a prompt.

        Raises:
            ToolError: It cannot be had.
        """
        return await self._up.get_prompt(name, arguments)

    async def read(self, uri: str) -> list[Content]:
        """Read a resource.

        Raises:
            ToolError: It cannot be had.
        """
        return await self._up.read(uri)

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        """What an argument may go on with."""
        return await self._inner.complete(kind, name, argument, value) if self._inner is not None else []

    @property
    def _up(self) -> ServerConnector:
        if self._inner is None:
            raise ToolError(f"{self.name} is switched off.")
        return self._inner

    # what people do with it

    def may_change(self, user: User) -> bool:
        """Whether a user may change it and sign in to it: who connected it, and administrators."""
        return "admin" in user.roles or (self.source == "user" and self.kept.by == user.id)

    def check_change(self, user: User) -> None:
        """Raises:
        Fault: access.denied.
        """
        if not self.may_change(user):
            whose = "It stands in plugins.toml" if self.source == "config" else "Somebody else connected it"
            raise Fault("access.denied", f"{whose}; an administrator may do this.")

    async def take(self, kept: Kept, secret: KeptSecret) -> None:
        """Take other settings, and connect anew where they want it."""
        before = msgspec.structs.replace(self.settings)
        self.kept, self.secret = kept, secret
        self._apply()
        self._changed()
        now = self.settings
        if (before.enabled, before.lazy, before.headers) != (now.enabled, now.lazy, now.headers):
            await self._reopen()

    async def settle(self) -> None:
        """Wait until it is known how it is, as long as connecting may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.connect_s):
                while self.health().status == "starting":
                    self._news.clear()
                    await self._news.wait()

    async def refresh(self) -> None:
        """Connect at once if it is down, else ask anew what it offers; waits as long as connecting may take."""
        inner = self._inner
        if inner is None:
            return
        if self.sign_in is not None:
            self.sign_in.needed = False
        work = asyncio.ensure_future(inner.refresh())
        await asyncio.wait({work}, timeout=self.settings.connect_s + 1)
        if not work.done():
            work.cancel()
        elif work.exception() is not None:  # it is up, and does not answer as it should
            await self._reopen()
            await self.settle()

    # signing in

    @property
    def can_sign_in(self) -> bool:
        """Whether a person can sign in to it: it is over HTTP, and nobody gave it credentials of another sort."""
        return self.address is not None and "authorization" not in (name.lower() for name in self.settings.headers)

    async def begin_sign_in(self, user: User) -> Flow:
        """Begin a user's sign-in, or give the one that is going on; its `url` is known then.

        Raises:
            Fault: access.denied, connector.failed.
        """
        self.check_change(user)
        if not self.can_sign_in:
            raise Fault("connector.failed", f"Nobody can sign in to {self.name}.", retry=False)
        await asyncio.to_thread(importlib.import_module, "sag_mcp.oauth")
        return await self._signer().begin(user)

    def _make_client(self) -> httpx2.AsyncClient:
        from sag_mcp.http import make_client

        assert self.address is not None
        signer = self._signer() if self.can_sign_in else None
        origin = self.address.origin
        # Event streams are silent as long as they like; the SDK times its requests by itself.
        return make_client(self._hub, self.hosts, self.settings.headers, signer=signer, origin=origin, silence_s=None)

    @property
    def hosts(self) -> Hosts:
        """Where the guard does not hold for it."""
        assert self.address is not None
        own = [f"{self.address.host}:{self.address.port}"] if self.source == "config" else self.kept.allow
        return self._servers.hosts | Hosts(own)

    def _signer(self) -> SignIn:
        from sag_mcp.http import make_client
        from sag_mcp.oauth import SignIn

        if self.sign_in is None:
            assert self.address is not None
            self.sign_in = SignIn(
                self._hub,
                self.name,
                self.address.url,
                lambda: make_client(self._hub, self.hosts),
                lambda: f"{self._servers.base}{MOUNT}/callback",
                self._servers.flows,
                self._notice,
                self._signed_in,
                self.settings.client_id,
                self.settings.client_secret,
            )
        return self.sign_in

    async def _signed_in(self, flow: Flow) -> None:
        await self.refresh()
        self._changed()

    @property
    def _needs_person(self) -> bool:
        return self.sign_in is not None and self.sign_in.needed

    def _signed(self, tool: Tool) -> Tool:
        async def call(args: Any, ctx: ToolContext) -> Any:
            while True:
                if self._needs_person:
                    await self._ask(ctx)  # raises where it was done in this run and did not help
                try:
                    return await tool.call(args, ctx)
                except ToolError:  # a call that the server refused so did not run, and may be sent again
                    if not self._needs_person:
                        raise

        return Tool(
            tool.name,
            tool.description,
            tool.input,
            call,
            check=tool.check,
            risk=tool.risk,
            idempotent=tool.idempotent,
            connector=self.name,
            timeout_s=tool.timeout_s,
            longest_s=tool.longest_s,
            title=tool.title,
            output=tool.output,
            policy=tool.policy,
        )

    async def _ask(self, ctx: ToolContext) -> None:
        """Have the run's user sign in: once in a run, however many of its calls want it.

        Raises:
            ToolError: Nobody did.
        """
        run = ctx.run or ctx.call
        if (asked := self._asked.get(run)) is None:
            asked = self._asked[run] = asyncio.get_running_loop().create_future()
            asked.add_done_callback(lambda f: f.cancelled() or f.exception())
            while len(self._asked) > RUNS:
                del self._asked[next(iter(self._asked))]
            try:
                await self._ask_once(ctx)
            except BaseException as e:
                asked.set_exception(e if isinstance(e, ToolError) else ToolError("The sign-in was cut off."))
                raise
            asked.set_result(None)
            return
        was_done = asked.done()
        await asyncio.shield(asked)
        if was_done:
            raise ToolError(f"{self.health().title} refuses the sign-in that was made.")

    async def _ask_once(self, ctx: ToolContext) -> None:
        title = printable(self.health().title, 80)
        if not self.may_change(ctx.user):
            raise ToolError(f"Somebody has to sign in to {title}: who connected it, or an administrator.")
        for _ in range(2):
            try:
                flow = await self.begin_sign_in(ctx.user)
            except Fault as e:
                raise ToolError(f"{title} wants somebody to sign in. {e.message}") from None
            asking = asyncio.ensure_future(ctx.ask(f"Sign in to {title}", url=flow.url.result()))
            # An answer that is there at once was given before a restart, to a page that leads nowhere now.
            await asyncio.sleep(0)
            if asking.done() and not flow.done.done():
                continue
            closing = self._hub.spawn(self._close_ask(ctx, flow))
            try:
                choice, _ = await asking
            finally:
                asking.cancel()
                closing.cancel()
            if choice != "accept":
                flow.fail(f"The sign-in to {title} was declined.")
            try:
                while not await flow.wait(WAIT_S):
                    await ctx.progress(0, None, f"Waiting for the sign-in to {title}")
            except Fault as e:
                raise ToolError(e.message) from None
            return
        raise ToolError(f"The sign-in to {title} was cut off; call the tool again.")

    async def _close_ask(self, ctx: ToolContext, flow: Flow) -> None:
        """Once the sign-in came to its end, so does the question: nobody has to say so on top."""
        await asyncio.wait({flow.done})
        choice = "decline" if flow.done.exception() is not None else "accept"
        try:
            asks = (await self._hub.state(ctx.user.id, f"conv:{ctx.conv}"))["asks"]
            for ask in [ask for ask, opened in asks.items() if opened.get("url") == flow.url.result()]:
                await self._hub.call(ctx.user, "ask.answer", {"ask": ask, "choice": choice}, client=ctx.client)
        except Fault as e:  # somebody was faster, or the call comes from elsewhere than a conversation
            if e.kind not in ("ask.closed", "ask.unknown", "topic.unknown"):
                raise
