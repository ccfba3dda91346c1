"""MCP servers as connectors: those of plugins.toml, and those that people connect by URL.

Here is what the hub calls; all that needs the SDK is imported when a server is first connected to, for it costs 60 MB
and most of a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from sag.plugin import Hub, hookimpl
from sag_mcp.callback import Callback
from sag_mcp.operations import ServerOperations
from sag_mcp.preferences import PreferenceOperations
from sag_mcp.server import MOUNT
from sag_mcp.servers import Servers, Settings

__all__ = ["Settings", "register", "startup"]

_servers: WeakKeyDictionary[Hub[Any], Servers] = WeakKeyDictionary()


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Add the servers of plugins.toml, and the operations on servers."""
    servers = _servers[hub] = Servers(hub)
    for server in servers:
        hub.add_connector(server)
    callback = Callback(servers)
    hub.add_mount(MOUNT, callback)
    own, theirs = ServerOperations(hub, servers, callback), PreferenceOperations(hub, servers)
    operations: tuple[Callable[..., Awaitable[Any]], ...] = (
        *(own.list, own.connect, own.discover, own.refresh, own.update, own.sign_in, own.remove, own.tools),
        *(theirs.get, theirs.set),
    )
    for operation in operations:
        hub.add_operation(operation)


@hookimpl
async def startup(hub: Hub[Settings]) -> None:
    """Add the servers that people connected."""
    await _servers.pop(hub).load()
