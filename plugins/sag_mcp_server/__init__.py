"""The hub as an MCP server at `/mcp`: its tools, a chat, and its connectors' prompts and resources, for other hosts.

Here is what is known before the first request: settings, and the application that is mounted. All that needs the SDK
is imported when a host first comes, for it costs 60 MB and most of a second.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sag.plugin import Hub, hookimpl
from sag_mcp_server.endpoint import Endpoint

PATH = "/mcp"


class Settings(Struct, forbid_unknown_fields=True):
    """The table `[mcp-server]` of plugins.toml.

    Attributes:
        sessions: How many hosts may hold a session at the same time.
        idle_s: A session without a request or an open stream for so long is closed.
        waiting_s: How long a call waits for its host to come back with an answer.
    """

    sessions: Annotated[int, Meta(ge=1)] = 200
    idle_s: Annotated[float, Meta(gt=0)] = 1800.0
    waiting_s: Annotated[float, Meta(gt=0)] = 600.0


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Mount the server."""
    hub.add_mount(PATH, Endpoint(hub, PATH))
