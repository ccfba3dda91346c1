"""Resource planning: MCP servers for Productive.io and Smartsheet Resource Management, a preset, and old routes.

The servers are processes of their own, `sag-mcp-productive` and `sag-mcp-smartsheet`, which any MCP host can start.
They import this module on their way and have to start fast, so nothing of the hub is imported here: the hook's marker
is taken from pluggy, and what the hub needs besides is imported when it registers.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pluggy
from msgspec import Struct

if TYPE_CHECKING:
    from sag.plugin import Hub

hookimpl = pluggy.HookimplMarker("sag")


class Settings(Struct):
    """The table `[resourcing]` of plugins.toml. The servers' own settings stand in their environment.

    Attributes:
        rules: What the assistant is told besides, such as names of teams and house rules of planning.
    """

    rules: str = ""


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Add the preset `resourcing`, a conversation with the system prompt of resource planning, and the routes."""
    from sag_resourcing.prompt import SYSTEM_PROMPT
    from sag_resourcing.routes import Routes

    rules = hub.settings.rules.strip()
    prompt = f"{SYSTEM_PROMPT}\nRules of this house:\n\n{rules}\n" if rules else SYSTEM_PROMPT
    hub.add_preset(
        "resourcing",
        "Resource planning",
        {"system": prompt},
        "Who is free, and who works on what, in Productive and Smartsheet.",
    )
    routes = Routes(hub, version("sag-hub"), prompt)
    hub.add_route("POST /api/chat", routes.chat)
    hub.add_route("GET /api/health", routes.health)
    hub.add_route("GET /api/config", routes.config)
