"""A device's switches and policies of MCP servers and their tools, as one document.

It is a view of the section `tools` of the device's settings, `client:<id>`: what is set here and what is set there is
the same, and all devices of the user are told of it by the same event. Above: the hub. Below: `config.get` and
`config.patch`.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from sag.plugin import Call, Change, Fault, Hub, Params, Policy, operation
from sag_mcp.servers import Servers

Json = dict[str, Any]
Name = Annotated[str, Meta(min_length=1, max_length=200)]

TRIES = 5  # against others who patch the same settings


class McpToolPreference(Struct, omit_defaults=True):
    """What a device decides of a tool; what is left out is as for its server."""

    enabled: bool | None = None
    policy: Policy | None = None


class McpServerPreference(Struct):
    """What a device decides of a server and of its tools.

    Attributes:
        enabled: Whether runs of the device are offered its tools.
        policy: Whether calls go ahead, ask first or are refused; null leaves that to the tools.
        tools: By name, those that differ.
    """

    enabled: bool = True
    policy: Policy | None = None
    tools: dict[Name, McpToolPreference] = field(default_factory=dict)


class McpPreferenceGet(Params):
    """Whose: a device or frontend, `chat`, `hall-1`."""

    client_id: str


class McpPreferenceSet(Change):
    """What a device decides. A server that is named is replaced as a whole, tools included; others stay as they are."""

    client_id: str
    servers: dict[Name, McpServerPreference]


class McpPreferences(Struct):
    """What a device decides of each server."""

    client_id: str
    servers: dict[str, McpServerPreference]


class PreferenceOperations:
    """Operations on a device's preferences.

    Args:
        hub: The plugin's hub.
        servers: All servers.
    """

    def __init__(self, hub: Hub[Any], servers: Servers) -> None:
        self._hub, self._servers = hub, servers

    @operation("mcp.preference.get", who="user", rest="GET /api/mcp/preferences/{client_id}")
    async def get(self, call: Call, params: McpPreferenceGet) -> McpPreferences:
        """What a device decides of each MCP server and its tools."""
        _, tools = await self._read(call, params.client_id)
        return self._view(params.client_id, tools)

    @operation("mcp.preference.set", who="user", rest="PUT /api/mcp/preferences/{client_id}")
    async def set(self, call: Call, params: McpPreferenceSet) -> McpPreferences:
        """Decide on a device of MCP servers and their tools. All devices of the user see it; it holds for this one."""
        for name in params.servers:
            self._servers[name]  # raises where there is none
        for attempt in range(TRIES):
            rev, tools = await self._read(call, params.client_id)
            patch = _patch(tools, params.servers)
            if not patch:
                break
            change = {"scope": f"client:{params.client_id}", "patch": {"tools": patch}, "rev": rev}
            try:
                await self._hub.call(call.me, "config.patch", change, client=call.client)
                break
            except Fault as e:
                if e.kind != "config.conflict" or attempt == TRIES - 1:
                    raise
        _, tools = await self._read(call, params.client_id)
        return self._view(params.client_id, tools)

    async def _read(self, call: Call, client_id: str) -> tuple[int, Json]:
        scope = {"scope": f"client:{client_id}"}
        view = await self._hub.call(call.me, "config.get", scope, client=call.client)
        return view["rev"], view["config"].get("tools", {})

    def _view(self, client_id: str, tools: Json) -> McpPreferences:
        servers = {server.name: McpServerPreference() for server in self._servers}
        for key, switch in tools.items():
            name, _, tool = key.partition("/")
            if (server := servers.get(name)) is None:
                continue
            if tool:
                server.tools[tool] = McpToolPreference(switch.get("enabled"), switch.get("policy"))
            else:
                server.enabled, server.policy = switch.get("enabled") is not False, switch.get("policy")
        return McpPreferences(client_id, servers)


def _patch(tools: Json, servers: dict[str, McpServerPreference]) -> Json:
    """The merge patch on the section `tools` after which it says of these servers just what is given."""
    wanted: Json = {}
    for name, server in servers.items():
        if switch := _switch(None if server.enabled else False, server.policy):
            wanted[name] = switch
        for tool, preference in server.tools.items():
            if switch := _switch(preference.enabled, preference.policy):
                wanted[f"{name}/{tool}"] = switch
    patch: Json = {key: None for key in tools if key.partition("/")[0] in servers and key not in wanted}
    for key, switch in wanted.items():
        if (now := tools.get(key)) != switch:
            patch[key] = {**dict.fromkeys(now or {}), **switch}
    return patch


def _switch(enabled: bool | None, policy: Policy | None) -> Json:
    return ({} if enabled is None else {"enabled": enabled}) | ({} if policy is None else {"policy": policy})
