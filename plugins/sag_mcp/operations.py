"""Operations on MCP servers: list, connect by URL, look for, refresh, change, sign in, remove.

Whoever is signed in may connect a server; it is the hub's from then on, and changed by that user or an administrator
alone. A server is connected by URL, whatever the road: there is no member that could hold a command line, and one that
is sent all the same is refused rather than ignored. Secrets go in and are never told. Above: the hub. Below: `servers`.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from sag.plugin import Call, Change, Fault, Hub, Params, Policy, Secret, User, operation
from sag_mcp.address import PORTS, Address, Hosts, make_name, parse_url
from sag_mcp.callback import Callback
from sag_mcp.server import Changes, Kept, KeptSecret, Server
from sag_mcp.servers import Servers

Json = dict[str, Any]
Text = Annotated[str, Meta(max_length=200)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
HeaderName = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")]
HeaderValue = Annotated[str, Meta(max_length=8192, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]

MAX_HEADERS = 32
MAX_SWITCHES = 1000
# What the HTTP client says by itself.
RESERVED = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect"}
    | {"accept", "accept-encoding", "content-type", "mcp-session-id", "mcp-protocol-version", "last-event-id"}
)


class SecretSet(Struct):
    """A secret that is set."""

    set: bool = True


class McpServer(Struct, omit_defaults=True):
    """An MCP server.

    Attributes:
        id: Its connector's name.
        title, version: What people call it, what it says of itself.
        source: `config`: it stands in plugins.toml; `user`: somebody connected it.
        status: As the topic `hub` tells it: `starting`, `ready`, `idle`, `auth`, `backoff`, `failed`, `off`.
        error: Why it is down.
        url: Its address, without a query.
        command: The name of its program, for a server of plugins.toml.
        transport: As it was asked for.
        enabled: Whether it is connected to at all.
        lazy: Whether it is started only when a run needs it.
        policy: What becomes of calls of its tools unless a person decided otherwise.
        tool_count: How many tools runs are offered.
        tools: Its tools that are switched off for everybody, and those that were.
        headers: Those that are sent; their values are not told.
        allow: Hosts that an administrator allowed it although their addresses are private.
        by: The user who connected it.
        can_change: Whether the caller may change it and sign in to it.
        auth_url: A page of the hub that leads to where the caller signs in, while that is needed.
        notes: What else is worth knowing.
    """

    id: str
    title: str
    source: Literal["config", "user"]
    status: str
    enabled: bool
    lazy: bool
    tool_count: int
    can_change: bool
    version: str = ""
    error: str | None = None
    url: str | None = None
    command: str | None = None
    transport: str | None = None
    policy: Policy | None = None
    tools: dict[str, bool] = field(default_factory=dict)
    headers: dict[str, SecretSet] = field(default_factory=dict)
    allow: list[str] = field(default_factory=list)
    by: str = ""
    auth_url: str | None = None
    notes: list[str] = field(default_factory=list)


class McpServers(Struct):
    """MCP servers, those of plugins.toml first."""

    servers: list[McpServer]


class McpServerList(Params):
    """All of them."""


class McpServerId(Params):
    """Which server."""

    id: str


class McpServerChange(Change):
    """Which server."""

    id: str


class McpServerConnect(Change):
    """A server to connect to.

    Attributes:
        url: Its address, `https://…`.
        name: What tells it apart, and what stands before its tools' names; made of its title or host if left out.
        title: What people call it; its own title if left out.
        transport: `http` (streamable HTTP), `sse` (the older way), or `auto`, which tries them in this order.
        headers: Sent with each request, such as `Authorization`.
        policy: What becomes of calls of its tools unless a person decided otherwise; `auto` takes an administrator.
        lazy: Start it when a run needs it.
        allow: An administrator's word that its host may have a private address.
        command: Is refused: a program is started from plugins.toml alone.
    """

    url: str
    name: Text = ""
    title: Text = ""
    transport: Literal["auto", "http", "sse"] = "auto"
    headers: dict[HeaderName, HeaderValue] = field(default_factory=dict)
    policy: Policy | None = None
    lazy: bool = False
    allow: bool = False
    command: Any = None


class McpServerDiscover(Params):
    """Where to look for servers: a host, on the ports that are configured where it is one that is allowed, or a URL."""

    url: str = ""
    host: Text = ""
    command: Any = None


class McpEndpoint(Struct, omit_defaults=True):
    """A server that answered.

    Attributes:
        url: Where.
        transport: `http` or `sse`.
        title, version: What it says of itself.
        auth: It wants somebody to sign in, or a key in a header.
        server: Its id, where it is connected already.
    """

    url: str
    transport: Literal["http", "sse"]
    title: str = ""
    version: str = ""
    auth: bool = False
    server: str = ""


class McpDiscovered(Struct):
    """What a search came to.

    Attributes:
        endpoints: Servers that answered.
        asked: How many addresses were asked.
        complete: Whether there was time for all.
    """

    endpoints: list[McpEndpoint]
    asked: int
    complete: bool


class McpServerUpdate(Change):
    """What to change of a server; what is left out stays.

    Attributes:
        title: What people call it; "" for its own.
        enabled: Whether it is connected to at all.
        lazy: Start it when a run needs it.
        policy: What becomes of calls of its tools unless a person decided otherwise; null leaves that to their risk.
        headers: To be sent with each request; null takes one away. The others stay.
        tools: Tools that are offered or not, to everybody. The others stay.
        url, command: Are refused: a server at another address is another server.
    """

    id: str
    title: Text | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    lazy: bool | UnsetType = UNSET
    policy: Policy | UnsetType | None = UNSET
    headers: dict[HeaderName, HeaderValue | None] = field(default_factory=dict)
    tools: dict[Name, bool] | UnsetType = UNSET
    url: Any = None
    command: Any = None


class McpServerSignIn(Change):
    """Sign in to a server.

    Attributes:
        id: Which server.
        answer: The address that the browser ended up at, where it could not reach the hub by itself.
    """

    id: str
    answer: Annotated[str, Meta(max_length=8192)] = ""


class McpSignIn(Struct, omit_defaults=True):
    """Where to sign in, or that it is done.

    Attributes:
        auth_url: The page to visit; it is for the caller alone.
        done: Whether somebody is signed in now.
    """

    auth_url: str | None = None
    done: bool = False


class McpTool(Struct, omit_defaults=True):
    """A tool of a server.

    Attributes:
        name, title, description, risk: Of its definition.
        key: What tells it apart from all other tools.
        input: JSON Schema of its arguments.
        enabled: Whether runs are offered it at all.
        policy: What an administrator decided of it.
    """

    name: str
    key: str
    description: str
    enabled: bool
    risk: str = ""
    title: str = ""
    input: Json = field(default_factory=dict)
    policy: Policy | None = None


class McpTools(Struct):
    """The tools of a server."""

    tools: list[McpTool]


class McpServerRemoved(Struct):
    """Which server is gone."""

    id: str


class ServerOperations:
    """Operations on servers.

    Args:
        hub: The plugin's hub.
        servers: All servers.
        callback: Completes sign-ins.
    """

    def __init__(self, hub: Hub[Any], servers: Servers, callback: Callback) -> None:
        self._hub, self._servers, self._callback = hub, servers, callback

    @operation("mcp.server.list", who="user", rest="GET /api/mcp/servers/")
    async def list(self, call: Call, params: McpServerList) -> McpServers:
        """The MCP servers of the hub, how they are, and how many tools they have."""
        return McpServers([_view(server, call.me) for server in self._servers])

    @operation("mcp.server.connect", who="user", rest="POST /api/mcp/servers")
    async def connect(self, call: Call, params: McpServerConnect) -> McpServer:
        """Connect to an MCP server by its URL, for everybody on the hub; it stays connected over restarts."""
        _refuse_command(params.command)
        address = parse_url(params.url)
        _check_headers(params.headers)
        _check_admin(call.me, params.policy, params.allow)
        if params.name and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", params.name):
            text = "A name is a letter, then at most 39 letters, digits, _ or -."
            raise Fault("rpc.params", text, path="$.name")
        kept = Kept(
            url=address.shown,
            transport=params.transport,
            allow=[f"{address.host}:{address.port}"] if params.allow else [],
            by=call.me.id,
            ts=time.time_ns() // 1_000_000,
            changes=Changes(title=params.title or UNSET, lazy=params.lazy or UNSET, policy=params.policy or UNSET),
        )
        secret = KeptSecret(headers=dict(params.headers), query=address.query)
        if (same := self._same(params, kept, secret)) is not None:
            return _view(same, call.me)  # whoever got no answer asks again
        title = await self._greet(address, kept, secret)
        if (same := self._same(params, kept, secret)) is not None:
            return _view(same, call.me)
        name = params.name or make_name((params.title, title), address, self._servers.taken)
        server = await self._servers.connect(name, kept, secret)
        await server.settle()
        return _view(server, call.me)

    def _same(self, params: McpServerConnect, kept: Kept, secret: KeptSecret) -> Server | None:
        same = self._servers.same(kept, secret)
        return same if same is not None and params.name in ("", same.name) else None

    async def _greet(self, address: Address, kept: Kept, secret: KeptSecret) -> str:
        """Ask whether an MCP server answers there, before anything is kept; gives its title."""
        discovery = await _load()
        headers = {name: Secret(value) for name, value in secret.headers.items() if value is not None}
        async with discovery.make_client(self._hub, self._servers.hosts | Hosts(kept.allow), headers) as client:
            try:
                found = await discovery.probe(
                    client, address.url, kept.transport, self._hub.settings.defaults.connect_s
                )
            except discovery.Nothing as e:
                raise Fault("connector.failed", f"{address.shown}: {e}") from None
        if found.auth and "authorization" in map(str.lower, headers):
            raise Fault("connector.failed", f"{address.shown}: it refuses the credentials.", retry=False)
        return str(found.title)

    @operation("mcp.server.discover", who="user", rest="POST /api/mcp/servers/discover")
    async def discover(self, call: Call, params: McpServerDiscover) -> McpDiscovered:
        """Look for MCP servers at a host or URL; on hosts that are allowed, on the ports that are configured."""
        _refuse_command(params.command)
        discovery = await _load()
        async with discovery.make_client(self._hub, self._servers.hosts) as client:
            found = await discovery.search(client, self._places(params, discovery.PATHS))
        known = {server.address.url: server.name for server in self._servers if server.address is not None}
        endpoints = [
            McpEndpoint(f.url, f.transport, f.title, f.version, f.auth, known.get(f.url, "")) for f in found.found
        ]
        return McpDiscovered(endpoints, found.asked, found.complete)

    def _places(self, params: McpServerDiscover, paths: tuple[str, ...]) -> Sequence[Address]:
        """Addresses to ask, the one that was named first."""
        if bool(params.url) == bool(params.host):
            raise Fault("rpc.params", "Give either a host or a URL.", path="$.url" if params.url else "$.host")
        if params.url:
            first = parse_url(params.url)
        else:
            first = parse_url(f"https://{params.host}", "host")
            if first.path or first.query:
                raise Fault("rpc.params", "A host is a name or an address, with a port or without.", path="$.host")
            if first.port != PORTS["https"]:
                first = first._replace(scheme="http")
        places = [first]
        if self._servers.hosts.covers_host(first.host):
            places += [Address("http", first.host, port, "", "") for port in self._servers.ports]
        rooted = [place._replace(path=path) for place in places for path in paths]
        named = [] if first.path in ("", "/") else [first]
        return list(dict.fromkeys([*named, *(rooted[len(paths) :] if named else rooted)]))

    @operation("mcp.server.refresh", who="user", rest="POST /api/mcp/servers/{id}/refresh")
    async def refresh(self, call: Call, params: McpServerChange) -> McpServer:
        """Connect to a server at once if it is down, else ask it anew what it offers."""
        server = self._servers[params.id]
        await server.refresh()
        return _view(server, call.me)

    @operation("mcp.server.update", who="user", rest="PATCH /api/mcp/servers/{id}")
    async def update(self, call: Call, params: McpServerUpdate) -> McpServer:
        """Change a server's title, switches, policy or headers, for everybody."""
        server = self._servers[params.id]
        server.check_change(call.me)
        if params.url is not None or params.command is not None:
            if server.source == "config":
                raise Fault("connector.fixed", f"{server.name} stands in plugins.toml; its address is changed there.")
            _refuse_command(params.command)
            raise Fault("connector.fixed", "A server at another address is another server: connect to it.")
        _check_headers(params.headers)
        _check_admin(call.me, params.policy if isinstance(params.policy, str) else None)
        if len({*server.settings.headers, *params.headers}) > MAX_HEADERS:
            raise Fault("rpc.params", f"There are at most {MAX_HEADERS} headers.", path="$.headers")
        if server.address is None and params.headers:
            raise Fault("rpc.params", "A server that is a program is sent no headers.", path="$.headers")
        if isinstance(params.tools, dict) and len({*server.settings.tools, *params.tools}) > MAX_SWITCHES:
            raise Fault("rpc.params", f"At most {MAX_SWITCHES} tools can be switched.", path="$.tools")
        changes = Changes(params.title, params.enabled, params.lazy, params.policy, params.tools)
        await self._servers.change(server, changes, params.headers)
        return _view(server, call.me)

    @operation("mcp.server.sign_in", who="user", rest="POST /api/mcp/servers/{id}/sign_in")
    async def sign_in(self, call: Call, params: McpServerSignIn) -> McpSignIn:
        """Begin to sign in to a server, or complete it with the address that the browser was sent back to."""
        server = self._servers[params.id]
        if params.answer:
            await self._callback.complete_url(call.me, params.answer)
            return McpSignIn(done=True)
        flow = await server.begin_sign_in(call.me)
        return McpSignIn(flow.url.result())

    @operation("mcp.server.remove", who="user", rest="DELETE /api/mcp/servers/{id}")
    async def remove(self, call: Call, params: McpServerChange) -> McpServerRemoved:
        """Forget a server that somebody connected, with its headers and tokens."""
        server = self._servers[params.id]
        if server.source == "user":
            server.check_change(call.me)
        await self._servers.remove(server)
        return McpServerRemoved(params.id)

    @operation("mcp.server.tools", who="user", rest="GET /api/mcp/servers/{id}/tools")
    async def tools(self, call: Call, params: McpServerId) -> McpTools:
        """The tools of a server, those that are switched off for everybody too."""
        server = self._servers[params.id]
        shown = {
            t.name: McpTool(t.name, t.key, t.description, True, t.risk, t.title, t.input, t.policy)
            for t in server.tools()
        }
        listed = {tool.get("name"): tool for tool in (server.offer.tools if server.offer else [])}
        for name, is_on in server.settings.tools.items():
            if not is_on and (tool := listed.get(name)) is not None:
                text, title = str(tool.get("description") or ""), str(tool.get("title") or "")
                key = f"{server.name}/{name}"
                shown[name] = McpTool(name, key, text, False, title=title, input=tool.get("inputSchema") or {})
        return McpTools(list(shown.values()))


def _view(server: Server, user: User) -> McpServer:
    health, settings = server.health(), server.settings
    may = server.may_change(user)
    return McpServer(
        server.name,
        health.title,
        server.source,
        health.status,
        settings.enabled,
        settings.lazy,
        len(server.tools()),
        may,
        version=health.version,
        error=health.error,
        url=server.place.get("url"),
        command=server.place.get("command"),
        transport=settings.transport if server.address is not None else None,
        policy=settings.policy,
        tools=settings.tools,
        headers={name: SecretSet() for name in settings.headers},
        allow=server.kept.allow,
        by=server.kept.by,
        auth_url=health.data.get("auth_url") if may else None,
        notes=health.notes,
    )


def _refuse_command(command: Any) -> None:
    if command is not None:
        text = "A program is started from plugins.toml alone; give the URL of a server."
        raise Fault("access.denied", text, path="$.command")


def _check_headers(headers: Any) -> None:
    if len(headers) > MAX_HEADERS:
        raise Fault("rpc.params", f"There are at most {MAX_HEADERS} headers.", path="$.headers")
    for name in headers:
        if name.lower() in RESERVED:
            raise Fault("rpc.params", f"The header {name} is the hub's own to send.", path=f"$.headers.{name}")


def _check_admin(user: User, policy: Policy | None, allow: bool = False) -> None:
    """What changes more for other people than a server more: an administrator's to say."""
    if "admin" in user.roles:
        return
    if allow:
        raise Fault("access.denied", "An administrator may allow a host with a private address.", path="$.allow")
    if policy == "auto":
        raise Fault("access.denied", "An administrator may let all calls of a server go ahead.", path="$.policy")


async def _load() -> ModuleType:
    """What needs the HTTP client, imported beside the loop."""
    return await asyncio.to_thread(importlib.import_module, "sag_mcp.discovery")
