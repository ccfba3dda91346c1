"""The MCP servers of the hub: those of plugins.toml, and those that people connected while it runs.

Has all of them by name and keeps what people changed: addresses and switches in the plugin's keys, headers and what
stands in a URL's query among its secrets. Nothing here starts a process; a command line comes from plugins.toml alone.
Above: the operations. Below: `server`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from sag.plugin import Fault, Hub, Policy
from sag_mcp.address import Hosts, parse_ports
from sag_mcp.connector import Offer
from sag_mcp.server import Changes, Kept, KeptSecret, Server
from sag_mcp.spec import Seconds, ServerSettings

if TYPE_CHECKING:
    from sag_mcp.oauth import Flow

MAX_SERVERS = 64  # that people connect
MAX_OFFER = 512 << 10  # bytes of what a server offered last, to be known before it is asked again


class Defaults(Struct, forbid_unknown_fields=True):
    """The table `[mcp.defaults]`: what holds for servers that people connect. The members are those of a server."""

    policy: Policy | None = None
    sampling: bool = True
    connect_s: Seconds = 15.0
    call_s: Seconds = 60.0
    longest_s: Seconds = 300.0


class Settings(Struct):
    """The table `[mcp]` of plugins.toml.

    Attributes:
        servers: Servers by name.
        allow: Hosts (`nas.home`, `10.0.0.5`, `[::1]`; with a port or without) that people may connect to although their
            addresses are private, and on which servers are looked for.
        ports: Where they are looked for on those hosts: ports and ranges, `"8000-8010"`.
        defaults: What holds for servers that people connect.
        url: The hub's address as browsers see it, for signing in to servers; left out, the first of SAG_ORIGINS, else
            this machine.
    """

    servers: dict[str, ServerSettings] = field(default_factory=dict)
    allow: list[str] = field(default_factory=list)
    ports: list[int | str] = field(default_factory=lambda: [3000, 3001, "8000-8010", 8080])
    defaults: Defaults = field(default_factory=Defaults)
    url: str = ""


class Servers:
    """All MCP servers.

    Args:
        hub: The plugin's hub.

    Attributes:
        flows: Sign-ins that are going on, by their state.
        hosts: Hosts that may be private, for every server.

    Raises:
        ValueError: plugins.toml is wrong; the text names the member.
    """

    def __init__(self, hub: Hub[Settings]) -> None:
        self.hub = hub
        self.flows: dict[str, Flow] = {}
        self._writing = asyncio.Lock()
        self._by_name: dict[str, Server] = {}
        settings = hub.settings
        try:
            self.hosts, self.ports = Hosts(settings.allow), parse_ports(settings.ports)
        except ValueError as e:
            raise ValueError(f"[mcp] {e}") from None
        for name, given in settings.servers.items():
            if (given.command is None) == (given.url is None):
                raise ValueError(f"[mcp.servers.{name}] needs either `command` or `url`")
            try:
                self._by_name[name] = Server(self, name, given)
            except Fault as e:
                raise ValueError(f"[mcp.servers.{name}] url: {e.message}") from None

    def __iter__(self) -> Iterator[Server]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Server:
        """A server by name.

        Raises:
            Fault: connector.unknown.
        """
        if (server := self._by_name.get(name)) is None:
            raise Fault("connector.unknown", f"There is no MCP server {name!r}.")
        return server

    @property
    def taken(self) -> set[str]:
        """Names that a new server cannot have: those of connectors, and of plugins that have tools."""
        return {*self._by_name, *self.hub.connectors, *(tool.origin for tool in self.hub.tools)}

    @property
    def base(self) -> str:
        """The hub's address as browsers see it."""
        return (self.hub.settings.url or self.hub.url).rstrip("/")

    async def load(self) -> None:
        """Add what people connected, from what is kept."""
        for key, value in (await self.hub.kv.list("server/")).items():
            name = key.removeprefix("server/")
            try:
                kept = msgspec.convert(value, Kept)
                if not kept.url:
                    continue
                if name in self._by_name:
                    raise ValueError("plugins.toml has one of that name")
                self._add(name, kept, await self._read_secret(name))
            except (msgspec.MsgspecError, ValueError, Fault) as e:
                self.hub.note(f"the server {name} that was connected is left out: {e}")

    def _add(self, name: str, kept: Kept, secret: KeptSecret) -> Server:
        defaults = msgspec.structs.asdict(self.hub.settings.defaults)
        url = kept.url + (f"?{secret.query}" if secret.query else "")
        server = Server(self, name, ServerSettings(url=url, transport=kept.transport, **defaults), kept, secret)
        self.hub.add_connector(server)
        self._by_name[name] = server
        return server

    async def connect(self, name: str, kept: Kept, secret: KeptSecret) -> Server:
        """Keep a new server, and begin to connect to it.

        Raises:
            Fault: connector.exists, mcp.limit; store.full and its like.
        """
        if name in self.taken:
            raise Fault("connector.exists", f"There is something of the name {name!r} already.", id=name)
        if sum(server.source == "user" for server in self) >= MAX_SERVERS:
            raise Fault("mcp.limit", f"There are {MAX_SERVERS} servers already; remove one first.", code=429)
        server = self._add(name, kept, secret)
        try:
            await self._write(name, kept, secret)
        except BaseException:
            await self._drop(server)
            raise
        return server

    async def change(self, server: Server, changes: Changes, headers: Mapping[str, str | None]) -> None:
        """Change a server's settings, and keep that.

        Raises:
            Fault: connector.unknown: it was removed meanwhile; store.full and its like.
        """
        async with self._writing:
            server = self[server.name]
            before, given = server.kept.changes.given(), changes.given()
            if "tools" in given:
                given["tools"] = {**before.get("tools", {}), **given["tools"]}
            kept = msgspec.structs.replace(server.kept, changes=Changes(**{**before, **given}))
            secret = msgspec.structs.replace(server.secret, headers=_merged(server, headers))
            await self._write(server.name, kept, secret)
            await server.take(kept, secret)

    async def remove(self, server: Server) -> None:
        """Forget a server that somebody connected, and what it was trusted with.

        Raises:
            Fault: connector.fixed.
        """
        if server.source == "config":
            raise Fault("connector.fixed", f"{server.name} stands in plugins.toml and is removed there.")
        name = server.name
        async with self._writing:
            await self.hub.kv.delete(f"server/{name}")
            await self._drop(server)
            for key in ("secret", "oauth"):
                await self.hub.secrets.delete(f"{key}/{name}")
            await self.hub.kv.delete(f"offer/{name}")

    async def _drop(self, server: Server) -> None:
        self._by_name.pop(server.name, None)
        await self.hub.drop_connector(server.name)

    # what is kept

    async def read(self, name: str) -> tuple[Kept, KeptSecret]:
        """What was changed of a server of plugins.toml."""
        value = await self.hub.kv.get(f"server/{name}")
        kept = msgspec.convert(value, Kept) if value is not None else Kept()
        if kept.url:  # it was connected by somebody before plugins.toml had one of that name
            return Kept(), KeptSecret()
        return kept, await self._read_secret(name)

    async def _read_secret(self, name: str) -> KeptSecret:
        text = await self.hub.secrets.get(f"secret/{name}")
        return msgspec.json.decode(text, type=KeptSecret) if text else KeptSecret()

    async def _write(self, name: str, kept: Kept, secret: KeptSecret) -> None:
        if secret.headers or secret.query:
            await self.hub.secrets.put(f"secret/{name}", msgspec.json.encode(secret).decode())
        else:
            await self.hub.secrets.delete(f"secret/{name}")
        await self.hub.kv.put(f"server/{name}", msgspec.to_builtins(kept))

    async def read_offer(self, name: str) -> Offer | None:
        """What a server offered last."""
        value = await self.hub.kv.get(f"offer/{name}")
        try:
            return msgspec.convert(value, Offer) if value is not None else None
        except msgspec.ValidationError:  # kept by another version
            return None

    async def keep_offer(self, name: str, offer: Offer) -> None:
        """Keep what a server offers now."""
        plain = msgspec.to_builtins(offer)
        if name in self._by_name and len(msgspec.json.encode(plain)) <= MAX_OFFER:
            await self.hub.kv.put(f"offer/{name}", plain)

    def same(self, kept: Kept, secret: KeptSecret) -> Server | None:
        """A server that was connected with exactly this, by the same user."""
        for server in self:
            alike = server.source == "user" and server.secret == secret
            if alike and msgspec.structs.replace(server.kept, ts=kept.ts) == kept:
                return server
        return None


def _merged(server: Server, headers: Mapping[str, str | None]) -> dict[str, str | None]:
    """Headers that are kept: by their names whatever their case, and those of plugins.toml as None where removed."""
    names = {name.lower(): name for name in (*server.given.headers, *server.secret.headers)}
    merged = dict(server.secret.headers)
    for given, value in headers.items():
        name = names.get(given.lower(), given)
        if value is None and name not in server.given.headers:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged
